// The selective scan, backward, for every device from compute capability 8.0 on and every shape. The maths
// are those of kernels/cpu/ssd_backward.cpp, on steps of up to 64 tokens instead of segments; documents are
// masks. In this order, all of it in parallel over sequences and heads or groups:
//   take_steps   step sizes and decays of every step's tokens
//   walk_states  S entering each step, rebuilt from its chunk's, and dS leaving each step (a walk over the
//   row) take_pairs   pairs of tokens inside a step: dx, the gradient of C_i . B_j, sums over channels per
//   token take_shared  dB and dC, sums over a group's heads; U finish       the gradients of dt, dt_bias,
//   a_log and D.
// The gradient of (delta A)_k is the sum over all paths that decay through token k,
//   within_k + sum over m < k of V_m + sum over i >= k of U_i,
// with V_m = e^{s_last - s_m} delta_m x_m . (dS_out B_m), which begin in the step and leave it, and U_i,
// which come from before it: added up path by path, nothing cancels that need not.
//
// Rounded to bf16: both states, M, W, the scores, and the decayed v of the walk, as operands only; results
// once. Ideal work at the 8B shape (B 1, T 8192, H 128, P 64, G 8, N 128): bytes 2 (3 * 8192 + 4 * 1024 + 2 *
// 128) per token and 268 MB of chunk states, 0.74 GB; FLOPs per token 8.5 HPN + 64 (2 HP + 3 GN), 96 GFLOP.
#include <algorithm>

#include "kernels/cuda/ssd_backward_plain.cuh"
#include "kernels/cuda/ssd_plain.h"

namespace minipuzzle::cuda {
namespace plain_backward {
namespace {

// ---- step sizes

constexpr int kStepHeads = 32;

struct RawStep {
    float delta, slope;
};

__device__ RawStep step_size(float v, const Params& p) {
    const float softplus = v > 20.0f ? v : log1pf(expf(v));
    const bool inside = softplus >= p.dt_min && softplus <= p.dt_max;
    return {fminf(fmaxf(softplus, p.dt_min), p.dt_max), inside ? 1.0f / (1.0f + expf(-v)) : 0.0f};
}

// The step's first token of token i's document; kReached is added where the entering state belongs to it.
constexpr int kReached = 1 << 16;
__device__ int mark_of(const int32_t* documents, int i, bool has_before, int32_t before) {
    int first = i;
    while (first > 0 && documents[first - 1] == documents[i]) --first;
    return first + (first == 0 && (!has_before || before == documents[0]) ? kReached : 0);
}

// One block: one step of 32 heads of one sequence.
__global__ void __launch_bounds__(256) steps_kernel(const Params p) {
    __shared__ RawStep raw[kStepHeads][kStep + 1];
    __shared__ int32_t documents[kStep], marks[kStep];
    const int head_blocks = (p.heads + kStepHeads - 1) / kStepHeads;
    const int first_head = static_cast<int>(blockIdx.x % head_blocks) * kStepHeads;
    const int64_t at_step = blockIdx.x / head_blocks, sequence = at_step / p.steps;
    const StepRange range(p, static_cast<int>(at_step % p.steps));
    const int64_t token = sequence * p.time + range.begin;
    const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;

    if (p.document && thread < kStep) documents[thread] = p.document[token + min(thread, range.count - 1)];
    if (const int head = first_head + lane; head < p.heads) {
        const float bias = p.dt_bias[head];
        uint16_t dt[kStep / 8];  // all of them are under way before the first is used
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n) {
            const int i = warp + 8 * n;
            dt[n] = i < range.count ? p.zxbcdt[(token + i + 1) * p.projection - p.heads + head] : 0;
        }
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n) {
            const int i = warp + 8 * n;
            raw[lane][i] = i < range.count ? step_size(bf16_value(dt[n]) + bias, p) : RawStep{0.0f, 0.0f};
        }
    }
    __syncthreads();
    if (thread < kStep) {
        marks[thread] = p.document ? mark_of(documents, thread, range.begin > 0,
                                             range.begin > 0 ? p.document[token - 1] : 0)
                                   : kReached;
        if (p.marks && first_head == 0) p.marks[at_step * kStep + thread] = marks[thread];
    }
    __syncthreads();

