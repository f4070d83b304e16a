// What the scan needs per token and head, laid out for the copy engine: a chunk of 64 tokens of two heads is
// one block of consecutive memory. Exponents are to base 2.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/ssd_marks.cuh"

namespace minipuzzle::cuda::ssd {

inline constexpr int kChunk = 64;
// Floats of one chunk of two heads: per head s[64], then u[64], with s_i the sum of log2(e) delta_t A over
// the chunk's tokens up to and with i, and u_j = s_j - log2(delta_j): 2^(s_i - u_j) is the weight with which
// token j's x reaches token i. Tokens beyond the sequence have delta 0.
inline constexpr int kStepFloats = 2 * 2 * kChunk;
inline constexpr int kStepBytes = kStepFloats * 4;
// Marks of one chunk, where rows hold several documents.
inline constexpr int kMarkBytes = kChunk * 4;

struct StepArgs {
    const __nv_bfloat16* dt;  // of token 0, head 0
    const float *dt_bias, *a_log;
    float* steps;  // [B, H / 2, chunks, kStepFloats]
    int64_t time, projection;
    int heads, chunks;
    float dt_min, dt_max;
};

// One block: one chunk of 32 heads of one sequence. grid (chunks, ceil(H / 32), B), 256 threads.
static __global__ void __launch_bounds__(256) take_steps(const StepArgs args) {
    constexpr int kHeads = 32;
    __shared__ float deltas[kHeads][kChunk + 1];
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");  // the scan waits for this kernel's end itself
#endif
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_head = blockIdx.y * kHeads;
    const int64_t chunk = blockIdx.x, sequence = blockIdx.z;

    if (const int head = first_head + lane; head < args.heads) {
        const float bias = args.dt_bias[head];
        const __nv_bfloat16* dt = args.dt + sequence * args.time * args.projection + head;
        float v[kChunk / 8];
#pragma unroll
        for (int i = 0; i < kChunk / 8; ++i) {
            const int64_t t = chunk * kChunk + warp + 8 * i;
            v[i] = t < args.time ? __bfloat162float(dt[t * args.projection]) + bias : 0.f;
        }
#pragma unroll
        for (int i = 0; i < kChunk / 8; ++i) {
            const int token = warp + 8 * i;
            const float softplus = v[i] > 20.f ? v[i] : log1pf(expf(v[i]));
            const float delta = fminf(fmaxf(softplus, args.dt_min), args.dt_max);
            deltas[lane][token] = chunk * kChunk + token < args.time ? delta : 0.f;
        }
    }
    __syncthreads();

    // A warp takes four heads, a lane two tokens.
    for (int row = warp; row < kHeads && first_head + row < args.heads; row += 8) {
        const int head = first_head + row;
        const float slope = -expf(args.a_log[head]) * 1.4426950408889634f;
        const float delta0 = deltas[row][2 * lane], delta1 = deltas[row][2 * lane + 1];
        const float v0 = delta0 * slope, both = v0 + delta1 * slope;
        float sum = both;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const float before = __shfl_up_sync(~0u, sum, distance);
            if (lane >= distance) sum += before;
        }
        float before = __shfl_up_sync(~0u, sum, 1);
        if (lane == 0) before = 0;
        const float2 s = {before + v0, before + both};
        const float2 u = {s.x - log2f(delta0), s.y - log2f(delta1)};
        const int64_t block = (sequence * (args.heads / 2) + head / 2) * args.chunks + chunk;
        auto* out = reinterpret_cast<float2*>(args.steps + block * kStepFloats + head % 2 * 2 * kChunk);
        out[lane] = s;
        out[kChunk / 2 + lane] = u;
    }
}

}  // namespace minipuzzle::cuda::ssd
