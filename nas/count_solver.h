// Problems in which only the numbers of items matter to the constraints: solved count by count.
#pragma once

#include "nas/choice_solver.h"

namespace minipuzzle::nas {

// Whether every item has at most two choices and items fall into few kinds that weigh alike, so that the
// constraints see nothing but how many of each kind take their second choice, in few enough combinations to
// look at.
bool counts_decide(const ChoiceProblem& problem);

// Every combination of counts within the constraints is a quadratic selection problem
// (nas/selection_solver.h). The one with the lowest bound is solved first, until no bound is below the best
// assignment found. counts_decide() must hold.
ChoiceSolution solve_by_counts(const ChoiceProblem& problem, const ChoiceSolverOptions& options);

}  // namespace minipuzzle::nas
