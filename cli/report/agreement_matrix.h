// How far the metrics rank the layers alike: Spearman's correlation, a triangle over all layers and one
// inside each type.
#pragma once

#include <string>

#include "runtime/score_table.h"

namespace minipuzzle::report {

// "" where the layers hold fewer than two metrics.
std::string agreement_matrix(const ScoreTable& scores);

}  // namespace minipuzzle::report
