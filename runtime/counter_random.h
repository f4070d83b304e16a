// Random numbers as a function of (seed, counter): no state, the same on every machine and in every version.
#pragma once

#include <cstdint>

namespace minipuzzle {

// SplitMix64's output function (Steele, Lea, Flood 2014): a bijection that mixes all 64 bits.
inline uint64_t mix_bits(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// The counter-th output of the SplitMix64 generator that starts at the mixed seed.
inline uint64_t counter_random(uint64_t seed, uint64_t counter) {
    constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
    return mix_bits(mix_bits(seed + kGolden) + (counter + 1) * kGolden);
}

}  // namespace minipuzzle
