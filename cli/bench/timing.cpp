#include "cli/bench/timing.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace minipuzzle::cli::bench {
namespace {

constexpr int kSamples = 21;
constexpr double kShortest = 0.5;  // milliseconds of a sample
constexpr double kMostLaunches = 100;

}  // namespace

Timing time_launches(Backend& backend, const std::function<void(int64_t)>& launch) {
    int64_t next = 0;
    const auto once = [&] { return backend.elapsed_ms([&] { launch(next++); }); };
    once();  // loads code, chooses algorithms, takes scratch memory
    const double rough = std::max(std::min(once(), once()), 1e-6);
    const auto each = static_cast<int64_t>(std::clamp(std::ceil(kShortest / rough), 1.0, kMostLaunches));
    std::array<double, kSamples> times{};
    for (double& time : times) {
        time = backend.elapsed_ms([&] {
            for (int64_t i = 0; i < each; ++i) launch(next++);
        });
    }
    std::nth_element(times.begin(), times.begin() + kSamples / 2, times.end());
    return {.ms = times[kSamples / 2] / static_cast<double>(each), .launches = each * kSamples};
}

}  // namespace minipuzzle::cli::bench
