// Students chosen layer by layer, against every student there is.
#include "nas/free_space.h"

#include <algorithm>

#include "nas/count_solver.h"
#include "nas/free_search.h"
#include "tests/catch.h"
#include "tests/nas/instances.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;
using Catch::Matchers::Contains;
using minipuzzle::nas::testing::architecture_of;
using minipuzzle::nas::testing::Random;
using minipuzzle::nas::testing::random_pattern;
using minipuzzle::nas::testing::random_scores;

namespace {

struct Instance {
    Architecture teacher;
    ScoreTable scores;
    SearchOptions options;
};

Choices random_counts(Random& random, int64_t least, int64_t layers) {
    Choices choices;
    if (random.chance(3))
        for (int64_t count = least; count <= layers; ++count)
            if (count == layers || random.chance(2)) choices.values.push_back(count);
    return choices;
}

// Pinned and forbidden layers, two workloads, parameters, counts with gaps, pairs of both signs, common
// widths or widths of single layers: each in some instances.
Instance random_instance(uint64_t seed) {
    Random random(seed);
    Instance instance;
    SearchOptions& options = instance.options;
    instance.teacher = architecture_of(random_pattern(random, 2 + random.below(5)), 16);
    for (Layer& layer : instance.teacher.layers)
        if (auto* mamba = std::get_if<Mamba>(&layer); mamba && random.chance(3)) mamba->head_dim = 6;
    instance.scores = random_scores(random, instance.teacher);
    const int64_t layers = static_cast<int64_t>(instance.teacher.layers.size());
    if (!random.chance(3)) {
        instance.scores.pairs = {.window = layers, .sequences = 8, .pairs = {}};
        for (int64_t i = 0; i < layers; ++i)
            for (int64_t j = i + 1; j < layers; ++j)
                if (!random.chance(3))
                    instance.scores.pairs->pairs.push_back(
                        {i, j, 0, static_cast<double>(random.below(15) - 7) / 64, {}});
    }
    const bool has_ffn = instance.teacher.count(LayerType::ffn) > 0;
    if (has_ffn && random.chance(2))
        for (const int64_t width : {12, 8})
            instance.scores.ffn_width_curve.push_back(
                {.ffn_width = width, .loss_delta = static_cast<double>(random.below(8)) / 64, .kl = {}});
    if (!instance.scores.ffn_width_curve.empty() && random.chance(2)) options.ffn_widths.values = {8, 12};
    if (instance.teacher.count(LayerType::mamba) > 0 && random.chance(4)) options.mamba_heads = 1;
    options.workload = {.context = 1 + random.below(64), .batch = 1};
    options.workload.weights = random.chance(2) ? ElementType::nvfp4 : ElementType::bf16;
    options.mem_budget =
        memory_of(instance.teacher, options.workload).total() * (40 + random.below(60)) / 100;
    if (random.chance(2)) {
        Fit fit{.context = 1 + random.below(200), .batch = 2};
        fit.bytes = memory_of(instance.teacher, workload_at(options.workload, fit)).total() *
                    (40 + random.below(60)) / 100;
        options.fits.push_back(fit);
    }
    if (random.chance(3)) options.max_params = parameters(instance.teacher) * (50 + random.below(50)) / 100;
    for (int64_t layer = 0; layer < layers; ++layer) {
        const bool scored = instance.scores.layers[static_cast<std::size_t>(layer)].loss_delta.has_value();
        if (random.chance(8))
            options.keep.push_back(layer);
        else if (scored && random.chance(8))
            options.drop.push_back(layer);
    }
    int64_t unscored = 0;
    for (const LayerScore& layer : instance.scores.layers)
        if (layer.type == LayerType::mamba && !layer.loss_delta) ++unscored;
    if (options.keep.empty() && options.drop.empty() && random.chance(2))
        options.mamba_layers = random_counts(random, unscored, instance.teacher.count(LayerType::mamba));
    return instance;
}

// Whether the options allow the student: said of the plan alone.
bool allowed(const Instance& instance, const StudentPlan& plan) {
    const SearchOptions& options = instance.options;
    for (const int64_t layer : options.keep)
        if (plan.drops(layer)) return false;
    for (const int64_t layer : options.drop)
        if (!plan.drops(layer)) return false;
    for (const int64_t layer : plan.drop)
        if (!instance.scores.layers[static_cast<std::size_t>(layer)].loss_delta) return false;
    const Architecture student = student_architecture(instance.teacher, plan);
    if (student.layers.empty()) return false;
    const std::vector<int64_t>& counts = options.mamba_layers.values;
    if (!counts.empty() &&
        std::find(counts.begin(), counts.end(), student.count(LayerType::mamba)) == counts.end())
        return false;
    if (memory_of(instance.teacher, plan, options.workload).total() > options.mem_budget) return false;
    for (const Fit& fit : options.fits)
        if (memory_of(instance.teacher, plan, workload_at(options.workload, fit)).total() > fit.bytes)
            return false;
    return !options.max_params || parameters(student) <= *options.max_params;
}

// Every plan: all sets of layers, all common widths or all widths of the single FFNs that have a score.
template <class Visit>
void for_each_plan(const Instance& instance, Visit visit) {
    const int64_t layers = static_cast<int64_t>(instance.teacher.layers.size());
    const bool own = !instance.options.ffn_widths.values.empty();
    const std::vector<int64_t> widths =
        instance.scores.ffn_width_curve.empty() ? std::vector<int64_t>{16} : std::vector<int64_t>{16, 12, 8};
    for (unsigned mask = 0; mask < 1u << layers; ++mask) {
        std::vector<int64_t> dropped, ffns, narrowable;
        bool has_mamba = false;
        for (int64_t layer = 0; layer < layers; ++layer) {
            const LayerScore& score = instance.scores.layers[static_cast<std::size_t>(layer)];
            if (mask >> layer & 1)
                dropped.push_back(layer);
            else if (score.type == LayerType::ffn)
                ffns.push_back(layer);
            else
                has_mamba |= score.type == LayerType::mamba;
            if (!(mask >> layer & 1) && score.type == LayerType::ffn && score.loss_delta)
                narrowable.push_back(layer);
        }
        std::size_t variants = 1;
        if (own)
            for (std::size_t i = 0; i < narrowable.size(); ++i) variants *= widths.size();
        else if (!ffns.empty())
            variants = widths.size();
        for (std::size_t variant = 0; variant < variants; ++variant) {
            StudentPlan plan{.drop = dropped};
            if (has_mamba) plan.mamba_heads_per_group = instance.options.mamba_heads;
            std::size_t rest = variant;
            if (own)
                for (const int64_t layer : narrowable) {
                    if (rest % widths.size() > 0) plan.ffn_widths[layer] = widths[rest % widths.size()];
                    rest /= widths.size();
                }
            else if (rest > 0)
                plan.ffn_width = widths[rest];
            visit(plan);
        }
    }
}

void check_equal(const ChoiceSolution& expected, const ChoiceSolution& found) {
    REQUIRE(found.status == expected.status);
    if (expected.status != ChoiceStatus::infeasible)
        REQUIRE(found.cost == Approx(expected.cost).epsilon(1e-12));
}

void check_against_every_student(const Instance& instance, bool by_cbc) {
    const Surrogate surrogate = make_surrogate(instance.scores, Objective::loss_delta);
    const FreeSpace space(instance.teacher, surrogate, instance.options);
    std::optional<double> best;
    for_each_plan(instance, [&](const StudentPlan& plan) {
        const bool fits = allowed(instance, plan);
        REQUIRE(space.fits(plan) == fits);
        if (!fits) return;
        const auto place = space.place(plan);
        const double value = predict_with(Predictor::automatic, surrogate, instance.teacher, plan).value;
        // Widths of single layers are shares of a term, no exact fractions.
        REQUIRE(cost_of(space.problem(place->width), place->assignment) == Approx(value).epsilon(1e-12));
        REQUIRE(space.plan(place->width, place->assignment) == plan);
        best = std::min(best.value_or(value), value);
    });
    for (std::size_t width = 0; width < space.widths().size(); ++width) {
        const ChoiceProblem& problem = space.problem(width);
        const ChoiceSolution expected = solve_by_enumeration(problem);
        if (counts_decide(problem)) check_equal(expected, solve_by_counts(problem, {.restarts = 0}));
        if (by_cbc) check_equal(expected, solve_by_cbc(problem, {.restarts = -1}));
    }
    const FreeStudent found = search_free(space, {}, 60);
    REQUIRE(found.proven);
    REQUIRE(found.plan.has_value() == best.has_value());
    if (!best) return;
    REQUIRE(allowed(instance, *found.plan));
    REQUIRE(predict_with(Predictor::automatic, surrogate, instance.teacher, *found.plan).value ==
            Approx(*best).epsilon(1e-12));
    REQUIRE(found.bound == Approx(*best).epsilon(1e-12));
}

}  // namespace

