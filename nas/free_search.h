// The best student of the space of all students, by the predictor.
#pragma once

#include "nas/choice_solver.h"
#include "nas/free_space.h"

namespace minipuzzle::nas {

struct FreeStudent {
    std::optional<StudentPlan> plan;  // null: none fits, or time ran out before one was found
    bool proven = false;              // that it is the best, or that none fits
    double bound = 0;                 // no student is predicted to cost less
    std::string solver;               // that the proof rests on
    double seconds = 0;
};

// Whether a student that enumeration does not reach may be predicted better: with pairs, with widths of
// single layers, or where layers of one type weigh differently.
bool reaches_further(const FreeSpace& space, const Surrogate& surrogate, const SearchOptions& options);

// Solves the problem of every common width. `starts` are students to improve on.
FreeStudent search_free(const FreeSpace& space, const std::vector<StudentPlan>& starts, double seconds);

}  // namespace minipuzzle::nas
