// What the tests of operations share: repeatable random inputs, views of vectors, and gradients by
// differences.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "kernels/backend.h"
#include "tests/catch.h"

namespace minipuzzle::testing {

// Repeatable normal deviates: Box-Muller over a mixed counter.
class Random {
  public:
    explicit Random(uint64_t seed) : counter_(seed << 32) {}
    double uniform() {
        uint64_t z = (counter_++ + 1) * 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return (static_cast<double>((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
    }
    double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(2 * M_PI * uniform()); }
    std::vector<double> normals(int64_t count, double mean = 0, double deviation = 1) {
        std::vector<double> values(count);
        for (double& value : values) value = mean + deviation * normal();
        return values;
    }

  private:
    uint64_t counter_;
};

template <class T>
Tensor tensor(const std::vector<T>& values, std::initializer_list<int64_t> extents) {
    Tensor view(const_cast<T*>(values.data()), DTypeOf<T>::value, extents);
    REQUIRE(view.elements() == static_cast<int64_t>(values.size()));
    return view;
}

template <class To, class From>
std::vector<To> convert(const std::vector<From>& values) {
    return std::vector<To>(values.begin(), values.end());
}

// Largest |a - b| over the largest |b|.
template <class A, class B>
double relative_error(const std::vector<A>& a, const std::vector<B>& b) {
    REQUIRE(a.size() == b.size());
    double error = 0, size = 1e-300;
    for (size_t i = 0; i < a.size(); ++i) {
        const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        error = std::isnan(difference) ? INFINITY : std::max(error, difference);
        size = std::max(size, std::abs(static_cast<double>(b[i])));
    }
    return error / size;
}

// The largest error of `gradient` against central differences of loss(), which reads `values`, over the
// largest difference. At most `checks` entries are tried, spread evenly. With a step of 1e-5 and losses of
// order 1 to 100 the method's own error is about 1e-10 (truncation) to 1e-9 (rounding): hold results to 1e-7.
template <class Loss>
double gradient_error(std::vector<double>& values, const std::vector<double>& gradient, const Loss& loss,
                      size_t checks = 60) {
    REQUIRE(values.size() == gradient.size());
    constexpr double kStep = 1e-5;
    const size_t stride = std::max<size_t>(1, values.size() / checks);
    double error = 0, size = 1e-300;
    for (size_t i = 0; i < values.size(); i += stride) {
        const double kept = values[i];
        values[i] = kept + kStep;
        const double above = loss();
        values[i] = kept - kStep;
        const double below = loss();
        values[i] = kept;
        const double slope = (above - below) / (2 * kStep);
        error = std::isnan(slope) ? INFINITY : std::max(error, std::abs(slope - gradient[i]));
        size = std::max(size, std::abs(slope));
    }
    return error / size;
}

inline double weighted_sum(const std::vector<double>& weights, const std::vector<double>& values) {
    double sum = 0;
    for (size_t i = 0; i < weights.size(); ++i) sum += weights[i] * values[i];
    return sum;
}

}  // namespace minipuzzle::testing
