// Row arithmetic in groups of kLanes elements. Every element takes the same vector path wherever its memory
// lies (Eigen's dynamic arrays peel a scalar head off unaligned rows, and scalar exp has other bits).
#pragma once

#include <Eigen/Dense>
#include <cmath>
#include <cstdint>
#include <limits>

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

inline constexpr int kLanes = 16;

template <class T>
using Lanes = Eigen::Array<T, kLanes, 1>;

// A whole group.
template <class T>
struct FullLanes {
    Lanes<T> load(const T* from) const { return Eigen::Map<const Lanes<T>>(from); }
    // `fill` is what PartialLanes puts in the lanes that lie outside of the row.
    Lanes<T> load(const T* from, T) const { return load(from); }
    void store(T* to, const Lanes<T>& values) const { Eigen::Map<Lanes<T>>{to} = values; }
};

// The first `count` lanes of a group, at the end of a row.
template <class T>
struct PartialLanes {
    int64_t count;
    Lanes<T> load(const T* from, T fill = 0) const {
        Lanes<T> values = Lanes<T>::Constant(fill);
        for (int64_t i = 0; i < count; ++i) values[i] = from[i];
        return values;
    }
    void store(T* to, const Lanes<T>& values) const {
        for (int64_t i = 0; i < count; ++i) to[i] = values[i];
    }
};

// body(offset, lanes) for every group of a row of n elements; `lanes` loads and stores the group.
template <class T, class Body>
inline void for_lanes(int64_t n, Body&& body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) body(i, FullLanes<T>{});
    if (i < n) body(i, PartialLanes<T>{n - i});
}

// Sum over the row of value(offset, lanes), which must be 0 where it loads 0.
template <class T, class Value>
inline T sum_lanes(int64_t n, Value&& value) {
    Lanes<T> sum = Lanes<T>::Zero();
    for_lanes<T>(n, [&](int64_t i, auto lanes) { sum += value(i, lanes); });
    return sum.sum();
}

template <class T>
inline T dot_lanes(const T* a, const T* b, int64_t n) {
    return sum_lanes<T>(
        n, [&](int64_t i, auto lanes) -> Lanes<T> { return lanes.load(a + i) * lanes.load(b + i); });
}

// The row's largest element; NaN where an element is NaN or infinite, so that neither can hide behind exp's
// clamping.
template <class T>
inline T finite_max(const T* row, int64_t n) {
    constexpr T kLowest = std::numeric_limits<T>::lowest();
    Lanes<T> largest = Lanes<T>::Constant(kLowest), poison = Lanes<T>::Zero();
    for_lanes<T>(n, [&](int64_t i, auto lanes) {
        const Lanes<T> values = lanes.load(row + i, kLowest);
        largest = largest.max(values);
        poison += values - values;
    });
    return largest.maxCoeff() + poison.sum();
}

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
