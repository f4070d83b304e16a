// The exact search: every student of a Space is looked at, so nothing is left to prove but the tables.
#pragma once

#include <optional>
#include <vector>

#include "nas/space.h"

namespace minipuzzle::nas {

struct Student {
    Point point;
    std::optional<StudentPlan> free;  // a student outside the space; `point` then has its counts
    int64_t total = 0, params = 0;    // bytes; parameters
    double value = 0;                 // predicted
};

struct Solution {
    int64_t students = 0;  // of the space
    // The students within the limits to which nothing of the space can be added (no next layer of any type,
    // no next wider width), best predicted first; equal predictions in order of total, then of Point.
    std::vector<Student> maximal;
    // The best predicted within the limits. Not among `maximal` only where dropping a layer is predicted to
    // help.
    std::optional<Student> optimum;
    // The Pareto set of (total, value) over the whole space, ascending total: the optimum of every byte
    // budget.
    std::vector<Student> frontier;
    // The least total, the least parameters and the least latency of any student, whatever the limits.
    int64_t smallest_total = 0, smallest_params = 0;
    double smallest_seconds = 0;
};

// Puts a student from outside the space on the list and on the frontier, where it beats what stands there.
void add_free(Solution& solution, Student student);

Solution solve(const Space& space, const Limits& limits);

StudentPlan plan_of(const Space& space, const Student& student);

// Best predicted first: the one order of students.
bool better(const Student& a, const Student& b);
// Whether the student is on the frontier (or equals a point of it in total and value).
bool on_frontier(const Solution& solution, const Student& student);

}  // namespace minipuzzle::nas
