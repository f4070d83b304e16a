// Rows of float32 logits, each owned by one block: how its threads visit the columns, and sums over them in
// an order that the vocabulary alone fixes.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {

constexpr int kBatch = 8;  // columns that a thread takes in at once
// The float32 nearest to log2(e), L.
constexpr float kLog2E = 1.4426950408889634f;
// Below every logit, and still finite when multiplied by log2(e).
constexpr float kLowest = -2e38f;

__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <int kCount>
struct Count {};

// The columns of a row as one thread of kThreads visits them: whole batches, then single steps; ascending.
// With kVector a step is 16 bytes, which needs a vocabulary that 4 divides; otherwise it is one column.
template <int kThreads, bool kVector>
struct Columns {
    static constexpr int kStep = kVector ? 4 : 1;
    static constexpr int kStride = kThreads * kBatch;  // columns that the block takes in at once

    static __device__ int first() { return static_cast<int>(threadIdx.x) * kStep; }
    // The column of a batch's j-th value.
    static __device__ int of(int begin, int j) { return begin + j / kStep * (kThreads * kStep) + j % kStep; }

    // kStep values from column `at` on.
    static __device__ void load_step(const float* at, float* values) {
        if constexpr (kVector) {
            const float4 four = __ldcs(reinterpret_cast<const float4*>(at));
            values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
        } else {
            values[0] = __ldcs(at);
        }
    }
    template <int kCount>
    static __device__ void load(const float* row, int begin, float (&values)[kCount]) {
#pragma unroll
        for (int j = 0; j < kCount; j += kStep) load_step(row + of(begin, j), values + j);
    }

    // visit(begin, Count<kCount>).
    template <class Visit>
    static __device__ void for_each(int vocabulary, const Visit& visit) {
        const int whole = vocabulary / kStride * kStride;
        for (int begin = first(); begin < whole; begin += kStride) {
            visit(begin, Count<kBatch>{});
        }
        for (int begin = whole + first(); begin < vocabulary; begin += kThreads * kStep) {
            visit(begin, Count<kStep>{});
        }
    }
};

// Sums over the block, valid in thread 0: lanes in a tree, then warps in order.
template <int kThreads, int kSums>
__device__ void add_up(double (&sums)[kSums]) {
    constexpr int kWarps = kThreads / kWarp;
    __shared__ double warp_sums[kWarps][kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
#pragma unroll
        for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], lanes);
        if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp][i] = sums[i];
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
        sums[i] = 0;
        for (int warp = 0; warp < kWarps; ++warp) sums[i] += warp_sums[warp][i];
    }
}

// Writes an output that may not be wanted.
__device__ inline void set(float* out, int64_t row, double value) {
    if (out) out[row] = static_cast<float>(value);
}

// The memory of an output from this row on; null where it is not wanted.
inline float* at(const Tensor& tensor, int64_t row) { return tensor ? tensor.as<float>() + row : nullptr; }

// kernel<kThreads, kVector> by the vocabulary: its size alone fixes the order of every sum.
#define MP_LAUNCH_ROWS(kernel, context, rows, args)                                         \
    do {                                                                                    \
        const auto grid = static_cast<unsigned>(rows);                                      \
        const bool wide = (args).vocabulary > 8192, vector = (args).vocabulary % 4 == 0;    \
        if (wide && vector) kernel<512, true><<<grid, 512, 0, (context).stream>>>(args);    \
        if (wide && !vector) kernel<512, false><<<grid, 512, 0, (context).stream>>>(args);  \
        if (!wide && vector) kernel<128, true><<<grid, 128, 0, (context).stream>>>(args);   \
        if (!wide && !vector) kernel<128, false><<<grid, 128, 0, (context).stream>>>(args); \
        MP_CUDA_LAUNCHED();                                                                 \
    } while (false)

}  // namespace minipuzzle::cuda
