// Tensor maps: what the copy engine of compute capability 9.0 needs to know of a tensor to move boxes of it.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include <initializer_list>

#include "kernels/cuda/device.h"

namespace minipuzzle::cuda {

// One axis of a map: its extent, its stride in bytes (a multiple of 16), and how much of it a box holds.
struct MapAxis {
    int64_t extent, stride, box;
};

// The driver's function, found through the runtime so that the program needs no driver library to start.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
    static const auto function = [] {
        void* entry = nullptr;
        cudaDriverEntryPointQueryResult found{};
        MP_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                                 &found));
        MP_ASSERT(found == cudaDriverEntryPointSuccess);
        return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
    }();
    return function;
}

// Boxes of a tensor of bf16 at `base` (16-byte aligned), axes from the innermost, whose stride is 2 and whose
// box is 64 elements: 128 bytes, the width of the pattern in which a tile's pieces are exchanged.
inline CUtensorMap tensor_map(std::byte* base, std::initializer_list<MapAxis> axes) {
    cuuint64_t extents[5] = {}, strides[5] = {};
    cuuint32_t box[5] = {}, steps[5] = {};
    cuuint32_t rank = 0;
    for (const MapAxis& axis : axes) {
        extents[rank] = static_cast<cuuint64_t>(axis.extent);
        strides[rank] = static_cast<cuuint64_t>(axis.stride);
        box[rank] = static_cast<cuuint32_t>(axis.box);
        steps[rank++] = 1;
    }
    MP_ASSERT(box[0] == 64 && strides[0] == 2);
    CUtensorMap map{};
    const CUresult result =
        tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, base, extents, strides + 1, box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    MP_ASSERT(result == CUDA_SUCCESS);
    return map;
}

}  // namespace minipuzzle::cuda
