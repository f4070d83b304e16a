// The answers where nothing fits: each is held against the search itself.
#include "nas/infeasible.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "tests/catch.h"
#include "tests/nas/instances.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;
using Catch::Matchers::Contains;
using minipuzzle::nas::testing::architecture_of;
using minipuzzle::nas::testing::Random;

namespace {

struct Problem {
    Architecture teacher;
    ScoreTable scores;
    SearchOptions options;

    bool fits(const SearchOptions& asked) const {
        try {
            search(teacher, scores, asked, nullptr);
            return true;
        } catch (const Error& error) {
            REQUIRE(error.kind() == ErrorKind::infeasible);
            return false;
        }
    }
    std::vector<Hint> hints() const {
        const Surrogate surrogate = make_surrogate(scores, Objective::loss_delta);
        return nas::hints({teacher, surrogate, options});
    }
    Reach reach() const {
        const Surrogate surrogate = make_surrogate(scores, Objective::loss_delta);
        return reach_of({teacher, surrogate, options});
    }
    std::string message() const {
        try {
            search(teacher, scores, options, nullptr);
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    }
};

Problem random_problem(uint64_t seed) {
    Random random(seed);
    Problem problem;
    problem.teacher = architecture_of(testing::random_pattern(random, 2 + random.below(6)), 16);
    problem.scores = testing::random_scores(random, problem.teacher);
    problem.options.objective = Objective::loss_delta;
    problem.options.mem_budget = 1;
    Workload& workload = problem.options.workload;
    workload = {.context = 1 + random.below(300), .batch = 1 + random.below(4)};
    if (random.chance(2)) workload.prefill_chunk = 1 + random.below(40);
    if (random.chance(3)) workload.weights = ElementType::int4;
    if (random.chance(2)) problem.options.fits = {{.context = 1 + random.below(900), .batch = 2}};
    for (std::size_t layer = 0; layer < problem.teacher.layers.size(); ++layer)
        if (random.chance(4)) problem.options.keep.push_back(static_cast<int64_t>(layer));
    problem.options.mem_budget =
        problem.reach().total * (40 + random.below(80)) / 100;  // often just below what is reachable
    return problem;
}

// The least total of any subset of layers that the problem allows.
int64_t least_total(const Problem& problem) {
    int64_t least = std::numeric_limits<int64_t>::max();
    const std::vector<int64_t>& keep = problem.options.keep;
    for (unsigned mask = 0; mask + 1 < 1u << problem.teacher.layers.size(); ++mask) {
        StudentPlan plan;
        bool allowed = true;
        for (const LayerScore& layer : problem.scores.layers) {
            if (!(mask >> layer.layer & 1)) continue;
            plan.drop.push_back(layer.layer);
            allowed =
                allowed && layer.loss_delta && std::find(keep.begin(), keep.end(), layer.layer) == keep.end();
        }
        if (allowed)
            least = std::min(least, memory_of(problem.teacher, plan, problem.options.workload).total());
    }
    return least;
}

}  // namespace

TEST_CASE("the smallest total is the least of all subsets, and every hint is as true as the search") {
    int infeasible = 0, enough = 0, short_of = 0;
    for (uint64_t seed = 0; seed < 400; ++seed) {
        INFO("seed " << seed);
        const Problem problem = random_problem(seed);
        const Reach reach = problem.reach();
        REQUIRE(reach.total == least_total(problem));
        REQUIRE(reach.fits == problem.fits(problem.options));
        if (reach.fits) continue;
        ++infeasible;
        for (const Hint& hint : problem.hints()) {
            INFO(hint.text);
            REQUIRE(problem.fits(hint.options) == hint.reach.fits);
            ++(hint.reach.fits ? enough : short_of);
            if (!hint.reach.fits) continue;
            // The largest that is enough: one more is too much.
            SearchOptions more = hint.options;
            const Workload &now = problem.options.workload, &then = hint.options.workload;
            if (then.context < now.context)
                ++more.workload.context;
            else if (then.batch < now.batch)
                ++more.workload.batch;
            else if (then.prefill_chunk < now.prefill_chunk)
                ++more.workload.prefill_chunk;
            else
                continue;
            REQUIRE_FALSE(problem.fits(more));
        }
    }
    CHECK(infeasible > 100);
    CHECK(enough > 100);
    CHECK(short_of > 100);
}

TEST_CASE("layers of a type that weigh differently: the smallest total takes the largest away first") {
    Problem problem;
    problem.teacher = architecture_of("--", 16);
    problem.teacher.layers[0] = Ffn{.width = 64};
    problem.scores.model.pattern = "--";
    problem.scores.base_loss = 2.0;
    problem.scores.layers = {{.layer = 0, .type = LayerType::ffn, .loss_delta = 0.5},
                             {.layer = 1, .type = LayerType::ffn, .loss_delta = 0.1}};
    StudentPlan plan;
    plan.drop = {0};  // the dearer one
    CHECK(problem.reach().total == memory_of(problem.teacher, plan, problem.options.workload).total());
}

TEST_CASE("widths of single layers: the smallest student has them all at the narrowest") {
    Problem problem;
    problem.teacher = architecture_of("-M-", 64);
    problem.scores.model.pattern = "-M-";
    problem.scores.base_loss = 2.0;
    for (int64_t layer = 0; layer < 3; ++layer)
        problem.scores.layers.push_back(
            {.layer = layer,
             .type = type_of(problem.teacher.layers[static_cast<std::size_t>(layer)]),
             .loss_delta = 0.1});
    problem.scores.ffn_width_curve = {{.ffn_width = 48, .loss_delta = 0.1, .kl = {}},
                                      {.ffn_width = 32, .loss_delta = 0.2, .kl = {}}};
    problem.options.ffn_widths.values = {32, 48};
    problem.options.keep = {0, 2};
    StudentPlan least;
    least.drop = {1};
    least.ffn_width = 32;
    const int64_t total = memory_of(problem.teacher, least, problem.options.workload).total();
    CHECK(problem.reach().total == total);
    problem.options.mem_budget = total;
    CHECK(problem.fits(problem.options));
    --problem.options.mem_budget;
    CHECK_FALSE(problem.fits(problem.options));
    CHECK_THAT(problem.message(), Contains("--ffn-width 31 in place of --ffn-widths"));
    for (const Hint& hint : problem.hints()) CHECK(problem.fits(hint.options) == hint.reach.fits);
}

TEST_CASE("the message names each limit, what is reachable, and what would be enough") {
    Problem problem;
    problem.teacher = architecture_of("M*-M*-", 640);
    problem.scores.model.pattern = problem.teacher.pattern();
    problem.scores.base_loss = 2.0;
    for (int64_t layer = 0; layer < 6; ++layer)
        problem.scores.layers.push_back(
            {.layer = layer,
             .type = type_of(problem.teacher.layers[static_cast<std::size_t>(layer)]),
             .loss_delta = 0.1});
    problem.options.keep = {1, 2};  // an attention layer and an FFN
    problem.options.workload.context = 1000;
    const int64_t least = problem.reach().total;
    problem.options.mem_budget = least - 8000;
    CHECK_THAT(problem.message(), Contains(fmt::format("({} bytes), the budget is", least)));
    // 32 bytes a token and sequence: 8000 bytes are 250 tokens.
    CHECK_THAT(problem.message(),
               Contains("a student fits with --kv fp8 or --weights fp8 or --context 750 "));
    // 8 * 2 * 2 bytes a neuron: 250 neurons, in steps of 64.
    CHECK_THAT(problem.message(), Contains("--ffn-width 384"));
    CHECK_THAT(problem.message(), Contains("free layer counts and width"));

    problem.options.mem_budget = 100;
    CHECK_THAT(problem.message(), Contains("no single change is enough: --kv fp4 reaches"));

    problem.options.mem_budget = least;
    problem.options.fits = {{.context = 2000, .batch = 3}};
    CHECK_THAT(problem.message(), Contains("at context 2000, batch 3, the budget is"));
    CHECK_THAT(problem.message(), Contains("--fits 333x3"));  // 1000 tokens at batch 1 are the budget

    problem.options.fits.clear();
    problem.options.max_params = 1000;
    CHECK_THAT(problem.message(), Contains("parameters, at most 1000 were asked for"));
    CHECK_THAT(problem.message(), !Contains("--kv"));  // of no use to a limit of parameters
}
