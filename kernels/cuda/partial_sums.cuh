// The last step of sums over tokens: partial sums lie in scratch memory, one row of columns per block that
// left them, and are added in double, in a fixed order.
#pragma once

#include <cstdint>

#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {

struct PartialSums {
    static constexpr int kSlices = 16;

    const float* partials;  // [rows, columns]
    int64_t rows, columns;

    static dim3 block() { return dim3(kWarp, kSlices); }
    unsigned grid() const { return narrow<unsigned>(div_up(columns, int64_t{kWarp})); }
};

// The sum of the lane's column, which it sets; each warp of the block (of PartialSums::block()) adds a
// sixteenth of the rows. True in the threads that hold a sum.
__device__ inline bool sum_column(const PartialSums& sums, int64_t& column, float& result) {
    constexpr int kSlices = PartialSums::kSlices;
    __shared__ double slices[kSlices][kWarp];
    column = int64_t{blockIdx.x} * kWarp + threadIdx.x;
    double sum = 0;
    if (column < sums.columns) {
#pragma unroll 8
        for (int64_t row = threadIdx.y; row < sums.rows; row += kSlices)
            sum += static_cast<double>(sums.partials[row * sums.columns + column]);
    }
    slices[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= sums.columns) return false;
    for (int s = 1; s < kSlices; ++s) sum += slices[s][threadIdx.x];
    result = static_cast<float>(sum);
    return true;
}

}  // namespace minipuzzle::cuda
