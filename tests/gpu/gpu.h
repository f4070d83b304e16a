// What the cases for a GPU share. Without a device they are skipped (ctest knows the notice), or fail where
// MINIPUZZLE_REQUIRE_GPU=1.
#pragma once

#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/testing.h"

namespace minipuzzle::testing {

// The first CUDA device; null where there is none. A case begins with
//     Backend* gpu = cuda_backend();
//     if (!gpu) return;
inline Backend* cuda_backend() {
    static const std::unique_ptr<Backend> backend = []() -> std::unique_ptr<Backend> {
        try {
            return make_backend("cuda", 1);
        } catch (const Error& error) {
            const char* required = std::getenv("MINIPUZZLE_REQUIRE_GPU");
            if (required && std::string(required) == "1") FAIL("a GPU is required: " << error.what());
            WARN("skipped: a GPU case (" << error.what() << ")");
            return nullptr;
        }
    }();
    return backend.get();
}

// A tensor in device memory of its own. Every byte starts as 0xff, which is NaN in bf16 and float32: what an
// operation leaves unwritten shows.
class DeviceTensor {
  public:
    DeviceTensor(Backend& backend, DType dtype, std::initializer_list<int64_t> extents)
        : backend_(backend), view_(nullptr, dtype, extents, DeviceKind::cuda) {
        view_.data = backend.allocate(view_.bytes());
        poison();
    }
    // Uploads values, rounded to the type (bf16, f32, or i32).
    template <class T>
    DeviceTensor(Backend& backend, DType dtype, std::initializer_list<int64_t> extents,
                 const std::vector<T>& values)
        : DeviceTensor(backend, dtype, extents) {
        upload(values);
    }
    ~DeviceTensor() { backend_.free(view_.data); }
    DeviceTensor(const DeviceTensor&) = delete;
    DeviceTensor& operator=(const DeviceTensor&) = delete;

    operator const Tensor&() const { return view_; }
    const Tensor& view() const { return view_; }

    void poison() {
        const std::vector<unsigned char> ones(view_.bytes(), 0xff);
        backend_.copy(view_.data, reinterpret_cast<const std::byte*>(ones.data()), view_.bytes());
    }
    template <class T>
    void upload(const std::vector<T>& values) {
        REQUIRE(static_cast<int64_t>(values.size()) == view_.elements());
        if (view_.dtype == DType::bf16) {
            std::vector<uint16_t> bits(values.size());
            for (size_t i = 0; i < bits.size(); ++i) bits[i] = float_to_bf16(static_cast<float>(values[i]));
            backend_.copy(view_.data, reinterpret_cast<const std::byte*>(bits.data()), view_.bytes());
        } else if (view_.dtype == DType::i32) {
            const std::vector<int32_t> ints(values.begin(), values.end());
            backend_.copy(view_.data, reinterpret_cast<const std::byte*>(ints.data()), view_.bytes());
        } else {
            REQUIRE(view_.dtype == DType::f32);
            const std::vector<float> floats(values.begin(), values.end());
            backend_.copy(view_.data, reinterpret_cast<const std::byte*>(floats.data()), view_.bytes());
        }
    }
    // Everything, or `count` elements from `begin`.
    std::vector<float> download(int64_t begin = 0, int64_t count = -1) const {
        if (count < 0) count = view_.elements() - begin;
        const int64_t size = bytes_of(view_.dtype);
        std::vector<std::byte> raw(count * size);
        backend_.copy(raw.data(), view_.data + begin * size, count * size);
        std::vector<float> values(count);
        for (int64_t i = 0; i < count; ++i)
            values[i] = view_.dtype == DType::bf16
                            ? bf16_to_float(reinterpret_cast<const uint16_t*>(raw.data())[i])
                            : reinterpret_cast<const float*>(raw.data())[i];
        return values;
    }

  private:
    Backend& backend_;
    Tensor view_;
};

// The values a bf16 tensor will hold: what the CPU twin is given.
template <class T>
std::vector<T> rounded_to_bf16(std::vector<T> values) {
    for (T& value : values) value = bf16_to_float(float_to_bf16(static_cast<float>(value)));
    return values;
}

// ||a - b|| / ||b||; infinite where `a` holds NaN.
template <class A, class B>
double norm_error(const std::vector<A>& a, const std::vector<B>& b) {
    REQUIRE(a.size() == b.size());
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
        difference += d * d;
        size += static_cast<double>(b[i]) * static_cast<double>(b[i]);
    }
    if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
    return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

}  // namespace minipuzzle::testing
