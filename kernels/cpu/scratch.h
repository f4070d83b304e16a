// Carving a worker's scratch block into typed arrays, and the vector views that keep bits repeatable.
#pragma once

#include <Eigen/Dense>
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/check.h"
#include "kernels/cpu/parallel.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

inline constexpr int64_t kScratchAlignment = 64;

// Hands out arrays one after the other, each 64-byte aligned. Without a block it only counts bytes.
class Carver {
  public:
    Carver() = default;
    explicit Carver(std::byte* block) : block_(block) {}
    template <class T>
    T* take(int64_t count) {
        const int64_t begin = bytes_;
        bytes_ += div_up(count * int64_t{sizeof(T)}, kScratchAlignment) * kScratchAlignment;
        return block_ ? reinterpret_cast<T*>(block_ + begin) : nullptr;
    }
    int64_t bytes() const { return bytes_; }

  private:
    std::byte* block_ = nullptr;
    int64_t bytes_ = 0;
};

// A Workspace whose constructor takes (Carver&, sizes), laid out in a worker's scratch block.
template <class Workspace, class Sizes>
Workspace carve(ThreadPool& pool, int worker, const Sizes& sizes) {
    Carver measure;
    Workspace counted(measure, sizes);
    Carver carver(pool.scratch(worker, measure.bytes()));
    return Workspace(carver, sizes);
}

// `count` elements rounded up so that consecutive rows of T start at aligned addresses.
template <class T>
int64_t padded(int64_t count) {
    constexpr int64_t lanes = kScratchAlignment / int64_t{sizeof(T)};
    return div_up(count, lanes) * lanes;
}

// Eigen peels unaligned destinations with scalar code, whose exp differs from the vector one in the last
// bit. So every expression with a function in it is assigned to an AlignedVector in scratch: then an
// element's bits depend on its index, not on its address.
template <class T>
using AlignedVector = Eigen::Map<Eigen::Array<T, 1, Eigen::Dynamic>, Eigen::Aligned64>;
template <class T>
using Vector = Eigen::Map<Eigen::Array<T, 1, Eigen::Dynamic>>;
template <class T>
using ConstVector = Eigen::Map<const Eigen::Array<T, 1, Eigen::Dynamic>>;

// Sum of a[i] * b[i]. A product expression has no address, so Eigen sums it in the same order everywhere
// (the sum of a plain Map would start with a scalar run up to an aligned address).
template <class T>
T dot(const T* a, const T* b, int64_t count) {
    return (ConstVector<T>(a, count) * ConstVector<T>(b, count)).sum();
}

// Sums of `width` channels over tokens taken in order: T over spans of tokens, double over the spans.
template <class T>
class TokenSum {
  public:
    static constexpr int kSpan = 32;
    TokenSum(Carver& carver, int64_t width)
        : span_(carver.take<T>(width)), total_(carver.take<double>(width)), width_(width) {}
    void reset() {
        std::fill_n(span_, width_, T(0));
        std::fill_n(total_, width_, 0.0);
        tokens_ = 0;
    }
    // The span's sums, to add one token's terms to; `next` closes the token.
    T* span() { return span_; }
    void next() {
        if (++tokens_ % kSpan == 0) flush();
    }
    const double* total() {
        flush();
        return total_;
    }

  private:
    void flush() {
        for (int64_t i = 0; i < width_; ++i) total_[i] += static_cast<double>(span_[i]);
        std::fill_n(span_, width_, T(0));
    }
    T* span_;
    double* total_;
    int64_t width_;
    int64_t tokens_ = 0;
};

// gradient[i] += sum over sequences b, in order, of partial[b, i].
template <class T>
void add_partials(const double* partial, int64_t sequences, int64_t width, T* gradient) {
    for (int64_t i = 0; i < width; ++i) {
        double sum = 0;
        for (int64_t b = 0; b < sequences; ++b) sum += partial[b * width + i];
        gradient[i] += static_cast<T>(sum);
    }
}

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
