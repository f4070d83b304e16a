// Interactions of layer pairs: the upper triangle of layers by layers, coloured around 0.
#pragma once

#include <optional>
#include <string>

#include "runtime/score_table.h"

namespace minipuzzle::report {

// The interaction in nats at which the colours end: the 98th percentile of the magnitudes, rounded up to a
// figure that is easy to read. Null without a pair.
std::optional<double> colour_end(const PairScores& pairs);

// "" without pairs. Pairs that were not measured are left in the ground's colour.
std::string pair_map(const ScoreTable& scores);
// The strongest pairs of both signs in figures, as a table.
std::string pair_table(const ScoreTable& scores);

}  // namespace minipuzzle::report
