// The points that no other point beats in both coordinates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace minipuzzle::nas {

// Less is better in both.
struct TradeOff {
    int64_t total = 0;
    double value = 0;
};

// Indexes of the Pareto set, total ascending and value strictly descending; of equal points the first stands
// for all. O(n log n).
std::vector<std::size_t> pareto_set(const std::vector<TradeOff>& points);

}  // namespace minipuzzle::nas
