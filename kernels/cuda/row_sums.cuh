// Several sums over the same row at once, with one barrier.
#pragma once

#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {

// Sums that a row needs together.
template <int N>
struct Sums {
    float values[N] = {};
};

template <int N>
__device__ inline Sums<N> warp_sums(Sums<N> sums) {
#pragma unroll
    for (int i = 0; i < N; ++i) sums.values[i] = warp_sum(sums.values[i]);
    return sums;
}

// As row_sum() of vectors.cuh: over the blockDim.x threads (whole warps) of the same threadIdx.y, the same
// bits in each. `partials` holds N values per warp of the block and must not be written again before the
// block's next barrier.
template <int N>
__device__ inline Sums<N> row_sums(Sums<N> sums, Sums<N>* partials) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    Sums<N>* row = partials + threadIdx.y * warps;
    sums = warp_sums(sums);
    if (threadIdx.x % kWarp == 0) row[threadIdx.x / kWarp] = sums;
    __syncthreads();
    sums = row[0];
    for (int warp = 1; warp < warps; ++warp) {
#pragma unroll
        for (int i = 0; i < N; ++i) sums.values[i] += row[warp].values[i];
    }
    return sums;
}

}  // namespace minipuzzle::cuda