    // A warp takes four heads, a lane two tokens.
    for (int h = warp; h < kStepHeads && first_head + h < p.heads; h += 8) {
        const double slope = -static_cast<double>(expf(p.a_log[first_head + h])) * 1.4426950408889634;
        // Beyond -1e6 a decay is 0 whatever follows; the bound keeps differences finite.
        double sum[2];
        for (int e = 0; e < 2; ++e)
            sum[e] = fmax(static_cast<double>(raw[h][2 * lane + e].delta) * slope, -1e6);
        sum[1] += sum[0];
        double so_far = sum[1];
#pragma unroll
        for (int distance = 1; distance < kWarp; distance *= 2) {
            const double other = __shfl_up_sync(kAllLanes, so_far, distance);
            if (lane >= distance) so_far += other;
        }
        const double last = __shfl_sync(kAllLanes, so_far, kWarp - 1);
        so_far -= sum[1];
        StepValues& to = p.values[at_step * p.heads + first_head + h];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int i = 2 * lane + e;
            const double s = so_far + sum[e];
            to.high[i] = static_cast<float>(s);
            to.low[i] = static_cast<float>(s - static_cast<double>(static_cast<float>(s)));
            to.delta[i] = raw[h][i].delta;
            to.slope[i] = raw[h][i].slope;
            to.from_entry[i] = marks[i] >= kReached ? exp2_fast(fminf(static_cast<float>(s), 0.0f)) : 0.0f;
            to.to_exit[i] =
                marks[i] == marks[kStep - 1] ? exp2_fast(fminf(static_cast<float>(last - s), 0.0f)) : 0.0f;
        }
        if (lane == 0)
            to.carry = marks[kStep - 1] >= kReached ? exp2_fast(fminf(static_cast<float>(last), 0.0f)) : 0.0f;
    }
}

// ---- gradients of dt and of the parameters

constexpr int kFinishHeads = 8;

// Sums over the lanes before this one (up) or after it (down).
__device__ float sum_before(float value, int lane) {
    float sum = value;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const float other = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane >= distance) sum += other;
    }
    const float before = __shfl_up_sync(kAllLanes, sum, 1);
    return lane > 0 ? before : 0.0f;
}
__device__ float sum_after(float value, int lane) {
    float sum = value;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const float other = __shfl_down_sync(kAllLanes, sum, distance);
        if (lane + distance < kWarp) sum += other;
    }
    const float after = __shfl_down_sync(kAllLanes, sum, 1);
    return lane < kWarp - 1 ? after : 0.0f;
}

// One warp: one step of one head, two tokens per lane; the gradient of dt to d_dt, sums over the tokens to
// [3, H, B * steps].
__device__ void finish_head(const Params& p, int64_t at_step, int head, float (&d_dt)[2]) {
    const int lane = threadIdx.x % kWarp;
    const int64_t at_head = at_step * p.heads + head;
    const PairSums& sums = p.pair_sums[at_head];
    const StepValues& values = p.values[at_head];
    const auto two = [&](const float* from) { return *reinterpret_cast<const float2*>(from + 2 * lane); };
    float2 enters = {0.0f, 0.0f};
    for (int tile = 0; tile < p.column_tiles; ++tile) {
        const float2 part = two(p.enters + (at_head * p.column_tiles + tile) * kStep);
        enters.x += part.x, enters.y += part.y;
    }
    const float2 leaves = two(sums.leaves), within = two(sums.within), direct = two(sums.direct);
    const float before = sum_before(leaves.x + leaves.y, lane), after = sum_after(enters.x + enters.y, lane);
    const float d_decay[2] = {within.x + before + (enters.x + (enters.y + after)),
                              within.y + (before + leaves.x) + (enters.y + after)};
    const float a = -expf(p.a_log[head]);
    const float2 slope = two(values.slope), delta = two(values.delta), skip = two(sums.skip);
    d_dt[0] = (a * d_decay[0] + direct.x) * slope.x;
    d_dt[1] = (a * d_decay[1] + direct.y) * slope.y;
    float of_tokens[3] = {d_dt[0] + d_dt[1], a * (d_decay[0] * delta.x + d_decay[1] * delta.y),
                          skip.x + skip.y};
#pragma unroll
    for (int q = 0; q < 3; ++q) {
#pragma unroll
        for (int distance = kWarp / 2; distance > 0; distance /= 2)
            of_tokens[q] += __shfl_xor_sync(kAllLanes, of_tokens[q], distance);
        if (lane == 0)
            p.parameter_sums[(q * int64_t{p.heads} + head) * (p.batch * p.steps) + at_step] = of_tokens[q];
    }
}

