// bf16 in memory, float32 in registers: vectors of up to 16 bytes, and sums over a warp or a block in a fixed
// order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/tensor.h"

namespace minipuzzle::cuda {

using bf16 = __nv_bfloat16;

inline bf16* bf16_data(const Tensor& tensor) {
    MP_ASSERT(!tensor || tensor.dtype == DType::bf16);
    return reinterpret_cast<bf16*>(tensor.data);
}

// Whether vectors of 8 bf16 may be read at `memory` and at every `pitch` elements from there.
inline bool vectors_fit(const void* memory, int64_t pitch) {
    return reinterpret_cast<uintptr_t>(memory) % 16 == 0 && pitch % 8 == 0;
}

// Blocks of a grid whose kernels loop over their tasks.
inline unsigned grid_size(int64_t tasks) {
    return static_cast<unsigned>(std::min<int64_t>(tasks, 0x7fffffff));
}

constexpr int kWarp = 32;

// ---- vectors

// W neighbouring bf16 (8: 16 bytes, 4: 8 bytes, 2: 4 bytes, 1: one element), the lower index in the lower
// half.
template <int W>
struct Packed {
    uint32_t pairs[(W + 1) / 2];
};

// Data that is read once, and results that do not stay in cache until they are read, pass without displacing
// what is read again.
enum class Reuse { once, again };

// How results of that many bytes are stored: small ones are likely still in cache (L2: 40 MiB and more) when
// read.
inline Reuse reuse_of(int64_t bytes) { return bytes > (int64_t{16} << 20) ? Reuse::once : Reuse::again; }

template <int W, Reuse kReuse = Reuse::once>
__device__ inline Packed<W> load(const bf16* from) {
    static_assert(W == 8 || W == 4 || W == 2 || W == 1);
    if constexpr (W == 8) {
        const uint4* at = reinterpret_cast<const uint4*>(from);
        const uint4 v = kReuse == Reuse::once ? __ldcs(at) : *at;
        return {{v.x, v.y, v.z, v.w}};
    } else if constexpr (W == 4) {
        const uint2* at = reinterpret_cast<const uint2*>(from);
        const uint2 v = kReuse == Reuse::once ? __ldcs(at) : *at;
        return {{v.x, v.y}};
    } else if constexpr (W == 2) {
        const uint32_t* at = reinterpret_cast<const uint32_t*>(from);
        return {{kReuse == Reuse::once ? __ldcs(at) : *at}};
    } else {
        return {{*reinterpret_cast<const uint16_t*>(from)}};
    }
}

template <int W>
__device__ inline void store(bf16* to, const Packed<W>& v, Reuse reuse) {
    if constexpr (W == 8) {
        uint4* at = reinterpret_cast<uint4*>(to);
        const uint4 bits = make_uint4(v.pairs[0], v.pairs[1], v.pairs[2], v.pairs[3]);
        if (reuse == Reuse::once)
            __stcs(at, bits);
        else
            *at = bits;
    } else if constexpr (W == 4) {
        uint2* at = reinterpret_cast<uint2*>(to);
        const uint2 bits = make_uint2(v.pairs[0], v.pairs[1]);
        if (reuse == Reuse::once)
            __stcs(at, bits);
        else
            *at = bits;
    } else if constexpr (W == 2) {
        uint32_t* at = reinterpret_cast<uint32_t*>(to);
        if (reuse == Reuse::once)
            __stcs(at, v.pairs[0]);
        else
            *at = v.pairs[0];
    } else {
        *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(v.pairs[0]);
    }
}

// A bf16 is the upper half of a float.
template <int W>
__device__ inline void unpack(const Packed<W>& v, float (&values)[W]) {
#pragma unroll
    for (int i = 0; i < W; ++i)
        values[i] = __uint_as_float(i % 2 ? v.pairs[i / 2] & 0xffff0000u : v.pairs[i / 2] << 16);
}

__device__ inline uint32_t pack_pair(float lower, float upper) {
    uint32_t pair;  // round to nearest even; NaN stays NaN
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(upper), "f"(lower));
    return pair;
}

