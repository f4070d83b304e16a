// One bar per layer in depth order: how much the model loses without it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/score_table.h"

namespace minipuzzle::report {

// The largest value drawn at full length: the largest of all, unless a few outliers would flatten the rest.
// Then at most max(1, 5 %) of them are left out, as many as it takes for the largest to be at most six
// medians. Null where no value is known.
std::optional<double> clip_level(std::vector<double> values);

// `dropped` marks the layers that the best student does without. Layers without a value get a dashed
// placeholder, since they are never dropped.
std::string importance_chart(const ScoreTable& table, Objective objective,
                             const std::vector<int64_t>& dropped);

}  // namespace minipuzzle::report
