// Work: multiply-adds by what they are spent on. A device's speed differs between the kinds, so what is left
// of a run is judged by kind.
#pragma once

#include <array>
#include <numeric>

#include "runtime/architecture.h"

namespace minipuzzle {

inline constexpr int kWorkKinds = 4;  // the three layer types, then the LM head
inline constexpr int kHeadWork = 3;

struct Work {
    std::array<double, kWorkKinds> of{};

    double total() const { return std::accumulate(of.begin(), of.end(), 0.0); }
    Work& operator+=(const Work& other) {
        for (int i = 0; i < kWorkKinds; ++i) of[i] += other.of[i];
        return *this;
    }
    Work& operator-=(const Work& other) {
        for (int i = 0; i < kWorkKinds; ++i) of[i] -= other.of[i];
        return *this;
    }
};

}  // namespace minipuzzle
