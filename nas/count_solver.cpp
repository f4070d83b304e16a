#include "nas/count_solver.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>

#include "kernels/check.h"
#include "nas/selection_solver.h"

namespace minipuzzle::nas {

namespace {

constexpr int64_t kMostCombinations = 200'000;
constexpr int64_t kSharedSteps = 300;  // that improve the split which all combinations start from

struct Kinds {
    std::vector<std::size_t> items;            // those with two choices
    std::vector<std::size_t> kind;             // of items[i]
    std::vector<int64_t> size;                 // by kind
    std::vector<std::vector<int64_t>> weight;  // by kind: what the second choice adds to each row
    int64_t combinations = 1;
};

Kinds kinds_of(const ChoiceProblem& problem) {
    Kinds kinds;
    std::map<std::vector<int64_t>, std::size_t> known;
    for (std::size_t i = 0; i < problem.items.size(); ++i) {
        const std::vector<Choice>& item = problem.items[i];
        if (item.size() != 2) continue;
        std::vector<int64_t> weight = item[1].weights;
        for (std::size_t r = 0; r < weight.size(); ++r) weight[r] -= item[0].weights[r];
        const auto [at, fresh] = known.try_emplace(weight, kinds.size.size());
        if (fresh) {
            kinds.size.push_back(0);
            kinds.weight.push_back(std::move(weight));
        }
        kinds.items.push_back(i);
        kinds.kind.push_back(at->second);
        ++kinds.size[at->second];
    }
    for (const int64_t size : kinds.size)
        kinds.combinations = std::min(kMostCombinations + 1, kinds.combinations * (size + 1));
    return kinds;
}

// The problem over the items with two choices: the cost of taking the first everywhere, then what the second
// ones add.
struct Reduced {
    double constant = 0;
    QuadraticSelection selection;
};

Reduced reduce(const ChoiceProblem& problem, const Kinds& kinds) {
    Reduced reduced;
    QuadraticSelection& selection = reduced.selection;
    selection.items = kinds.items.size();
    selection.kinds = kinds.size.size();
    selection.kind = kinds.kind;
    selection.cost.assign(selection.items, 0);
    selection.pair.assign(selection.items * selection.items, 0);
    constexpr std::size_t kOne = std::numeric_limits<std::size_t>::max();
    std::vector<std::size_t> place(problem.items.size(), kOne);  // kOne: the item has one choice
    for (std::size_t k = 0; k < kinds.items.size(); ++k) place[kinds.items[k]] = k;
    reduced.constant = problem.constant;
    for (std::size_t i = 0; i < problem.items.size(); ++i) {
        reduced.constant += problem.items[i][0].cost;
        if (place[i] != kOne) selection.cost[place[i]] += problem.items[i][1].cost - problem.items[i][0].cost;
    }
    for (const PairCost& pair : problem.pairs) {
        // cost * [x = c] [y = d], where [x = 1] = x and [x = 0] = 1 - x.
        const std::size_t x = place[pair.first], y = place[pair.second];
        const double x0 = pair.first_choice == 0 ? 1 : 0, x1 = x == kOne ? 0 : 1 - 2 * x0;
        const double y0 = pair.second_choice == 0 ? 1 : 0, y1 = y == kOne ? 0 : 1 - 2 * y0;
        reduced.constant += pair.cost * x0 * y0;
        if (x != kOne) selection.cost[x] += pair.cost * x1 * y0;
        if (y != kOne) selection.cost[y] += pair.cost * x0 * y1;
        if (x != kOne && y != kOne) {
            selection.pair[x * selection.items + y] += pair.cost * x1 * y1;
            selection.pair[y * selection.items + x] += pair.cost * x1 * y1;
        }
    }
    return reduced;
}

struct Combination {
    std::vector<int64_t> counts;
    double bound = -std::numeric_limits<double>::infinity();
};

// Every combination of counts that satisfies the constraints.
std::vector<Combination> combinations(const ChoiceProblem& problem, const Kinds& kinds) {
    std::vector<int64_t> rows = problem.fixed;
    for (const std::vector<Choice>& item : problem.items)
        for (std::size_t r = 0; r < rows.size(); ++r) rows[r] += item[0].weights[r];
    const auto allowed = [&](const std::vector<int64_t>& counts) {
        std::vector<int64_t> sum = rows;
        for (std::size_t t = 0; t < counts.size(); ++t)
            for (std::size_t r = 0; r < sum.size(); ++r) sum[r] += counts[t] * kinds.weight[t][r];
        return std::all_of(problem.constraints.begin(), problem.constraints.end(),
                           [&](const ChoiceConstraint& constraint) {
                               int64_t amount = 0;
                               for (const std::size_t row : constraint.rows)
                                   amount += quotient(sum[row], constraint.divisor);
                               return (!constraint.lower || amount >= *constraint.lower) &&
                                      (!constraint.upper || amount <= *constraint.upper);
                           });
    };
    std::vector<Combination> all;
    std::vector<int64_t> counts(kinds.size.size(), 0);
    for (bool more = true; more;) {
        if (allowed(counts)) all.push_back({.counts = counts});
        more = false;
        for (std::size_t t = counts.size(); t-- > 0 && !more;) {
            more = ++counts[t] <= kinds.size[t];
            if (!more) counts[t] = 0;
        }
    }
    return all;
}

}  // namespace

bool counts_decide(const ChoiceProblem& problem) {
    for (const std::vector<Choice>& item : problem.items)
        if (item.size() > 2) return false;
    return kinds_of(problem).combinations <= kMostCombinations;
}

ChoiceSolution solve_by_counts(const ChoiceProblem& problem, const ChoiceSolverOptions& options) {
    const auto began = std::chrono::steady_clock::now();
    const auto seconds = [&] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    };
    ChoiceSolution solution{.status = ChoiceStatus::infeasible, .solver = "branch_and_bound"};
    const Kinds kinds = kinds_of(problem);
    const Reduced reduced = reduce(problem, kinds);
    std::vector<Combination> open = combinations(problem, kinds);
    if (open.empty()) return solution;

