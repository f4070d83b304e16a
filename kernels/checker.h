// What the checks of every operation are made of.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/ops.h"

namespace minipuzzle {

inline bool is_floating(DType dtype) {
    return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

inline std::string describe(const Tensor& tensor) {
    const std::vector<int64_t> extents(tensor.shape.begin(), tensor.shape.begin() + tensor.rank);
    return fmt::format("{} {}", info(tensor.dtype).name, extents);
}

// The checks of one call of one operation: exact extents, one floating type (and the precise one that goes
// with it), one device.
class Checker {
  public:
    explicit Checker(const char* operation) : operation_(operation) {}

    // `expected` is the text, or a function that makes it: every operation is checked, hardly any fails.
    template <class Expected>
    void require(bool condition, const Expected& expected) const {
        if (condition) return;
        if constexpr (std::is_invocable_v<Expected>)
            fail(expected());
        else
            fail(expected);
    }

    void floating(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        shape(name, tensor, extents);
        if (!seen_floating_) {
            seen_floating_ = true;
            floating_type_ = tensor.dtype;
        }
        require(is_floating(tensor.dtype) && tensor.dtype == floating_type_, [&] {
            return fmt::format("{} is {}, expected {}", name, describe(tensor),
                               is_floating(floating_type_) ? info(floating_type_).name : "a floating type");
        });
    }
    void optional(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        if (tensor) floating(name, tensor, extents);
    }

    // After the operation's first floating tensor.
    void precise(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        shape(name, tensor, extents);
        require(tensor.dtype == precise_type(floating_type_), [&] {
            return fmt::format("{} is {}, expected {}", name, describe(tensor),
                               info(precise_type(floating_type_)).name);
        });
    }
    void optional_precise(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        if (tensor) precise(name, tensor, extents);
    }

    // E4M3 codes with a precise scale for each row, after the operation's first floating tensor.
    void quantised(const char* name, const Tensor& tensor, const char* scale_name, const Tensor& scale) {
        require(static_cast<bool>(tensor), [&] { return fmt::format("{} is not given", name); });
        same_device(name, tensor);
        require(tensor.dtype == DType::f8_e4m3,
                [&] { return fmt::format("{} is {}, expected F8_E4M3", name, describe(tensor)); });
        precise(scale_name, scale, {tensor.rows()});
    }
    // A result with the extents of `like`, floating or quantised; its scale is given where it is quantised.
    void result_like(const Tensor& like, const char* name, const Tensor& tensor, const char* scale_name,
                     const Tensor& scale) {
        if (tensor.dtype != DType::f8_e4m3) return same(name, tensor, like);
        require(tensor.same_shape(like), [&] {
            return fmt::format("{} is {}, expected the extents of {}", name, describe(tensor),
                               describe(like));
        });
        quantised(name, tensor, scale_name, scale);
    }
    // Float32 or double, where no floating tensor says which.
    void precise_alone(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        shape(name, tensor, extents);
        require(tensor.dtype == DType::f32 || tensor.dtype == DType::f64,
                [&] { return fmt::format("{} is {}, expected F32 or F64", name, describe(tensor)); });
    }
    void of_type(const char* name, const Tensor& tensor, DType dtype,
                 std::initializer_list<int64_t> extents) {
        shape(name, tensor, extents);
        require(tensor.dtype == dtype, [&] {
            return fmt::format("{} is {}, expected {}", name, describe(tensor), info(dtype).name);
        });
    }

    void indices(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        shape(name, tensor, extents);
        require(tensor.dtype == DType::i32,
                [&] { return fmt::format("{} is {}, expected I32", name, describe(tensor)); });
    }
    void optional_indices(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        if (tensor) indices(name, tensor, extents);
    }

    // Floating, of any rank, the same extents as `like`.
    void same(const char* name, const Tensor& tensor, const Tensor& like) {
        require(static_cast<bool>(tensor), [&] { return fmt::format("{} is not given", name); });
        require(tensor.same_shape(like), [&] {
            return fmt::format("{} is {}, expected the extents of {}", name, describe(tensor),
                               describe(like));
        });
        const auto& e = tensor.shape;
        if (tensor.rank == 1) floating(name, tensor, {e[0]});
        if (tensor.rank == 2) floating(name, tensor, {e[0], e[1]});
        if (tensor.rank == 3) floating(name, tensor, {e[0], e[1], e[2]});
        if (tensor.rank == 4) floating(name, tensor, {e[0], e[1], e[2], e[3]});
    }

    // On the device of the operation's first tensor.
    void same_device(const char* name, const Tensor& tensor) {
        if (!seen_device_) {
            seen_device_ = true;
            device_ = tensor.device;
        }
        require(tensor.device == device_, [&] { return fmt::format("{} lies on another device", name); });
    }

  private:
    [[noreturn]] void fail(const std::string& expected) const {
        throw InternalError(fmt::format("internal error: {}: {}", operation_, expected));
    }

    void shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        require(static_cast<bool>(tensor), [&] { return fmt::format("{} is not given", name); });
        const bool fits = tensor.rank == static_cast<int>(extents.size()) &&
                          std::equal(extents.begin(), extents.end(), tensor.shape.begin());
        require(fits, [&] {
            return fmt::format("{} is {}, expected {}", name, describe(tensor),
                               std::vector<int64_t>(extents));
        });
        same_device(name, tensor);
    }

    const char* operation_;
    bool seen_floating_ = false, seen_device_ = false;
    DType floating_type_ = DType::f32;
    DeviceKind device_ = DeviceKind::cpu;
};

// B, T and the last extent of a [B, T, .] tensor; zeros where it has another rank, which the shape check then
// reports.
struct Extents {
    explicit Extents(const Tensor& tensor)
        : b(tensor.size(0)), t(tensor.size(1)), columns(tensor.rank == 3 ? tensor.size(2) : 0) {}
    int64_t b, t, columns;
};

}  // namespace minipuzzle
