// Counter-based random numbers: value i of a named stream, with no state to carry or save.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace minipuzzle {

// The finaliser of SplitMix64 (Steele, Lea & Flood 2014): a bijection of 64-bit words that passes BigCrush as
// a counter hash.
inline uint64_t mix64(uint64_t z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// A stream of (seed, name); every draw is a pure function of its index.
class CounterRandom {
  public:
    CounterRandom(uint64_t seed, std::string_view stream) : key_(mix64(seed)) {
        for (char c : stream) key_ = mix64(key_ ^ static_cast<unsigned char>(c));
    }
    uint64_t bits(int64_t index) const { return mix64(key_ ^ mix64(static_cast<uint64_t>(index))); }
    // In (0, 1), 53 bits.
    double uniform(int64_t index) const { return (static_cast<double>(bits(index) >> 11) + 0.5) * 0x1p-53; }
    // Standard normal, Box-Muller.
    double normal(int64_t index) const {
        const double radius = std::sqrt(-2 * std::log(uniform(2 * index)));
        return radius * std::cos(2 * std::numbers::pi * uniform(2 * index + 1));
    }

  private:
    uint64_t key_;
};

}  // namespace minipuzzle
