#include "nas/free_search.h"

#include <algorithm>
#include <limits>

namespace minipuzzle::nas {

bool reaches_further(const FreeSpace& space, const Surrogate& surrogate, const SearchOptions& options) {
    return uses_pairs(surrogate, options.predictor) || !options.ffn_widths.values.empty() || !space.alike();
}

FreeStudent search_free(const FreeSpace& space, const std::vector<StudentPlan>& starts, double seconds) {
    const std::size_t widths = space.widths().size();
    std::vector<Assignment> start(widths);
    for (const StudentPlan& plan : starts) {
        const std::optional<FreeSpace::Place> place = space.place(plan);
        if (place && start[place->width].empty()) start[place->width] = place->assignment;
    }
    FreeStudent best{.proven = true, .bound = std::numeric_limits<double>::infinity()};
    double cost = std::numeric_limits<double>::infinity();
    for (std::size_t width = 0; width < widths; ++width) {
        const double left = (seconds - best.seconds) / static_cast<double>(widths - width);
        const ChoiceSolution solution =
            solve_choices(space.problem(width), {.seconds = left, .start = start[width]});
        best.seconds += solution.seconds;
        best.solver = solution.solver;
        const bool proven =
            solution.status == ChoiceStatus::optimal || solution.status == ChoiceStatus::infeasible;
        best.proven = best.proven && proven;
        if (solution.status == ChoiceStatus::infeasible) continue;
        best.bound = std::min(best.bound, solution.bound);
        if (solution.assignment.empty() || solution.cost >= cost) continue;
        cost = solution.cost;
        best.plan = space.plan(width, solution.assignment);
    }
    return best;
}

}  // namespace minipuzzle::nas
