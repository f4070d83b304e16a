// Iterative removal: what the model has lost after each layer that went, and which layer that was.
#pragma once

#include <string>

#include "runtime/score_table.h"

namespace minipuzzle::report {

// "" without iterative scores or without a step. Beside the measured line the sum of what the same layers
// cost one by one.
std::string removal_chart(const ScoreTable& scores);

}  // namespace minipuzzle::report
