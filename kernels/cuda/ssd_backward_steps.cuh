// The scan backward on compute capability 9.0a: what its kernels are given, and what each needs per token and
// head, computed once. Chunks have 128 tokens. Exponents are to base 2.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/ssd_marks.cuh"

namespace minipuzzle::cuda::ssd_backward {

inline constexpr int kChunk = 128;
inline constexpr float kLog2E = 1.4426950408889634f;

// One chunk of one head: rows of kChunk floats, in consecutive memory. With s_i the sum of log2(e) delta_t A
// over the chunk's tokens up to and with i:
enum StepRow {
    kEntry,  // 2^(s_i), the decay of the state entering the chunk; 0 where that is another document's
    kSums,   // s_i
    kDelta,  // delta_i, 0 beyond the sequence
    kExit,   // 2^(s_last - s_i); 0 where token i's document ends inside the chunk
    kSlope,  // d delta / d (dt + dt_bias): 0 where delta is clamped
    kStepRows
};
inline constexpr int kRowBytes = kChunk * 4;

// Likewise what the kernel over heads leaves for the gradient of the step sizes: with
// W_ij = (dy_i . x_j) delta_j 2^(s_i - s_j) (C_i . B_j), in blocks of 16 tokens,
enum SumRow {
    kLeaves,    // V_j = 2^(s_last - s_j) delta_j x_j . (dS B_j)
    kDirect,    // u_j . x_j
    kLater,     // sum of W_ij over i in the blocks after j's
    kWithin,    // of token k: sum of W_ij over j < k <= i, both in k's block
    kSkip,      // dy_j . x_j
    kEarlier0,  // of token i: sum of W_ij over j in block 0; defined for i in the blocks after it
    kSumRows = kEarlier0 + 7
};

struct Arguments {
    // [B, heads, chunks] blocks of kStepRows rows
    float* steps = nullptr;
    int32_t* marks = nullptr;     // [B, chunks, kChunk], ssd_marks.cuh; null where there are no documents
    float* sums = nullptr;        // [B, chunks, heads] blocks of kSumRows rows
    float* enters = nullptr;      // [column slices, B, chunks, heads, kChunk], U_i
    float* passes = nullptr;      // [B, chunks, heads, pass_parts], parts of e^{s_last} <S_in, dS>
    float* d_cb = nullptr;        // [slices, B, chunks, groups, kChunk (j), kChunk (i)], M_ij
    float* parameters = nullptr;  // [3, B * chunks, heads]: d_dt_bias, d_a_log, d_d of a chunk
    __nv_bfloat16* d_states = nullptr;  // [B, chunks, heads, P, N], dS leaving each chunk

