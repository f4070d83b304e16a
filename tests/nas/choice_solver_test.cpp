// The solvers of multiple-choice problems against looking at every assignment.
#include "nas/choice_solver.h"

#include "nas/count_solver.h"
#include "tests/catch.h"
#include "tests/nas/instances.h"

using namespace minipuzzle::nas;
using minipuzzle::nas::testing::Random;

namespace {

// Costs in sixty-fourths: sums are exact. Pairs of both signs; limits above, below, both, in several rows
// with a divisor; some cannot be met.
ChoiceProblem random_problem(uint64_t seed) {
    Random random(seed);
    ChoiceProblem problem;
    problem.constant = static_cast<double>(random.below(9)) / 4;
    const std::size_t rows = 1 + static_cast<std::size_t>(random.below(4));
    for (std::size_t r = 0; r < rows; ++r) problem.fixed.push_back(random.below(50));
    const int64_t scale = random.chance(3) ? 1000003 : 1;
    const int64_t items = 2 + random.below(7);
    for (int64_t i = 0; i < items; ++i) {
        std::vector<Choice>& item = problem.items.emplace_back();
        const int64_t choices = random.chance(6) ? 1 : 2 + (random.chance(3) ? random.below(3) : 0);
        for (int64_t c = 0; c < choices; ++c) {
            Choice choice{.cost = static_cast<double>(random.below(40) - 8) / 64, .weights = {}};
            for (std::size_t r = 0; r < rows; ++r)
                choice.weights.push_back((random.below(60) - (random.chance(5) ? 20 : 0)) * scale +
                                         (random.chance(2) ? random.below(3) : 0));
            item.push_back(std::move(choice));
        }
    }
    const int64_t density = 1 + random.below(4);
    for (std::size_t j = 1; j < problem.items.size(); ++j)
        for (std::size_t i = 0; i < j; ++i)
            for (std::size_t c = 0; c < problem.items[i].size(); ++c)
                for (std::size_t d = 0; d < problem.items[j].size(); ++d)
                    if (random.chance(density + 1))
                        problem.pairs.push_back(
                            {i, c, j, d, static_cast<double>(random.below(40) - 20) / 64});
    const int64_t constraints = 1 + random.below(3);
    for (int64_t k = 0; k < constraints; ++k) {
        ChoiceConstraint constraint{.name = "limit", .rows = {}, .divisor = random.chance(2) ? 1 : 16};
        for (std::size_t r = 0; r < rows; ++r)
            if (random.chance(2) || r == 0) constraint.rows.push_back(r);
        // Around what some assignment amounts to, so that limits are often met exactly.
        Assignment assignment;
        for (const auto& item : problem.items)
            assignment.push_back(static_cast<std::size_t>(random.below(static_cast<int64_t>(item.size()))));
        const int64_t amount = amount_of(problem, constraint, assignment);
        if (!random.chance(3)) constraint.upper = amount + (random.chance(2) ? 0 : random.below(20) - 10);
        if (random.chance(3)) constraint.lower = amount - (random.chance(2) ? 0 : random.below(100) - 5);
        problem.constraints.push_back(std::move(constraint));
    }
    return problem;
}

void check_equal(const ChoiceProblem& problem, const ChoiceSolution& expected, const ChoiceSolution& found) {
    REQUIRE(found.status == expected.status);
    if (expected.status == ChoiceStatus::infeasible) return;
    REQUIRE(found.cost == expected.cost);
    REQUIRE(found.bound == found.cost);
    REQUIRE(satisfies(problem, found.assignment));
    REQUIRE(cost_of(problem, found.assignment) == found.cost);
}

// Items of few kinds that weigh alike, any two of them with a cost as a pair; limits on what the kinds amount
// to.
ChoiceProblem random_selection(uint64_t seed, int64_t items) {
    Random random(seed);
    ChoiceProblem problem;
    problem.constant = 2;
    problem.fixed = {random.below(30), random.below(30)};
    const int64_t kinds = 1 + random.below(3);
    std::vector<std::vector<int64_t>> weights;
    for (int64_t t = 0; t < kinds; ++t) weights.push_back({10 + random.below(40), random.below(30)});
    for (int64_t i = 0; i < items; ++i) {
        std::vector<Choice> item;
        if (!random.chance(12)) item.push_back({0, weights[static_cast<std::size_t>(random.below(kinds))]});
        if (item.empty() || !random.chance(12))
            item.push_back({static_cast<double>(random.below(40) - 5) / 64, {0, 0}});
        problem.items.push_back(std::move(item));
    }
    for (std::size_t j = 1; j < problem.items.size(); ++j)
        for (std::size_t i = 0; i < j; ++i)
            for (std::size_t c = 0; c < problem.items[i].size(); ++c)
                if (!random.chance(5) && (c > 0 || random.chance(4)))
                    problem.pairs.push_back({i, c, j, problem.items[j].size() - 1,
                                             static_cast<double>(random.below(30) - 12) / 64});
    for (std::size_t r = 0; r < 2; ++r) {
        int64_t most = problem.fixed[r];
        for (const auto& item : problem.items) most += item.front().weights[r];
        ChoiceConstraint constraint{.name = "limit", .rows = {r}, .divisor = random.chance(2) ? 1 : 16};
        constraint.upper = most * (30 + random.below(60)) / 100 / constraint.divisor;
        if (random.chance(3)) constraint.lower = *constraint.upper / 2;
        problem.constraints.push_back(std::move(constraint));
    }
    return problem;
}

}  // namespace