TEST_CASE("students chosen layer by layer equal brute force") {
    for (uint64_t seed = 0; seed < 1000; ++seed) {
        INFO("seed " << seed);
        Instance instance = random_instance(seed);
        if (instance.options.drop.size() == instance.teacher.layers.size()) continue;
        check_against_every_student(instance, seed % 5 == 0);
    }
}

TEST_CASE("search lists the best student of all first, with its proof") {
    int64_t better = 0;
    for (uint64_t seed = 2000; seed < 2200; ++seed) {
        INFO("seed " << seed);
        const Instance instance = random_instance(seed);
        const Surrogate surrogate = make_surrogate(instance.scores, Objective::loss_delta);
        std::optional<double> best;
        for_each_plan(instance, [&](const StudentPlan& plan) {
            if (!allowed(instance, plan)) return;
            const double value = predict_with(Predictor::automatic, surrogate, instance.teacher, plan).value;
            best = std::min(best.value_or(value), value);
        });
        if (!best) {
            REQUIRE_THROWS_AS(search(instance.teacher, instance.scores, instance.options, {}), Error);
            continue;
        }
        const SearchResult result = search(instance.teacher, instance.scores, instance.options, {});
        REQUIRE(result.proven);
        REQUIRE(result.candidates.front().predicted.value == Approx(*best).epsilon(1e-12));
        REQUIRE(result.bound == Approx(*best).epsilon(1e-12));
        REQUIRE((result.predictor == Predictor::pairs) == surrogate.interactions.has_value());
        if (result.solver != "enumeration" || result.seconds) ++better;
    }
    CHECK(better > 100);
}

