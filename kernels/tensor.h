// Tensor: a typed view of memory that somebody else owns.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace minipuzzle {

enum class DeviceKind { cpu, cuda };

// A contiguous row-major view: data, element type, up to four extents, device. Never owns; copying copies the
// view. A default-constructed Tensor is empty (`!tensor`), which operations read as "not given". A Tensor
// made by a measuring arena has extents but no memory behind it (data is null, `bool` is still true): only
// shapes may be read.
struct Tensor {
    std::byte* data = nullptr;
    DType dtype = DType::f32;
    DeviceKind device = DeviceKind::cpu;
    int rank = 0;
    std::array<int64_t, 4> shape{};

    Tensor() = default;
    Tensor(void* memory, DType type, std::initializer_list<int64_t> extents,
           DeviceKind where = DeviceKind::cpu)
        : data(static_cast<std::byte*>(memory)),
          dtype(type),
          device(where),
          rank(narrow<int>(extents.size())) {
        MP_ASSERT(extents.size() >= 1 && extents.size() <= 4);
        int i = 0;
        for (int64_t extent : extents) shape[i++] = extent;
    }

    explicit operator bool() const { return rank > 0; }
    int64_t size(int axis) const { return shape[axis]; }
    int64_t elements() const {
        int64_t count = rank > 0 ? 1 : 0;
        for (int i = 0; i < rank; ++i) count *= shape[i];
        return count;
    }
    int64_t bytes() const { return elements() * bytes_of(dtype); }
    // Rows when everything but the last axis is folded into one.
    int64_t rows() const { return columns() > 0 ? elements() / columns() : 0; }
    int64_t columns() const { return rank > 0 ? shape[rank - 1] : 0; }

    // The elements as T; InternalError where T is not the element type.
    template <class T>
    T* as() const {
        MP_ASSERT(rank == 0 || DTypeOf<T>::value == dtype);
        return reinterpret_cast<T*>(data);
    }

    // The same memory under other extents.
    Tensor view(std::initializer_list<int64_t> extents) const {
        Tensor other(data, dtype, extents, device);
        MP_ASSERT(other.elements() == elements());
        return other;
    }
    // Entries [begin, begin + count) of the first axis.
    Tensor slice(int64_t begin, int64_t count) const {
        MP_ASSERT(rank > 0 && begin >= 0 && count >= 0 && begin + count <= shape[0]);
        Tensor other = *this;
        other.shape[0] = count;
        if (data && shape[0] > 0) other.data = data + begin * (bytes() / shape[0]);
        return other;
    }
    bool same_shape(const Tensor& other) const { return rank == other.rank && shape == other.shape; }
};

}  // namespace minipuzzle
