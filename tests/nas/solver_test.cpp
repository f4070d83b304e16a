// The solver against brute force over all subsets of layers.
#include "nas/solver.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "nas/pareto.h"
#include "tests/catch.h"
#include "tests/nas/instances.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;
using minipuzzle::nas::testing::architecture_of;
using minipuzzle::nas::testing::Random;
using minipuzzle::nas::testing::random_pattern;
using minipuzzle::nas::testing::random_scores;

namespace {

struct Instance {
    Architecture teacher;
    ScoreTable scores;
    SearchOptions options;
    std::vector<std::optional<int64_t>> widths = {std::nullopt};  // the grid, widest first
    Limits limits;
};

// A student as brute force knows it.
struct Brute {
    StudentPlan plan;
    std::array<int64_t, 3> kept{};  // Mamba, attention, FFN
    std::size_t width = 0;
    int64_t total = 0, params = 0;
    std::vector<int64_t> fit_totals;
    double value = 0;
    bool by_score = true;
};

bool allowed(const Limits& limits, const Brute& student) {
    for (std::size_t fit = 0; fit < limits.fits.size(); ++fit)
        if (student.fit_totals[fit] > limits.fits[fit]) return false;
    return (!limits.bytes || student.total <= *limits.bytes) &&
           (!limits.params || student.params <= *limits.params);
}

void vary_sizes(Random& random, Architecture& teacher) {
    for (Layer& layer : teacher.layers) {
        if (auto* mamba = std::get_if<Mamba>(&layer)) mamba->head_dim = 2 + random.below(4);
        if (auto* attention = std::get_if<Attention>(&layer)) attention->head_dim = 2 + random.below(4);
    }
}

Choices random_counts(Random& random, const Instance& instance, LayerType type) {
    Choices choices;
    if (!random.chance(4)) return choices;
    int64_t unscored = 0;
    for (const LayerScore& layer : instance.scores.layers)
        if (layer.type == type && !layer.loss_delta) ++unscored;
    const int64_t count = instance.teacher.count(type);
    for (int64_t kept = unscored; kept <= count; ++kept)
        if (random.chance(2) || kept == count) choices.values.push_back(kept);
    return choices;
}

Instance random_instance(uint64_t seed, bool alike) {
    Random random(seed);
    Instance instance;
    instance.teacher = architecture_of(random_pattern(random, 1 + random.below(7)), 16);
    if (!alike) vary_sizes(random, instance.teacher);
    instance.scores = random_scores(random, instance.teacher);
    instance.options.workload = {.context = 1 + random.below(64), .batch = 1 + random.below(3)};
    instance.options.workload.weights = random.chance(2) ? ElementType::nvfp4 : ElementType::bf16;
    instance.options.mamba_layers = random_counts(random, instance, LayerType::mamba);
    instance.options.attention_layers = random_counts(random, instance, LayerType::attention);
    instance.options.ffn_layers = random_counts(random, instance, LayerType::ffn);
    if (random.chance(2) && instance.teacher.count(LayerType::ffn) > 0)
        for (const int64_t width : {12, 8}) {
            instance.scores.ffn_width_curve.push_back(
                {.ffn_width = width, .loss_delta = static_cast<double>(random.below(8)) / 64, .kl = {}});
            instance.widths.push_back(width);
        }
    const int64_t total = memory_of(instance.teacher, instance.options.workload).total();
    instance.limits.bytes = total * (30 + random.below(75)) / 100;
    if (random.chance(3))
        instance.limits.params = parameters(instance.teacher) * (50 + random.below(50)) / 100;
    for (int64_t fit = random.below(3); fit > 0; --fit) {
        instance.options.fits.push_back({.context = 1 + random.below(256), .batch = 1 + random.below(4)});
        const Workload at = workload_at(instance.options.workload, instance.options.fits.back());
        instance.limits.fits.push_back(memory_of(instance.teacher, at).total() * (30 + random.below(75)) /
                                       100);
    }
    return instance;
}

bool count_allowed(const Choices& choices, int64_t kept) {
    return choices.values.empty() ||
           std::find(choices.values.begin(), choices.values.end(), kept) != choices.values.end();
}

// "Keep the best by score within each type; ties drop the higher index", said of pairs of layers.
bool is_by_score(const Instance& instance, const StudentPlan& plan) {
    for (const LayerScore& kept : instance.scores.layers)
        for (const LayerScore& gone : instance.scores.layers) {
            if (kept.type != gone.type || plan.drops(kept.layer) || !plan.drops(gone.layer)) continue;
            if (!kept.loss_delta) continue;
            if (*kept.loss_delta < *gone.loss_delta) return false;
            if (*kept.loss_delta == *gone.loss_delta && kept.layer > gone.layer) return false;
        }
    return true;
}

std::optional<Brute> brute_student(const Instance& instance, unsigned mask, std::size_t width) {
    Brute brute;
    brute.width = width;
    brute.plan.ffn_width = instance.widths[width];
    brute.value = *instance.scores.base_loss;
    for (const LayerScore& layer : instance.scores.layers) {
        if (!(mask >> layer.layer & 1)) {
            ++brute.kept[static_cast<std::size_t>(layer.type)];
            continue;
        }
        if (!layer.loss_delta) return std::nullopt;
        brute.plan.drop.push_back(layer.layer);
        brute.value += *layer.loss_delta;
    }
    const auto [mamba, attention, ffn] = brute.kept;
    if (mamba + attention + ffn == 0 || (ffn == 0 && width > 0)) return std::nullopt;
    if (!count_allowed(instance.options.mamba_layers, mamba) ||
        !count_allowed(instance.options.attention_layers, attention) ||
        !count_allowed(instance.options.ffn_layers, ffn))
        return std::nullopt;
    if (width > 0) brute.value += instance.scores.ffn_width_curve[width - 1].loss_delta;
    const Architecture student = student_architecture(instance.teacher, brute.plan);
    brute.total = memory_of(student, instance.options.workload).total();
    for (const Fit& fit : instance.options.fits)
        brute.fit_totals.push_back(memory_of(student, workload_at(instance.options.workload, fit)).total());
    brute.params = parameters(student);
    brute.by_score = is_by_score(instance, brute.plan);
    return brute;
}

std::vector<Brute> all_students(const Instance& instance) {
    std::vector<Brute> students;
    for (unsigned mask = 0; mask < 1u << instance.teacher.layers.size(); ++mask)
        for (std::size_t width = 0; width < instance.widths.size(); ++width)
            if (const std::optional<Brute> brute = brute_student(instance, mask, width))
                students.push_back(*brute);
    return students;
}

// Whether `more` is `less` with only the next allowed count of one type, or only the next wider width.
bool is_next_above(const std::vector<Brute>& space, const Brute& less, const Brute& more) {
    int changed = 0;
    for (std::size_t t = 0; t < 3; ++t) {
        if (more.kept[t] == less.kept[t]) continue;
        if (more.kept[t] < less.kept[t]) return false;
        ++changed;
        for (const Brute& between : space)
            if (between.kept[t] > less.kept[t] && between.kept[t] < more.kept[t]) return false;
    }
    const bool width_is_free = less.kept[2] == 0;  // no FFN: any width counts as unchanged
    if (changed == 1) return width_is_free || more.width == less.width;
    return changed == 0 && more.width + 1 == less.width;
}

using Key = std::tuple<std::vector<int64_t>, std::optional<int64_t>>;
Key key(const StudentPlan& plan) { return {plan.drop, plan.ffn_width}; }

void check_against_brute_force(const Instance& instance) {
    const Surrogate surrogate = make_surrogate(instance.scores, Objective::loss_delta);
    const Space space(instance.teacher, surrogate, instance.options);
    const Solution solution = solve(space, instance.limits);

    std::vector<Brute> students;
    for (const Brute& brute : all_students(instance))
        if (brute.by_score) students.push_back(brute);
    REQUIRE(solution.students == static_cast<int64_t>(students.size()));

    std::set<Key> maximal;
    std::optional<double> optimum;
    for (const Brute& student : students) {
        if (!allowed(instance.limits, student)) continue;
        optimum = std::min(optimum.value_or(student.value), student.value);
        const bool grows = std::any_of(students.begin(), students.end(), [&](const Brute& more) {
            return allowed(instance.limits, more) && is_next_above(students, student, more);
        });
        if (!grows) maximal.insert(key(student.plan));
    }
    REQUIRE(solution.optimum.has_value() == optimum.has_value());
    if (optimum) REQUIRE(solution.optimum->value == *optimum);
    std::set<Key> found;
    for (const Student& student : solution.maximal) {
        const StudentPlan plan = space.plan(student.point);
        found.insert(key(plan));
        REQUIRE(student.total == memory_of(instance.teacher, plan, instance.options.workload).total());
        for (std::size_t fit = 0; fit < space.fits(); ++fit)
            REQUIRE(space.fit_total(fit, student.point) ==
                    memory_of(instance.teacher, plan,
                              workload_at(instance.options.workload, instance.options.fits[fit]))
                        .total());
        REQUIRE(space.predicted(student.point).value == predict(surrogate, instance.teacher, plan).value);
    }
    REQUIRE(found == maximal);
    REQUIRE(std::is_sorted(solution.maximal.begin(), solution.maximal.end(), better));

    std::set<std::pair<int64_t, double>> frontier, expected;
    for (const Student& student : solution.frontier) frontier.insert({student.total, student.value});
    for (const Brute& student : students) {
        const bool beaten = std::any_of(students.begin(), students.end(), [&](const Brute& other) {
            return other.total <= student.total && other.value <= student.value &&
                   (other.total < student.total || other.value < student.value);
        });
        if (!beaten) expected.insert({student.total, student.value});
    }
    REQUIRE(frontier == expected);
    REQUIRE(solution.frontier.size() == frontier.size());
}

}  // namespace