TEST_CASE("CBC equals enumeration on random problems") {
    for (uint64_t seed = 0; seed < 120; ++seed) {
        INFO("seed " << seed);
        const ChoiceProblem problem = random_problem(seed);
        const ChoiceSolution expected = solve_by_enumeration(problem);
        check_equal(problem, expected, solve_by_cbc(problem, {.restarts = -1}));
        check_equal(problem, expected, solve_by_cbc(problem, {}));
    }
}

TEST_CASE("CBC equals enumeration on thousands of random problems", "[slow]") {
    for (uint64_t seed = 120; seed < 2500; ++seed) {
        INFO("seed " << seed);
        const ChoiceProblem problem = random_problem(seed);
        const ChoiceSolution expected = solve_by_enumeration(problem);
        check_equal(problem, expected, solve_by_cbc(problem, {.restarts = -1}));
        check_equal(problem, expected, solve_by_cbc(problem, {}));
    }
}

TEST_CASE("branch and bound over counts equals enumeration on random selections") {
    for (uint64_t seed = 0; seed < 1500; ++seed) {
        INFO("seed " << seed);
        const ChoiceProblem problem = random_selection(seed, 2 + static_cast<int64_t>(seed % 10));
        REQUIRE(counts_decide(problem));
        const ChoiceSolution expected = solve_by_enumeration(problem);
        check_equal(problem, expected, solve_by_counts(problem, {.restarts = 0}));
        check_equal(problem, expected, solve_by_counts(problem, {}));
    }
}

TEST_CASE("CBC and branch and bound over counts agree on selections too large to enumerate") {
    for (uint64_t seed = 0; seed < 12; ++seed) {
        INFO("seed " << seed);
        const ChoiceProblem problem = random_selection(seed + 5000, 16);
        const ChoiceSolution one = solve_by_cbc(problem, {}), other = solve_by_counts(problem, {});
        REQUIRE(one.status == other.status);
        REQUIRE(one.cost == other.cost);
        REQUIRE(solve_choices(problem, {}).cost == one.cost);
    }
}

TEST_CASE("a solver out of time states a bound that holds") {
    for (uint64_t seed = 0; seed < 40; ++seed) {
        INFO("seed " << seed);
        const ChoiceProblem problem = random_selection(seed + 6000, 12);
        const ChoiceSolution expected = solve_by_enumeration(problem);
        const ChoiceSolution cut = solve_by_counts(problem, {.seconds = 0, .restarts = 0});
        REQUIRE((cut.status == ChoiceStatus::infeasible) == (expected.status == ChoiceStatus::infeasible));
        if (expected.status == ChoiceStatus::infeasible) continue;
        CHECK(cut.bound <= expected.cost);
        CHECK(cut.cost >= expected.cost);
        CHECK(satisfies(problem, cut.assignment));
    }
}
