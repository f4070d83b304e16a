// Solvers of multiple-choice problems.
#pragma once

#include "nas/choice_problem.h"

namespace minipuzzle::nas {

struct ChoiceSolverOptions {
    double seconds = 60;    // at most, about; proofs that need longer end as bounded
    Assignment start = {};  // one to improve on; may be empty, need not satisfy the constraints
    int64_t restarts = 60;  // of the local search for a first solution; below 0: none
};

// The way that suits the problem: few assignments are all looked at; where items of few kinds are pinned down
// by counts and pairs are many, branch and bound over the counts (nas/count_solver.h); else CBC. The result
// repeats exactly where time does not run out.
ChoiceSolution solve_choices(const ChoiceProblem& problem, const ChoiceSolverOptions& options);

// Looks at every assignment. The best, the first in lexicographic order among equals.
ChoiceSolution solve_by_enumeration(const ChoiceProblem& problem);
// The number of assignments, or `limit` where there are more.
int64_t assignments(const ChoiceProblem& problem, int64_t limit);

// As a mixed-integer program through COIN-OR CBC, one thread. Products of two choices are linearised
// (McCormick 1976): y >= x + x' - 1 where their cost is positive, y <= x and y <= x' where it is negative.
// CBC computes in floating point: its answer is held against the constraints in whole numbers, and cut off
// where it breaks one by a rounding.
ChoiceSolution solve_by_cbc(const ChoiceProblem& problem, const ChoiceSolverOptions& options);

// Improves on `start` by changing one item or two at a time, then from starts disturbed at random, `rounds`
// of them. Empty where nothing that satisfies the constraints was found. Deterministic.
Assignment local_search(const ChoiceProblem& problem, const Assignment& start, int64_t rounds);

}  // namespace minipuzzle::nas