// One block: one step of eight heads.
__global__ void __launch_bounds__(256) finish_kernel(const Params p) {
    __shared__ uint16_t d_dt[kStep][kFinishHeads];
    const int head_blocks = (p.heads + kFinishHeads - 1) / kFinishHeads;
    const int first_head = static_cast<int>(blockIdx.x % head_blocks) * kFinishHeads;
    const int64_t at_step = blockIdx.x / head_blocks, sequence = at_step / p.steps;
    const StepRange range(p, static_cast<int>(at_step % p.steps));
    const int64_t token = sequence * p.time + range.begin;
    const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
    if (first_head + warp < p.heads) {
        float two[2];
        finish_head(p, at_step, first_head + warp, two);
        d_dt[2 * lane][warp] = round_bf16(two[0]);
        d_dt[2 * lane + 1][warp] = round_bf16(two[1]);
    }
    __syncthreads();
    for (int i = thread; i < range.count * kFinishHeads; i += 256)
        if (const int head = first_head + i % kFinishHeads; head < p.heads)
            p.d_zxbcdt[(token + i / kFinishHeads + 1) * p.projection - p.heads + head] =
                d_dt[i / kFinishHeads][i % kFinishHeads];
}

// One block: one parameter's sum over all steps, in a fixed order; [3, H] blocks.
__global__ void __launch_bounds__(256) parameters_kernel(const Params p) {
    __shared__ double partial[256];
    const int64_t count = p.batch * p.steps;
    const float* from = p.parameter_sums + blockIdx.x * count;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += 256) sum += static_cast<double>(from[i]);
    partial[threadIdx.x] = sum;
    for (int distance = 128; distance > 0; distance /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < distance) partial[threadIdx.x] += partial[threadIdx.x + distance];
    }
    if (threadIdx.x > 0) return;
    const int head = static_cast<int>(blockIdx.x % p.heads), which = static_cast<int>(blockIdx.x / p.heads);
    float* to = which == 0 ? p.d_dt_bias : which == 1 ? p.d_a_log : p.d_d;
    to[head] += static_cast<float>(partial[0]);
}

// ---- arguments

bool aligned_to_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

void set_sizes(Params& p, const SsdBackward& args) {
    const MambaShape& s = args.shape;
    p.batch = args.xbc.size(0);
    p.time = narrow<int>(args.xbc.size(1));
    p.heads = narrow<int>(s.heads);
    p.head_dim = narrow<int>(s.head_dim);
    p.state = narrow<int>(s.state);
    p.groups = narrow<int>(s.groups);
    p.heads_per_group = narrow<int>(div_exact(s.heads, s.groups));
    p.conv_channels = s.conv_channels();
    p.projection = s.projection();
    p.inner = s.inner();
    p.b_offset = s.inner();
    p.c_offset = s.inner() + s.groups * s.state;
    p.chunk = static_cast<int>(std::min<int64_t>(args.chunk, std::max(p.time, 1)));
    p.chunks = narrow<int>(div_up(p.time, p.chunk));
    p.steps_per_chunk = narrow<int>(div_up(p.chunk, kStep));
    p.steps = p.time / p.chunk * p.steps_per_chunk + narrow<int>(div_up(p.time % p.chunk, kStep));
    p.state_pitch = narrow<int>(div_up(s.state, 8) * 8);
    p.column_tiles = narrow<int>(div_up(p.state, column_tile(p.state)));
    const int64_t tiles = div_up(p.head_dim, 64);
    p.tile_width = narrow<int>(div_up(div_up(p.head_dim, tiles), 16) * 16);
    p.channel_tiles = narrow<int>(div_up(p.head_dim, p.tile_width));
    p.dt_min = static_cast<float>(args.dt_min);
    p.dt_max = static_cast<float>(args.dt_max);
}