// As deep as the 56B: pairs of layers up to four apart, two limits.
TEST_CASE("118 layers with pairs in a window are solved to proven optimality", "[slow]") {
    Random random(3);
    ChoiceProblem problem;
    problem.fixed = {0, 0};
    int64_t first = 0, second = 0;
    for (int64_t layer = 0; layer < 118; ++layer) {
        const bool attention = layer % 12 == 7, mamba = layer % 2 == 0;
        std::vector<int64_t> weights = {1'700'017, 0};
        if (attention) weights = {400'009, 900'001};
        if (mamba) weights = {1'000'003, 200'003};
        first += weights[0];
        second += weights[1];
        const double cost = 0.002 + 0.03 * static_cast<double>(random.below(1000)) / 1000;
        problem.items.push_back({{.cost = 0, .weights = weights}, {.cost = cost, .weights = {0, 0}}});
    }
    for (std::size_t j = 1; j < 118; ++j)
        for (std::size_t i = j - std::min<std::size_t>(j, 4); i < j; ++i)
            problem.pairs.push_back({i, 1, j, 1, static_cast<double>(random.below(1000) - 300) * 1e-5});
    problem.constraints = {{.name = "memory", .rows = {0}, .upper = first * 3 / 4},
                           {.name = "memory", .rows = {1}, .upper = second * 4 / 5}};
    const ChoiceSolution solution = solve_choices(problem, {.seconds = 600});
    CHECK(solution.solver == "cbc");
    REQUIRE(solution.status == ChoiceStatus::optimal);
    REQUIRE(satisfies(problem, solution.assignment));
    CHECK(solution.cost == cost_of(problem, solution.assignment));
    CHECK(solution.cost <= solve_by_counts(problem, {.seconds = 0.5}).cost);
    CHECK(solution.bound >= solve_by_counts(problem, {.seconds = 0.5}).bound);
}

// 52 layers and all of their 1326 pairs: which layers go at 84 % of the parameters.
TEST_CASE("mini-52 with every pair measured is solved to proven optimality") {
    const ScoreTable table =
        read_scores(std::string(MINIPUZZLE_SOURCE_DIR) + "/tests/nas/data/mini52_scores.json");
    const Architecture teacher = architecture_of(table.model.pattern, 20);
    const Surrogate surrogate = make_surrogate(table, Objective::loss_delta);
    SearchOptions options;
    options.max_params = parameters(teacher) * 84 / 100;
    const FreeSpace space(teacher, surrogate, options);
    const FreeStudent found = search_free(space, {}, 600);
    REQUIRE(found.proven);
    REQUIRE(found.plan);
    CHECK(space.fits(*found.plan));
    CHECK(found.bound == Approx(predict_with(Predictor::pairs, surrogate, teacher, *found.plan).value));
    CHECK(found.solver == "branch_and_bound");
}

TEST_CASE("options that contradict each other are the user's") {
    Instance instance;
    instance.teacher = architecture_of("M-M-*-", 16);
    Random random(1);
    instance.scores = random_scores(random, instance.teacher);
    for (LayerScore& layer : instance.scores.layers) layer.loss_delta = 0.1;
    instance.options.mem_budget = 1 << 20;
    const auto message = [&](auto change) {
        SearchOptions options = instance.options;
        change(options);
        try {
            search(instance.teacher, instance.scores, options, {});
        } catch (const Error& error) {
            CHECK(error.kind() == ErrorKind::usage);
            return std::string(error.what());
        }
        return std::string("no error");
    };
    CHECK_THAT(message([](SearchOptions& o) { o.keep = o.drop = {2}; }), Contains("both name layer 2"));
    CHECK_THAT(message([](SearchOptions& o) { o.keep = {6}; }), Contains("expected 0..5"));
    CHECK_THAT(message([](SearchOptions& o) {
                   o.keep = {0, 2};
                   o.mamba_layers.values = {1};
               }),
               Contains("expected at least 2"));
    CHECK_THAT(message([](SearchOptions& o) {
                   o.drop = {0};
                   o.mamba_layers.values = {2};
               }),
               Contains("expected at most 1"));
    CHECK_THAT(message([](SearchOptions& o) { o.ffn_widths.values = {8}; }),
               Contains("score with --width 8"));
    CHECK_THAT(message([](SearchOptions& o) { o.mamba_heads = 3; }), Contains("expected 1..2"));
    CHECK_THAT(message([](SearchOptions& o) { o.predictor = Predictor::pairs; }),
               Contains("score with --pairs"));
}
