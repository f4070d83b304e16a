// The learning rate over a run.
#pragma once

#include <cstdint>

namespace minipuzzle::distill {

// Linear warm-up to `peak` over `warmup` steps, then half a cosine down to `peak * min_ratio` at the last
// step.
struct Schedule {
    double peak = 0, min_ratio = 0;
    int64_t warmup = 0, steps = 0;

    // `step` counts from 1 to `steps`. With warmup >= steps the run ends inside the warm-up.
    double at(int64_t step) const;
};

}  // namespace minipuzzle::distill
