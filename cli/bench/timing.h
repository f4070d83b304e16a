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

// Milliseconds by the host's clock of a pass that ends with a wait for the device: the median of passes after
// a first one; of at least three, of more while they are short, of one that is long.
double median_ms(const std::function<void()>& pass);

}  // namespace minipuzzle::cli::bench
