// Tensor maps: how the copy engine of compute capability 9.0a sees a tensor in device memory.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace minipuzzle::cuda {

// One axis of a tensor map: its extent, its stride in bytes, and how much of it a box holds.
struct Axis {
    int64_t extent, stride, box;
};

// Boxes of a tensor of bf16, axes from the innermost (whose stride is 2), at most five; swizzled by the width
// of the innermost: 64, 32 or 16 elements.
CUtensorMap make_map(const std::byte* base, std::initializer_list<Axis> axes);

}  // namespace minipuzzle::cuda
