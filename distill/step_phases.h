// The phases of a step: spans of the profiler's time line and, on request, times.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/profiler_range.h"

namespace minipuzzle::distill {

class StepPhases {
  public:
    explicit StepPhases(Backend& backend) : backend_(backend) {}

    // From here on every phase is timed on its own, so that the host waits for each.
    void start_timing() { timing_ = true; }

    void run(const char* name, const std::function<void()>& operations) {
        const ProfilerRange range(backend_, name);
        if (timing_)
            add(name, backend_.elapsed_ms(operations));
        else
            operations();
    }
    // Milliseconds of each phase in all, in the order of their first run.
    const std::vector<std::pair<std::string, double>>& times() const { return times_; }

  private:
    void add(const char* name, double ms) {
        for (auto& [known, total] : times_) {
            if (known != name) continue;
            total += ms;
            return;
        }
        times_.emplace_back(name, ms);
    }

    Backend& backend_;
    bool timing_ = false;
    std::vector<std::pair<std::string, double>> times_;
};

}  // namespace minipuzzle::distill
