// Times of launches on a device.
#pragma once

#include <functional>

#include "kernels/backend.h"

namespace minipuzzle::cli::bench {

struct Timing {
    double ms = 0;  // of one launch, the median over samples
    int64_t launches = 0;
};

// 21 samples after a warm-up. Launches shorter than half a millisecond are timed several a sample, so that
// the device is never idle between them. `launch` is given a running number, to take other buffers each time.
Timing time_launches(Backend& backend, const std::function<void(int64_t)>& launch);

}  // namespace minipuzzle::cli::bench
