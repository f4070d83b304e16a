// The states of the plain backward scan: S entering each step, from the one that entered the chunk, and dS
// leaving each step, from the row's end. Both are the same walk,
//   state <- carry state + sum over tokens of weight v (outer) w,
// with v = x, w = B, weight = e^{s_last - s_j} delta_j forward inside a chunk, and v = d_y, w = C, weight =
// e^{s_i} backward along the row. A warp owns 16 channels by a tile of the state's columns in float32
// registers; v weight is rounded to bf16 as an operand, and so are the states that are kept.
//
// At the 8B shape: reads x and d_y (268 MB), the chunks' states (268 MB), writes two states of 128 x 64 x 128
// bf16 per 64 tokens (537 MB); 1.5 x 2 HPN per token, 26 GFLOP.
#include "kernels/cuda/ssd_backward_plain.cuh"

namespace minipuzzle::cuda::plain_backward {
namespace {

__host__ __device__ constexpr int v_pitch(int width) { return 2 * (width + 8); }
template <int kWidth, int kColumns>
__host__ __device__ constexpr int stage_bytes() {
    return kStep * (v_pitch(kWidth) + v_pitch(kColumns)) + static_cast<int>(sizeof(StepValues));
}

// A warp's part of a state: 16 rows from `channel` on, of which those before `end` are its own, by kColumns
// columns.
struct Part {
    int channel, end, column;
};

// Calls use(state element, its offset inside the head's [P, N]) for what exists of the warp's part.
template <int kColumns, class Use>
__device__ __forceinline__ void for_each_element(float (&state)[kColumns / 8][4], const Params& p,
                                                 const Part& part, Use use) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int row = part.channel + lane / 4 + e / 2 * 8;
            const int at = part.column + n * 8 + lane % 4 * 2 + e % 2;
            if (row < part.end && at < p.state) use(state[n][e], int64_t{row} * p.state + at);
        }
}

// Lane t of four ends with what each of them held as value[t].
__device__ __forceinline__ void transpose_among_four(uint32_t (&value)[4]) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        const bool upper = threadIdx.x & bit;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            uint32_t &low = value[i], &high = value[i + bit];
            const uint32_t other = __shfl_xor_sync(kAllLanes, upper ? low : high, bit);
            (upper ? low : high) = other;
        }
    }
}

// Rounds the warp's part to bf16 and stores it, 16 bytes a lane.
template <int kColumns>
__device__ __forceinline__ void keep_state(const float (&state)[kColumns / 8][4], const Params& p,
                                           const Part& part, uint16_t* to) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = part.channel + lane / 4 + half * 8;
#pragma unroll
        for (int n = 0; n < kColumns / 8; n += 4) {
            uint32_t pairs[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                pairs[i] = pack_bf16(state[n + i][2 * half], state[n + i][2 * half + 1]);
            transpose_among_four(pairs);
            const int at = part.column + (n + lane % 4) * 8;
            if (row < part.end && at < p.state_pitch)
                *reinterpret_cast<uint4*>(to + int64_t{row} * p.state_pitch + at) =
                    make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}

template <int kWidth, int kColumns>
__device__ __forceinline__ void advance(float (&state)[kColumns / 8][4], uint32_t v, uint32_t w,
                                        const StepValues& values, bool reverse) {
    const float carry = values.carry;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) state[n][e] *= carry;
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
        uint32_t left[4];
        load_left<true>(left, v, v_pitch(kWidth), threadIdx.x / kWarp * 16, k);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int token = k + threadIdx.x % 4 * 2 + r / 2 * 8;
            const float* weights = reverse ? values.from_entry : values.to_exit;
            float2 weight = *reinterpret_cast<const float2*>(&weights[token]);
            if (!reverse) {
                const float2 delta = *reinterpret_cast<const float2*>(&values.delta[token]);
                weight.x *= delta.x, weight.y *= delta.y;
            }
            left[r] = pack_bf16(low_value(left[r]) * weight.x, high_value(left[r]) * weight.y);
        }
#pragma unroll
        for (int n = 0; n < kColumns / 16; ++n) {
            uint32_t right[4];
            load_right<true>(right, w, v_pitch(kColumns), n * 16, k);
            multiply_add_16(state[2 * n], state[2 * n + 1], left, right);
        }
    }
}

