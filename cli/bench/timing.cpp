#include "cli/bench/timing.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <vector>

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

double median_ms(const std::function<void()>& pass) {
    using Clock = std::chrono::steady_clock;
    constexpr double kEnough = 2000, kLong = 5000;  // ms
    constexpr std::size_t kLeast = 3, kMost = 15;
    pass();
    std::vector<double> times;
    double total = 0;
    while (total < kLong && (times.size() < kLeast || (times.size() < kMost && total < kEnough))) {
        const auto start = Clock::now();
        pass();
        times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
        total += times.back();
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                     times.end());
    return times[times.size() / 2];
}

}  // namespace minipuzzle::cli::bench
