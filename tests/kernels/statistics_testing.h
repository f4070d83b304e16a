// Cases of ActivationSums and what they must give.
#pragma once

#include <fmt/format.h>

#include <cmath>

#include "tests/kernels/testing.h"

namespace minipuzzle::testing {

struct UnitCase {
    int64_t batch = 2, time = 1, columns = 1, first = 0, channels = 1, units = 1;
    bool squared = false;

    int64_t elements() const { return batch * time * columns; }
    std::string describe() const {
        return fmt::format("time {} columns {} first {} channels {} units {} squared {}", time, columns,
                           first, channels, units, squared);
    }
    ActivationSums sums(const Tensor& x, const Tensor& out) const {
        return {.x = x, .first = first, .channels = channels, .squared = squared, .out = out};
    }
    std::vector<double> expected(const std::vector<double>& x) const {
        std::vector<double> out(batch * units, 0.0);
        for (int64_t r = 0; r < batch * time; ++r)
            for (int64_t n = 0; n < units; ++n) {
                double square = 0;
                for (int64_t c = 0; c < channels; ++c)
                    square += std::pow(x[r * columns + first + n * channels + c], 2);
                out[r / time * units + n] += squared ? square : std::sqrt(square);
            }
        return out;
    }
};

// Whole tensors and columns inside them, at offsets that vectors fit and that they do not, of single
// channels and of heads.
inline std::vector<UnitCase> unit_cases() {
    std::vector<UnitCase> cases;
    for (const bool squared : {false, true})
        for (const int64_t time : {1, 31, 515}) {
            const auto add = [&](int64_t columns, int64_t first, int64_t channels, int64_t units) {
                cases.push_back({.time = time,
                                 .columns = columns,
                                 .first = first,
                                 .channels = channels,
                                 .units = units,
                                 .squared = squared});
            };
            add(1, 0, 1, 1);
            add(131, 0, 1, 131);
            add(136, 0, 1, 136);
            add(400, 64, 1, 128);
            add(400, 65, 1, 200);
            add(99, 7, 1, 92);
            add(512, 0, 256, 2);
            add(520, 8, 64, 8);
            add(45, 1, 11, 4);
            add(35, 0, 5, 7);
        }
    return cases;
}

}  // namespace minipuzzle::testing
