// Counter-based random numbers, a function of (seed, counter): no state to carry or save, the same on every
// machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace minipuzzle {

// SplitMix64's output function (Steele, Lea & Flood 2014): a bijection that mixes all 64 bits.
constexpr uint64_t mix_bits(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// The counter-th output of the SplitMix64 generator that starts at the mixed seed.
constexpr uint64_t counter_random(uint64_t seed, uint64_t counter) {
    constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
    return mix_bits(mix_bits(seed + kGolden) + (counter + 1) * kGolden);
}

// The index-th standard normal deviate of a stream: Box-Muller over uniforms of 53 bits in (0, 1).
constexpr double counter_uniform(uint64_t key, int64_t index) {
    return (static_cast<double>(counter_random(key, static_cast<uint64_t>(index)) >> 11) + 0.5) * 0x1p-53;
}
inline double counter_normal(uint64_t key, int64_t index) {
    const double radius = std::sqrt(-2 * std::log(counter_uniform(key, 2 * index)));
    return radius * std::cos(2 * std::numbers::pi * counter_uniform(key, 2 * index + 1));
}

// A stream of (seed, name); every draw is a pure function of its index.
class CounterRandom {
  public:
    CounterRandom(uint64_t seed, std::string_view stream) : key_(seed) {
        for (char c : stream) key_ = counter_random(key_, static_cast<unsigned char>(c));
    }
    uint64_t bits(int64_t index) const { return counter_random(key_, static_cast<uint64_t>(index)); }
    double uniform(int64_t index) const { return counter_uniform(key_, index); }  // in (0, 1)
    double normal(int64_t index) const { return counter_normal(key_, index); }
    uint64_t key() const { return key_; }

  private:
    uint64_t key_;
};

}  // namespace minipuzzle