    const __nv_bfloat16* dt = nullptr;  // of token 0, head 0; rows of `projection`
    __nv_bfloat16* d_dt = nullptr;      // likewise
    __nv_bfloat16* d_bc = nullptr;      // d_xbc from the first column of B
    const float *dt_bias = nullptr, *a_log = nullptr, *skip = nullptr;  // [heads]
    const float* chunk_states = nullptr;                                // [B, chunks, heads, P, N]
    const float* d_final = nullptr;                                     // [B, heads, P, N] or null
    float* d_initial = nullptr;                                         // likewise
    float *d_dt_bias = nullptr, *d_a_log = nullptr, *d_d = nullptr;     // [heads]
    int64_t batch = 0, time = 0, projection = 0, conv_channels = 0;
    int chunks = 0, heads = 0, groups = 0, heads_per_group = 0;
    int slices = 1, slice_heads = 0;  // a group's heads, cut for the kernel over heads
    int column_slices = 1, pass_parts = 0;
    float dt_min = 0, dt_max = 0;
};

// One block: one chunk of 32 heads of one sequence. grid (chunks, ceil(H / 32), B), 256 threads.
static __global__ void __launch_bounds__(256) take_steps(const Arguments args) {
    constexpr int kHeads = 32;
    __shared__ float deltas[kHeads][kChunk + 1], slopes[kHeads][kChunk + 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_head = blockIdx.y * kHeads;
    const int64_t chunk = blockIdx.x, sequence = blockIdx.z;

    if (const int head = first_head + lane; head < args.heads) {
        const float bias = args.dt_bias[head];
        const __nv_bfloat16* dt = args.dt + sequence * args.time * args.projection + head;
#pragma unroll 8
        for (int token = warp; token < kChunk; token += 8) {
            const int64_t t = chunk * kChunk + token;
            float delta = 0, slope = 0;
            if (t < args.time) {
                const float v = __bfloat162float(dt[t * args.projection]) + bias;
                const float softplus = v > 20.f ? v : log1pf(expf(v));
                delta = fminf(fmaxf(softplus, args.dt_min), args.dt_max);
                const bool clamped = softplus < args.dt_min || softplus > args.dt_max;
                slope = clamped ? 0.f : v > 20.f ? 1.f : 1.f / (1.f + expf(-v));
            }
            deltas[lane][token] = delta;
            slopes[lane][token] = slope;
        }
    }
    __syncthreads();

    // A warp takes four heads, a lane four tokens.
    int4 mark = {kReached, kReached, kReached, kReached};
    if (args.marks)
        mark = reinterpret_cast<const int4*>(args.marks + (sequence * args.chunks + chunk) * kChunk)[lane];
    const int first_of_last = __shfl_sync(~0u, mark.w, 31) & (kReached - 1);
    for (int row = warp; row < kHeads && first_head + row < args.heads; row += 8) {
        const int head = first_head + row;
        const float slope = -expf(args.a_log[head]) * kLog2E;
        const float* deltas_row = deltas[row] + 4 * lane;
        const float* slopes_row = slopes[row] + 4 * lane;
        const float4 delta = {deltas_row[0], deltas_row[1], deltas_row[2], deltas_row[3]};
        float4 s;
        s.x = delta.x * slope;
        s.y = s.x + delta.y * slope;
        s.z = s.y + delta.z * slope;
        s.w = s.z + delta.w * slope;
        float sum = s.w;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const float before = __shfl_up_sync(~0u, sum, distance);
            if (lane >= distance) sum += before;
        }
        float before = __shfl_up_sync(~0u, sum, 1);
        if (lane == 0) before = 0;
        s.x += before, s.y += before, s.z += before, s.w += before;
        const float last = __shfl_sync(~0u, s.w, 31);

        auto* out =
            reinterpret_cast<float4*>(args.steps + ((sequence * args.heads + head) * args.chunks + chunk) *
                                                       (kStepRows * kChunk)) +
            lane;
        constexpr int kRow = kChunk / 4;
        const int token = 4 * lane;
        const auto entry = [](float of, int m) { return m >= kReached ? exp2f(of) : 0.f; };
        const auto exit = [&](float of, int t) { return t >= first_of_last ? exp2f(last - of) : 0.f; };
        out[kEntry * kRow] = {entry(s.x, mark.x), entry(s.y, mark.y), entry(s.z, mark.z), entry(s.w, mark.w)};
        out[kSums * kRow] = s;
        out[kDelta * kRow] = delta;
        out[kExit * kRow] = {exit(s.x, token), exit(s.y, token + 1), exit(s.z, token + 2),
                             exit(s.w, token + 3)};
        out[kSlope * kRow] = {slopes_row[0], slopes_row[1], slopes_row[2], slopes_row[3]};
    }
}

__device__ inline float sum_of_warp(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
    return value;
}

// Four consecutive tokens of a lane, 128 of a warp.
struct Four {
    float v[4];
    __device__ static Four load(const float* row, int lane) {
        const float4 value = reinterpret_cast<const float4*>(row)[lane];
        return {{value.x, value.y, value.z, value.w}};
    }
    __device__ float sum() const { return (v[0] + v[1]) + (v[2] + v[3]); }
};
// Sums of whole lanes before, or after, this one among `width` neighbours.
__device__ inline float lanes_before(float value, int lane, int width) {
    float sum = value;
    for (int distance = 1; distance < width; distance *= 2) {
        const float other = __shfl_up_sync(~0u, sum, distance, width);
        if (lane % width >= distance) sum += other;
    }
    const float before = __shfl_up_sync(~0u, sum, 1, width);
    return lane % width == 0 ? 0.f : before;
}
__device__ inline float lanes_after(float value, int lane) {
    float sum = value;
    for (int distance = 1; distance < 32; distance *= 2) {
        const float other = __shfl_down_sync(~0u, sum, distance);
        if (lane + distance < 32) sum += other;
    }
    const float after = __shfl_down_sync(~0u, sum, 1);
    return lane == 31 ? 0.f : after;
}
// to[k] += the sum over tokens before k, of those of the lane and `before`.
__device__ inline void add_before(Four& to, const Four& of, float before) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to.v[i] += before;
        before += of.v[i];
    }
}
// to[k] += the sum over tokens from k on.
__device__ inline void add_from(Four& to, const Four& of, float after) {
#pragma unroll
    for (int i = 3; i >= 0; --i) {
        after += of.v[i];
        to.v[i] += after;
    }
}

