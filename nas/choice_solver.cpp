#include "nas/choice_solver.h"

#include <chrono>

#include "kernels/check.h"
#include "nas/count_solver.h"

namespace minipuzzle::nas {

namespace {

constexpr int64_t kFew = 1 << 14;  // assignments that are all looked at

// Above one pair in so many that there could be, bounds over the counts beat linearised pairs.
constexpr std::size_t kSparse = 10;

}  // namespace

int64_t assignments(const ChoiceProblem& problem, int64_t limit) {
    int64_t count = 1;
    for (const std::vector<Choice>& item : problem.items) {
        const int64_t choices = static_cast<int64_t>(item.size());
        if (count > limit / choices) return limit;
        count *= choices;
    }
    return std::min(count, limit);
}

ChoiceSolution solve_by_enumeration(const ChoiceProblem& problem) {
    const auto began = std::chrono::steady_clock::now();
    ChoiceSolution solution{.status = ChoiceStatus::infeasible, .solver = "enumeration"};
    Assignment assignment(problem.items.size(), 0);
    for (bool more = true; more;) {
        if (satisfies(problem, assignment)) {
            const double cost = cost_of(problem, assignment);
            if (solution.status == ChoiceStatus::infeasible || cost < solution.cost) {
                solution.status = ChoiceStatus::optimal;
                solution.assignment = assignment;
                solution.cost = solution.bound = cost;
            }
        }
        more = false;
        for (std::size_t i = assignment.size(); i-- > 0 && !more;) {
            more = ++assignment[i] < problem.items[i].size();
            if (!more) assignment[i] = 0;
        }
    }
    solution.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    return solution;
}

ChoiceSolution solve_choices(const ChoiceProblem& problem, const ChoiceSolverOptions& options) {
    check_problem(problem);
    if (assignments(problem, kFew + 1) <= kFew) return solve_by_enumeration(problem);
    const std::size_t items = problem.items.size();
    const bool dense = problem.pairs.size() * kSparse > items * items;
    return dense && counts_decide(problem) ? solve_by_counts(problem, options)
                                           : solve_by_cbc(problem, options);
}

}  // namespace minipuzzle::nas
