#include "kernels/cuda/tensor_map.h"

#include <cudaTypedefs.h>

#include "kernels/cuda/device.h"

namespace minipuzzle::cuda {
namespace {

// The driver's function, found through the runtime so that the program needs no driver library to start.
PFN_cuTensorMapEncodeTiled_v12000 map_encoder() {
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

}  // namespace

CUtensorMap make_map(const std::byte* base, std::initializer_list<Axis> axes) {
    cuuint64_t extents[5] = {}, strides[5] = {};
    cuuint32_t box[5] = {}, steps[5] = {};
    cuuint32_t rank = 0;
    for (const Axis& axis : axes) {
        extents[rank] = static_cast<cuuint64_t>(axis.extent);
        strides[rank] = static_cast<cuuint64_t>(axis.stride);
        box[rank] = static_cast<cuuint32_t>(axis.box);
        steps[rank++] = 1;
    }
    const CUtensorMapSwizzle swizzle = box[0] == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                       : box[0] == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                      : CU_TENSOR_MAP_SWIZZLE_32B;
    CUtensorMap map{};
    const CUresult result =
        map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<std::byte*>(base), extents,
                      strides + 1, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    MP_ASSERT(result == CUDA_SUCCESS);
    return map;
}

}  // namespace minipuzzle::cuda
