// The funnel: which of the maximal students are measured. Additive predictions mislead at depth, so the
// measured ones are spread over what the students drop, and a second round goes where the first one points.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "nas/solver.h"

namespace minipuzzle::nas {

enum class SelectBy { loss, kl, accuracy, agreement, tasks };
// Error usage lists the known ones.
SelectBy parse_select_by(const std::string& text);
// The measurement as a cost: less is better.
double cost(const Measured& measured, SelectBy select_by);

struct FunnelOptions {
    int64_t measure = 32;
    SelectBy select_by = SelectBy::loss;
};

// Measures up to `measure` of `students` (best predicted first) in at most two calls of the measurer. Entry i
// of the result belongs to students[i]. Depends on nothing random.
std::vector<std::optional<Measured>> measure_spread(const Space& space, const std::vector<Student>& students,
                                                    const FunnelOptions& options, const Measurer& measurer);

}  // namespace minipuzzle::nas
