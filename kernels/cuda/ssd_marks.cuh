// Where documents begin inside the chunks of a scan, for its kernels, forward and backward.
#pragma once

#include <cstdint>

namespace minipuzzle::cuda {

// A token's mark: the chunk's first token of its document, plus kReached where the state entering the chunk
// belongs to that document.
inline constexpr int kReached = 1 << 16;

// document [B, time]; marks [B, chunks, kChunk]. grid (chunks, B), kChunk threads.
template <int kChunk>
static __global__ void __launch_bounds__(kChunk)
    take_marks(const int32_t* document, int64_t time, int32_t* marks) {
    __shared__ int32_t row[kChunk];
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunk;
    const int32_t* of_sequence = document + blockIdx.y * time;
    const int token = threadIdx.x;
    // Tokens beyond the sequence prolong its last document.
    const int64_t t = begin + token < time ? begin + token : time - 1;
    row[token] = of_sequence[t];
    __syncthreads();
    int first = token;
    while (first > 0 && row[first - 1] == row[token]) --first;
    const bool reached = first == 0 && (begin == 0 || of_sequence[begin - 1] == row[0]);
    marks[(blockIdx.y * static_cast<int64_t>(gridDim.x) + blockIdx.x) * kChunk + token] =
        first + (reached ? kReached : 0);
}

}  // namespace minipuzzle::cuda