// The gradient of (delta A)_k: the sum over all pairs of tokens j < k <= i, added up path by path. A pair in
// one block of 16 tokens came with kWithin. Else j's block is k's (kLater of j), or one before it (row
// kEarlier0 + j's block, of token i).
__device__ inline Four decay_gradient(const Arguments& args, int64_t block, int lane) {
    const float* sums = args.sums + block * (kSumRows * kChunk);
    Four decay = Four::load(sums + kWithin * kChunk, lane);
    const Four later = Four::load(sums + kLater * kChunk, lane);
    add_before(decay, later, lanes_before(later.sum(), lane, 4));

    const int own = lane / 4;  // the block of 16 tokens
    Four earlier = {};         // of token i: the sum over j in the blocks before `of_block`
#pragma unroll
    for (int of_block = 1; of_block < 8; ++of_block) {
        const Four more =
            own >= of_block ? Four::load(sums + (kEarlier0 + of_block - 1) * kChunk, lane) : Four{};
#pragma unroll
        for (int i = 0; i < 4; ++i) earlier.v[i] += more.v[i];
        if (own < of_block)
#pragma unroll
            for (float& value : earlier.v) value = 0;
        const float after = lanes_after(earlier.sum(), lane);
        if (own == of_block) add_from(decay, earlier, after);
    }

    const Four leaves = Four::load(sums + kLeaves * kChunk, lane);
    add_before(decay, leaves, lanes_before(leaves.sum(), lane, 32));

    Four enters = {};
    for (int slice = 0; slice < args.column_slices; ++slice) {
        const int64_t blocks = args.batch * args.chunks * args.heads;
        const Four more = Four::load(args.enters + (slice * blocks + block) * kChunk, lane);
#pragma unroll
        for (int i = 0; i < 4; ++i) enters.v[i] += more.v[i];
    }
    if (lane == 31)
        for (int part = 0; part < args.pass_parts; ++part)
            enters.v[3] += args.passes[block * args.pass_parts + part];
    add_from(decay, enters, lanes_after(enters.sum(), lane));
    return decay;
}

// One block: one chunk of 32 heads of one sequence; d dt, and the chunk's parts of the parameters' gradients.
// grid (chunks, ceil(H / 32), B), 256 threads.
static __global__ void __launch_bounds__(256) finish_steps(const Arguments args) {
    constexpr int kHeads = 32;
    __shared__ float d_raw[kHeads][kChunk + 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_head = blockIdx.y * kHeads;
    const int64_t chunk = blockIdx.x, sequence = blockIdx.z;
    for (int row = warp; row < kHeads && first_head + row < args.heads; row += 8) {
        const int head = first_head + row;
        const int64_t place = sequence * args.chunks + chunk, block = place * args.heads + head;
        const float* sums = args.sums + block * (kSumRows * kChunk);
        const float* steps =
            args.steps + ((sequence * args.heads + head) * args.chunks + chunk) * (kStepRows * kChunk);
        const float a = -expf(args.a_log[head]);
        const Four decay = decay_gradient(args, block, lane);
        const Four direct = Four::load(sums + kDirect * kChunk, lane);
        const Four delta = Four::load(steps + kDelta * kChunk, lane);
        const Four slope = Four::load(steps + kSlope * kChunk, lane);
        float of_bias = 0, of_a = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float raw = (a * decay.v[i] + direct.v[i]) * slope.v[i];
            d_raw[row][4 * lane + i] = raw;
            of_bias += raw;
            of_a += decay.v[i] * delta.v[i];
        }
        const float of_skip = sum_of_warp(Four::load(sums + kSkip * kChunk, lane).sum());
        of_bias = sum_of_warp(of_bias);
        of_a = sum_of_warp(of_a) * a;
        if (lane == 0) {
            const int64_t each = args.batch * args.chunks * args.heads;
            args.parameters[block] = of_bias;
            args.parameters[each + block] = of_a;
            args.parameters[2 * each + block] = of_skip;
        }
    }
    __syncthreads();
    if (const int head = first_head + lane; head < args.heads) {
        __nv_bfloat16* d_dt = args.d_dt + sequence * args.time * args.projection + head;
        for (int token = warp; token < kChunk && chunk * kChunk + token < args.time; token += 8)
            d_dt[(chunk * kChunk + token) * args.projection] = __float2bfloat16_rn(d_raw[lane][token]);
    }
}

// Adds the chunks' parts to the gradients, in a fixed order. grid (ceil(H / 32), 3), 1024 threads.
static __global__ void __launch_bounds__(1024) add_parameters(const Arguments args) {
    __shared__ float parts[32][33];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x * 32 + lane;
    const int64_t rows = args.batch * args.chunks;
    float sum = 0;
    if (head < args.heads)
        for (int64_t row = warp; row < rows; row += 32)
            sum += args.parameters[(blockIdx.y * rows + row) * args.heads + head];
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || head >= args.heads) return;
    sum = 0;
    for (const auto& part : parts) sum += part[lane];
    float* to = blockIdx.y == 0 ? args.d_dt_bias : blockIdx.y == 1 ? args.d_a_log : args.d_d;
    to[head] += sum;
}

}  // namespace minipuzzle::cuda::ssd_backward
