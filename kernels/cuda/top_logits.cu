// A radix selection: a row's logits, as integers of the same order, are counted by their upper 11 bits, then
// those that share them with the wanted one by the next 11, then by the last 10. Counts are integers, so the
// order in which they are raised is of no matter. A block owns a row and reads it three times.
#include "kernels/cuda/logit_rows.cuh"
#include "kernels/cuda/top_logits.h"

namespace minipuzzle::cuda {
namespace {

constexpr int kThreads = 512, kBins = 2048, kEach = kBins / kThreads;

// Integers in the order of the numbers, and back; NaN lies outside.
__device__ uint32_t ordered(float value) {
    const uint32_t bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float number(uint32_t order) {
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

// The sum over the threads above this one, of which thread 0 holds the largest bins' counts: exclusive.
__device__ int sum_before(int count) {
    __shared__ int of_warps[kThreads / kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int sum = count;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const int before = __shfl_up_sync(~0u, sum, distance);
        if (lane >= distance) sum += before;
    }
    if (lane == kWarp - 1) of_warps[warp] = sum;
    __syncthreads();
    for (int other = 0; other < warp; ++other) sum += of_warps[other];
    return sum - count;
}

struct Wanted {
    uint32_t prefix;  // the upper bits, as far as known
    int rank;         // among the logits that share them, from the largest: 1, 2, ...
};

// Narrows `wanted` by the bits [shift, shift + width).
__device__ void narrow_down(Wanted& wanted, const float* row, int64_t vocabulary, int shift, int width) {
    __shared__ int counts[kBins];
    __shared__ Wanted found;
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) counts[bin] = 0;
    __syncthreads();
    const int known = shift + width;
    for (int64_t v = threadIdx.x; v < vocabulary; v += kThreads) {
        const uint32_t order = ordered(row[v]);
        if (known < 32 && order >> known != wanted.prefix) continue;
        atomicAdd(&counts[order >> shift & ((1u << width) - 1)], 1);
    }
    __syncthreads();
    const int bins = 1 << width;
    int own[kEach], total = 0;  // from the largest bin down
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int bin = bins - 1 - (static_cast<int>(threadIdx.x) * kEach + i);
        own[i] = bin >= 0 ? counts[bin] : 0;
        total += own[i];
    }
    int before = sum_before(total);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        if (before < wanted.rank && wanted.rank <= before + own[i]) {
            const uint32_t bin = bins - 1 - (threadIdx.x * kEach + i);
            found = {wanted.prefix << width | bin, wanted.rank - before};
        }
        before += own[i];
    }
    __syncthreads();
    wanted = found;
    __syncthreads();
}

__global__ void __launch_bounds__(kThreads, 2) top_logits(TopLogits args) {
    const int64_t r = blockIdx.x;
    if (args.targets[r] < 0) return;
    const float* row = args.logits + r * args.vocabulary;
    Wanted wanted{0, static_cast<int>(args.top_k)};
    narrow_down(wanted, row, args.vocabulary, 21, 11);
    narrow_down(wanted, row, args.vocabulary, 10, 11);
    narrow_down(wanted, row, args.vocabulary, 0, 10);
    if (threadIdx.x == 0) args.thresholds[r] = number(wanted.prefix);
}

}  // namespace

void find_top_logits(const Context& context, const TopLogits& args, int64_t rows) {
    MP_ASSERT(args.top_k >= 1 && args.top_k <= args.vocabulary);
    top_logits<<<static_cast<unsigned>(rows), kThreads, 0, context.stream>>>(args);
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda
