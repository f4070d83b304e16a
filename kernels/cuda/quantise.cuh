// Values as E4M3 codes with one scale per row (QuantizeRows in ops.h): what the kernels that end in codes
// share.
#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {

// Rows of codes and their scales; codes null: the result is not quantised.
struct CodeRows {
    uint8_t* codes = nullptr;
    float* scale = nullptr;

    constexpr explicit operator bool() const { return codes != nullptr; }
};

inline CodeRows code_rows(const Tensor& codes, const Tensor& scale) {
    if (codes.dtype != DType::f8_e4m3) return {};
    return {reinterpret_cast<uint8_t*>(codes.data), scale.as<float>()};
}

// Whether the codes of vectors of 8 elements may be written at `codes` and at every `pitch` from there.
inline bool code_vectors_fit(const uint8_t* codes, int64_t pitch) {
    return reinterpret_cast<uintptr_t>(codes) % 8 == 0 && pitch % 8 == 0;
}

// Magnitudes are compared as the bits of their floats: the order is the same, and NaN is the largest.
__device__ inline uint32_t magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }

template <int W>
__device__ inline uint32_t largest_magnitude(const float (&values)[W], uint32_t largest) {
#pragma unroll
    for (int j = 0; j < W; ++j) largest = max(largest, magnitude(values[j]));
    return largest;
}

__device__ inline uint32_t warp_max(uint32_t value) { return __reduce_max_sync(0xffffffffu, value); }

// As row_sum() of vectors.cuh.
__device__ inline uint32_t row_max(uint32_t value, uint32_t* partials) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    uint32_t* row = partials + threadIdx.y * warps;
    value = warp_max(value);
    if (threadIdx.x % kWarp == 0) row[threadIdx.x / kWarp] = value;
    __syncthreads();
    uint32_t largest = row[0];
    for (int warp = 1; warp < warps; ++warp) largest = max(largest, row[warp]);
    return largest;
}

// The scale of a row whose largest magnitude that is; NaN where it is not finite.
__device__ inline float quantising_scale(uint32_t largest) {
    if (largest == 0) return 1;
    if (largest >= 0x7f800000u) return __uint_as_float(0x7fffffffu);
    return fmaxf(__fdiv_rn(__uint_as_float(largest), kLargestE4m3), 0x1p-126f);
}
__device__ inline float reciprocal(float scale) { return __frcp_rn(scale); }

// Rounded to nearest even, at most 448 in magnitude; NaN stays NaN. The lower index in the lower byte.
__device__ inline uint32_t encode4(float a, float b, float c, float d) {
    const uint32_t lower = __nv_cvt_float2_to_fp8x2({a, b}, __NV_SATFINITE, __NV_E4M3);
    const uint32_t upper = __nv_cvt_float2_to_fp8x2({c, d}, __NV_SATFINITE, __NV_E4M3);
    return lower | upper << 16;
}
__device__ inline uint8_t encode(float v) { return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3); }

// The codes of eight neighbours; `to` is 8-byte aligned.
__device__ inline void store_codes(uint8_t* to, const float (&v)[8], float inverse, Reuse reuse) {
    const uint2 bits = make_uint2(encode4(v[0] * inverse, v[1] * inverse, v[2] * inverse, v[3] * inverse),
                                  encode4(v[4] * inverse, v[5] * inverse, v[6] * inverse, v[7] * inverse));
    if (reuse == Reuse::once)
        __stcs(reinterpret_cast<uint2*>(to), bits);
    else
        *reinterpret_cast<uint2*>(to) = bits;
}

__device__ inline float decode(uint8_t code) {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

}  // namespace minipuzzle::cuda
