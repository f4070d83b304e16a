// The answer where nothing fits: the smallest reachable student, and what would make it fit.
#pragma once

#include "nas/solver.h"

namespace minipuzzle::nas {

struct SearchProblem {
    const Architecture& teacher;
    const Surrogate& surrogate;
    const SearchOptions& options;
};

// Throws Error infeasible. Every hint is computed: it names a change that alone makes a student fit, or,
// where none does, what each change brings the smallest total down to.
[[noreturn]] void fail_infeasible(const SearchProblem& problem, const Solution& solution);

}  // namespace minipuzzle::nas