template <int W>
__device__ inline Packed<W> pack(const float (&values)[W]) {
    Packed<W> v;
#pragma unroll
    for (int i = 0; i < W; i += 2) v.pairs[i / 2] = pack_pair(values[i], i + 1 < W ? values[i + 1] : 0.0f);
    return v;
}

// W neighbouring float32 (4: 16 bytes, 1: one).
template <int W>
struct Values {
    float v[W];
};
template <int W, Reuse kReuse = Reuse::once>
__device__ inline Values<W> load(const float* from) {
    static_assert(W == 4 || W == 1);
    if constexpr (W == 4) {
        const float4* at = reinterpret_cast<const float4*>(from);
        const float4 v = kReuse == Reuse::once ? __ldcs(at) : *at;
        return {{v.x, v.y, v.z, v.w}};
    } else {
        return {{*from}};
    }
}
template <int W, Reuse kReuse = Reuse::once>
__device__ inline void store(float* to, const Values<W>& values) {
    if constexpr (W == 4) {
        float4* at = reinterpret_cast<float4*>(to);
        const float4 v = make_float4(values.v[0], values.v[1], values.v[2], values.v[3]);
        if (kReuse == Reuse::once)
            __stcs(at, v);
        else
            __stwb(at, v);  // a plain assignment becomes four stores
    } else {
        *to = values.v[0];
    }
}

// Eight neighbouring float32 that are read again and again (32-byte aligned).
__device__ inline void load_weights(const float* from, float (&values)[8]) {
    const float4 a = __ldg(reinterpret_cast<const float4*>(from));
    const float4 b = __ldg(reinterpret_cast<const float4*>(from) + 1);
    values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w;
    values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
}

// ---- functions

// 1 / (1 + exp(-v)) from the hardware's power of two and reciprocal: relative error about (|v| + 4) * 2^-24;
// below v = -87 it is 0.
__device__ inline float sigmoid(float v) {
    float power, result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
    return result;
}
__device__ inline float silu(float v) { return v * sigmoid(v); }

// ---- sums

// The sum over the warp, the same bits in every lane.
template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

// The sum over the blockDim.x threads (whole warps) of the same threadIdx.y, the same bits in each;
// `partials` holds a value per warp of the block and must not be written again before the block's next
// barrier.
template <class T>
__device__ inline T row_sum(T value, T* partials) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    T* row = partials + threadIdx.y * warps;
    value = warp_sum(value);
    if (threadIdx.x % kWarp == 0) row[threadIdx.x / kWarp] = value;
    __syncthreads();
    T sum = row[0];
    for (int warp = 1; warp < warps; ++warp) sum += row[warp];
    return sum;
}

// ---- rows held in registers

// How a row of `vectors` vectors of 8 is spread: thread i of `threads` holds vectors i, i + threads, ...;
// depends on the row's length alone, as does the order of sums over it. threads 0: too long to be held.
struct RowLayout {
    static constexpr int kMostThreads = 512, kBlockThreads = 256;
    int held = 0, threads = 0;

    bool fits() const { return threads > 0; }
    bool one_warp() const { return threads == kWarp; }
    // Rows of one block.
    int together() const { return std::max(1, kBlockThreads / threads); }
    // For __launch_bounds__ of kernels that hold several rows side by side: registers for two blocks of 512
    // threads (or four of 256) on a multiprocessor where a row's vectors leave room for that.
    static constexpr int blocks_wanted(int held, bool one_warp) {
        return (held <= 2 ? 2 : 1) * (one_warp ? 2 : 1);
    }
};

// A warp holds up to 4 vectors a lane; longer rows are spread over more threads of 2 vectors each, the
// longest of 4.
inline RowLayout row_layout(int64_t vectors) {
    const auto warps = [&](int held) { return div_up(vectors, int64_t{held} * kWarp); };
    if (warps(4) <= 1) return {.held = std::max(1, static_cast<int>(warps(1))), .threads = kWarp};
    for (const int held : {2, 4}) {
        const int64_t threads = warps(held) * kWarp;
        if (threads <= RowLayout::kMostThreads) return {.held = held, .threads = static_cast<int>(threads)};
    }
    return {};
}

}  // namespace minipuzzle::cuda
