#include "runtime/rank_correlation.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/check.h"

namespace minipuzzle {

std::vector<double> ranks(const std::vector<double>& values) {
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
    std::vector<double> rank(values.size());
    for (std::size_t begin = 0, end = 0; begin < order.size(); begin = end) {
        while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
        for (std::size_t k = begin; k < end; ++k) rank[order[k]] = static_cast<double>(begin + end + 1) / 2;
    }
    return rank;
}

std::optional<double> spearman(const std::vector<double>& a, const std::vector<double>& b) {
    MP_ASSERT(a.size() == b.size());
    const std::vector<double> rank_a = ranks(a), rank_b = ranks(b);
    const double mean = (static_cast<double>(a.size()) + 1) / 2;
    double aa = 0, bb = 0, ab = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        aa += (rank_a[i] - mean) * (rank_a[i] - mean);
        bb += (rank_b[i] - mean) * (rank_b[i] - mean);
        ab += (rank_a[i] - mean) * (rank_b[i] - mean);
    }
    if (aa == 0 || bb == 0) return std::nullopt;
    return ab / std::sqrt(aa * bb);
}

}  // namespace minipuzzle
