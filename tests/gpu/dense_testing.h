// What the cases of the byte-moving kernels share: how far one rounding may go, memory of a test's own, and
// operands too big to be made on the host.
#pragma once

#include <algorithm>
#include <bit>

#include "kernels/random.h"
#include "tests/gpu/gpu.h"

namespace minipuzzle::testing {

// The largest |actual - expected| as a share of what is allowed: one rounding to bf16 (8 significant bits, so
// at most 2^-8 of the value), a 500th of it for float32 arithmetic before it, and `noise`. Infinite where
// `actual` is NaN.
inline double rounding_share(const std::vector<float>& actual, const std::vector<double>& expected,
                             double noise = 1e-30) {
    REQUIRE(actual.size() == expected.size());
    constexpr double kRounding = 1.002 / 256;
    double worst = 0;
    for (size_t i = 0; i < actual.size(); ++i) {
        const double share = std::abs(actual[i] - expected[i]) / (kRounding * std::abs(expected[i]) + noise);
        worst = std::isnan(share) ? std::numeric_limits<double>::infinity() : std::max(worst, share);
    }
    return worst;
}

// The part of [sequences, ...] that belongs to sequence b.
template <class T>
std::vector<T> part(const std::vector<T>& values, int64_t b, int64_t sequences) {
    const int64_t size = static_cast<int64_t>(values.size()) / sequences;
    return std::vector<T>(values.begin() + b * size, values.begin() + (b + 1) * size);
}

// To the nearest 8 significant bits, ties to even, in one step (by way of float32 it would be two).
inline double double_rounded_to_bf16(double value) {
    constexpr int kDropped = 45;
    uint64_t bits = std::bit_cast<uint64_t>(value);
    bits += (uint64_t{1} << (kDropped - 1)) - 1 + ((bits >> kDropped) & 1);
    return std::bit_cast<double>(bits >> kDropped << kDropped);
}

// Elements of bf16 in device memory, drawn there; element i is known on the host without the rest.
class LargeTensor {
  public:
    LargeTensor(Backend& backend, std::initializer_list<int64_t> extents, uint64_t key)
        : backend_(backend), view_(nullptr, DType::bf16, extents, DeviceKind::cuda), key_(key) {
        view_.data = backend.allocate(view_.bytes());
        backend.run(RandomNormal{.out = view_, .key = key});
    }
    ~LargeTensor() { backend_.free(view_.data); }
    LargeTensor(const LargeTensor&) = delete;
    LargeTensor& operator=(const LargeTensor&) = delete;

    operator const Tensor&() const { return view_; }
    // What was drawn for `count` elements from `begin`. A last bit of the device's logarithm or cosine may
    // turn the rounding of one element in 10^13.
    std::vector<double> drawn(int64_t begin, int64_t count) const {
        std::vector<double> values(count);
        for (int64_t i = 0; i < count; ++i)
            values[i] = double_rounded_to_bf16(counter_normal(key_, begin + i));
        return values;
    }
    std::vector<float> now(int64_t begin, int64_t count) const {
        std::vector<uint16_t> bits(count);
        backend_.copy(reinterpret_cast<std::byte*>(bits.data()), view_.data + begin * 2, count * 2);
        std::vector<float> values(count);
        for (int64_t i = 0; i < count; ++i) values[i] = bf16_to_float(bits[i]);
        return values;
    }

  private:
    Backend& backend_;
    Tensor view_;
    uint64_t key_;
};

constexpr int64_t kTwoToThe31 = int64_t{1} << 31;

// Says so and returns false where the device has less memory free.
inline bool has_memory(const Backend& gpu, int64_t bytes) {
    if (gpu.available() > bytes) return true;
    WARN("skipped: needs " << (bytes >> 30) << " GiB of device memory");
    return false;
}

}  // namespace minipuzzle::testing
