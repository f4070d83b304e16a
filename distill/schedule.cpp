#include "distill/schedule.h"

#include <cmath>
#include <numbers>

namespace minipuzzle::distill {

double Schedule::at(int64_t step) const {
    if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
    const double progress = static_cast<double>(step - warmup) / static_cast<double>(steps - warmup);
    const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * progress));
    return peak * (min_ratio + (1 - min_ratio) * cosine);
}

}  // namespace minipuzzle::distill
