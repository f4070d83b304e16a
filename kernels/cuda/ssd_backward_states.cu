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

namespace minipuzzle::cuda::ssd_backward {
namespace {

__host__ __device__ constexpr int v_pitch(int width) { return 2 * (width + 8); }
template <int kColumns>
__host__ __device__ constexpr int stage_bytes() {
    return kStep * (v_pitch(64) + v_pitch(kColumns)) + static_cast<int>(sizeof(StepValues));
}

// Calls use(state element, its row, its column) for what exists of the warp's part.
template <int kColumns, class Use>
__device__ __forceinline__ void for_each_element(float (&state)[kColumns / 8][4], const Params& p,
                                                 int channel, int column, Use use) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int row = channel + lane / 4 + e / 2 * 8, at = column + n * 8 + lane % 4 * 2 + e % 2;
            if (row < p.head_dim && at < p.state) use(state[n][e], int64_t{row} * p.state + at);
        }
}

template <int kColumns>
__device__ __forceinline__ void keep_state(const float (&state)[kColumns / 8][4], const Params& p,
                                           uint16_t* to, int channel, int column) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = channel + lane / 4 + half * 8;
        if (row >= p.head_dim) continue;
        uint16_t* of_row = to + int64_t{row} * p.state_pitch + column + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n)
            if (column + n * 8 < p.state_pitch)
                *reinterpret_cast<uint32_t*>(of_row + n * 8) =
                    pack_bf16(state[n][2 * half], state[n][2 * half + 1]);
    }
}

template <int kColumns, bool kReverse>
__device__ __forceinline__ void advance(float (&state)[kColumns / 8][4], uint32_t v, uint32_t w,
                                        const StepValues& values, int warp) {
    const float carry = values.carry;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) state[n][e] *= carry;
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
        uint32_t left[4];
        load_left<true>(left, v, v_pitch(64), warp * 16, k);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int token = k + threadIdx.x % 4 * 2 + r / 2 * 8;
            float2 weight;
            if constexpr (kReverse) {
                weight = *reinterpret_cast<const float2*>(&values.from_entry[token]);
            } else {
                weight = *reinterpret_cast<const float2*>(&values.to_exit[token]);
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

// One block: the walk of one (sequence, head, tile of channels, tile of columns), backward over the row or
// forward over one chunk. A warp for every 16 channels.
template <int kColumns, bool kReverse>
__global__ void __launch_bounds__(128) walk_kernel(const Params p) {
    extern __shared__ __align__(128) unsigned char shared[];
    int64_t rest = blockIdx.x;
    const int column = static_cast<int>(rest % p.column_tiles) * kColumns;
    rest /= p.column_tiles;
    const int first_channel = static_cast<int>(rest % p.channel_tiles) * p.tile_width;
    rest /= p.channel_tiles;
    const int head = static_cast<int>(rest % p.heads), group = head / p.heads_per_group;
    rest /= p.heads;
    const int chunk = kReverse ? 0 : static_cast<int>(rest % p.chunks);
    const int64_t sequence = kReverse ? rest : rest / p.chunks;
    const int warp = threadIdx.x / kWarp, channel = first_channel + warp * 16;

    const int first = kReverse ? p.steps - 1 : chunk * p.steps_per_chunk;
    const int steps = kReverse ? p.steps : min(p.steps_per_chunk, p.steps - first);
    const auto step_of = [&](int n) { return kReverse ? first - n : first + n; };
    const auto load = [&](int n) {
        const int step = step_of(n);
        const StepRange range(p, step);
        const int64_t token = sequence * p.time + range.begin;
        const uint32_t to = shared_address(shared) + n % 2 * stage_bytes<kColumns>();
        const int64_t x_at = int64_t{head} * p.head_dim + first_channel;
        const int channels = min(p.tile_width, p.head_dim - first_channel);
        load_tile<kStep, 8>(
            to, kReverse ? Rows{p.d_y + token * p.inner + x_at, p.inner, range.count, channels, p.d_y_aligned}
                         : Rows{p.xbc + token * p.conv_channels + x_at, p.conv_channels, range.count,
                                channels, p.x_aligned});
        load_tile<kStep, kColumns / 8>(
            to + kStep * v_pitch(64),
            {p.xbc + token * p.conv_channels + (kReverse ? p.c_offset : p.b_offset) +
                 int64_t{group} * p.state + column,
             p.conv_channels, range.count, p.state - column, p.bc_aligned});
        load_values(to + kStep * (v_pitch(64) + v_pitch(kColumns)),
                    p.values[(sequence * p.steps + step) * p.heads + head]);
        commit_copies();
    };
    // Forward, the last step's end is not needed: the next chunk's state is given.
    const int moves = kReverse ? steps : steps - 1;
    if (moves > 0) load(0);

    float state[kColumns / 8][4] = {};
    const int64_t head_state = int64_t{p.head_dim} * p.state;
    const float* from = nullptr;
    if (kReverse && p.d_final_state) from = p.d_final_state + (sequence * p.heads + head) * head_state;
    if (!kReverse) from = p.chunk_states + ((sequence * p.chunks + chunk) * p.heads + head) * head_state;
    if (from)
        for_each_element<kColumns>(state, p, channel, column,
                                   [&](float& value, int64_t at) { value = from[at]; });
    uint16_t* kept = kReverse ? p.leaving : p.entering;
    for (int n = 0; n < steps; ++n) {
        keep_state<kColumns>(state, p,
                             kept + ((sequence * p.steps + step_of(n)) * p.heads + head) * p.head_elements(),
                             channel, column);
        if (n >= moves) break;
        wait_for_copies<0>();
        __syncthreads();  // this step has come, and everyone is done with the one before it
        if (n + 1 < moves) load(n + 1);
        const unsigned char* stage = shared + n % 2 * stage_bytes<kColumns>();
        const uint32_t v = shared_address(stage), w = v + kStep * v_pitch(64);
        advance<kColumns, kReverse>(
            state, v, w,
            *reinterpret_cast<const StepValues*>(stage + kStep * (v_pitch(64) + v_pitch(kColumns))), warp);
    }
    if (kReverse && p.d_initial_state) {
        float* to = p.d_initial_state + (sequence * p.heads + head) * head_state;
        for_each_element<kColumns>(state, p, channel, column,
                                   [&](float& value, int64_t at) { to[at] = value; });
    }
}

template <int kColumns>
void walk(const Context& context, const Params& p) {
    const int threads = p.tile_width / 16 * kWarp, shared = 2 * stage_bytes<kColumns>();
    const int64_t rows = p.batch * p.heads * p.channel_tiles * p.column_tiles;
    launch(context, walk_kernel<kColumns, true>, rows, threads, shared, p);
    launch(context, walk_kernel<kColumns, false>, rows * p.chunks, threads, shared, p);
}

}  // namespace

void walk_states(const Context& context, const Params& p) {
    column_tile(p.state) == 32 ? walk<32>(context, p) : walk<64>(context, p);
}

}  // namespace minipuzzle::cuda::ssd_backward
