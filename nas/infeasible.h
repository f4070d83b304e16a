// The answer where nothing fits: the smallest reachable student, and what would make it fit.
#pragma once

#include <string>
#include <vector>

#include "nas/solver.h"

namespace minipuzzle::nas {

struct SearchProblem {
    const Architecture& teacher;
    const Surrogate& surrogate;
    const SearchOptions& options;
};

// The least that any student takes of each thing that may be limited (not one student: each its own), and
// whether one is within all limits. Layers are taken away largest first, so that this is the least of all
// students, also where layers of a type differ; --ffn-widths are taken at the narrowest.
struct Reach {
    int64_t total = 0;                // bytes at SearchOptions::workload
    std::vector<int64_t> fit_totals;  // at each of SearchOptions::fits
    int64_t params = 0;
    double seconds = 0;
    bool fits = false;
};
Reach reach_of(const SearchProblem& problem);

// One option changed, all others as they were.
struct Hint {
    std::string text;  // "--context 81920"
    SearchOptions options;
    Reach reach;
};
// Every change of a single option that helps, whether it is enough or not: smaller element types (the
// largest that is enough, of weights and KV), shorter context, smaller batch or prefill chunk and narrower
// FFNs (the largest value that is enough, else the smallest), bounds on layers lifted.
std::vector<Hint> hints(const SearchProblem& problem);

// Throws Error infeasible: the limits that no student meets, each with the least that is reachable; then the
// hints that make one fit, or, where none does, what each of them brings the total down to.
[[noreturn]] void fail_infeasible(const SearchProblem& problem);

}  // namespace minipuzzle::nas