TEST_CASE("the search equals brute force over its space, layers of a type alike") {
    for (uint64_t seed = 0; seed < 2000; ++seed) {
        INFO("seed " << seed);
        check_against_brute_force(random_instance(seed, true));
    }
}

TEST_CASE("the search equals brute force over its space, every layer with its own size") {
    for (uint64_t seed = 10000; seed < 12000; ++seed) {
        INFO("seed " << seed);
        check_against_brute_force(random_instance(seed, false));
    }
}

TEST_CASE("at fixed counts, keeping the best by score per type beats every other subset") {
    for (uint64_t seed = 20000; seed < 21000; ++seed) {
        INFO("seed " << seed);
        const Instance instance = random_instance(seed, true);
        const std::vector<Brute> students = all_students(instance);
        for (const Brute& chosen : students) {
            if (!chosen.by_score) continue;
            for (const Brute& other : students)
                if (other.kept == chosen.kept && other.width == chosen.width)
                    REQUIRE(other.value >= chosen.value);
        }
    }
}

TEST_CASE("the frontier is every byte budget's optimum") {
    for (uint64_t seed = 30000; seed < 30300; ++seed) {
        Instance instance = random_instance(seed, false);
        instance.limits = {};
        const Surrogate surrogate = make_surrogate(instance.scores, Objective::loss_delta);
        const Space space(instance.teacher, surrogate, instance.options);
        const Solution all = solve(space, instance.limits);
        for (const Student& point : all.frontier) {
            instance.limits.bytes = point.total;
            REQUIRE(solve(space, instance.limits).optimum->value == point.value);
            instance.limits.bytes = point.total - 1;
            const std::optional<Student> below = solve(space, instance.limits).optimum;
            REQUIRE((!below || below->value > point.value));
        }
    }
}

TEST_CASE("the Pareto set keeps one of equals and nothing that is beaten") {
    const std::vector<TradeOff> points = {{5, 1.0}, {3, 2.0}, {3, 2.0}, {4, 2.0},
                                          {3, 3.0}, {9, 0.5}, {9, 1.5}};
    CHECK(pareto_set(points) == std::vector<std::size_t>{1, 0, 5});
    CHECK(pareto_set({}).empty());
}