    solution.assignment = local_search(problem, options.start, std::max<int64_t>(0, options.restarts));
    if (solution.assignment.empty()) {
        // Any selection with the counts of any combination will do.
        solution.assignment.assign(problem.items.size(), 0);
        std::vector<int64_t> left = open.front().counts;
        for (std::size_t k = 0; k < kinds.items.size(); ++k)
            if (left[kinds.kind[k]]-- > 0) solution.assignment[kinds.items[k]] = 1;
    }
    MP_ASSERT(satisfies(problem, solution.assignment));
    double best = cost_of(problem, solution.assignment) - reduced.constant;

    SelectionSolver solver(reduced.selection, [&] { return seconds() > options.seconds; });
    std::vector<int64_t> counts(kinds.size.size(), 0);
    for (std::size_t k = 0; k < kinds.items.size(); ++k)
        counts[kinds.kind[k]] += static_cast<int64_t>(solution.assignment[kinds.items[k]]);
    solver.bound(counts, best, kSharedSteps);
    // Most combinations fall to a look at the split as it is, most of the rest to a few steps.
    for (const int64_t steps : {0, 10, 40})
        for (Combination& combination : open)
            if ((steps == 0 || combination.bound < best) && (steps == 0 || seconds() < options.seconds))
                combination.bound =
                    std::max(combination.bound, solver.bound(combination.counts, best, steps));
    std::stable_sort(open.begin(), open.end(),
                     [](const Combination& a, const Combination& b) { return a.bound < b.bound; });
    double bound = std::numeric_limits<double>::infinity();
    bool complete = true;
    for (const Combination& combination : open) {
        if (combination.bound >= best) break;
        const SelectionSolver::Result result = solver.solve(combination.counts, best);
        complete = complete && result.complete;
        bound = std::min(bound, std::max(result.bound, combination.bound));
        if (!result.found) continue;
        best = result.cost;
        for (std::size_t k = 0; k < kinds.items.size(); ++k)
            solution.assignment[kinds.items[k]] = result.selected[k] ? 1 : 0;
    }
    solution.status = complete ? ChoiceStatus::optimal : ChoiceStatus::bounded;
    solution.cost = cost_of(problem, solution.assignment);
    solution.bound = complete ? solution.cost : std::min(solution.cost, bound + reduced.constant);
    solution.seconds = seconds();
    return solution;
}

}  // namespace minipuzzle::nas