// Gives the operation's intermediates their places from `base` on; returns how many bytes they take.
int64_t set_scratch(Params& p, bool documents, std::byte* base) {
    int64_t bytes = 0;
    const auto take = [&](auto*& place, int64_t count) {
        place = reinterpret_cast<std::remove_reference_t<decltype(place)>>(base ? base + bytes : nullptr);
        bytes += div_up(count * static_cast<int64_t>(sizeof(*place)), 256) * 256;
    };
    const int64_t steps = p.batch * p.steps, of_heads = steps * p.heads;
    take(p.values, of_heads);
    take(p.marks, documents ? steps * kStep : 0);
    if (!documents) p.marks = nullptr;
    take(p.entering, of_heads * p.head_elements());
    take(p.leaving, of_heads * p.head_elements());
    take(p.d_scores, steps * p.groups * kStep * kStep);
    take(p.pair_sums, of_heads);
    take(p.enters, of_heads * p.column_tiles * kStep);
    take(p.parameter_sums, 3 * of_heads);
    return bytes;
}

void set_tensors(Params& p, const SsdBackward& args) {
    const auto bits = [](const Tensor& tensor) { return reinterpret_cast<uint16_t*>(tensor.data); };
    const auto optional = [](const Tensor& tensor) { return tensor ? tensor.as<float>() : nullptr; };
    p.xbc = bits(args.xbc);
    p.zxbcdt = bits(args.zxbcdt);
    p.d_y = bits(args.d_y);
    p.dt_bias = args.dt_bias.as<float>();
    p.a_log = args.a_log.as<float>();
    p.d = args.d.as<float>();
    p.chunk_states = args.chunk_states.as<float>();
    p.document = args.document ? args.document.as<int32_t>() : nullptr;
    p.d_final_state = optional(args.d_final_state);
    p.d_xbc = bits(args.d_xbc);
    p.d_zxbcdt = bits(args.d_zxbcdt);
    p.d_dt_bias = args.d_dt_bias.as<float>();
    p.d_a_log = args.d_a_log.as<float>();
    p.d_d = args.d_d.as<float>();
    p.d_initial_state = optional(args.d_initial_state);
    const bool x_fits = p.conv_channels % 8 == 0 && p.head_dim % 8 == 0;
    const bool bc_fits = p.conv_channels % 8 == 0 && p.inner % 8 == 0 && p.state % 8 == 0;
    p.x_aligned = x_fits && aligned_to_16(p.xbc);
    p.bc_aligned = bc_fits && aligned_to_16(p.xbc);
    p.d_x_aligned = x_fits && aligned_to_16(p.d_xbc);
    p.d_bc_aligned = bc_fits && aligned_to_16(p.d_xbc);
    p.d_y_aligned = p.head_dim % 8 == 0 && aligned_to_16(p.d_y);
}

}  // namespace

void take_steps(const Context& context, const Params& p) {
    launch(context, steps_kernel, p.batch * p.steps * div_up(p.heads, kStepHeads), 256, 0, p);
}

void finish(const Context& context, const Params& p) {
    launch(context, finish_kernel, p.batch * p.steps * div_up(p.heads, kFinishHeads), 256, 0, p);
    launch(context, parameters_kernel, 3 * int64_t{p.heads}, 256, 0, p);
}

}  // namespace plain_backward

int64_t ssd_backward_plain_scratch_bytes(const SsdBackward& args) {
    plain_backward::Params p{};
    plain_backward::set_sizes(p, args);
    return plain_backward::set_scratch(p, bool(args.document), nullptr);
}

void ssd_backward_plain(const Context& context, const SsdBackward& args) {
    plain_backward::Params p{};
    plain_backward::set_sizes(p, args);
    const int64_t bytes = plain_backward::set_scratch(p, bool(args.document), context.scratch);
    MP_ASSERT(context.scratch_capacity >= bytes);
    plain_backward::set_tensors(p, args);
    plain_backward::take_steps(context, p);
    plain_backward::walk_states(context, p);
    plain_backward::take_pairs(context, p);
    plain_backward::take_shared(context, p);
    plain_backward::finish(context, p);
}

}  // namespace minipuzzle::cuda
