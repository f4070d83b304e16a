// The gated group RMS norm (gated_norm.cu) with its result as E4M3 codes: a block takes a whole token,
// because the scale is of all its groups.
#include "kernels/cuda/gated_rows.cuh"
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/quantise.h"

namespace minipuzzle::cuda {
namespace {

constexpr int kMostThreads = 1024, kLongRowThreads = 512;

struct Arguments {
    GatedRows rows;
    CodeRows out;
    Reuse reuse;
};

// The largest over a block of any shape, the same in every thread; `partials` holds a value per warp and must
// not be written again before the block's next barrier.
__device__ uint32_t block_max(uint32_t value, uint32_t* partials) {
    const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
    const int warps = static_cast<int>(blockDim.x * blockDim.y) / kWarp;
    value = warp_max(value);
    if (thread % kWarp == 0) partials[thread / kWarp] = value;
    __syncthreads();
    return warp_max(thread % kWarp < warps ? partials[thread % kWarp] : 0);
}

// Thread y takes group y; its blockDim.x threads hold the group's values in registers.
template <int kHeld, int kThreads>
__global__ void __launch_bounds__(kThreads, 2048 / kThreads / 2) quantise_held(const Arguments a) {
    __shared__ float partials[kWarp];
    __shared__ uint32_t tops[kWarp];
    const GatedRows& rows = a.rows;
    const int64_t group = threadIdx.y;
    const int width = static_cast<int>(rows.width);
    const int first = static_cast<int>(threadIdx.x) * 8, step = static_cast<int>(blockDim.x) * 8;
    for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
        float q[kHeld][8];
        const float scale = group_scale(rows, row_sum(gate_group(rows, row, group, width, q), partials));
        const float* weight = rows.weight + group * rows.width + first;
        uint32_t largest = 0;
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            if (first + h * step >= width) continue;
            float w[8];
            load_weights(weight + h * step, w);
#pragma unroll
            for (int j = 0; j < 8; ++j) q[h][j] = w[j] * (q[h][j] * scale);
            largest = largest_magnitude(q[h], largest);
        }
        const float code_scale = quantising_scale(block_max(largest, tops));
        const float inverse = reciprocal(code_scale);
        if (threadIdx.x == 0 && threadIdx.y == 0) a.out.scale[row] = code_scale;
        uint8_t* codes = a.out.codes + row * rows.inner + group * rows.width + first;
#pragma unroll
        for (int h = 0; h < kHeld; ++h)
            if (first + h * step < width) store_codes(codes + h * step, q[h], inverse, a.reuse);
    }
}

// A token per block, read several times: sizes that do not fit the kernel above.
__global__ void __launch_bounds__(kLongRowThreads) quantise_long(const Arguments a) {
    __shared__ float partials[2][kWarp];
    __shared__ uint32_t tops[kWarp];
    const GatedRows& rows = a.rows;
    int turn = 0;
    for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
        // visit(channel, value) for every value of the token's group g that is this thread's.
        const auto for_group = [&](int64_t g, auto visit) {
            const int64_t begin = g * rows.width;
            float sum = 0;
            for (int64_t c = begin + threadIdx.x; c < begin + rows.width; c += blockDim.x) {
                const float q = gated_value(rows, row, c);
                sum = fmaf(q, q, sum);
            }
            const float scale = group_scale(rows, row_sum(sum, partials[turn ^= 1]));
            for (int64_t c = begin + threadIdx.x; c < begin + rows.width; c += blockDim.x)
                visit(c, rows.weight[c] * (gated_value(rows, row, c) * scale));
        };
        uint32_t largest = 0;
        for (int64_t g = 0; g < rows.groups; ++g)
            for_group(g, [&](int64_t, float v) { largest = max(largest, magnitude(v)); });
        const float code_scale = quantising_scale(row_max(largest, tops));
        const float inverse = reciprocal(code_scale);
        if (threadIdx.x == 0) a.out.scale[row] = code_scale;
        for (int64_t g = 0; g < rows.groups; ++g)
            for_group(g,
                      [&](int64_t c, float v) { a.out.codes[row * rows.inner + c] = encode(v * inverse); });
    }
}

// Threads of a group that holds `vectors` vectors of 8, `held` of them each.
int64_t group_threads(int64_t vectors, int held) { return div_up(vectors, int64_t{held} * kWarp) * kWarp; }

}  // namespace

// 8B: 4 * inner read and inner + 4 written per token (40 KiB at inner 8192); the arithmetic of gated_norm.cu
// and 2 FLOPs per element more.
void quantised_gated_norm(const Context& context, const GatedNormForward& args) {
    const Arguments a{.rows = gated_rows(args),
                      .out = code_rows(args.out, args.out_scale),
                      .reuse = reuse_of(args.out.bytes())};
    if (a.rows.count == 0) return;
    const unsigned grid = grid_size(a.rows.count);
    const int64_t vectors = div_up(a.rows.width, 8);
    const int64_t of_two = group_threads(vectors, 2), of_four = group_threads(vectors, 4);
    const bool vectors_fit = inputs_fit_vectors(a.rows) && code_vectors_fit(a.out.codes, a.rows.width);
    const auto block = [&](int64_t threads) {
        return dim3(static_cast<unsigned>(threads), static_cast<unsigned>(a.rows.groups));
    };
    if (vectors_fit && of_two * a.rows.groups <= kMostThreads / 2)
        quantise_held<2, kMostThreads / 2><<<grid, block(of_two), 0, context.stream>>>(a);
    else if (vectors_fit && of_four * a.rows.groups <= kMostThreads / 2)
        quantise_held<4, kMostThreads / 2><<<grid, block(of_four), 0, context.stream>>>(a);
    else if (vectors_fit && of_four * a.rows.groups <= kMostThreads)
        quantise_held<4, kMostThreads><<<grid, block(of_four), 0, context.stream>>>(a);
    else
        quantise_long<<<grid, kLongRowThreads, 0, context.stream>>>(a);
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda
