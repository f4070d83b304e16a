#include "nas/pareto.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace minipuzzle::nas {

std::vector<std::size_t> pareto_set(const std::vector<TradeOff>& points) {
    std::vector<std::size_t> order(points.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return std::tie(points[a].total, points[a].value, a) < std::tie(points[b].total, points[b].value, b);
    });
    std::vector<std::size_t> front;
    for (const std::size_t i : order)
        if (front.empty() || points[i].value < points[front.back()].value) front.push_back(i);
    return front;
}

}  // namespace minipuzzle::nas
