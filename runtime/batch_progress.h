// How a sweep tells of its work while a batch is under way.
#pragma once

#include <chrono>
#include <utility>

#include "runtime/variant_sweep.h"

namespace minipuzzle {

// Tells of work that is done: at once where operations end when their call returns, else about once a second,
// after a wait for the device.
class BatchProgress {
  public:
    BatchProgress(Backend& backend, const SweepProgress& tell) : backend_(backend), tell_(tell) {}

    void begin() {
        told_ = Clock::now();
        if (tell_) tell_({});
    }
    void done(const Work& work) {
        undone_ += work;
        if (!tell_) return;
        if (backend_.device() != DeviceKind::cpu) {
            if (Clock::now() - told_ < kInterval) return;
            backend_.synchronize();
        }
        tell();
    }
    // Everything is, the device waited for.
    void end() {
        if (tell_) tell();
    }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::seconds kInterval{1};

    void tell() {
        told_ = Clock::now();
        tell_(std::exchange(undone_, {}));
    }

    Backend& backend_;
    const SweepProgress& tell_;
    Clock::time_point told_{};
    Work undone_;  // not told of yet
};

}  // namespace minipuzzle