// One block: the walk of one (sequence, head, tile of channels, tile of columns), backward over the row (the
// first blocks, which take longest) or forward over one chunk. A warp for every 16 channels.
template <int kWidth, int kColumns>
__global__ void __launch_bounds__(kWidth * 2) walk_kernel(const Params p) {
    constexpr int kStage = stage_bytes<kWidth, kColumns>();
    constexpr int kW = kStep * v_pitch(kWidth), kValues = kW + kStep * v_pitch(kColumns);
    extern __shared__ __align__(128) unsigned char shared[];
    const int64_t backward = p.batch * p.heads * p.channel_tiles * p.column_tiles;
    const bool reverse = blockIdx.x < backward;
    int64_t rest = reverse ? blockIdx.x : blockIdx.x - backward;
    const int column = static_cast<int>(rest % p.column_tiles) * kColumns;
    rest /= p.column_tiles;
    const int first_channel = static_cast<int>(rest % p.channel_tiles) * p.tile_width;
    rest /= p.channel_tiles;
    const int head = static_cast<int>(rest % p.heads), group = head / p.heads_per_group;
    rest /= p.heads;
    const int chunk = reverse ? 0 : static_cast<int>(rest % p.chunks);
    const int64_t sequence = reverse ? rest : rest / p.chunks;
    const int channels = min(p.tile_width, p.head_dim - first_channel);
    const Part part{first_channel + static_cast<int>(threadIdx.x) / kWarp * 16, first_channel + channels,
                    column};

    const int first = reverse ? p.steps - 1 : chunk * p.steps_per_chunk;
    const int steps = reverse ? p.steps : min(p.steps_per_chunk, p.steps - first);
    // Forward, the last step's end is not needed: the next chunk's state is given.
    const int moves = reverse ? steps : steps - 1;
    const auto step_of = [&](int n) { return reverse ? first - n : first + n; };
    const int64_t v_offset = int64_t{head} * p.head_dim + first_channel;
    const uint16_t* v_rows = (reverse ? p.d_y : p.xbc) + v_offset;
    const int64_t v_row = reverse ? p.inner : p.conv_channels;
    const bool v_aligned = reverse ? p.d_y_aligned : p.x_aligned;
    const uint16_t* w_rows = p.xbc + (reverse ? p.c_offset : p.b_offset) + int64_t{group} * p.state + column;
    const auto load = [&](int n) {
        const StepRange range(p, step_of(n));
        const int64_t token = sequence * p.time + range.begin;
        const uint32_t to = shared_address(shared) + n % 2 * kStage;
        load_tile<kStep, kWidth / 8, 2 * kWidth>(
            to, {v_rows + token * v_row, v_row, range.count, min(p.tile_width, p.head_dim - first_channel),
                 v_aligned});
        load_tile<kStep, kColumns / 8, 2 * kWidth>(
            to + kW,
            {w_rows + token * p.conv_channels, p.conv_channels, range.count, p.state - column, p.bc_aligned});
        load_values(to + kValues, p.values[(sequence * p.steps + step_of(n)) * p.heads + head]);
        commit_copies();
    };
    if (moves > 0) load(0);

    float state[kColumns / 8][4] = {};
    const int64_t head_state = int64_t{p.head_dim} * p.state;
    const float* from = reverse ? p.d_final_state : p.chunk_states;
    if (from) {
        from += ((reverse ? sequence : sequence * p.chunks + chunk) * p.heads + head) * head_state;
        for_each_element<kColumns>(state, p, part, [&](float& value, int64_t at) { value = from[at]; });
    }
    uint16_t* kept = reverse ? p.leaving : p.entering;
    for (int n = 0; n < steps; ++n) {
        const int64_t at_head = (sequence * p.steps + step_of(n)) * p.heads + head;
        keep_state<kColumns>(state, p, part, kept + at_head * p.head_elements());
        if (n >= moves) break;
        wait_for_copies<0>();
        __syncthreads();  // this step has come, and everyone is done with the one before it
        if (n + 1 < moves) load(n + 1);
        const unsigned char* stage = shared + n % 2 * kStage;
        const uint32_t v = shared_address(stage);
        advance<kWidth, kColumns>(state, v, v + kW, *reinterpret_cast<const StepValues*>(stage + kValues),
                                  reverse);
    }
    if (reverse && p.d_initial_state) {
        float* to = p.d_initial_state + (sequence * p.heads + head) * head_state;
        for_each_element<kColumns>(state, p, part, [&](float& value, int64_t at) { to[at] = value; });
    }
}

template <int kWidth, int kColumns>
void walk(const Context& context, const Params& p) {
    const int64_t walks = p.batch * p.heads * p.channel_tiles * p.column_tiles;
    launch(context, walk_kernel<kWidth, kColumns>, walks * (1 + p.chunks), kWidth / 16 * kWarp,
           2 * stage_bytes<kWidth, kColumns>(), p);
}

}  // namespace

void walk_states(const Context& context, const Params& p) {
    if (column_tile(p.state) == 32)
        p.tile_width <= 32 ? walk<32, 32>(context, p) : walk<64, 32>(context, p);
    else
        p.tile_width <= 32 ? walk<32, 64>(context, p) : walk<64, 64>(context, p);
}

}  // namespace minipuzzle::cuda::plain_backward
