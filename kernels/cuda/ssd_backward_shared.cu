// What the heads of a group share in the plain backward scan: the gradients of B and C, and U. One block per
// (sequence, step, group, tile of the state's columns) goes through the group's heads; per head
//   b = x dS_out,  c = d_y S_in   (64 tokens by the tile's columns, over the head's channels)
//   dB += e^{s_last - s_j} delta_j b_j,  dC += e^{s_i} c_i,  U_i = e^{s_i} c_i . C_i,
// and U of the last token also takes carry <S_in, dS_out>, which decays through every token. At the end
//   dB += M^T C,  dC += M B.
//
// At the 8B shape: reads two states per 64 tokens (537 MB), x and d_y (268 MB, twice), writes dB and dC; 4
// HPN per token, 34 GFLOP.
#include "kernels/cuda/ssd_backward_plain.cuh"

namespace minipuzzle::cuda::plain_backward {
namespace {

constexpr int kThreads = 256;  // 4 warps down the tokens, 2 across the columns

// One stage holds what a tile of a head's channels needs; with two, the next tile's comes while this one is
// computed. When the heads are done, M takes the first stage's place.
template <int kWidth, int kColumns>
struct Layout {
    static constexpr int kXPitch = 2 * (kWidth + 8), kStatePitch = 2 * (kColumns + 8);
    static constexpr int kX = 0, kDy = kX + kStep * kXPitch, kLeaving = kDy + kStep * kXPitch;
    static constexpr int kEntering = kLeaving + kWidth * kStatePitch;
    static constexpr int kValues = kEntering + kWidth * kStatePitch;
    static constexpr int kStage = kValues + static_cast<int>(sizeof(StepValues));
    static_assert(kStage >= kStep * kPairsPitch);
    // Behind the stages, from their end on:
    static constexpr int kB = 0, kC = kB + kStep * kStatePitch, kSums = kC + kStep * kStatePitch;
    static constexpr int kRest = kSums + (2 * kStep + kThreads / kWarp) * 4;
    static constexpr int bytes(int stages) { return stages * kStage + kRest; }
};

// A block's place.
struct Place {
    int64_t at_step, token;
    int step, group, column_tile;
    __device__ explicit Place(const Params& p) {
        column_tile = static_cast<int>(blockIdx.x % p.column_tiles);
        const int64_t rest = blockIdx.x / p.column_tiles;
        group = static_cast<int>(rest % p.groups);
        at_step = rest / p.groups;
        step = static_cast<int>(at_step % p.steps);
        token = at_step / p.steps * p.time + StepRange(p, step).begin;
    }
};

// What a warp owns of a result of 64 tokens: rows from `row` on, half the columns.
struct WarpPlace {
    int lane, row, half;
    __device__ WarpPlace()
        : lane(threadIdx.x % kWarp), row(threadIdx.x / kWarp / 2 * 16), half(threadIdx.x / kWarp % 2) {}
    __device__ int i(int r) const { return row + lane / 4 + r * 8; }  // r: 0 or 1
};

template <int kColumns>
using Result = float[kColumns / 16][4];

// result += left right over `depth` rows of right; kTransposed: left is stored so.
template <bool kTransposed, int kDepth, int kColumns>
__device__ __forceinline__ void add_product(Result<kColumns>& result, uint32_t left, int left_pitch,
                                            uint32_t right, const WarpPlace& at, int first, int depth) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
        if (k < first || k >= depth) continue;
        uint32_t a[4];
        load_left<kTransposed>(a, left, left_pitch, at.row, k);
#pragma unroll
        for (int n = 0; n < kColumns / 32; ++n) {
            uint32_t b[4];
            load_right<true>(b, right, 2 * (kColumns + 8), at.half * (kColumns / 2) + n * 16, k);
            multiply_add_16(result[2 * n], result[2 * n + 1], a, b);
        }
    }
}

// This thread's part of <S_in, dS_out>.
template <int kWidth, int kColumns>
__device__ __forceinline__ float multiply_states(const unsigned char* stage) {
    using L = Layout<kWidth, kColumns>;
    float sum = 0;
#pragma unroll
    for (int i = threadIdx.x; i < kWidth * kColumns / 8; i += kThreads) {
        const int place = i / (kColumns / 8) * L::kStatePitch + i % (kColumns / 8) * 16;
        const uint4 s = *reinterpret_cast<const uint4*>(stage + L::kEntering + place);
        const uint4 d = *reinterpret_cast<const uint4*>(stage + L::kLeaving + place);
        const uint32_t s_pairs[4] = {s.x, s.y, s.z, s.w}, d_pairs[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            sum = fmaf(low_value(s_pairs[e]), low_value(d_pairs[e]), sum);
            sum = fmaf(high_value(s_pairs[e]), high_value(d_pairs[e]), sum);
        }
    }
    return sum;
}

// One head's b and c, decayed, to the sums over heads; U's parts to `sums` [2 halves][64].
template <int kColumns>
__device__ __forceinline__ void add_head(Result<kColumns>& d_b, Result<kColumns>& d_c,
                                         const Result<kColumns>& b, const Result<kColumns>& c, float* sums,
                                         const unsigned char* c_rows, const StepValues& values,
                                         const WarpPlace& at) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int i = at.i(r);
        const float to_exit = values.to_exit[i] * values.delta[i], from_entry = values.from_entry[i];
        const unsigned char* c_row =
            c_rows + i * 2 * (kColumns + 8) + (at.half * (kColumns / 2) + at.lane % 4 * 2) * 2;
        float enters = 0;
#pragma unroll
        for (int n = 0; n < kColumns / 16; ++n) {
            const uint32_t pair = *reinterpret_cast<const uint32_t*>(c_row + n * 16);
            enters = fmaf(c[n][2 * r], low_value(pair), enters);
            enters = fmaf(c[n][2 * r + 1], high_value(pair), enters);
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e) {
                d_b[n][e] = fmaf(to_exit, b[n][e], d_b[n][e]);
                d_c[n][e] = fmaf(from_entry, c[n][e], d_c[n][e]);
            }
        }
        enters = sum_of_row(enters) * from_entry;
        if (at.lane % 4 == 0) sums[at.half * kStep + i] = enters;
    }
}

// Rounds a result to bf16 rows in shared memory.
template <int kColumns>
__device__ __forceinline__ void write_result(unsigned char* to, const Result<kColumns>& result,
                                             const WarpPlace& at) {
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r)
            *reinterpret_cast<uint32_t*>(to + at.i(r) * 2 * (kColumns + 8) +
                                         (at.half * (kColumns / 2) + n * 8 + at.lane % 4 * 2) * 2) =
                pack_bf16(result[n][2 * r], result[n][2 * r + 1]);
}

// kAligned: all rows begin on 16 bytes.
template <int kWidth, int kColumns, bool kAligned>
__global__ void __launch_bounds__(kThreads, 2) shared_kernel(const Params p) {
    using L = Layout<kWidth, kColumns>;
    extern __shared__ __align__(128) unsigned char shared[];
    unsigned char* rest = shared + p.stages * L::kStage;
    const uint32_t base = shared_address(shared);
    const uint32_t b_rows = shared_address(rest + L::kB), c_rows = shared_address(rest + L::kC);
    float* sums = reinterpret_cast<float*>(rest + L::kSums);
    const Place place(p);
    const StepRange range(p, place.step);
    const WarpPlace at;
    const int column = place.column_tile * kColumns, first_head = place.group * p.heads_per_group;
    const uint16_t* rows = p.xbc + place.token * p.conv_channels;
    const int64_t of_group = int64_t{place.group} * p.state + column;
    const auto channels_of = [&](int tile) { return min(p.tile_width, p.head_dim - tile * p.tile_width); };
    // The n-th tile of all the group's heads.
    const auto load = [&](int n) {
        const uint32_t to = base + (n & (p.stages - 1)) * L::kStage;
        const int head = first_head + n / p.channel_tiles, tile = n % p.channel_tiles;
        const int channel = tile * p.tile_width, channels = channels_of(tile);
        const int64_t at_head = place.at_step * p.heads + head;
        const int64_t x_at = int64_t{head} * p.head_dim + channel;
        const int64_t state_at = at_head * p.head_elements() + int64_t{channel} * p.state_pitch + column;
        load_values(to + L::kValues, p.values[at_head]);
        load_tile<kStep, kWidth / 8, kThreads>(
            to + L::kX, {rows + x_at, p.conv_channels, range.count, channels, kAligned || p.x_aligned});
        load_tile<kStep, kWidth / 8, kThreads>(
            to + L::kDy, {p.d_y + place.token * p.inner + x_at, p.inner, range.count, channels,
                          kAligned || p.d_y_aligned});
        load_tile<kWidth, kColumns / 8, kThreads>(
            to + L::kLeaving, {p.leaving + state_at, p.state_pitch, channels, p.state_pitch - column, true});
        load_tile<kWidth, kColumns / 8, kThreads>(
            to + L::kEntering,
            {p.entering + state_at, p.state_pitch, channels, p.state_pitch - column, true});
    };
    load_tile<kStep, kColumns / 8, kThreads>(
        b_rows, {rows + p.b_offset + of_group, p.conv_channels, range.count, p.state - column,
                 kAligned || p.bc_aligned});
    load_tile<kStep, kColumns / 8, kThreads>(
        c_rows, {rows + p.c_offset + of_group, p.conv_channels, range.count, p.state - column,
                 kAligned || p.bc_aligned});
    load(0);

    const int tiles = p.heads_per_group * p.channel_tiles;
    Result<kColumns> d_b = {}, d_c = {};
    for (int n = 0; n < tiles;) {
        Result<kColumns> b = {}, c = {};
        float through = 0;
        const unsigned char* stage;
        for (int tile = 0; tile < p.channel_tiles; ++tile, ++n) {
            if (p.stages == 1 && n > 0) {
                __syncthreads();  // everyone is done with the tile before
                load(n);
            }
            wait_for_tiles();
            if (p.stages == 2 && n + 1 < tiles) load(n + 1);
            stage = shared + (n & (p.stages - 1)) * L::kStage;
            const uint32_t from = shared_address(stage);
            add_product<false, kWidth, kColumns>(b, from + L::kX, L::kXPitch, from + L::kLeaving, at, 0,
                                                 channels_of(tile));
            add_product<false, kWidth, kColumns>(c, from + L::kDy, L::kXPitch, from + L::kEntering, at, 0,
                                                 channels_of(tile));
            through += multiply_states<kWidth, kColumns>(stage);
        }
        const StepValues& values = *reinterpret_cast<const StepValues*>(stage + L::kValues);
        add_head<kColumns>(d_b, d_c, b, c, sums, rest + L::kC, values, at);
#pragma unroll
        for (int distance = kWarp / 2; distance > 0; distance /= 2)
            through += __shfl_xor_sync(kAllLanes, through, distance);
        if (at.lane == 0) sums[2 * kStep + threadIdx.x / kWarp] = through;
        __syncthreads();
        if (const int i = threadIdx.x; i < kStep) {
            float enters = sums[i] + sums[kStep + i];
            if (i == kStep - 1) {
                float all = 0;
                for (int w = 0; w < kThreads / kWarp; ++w) all += sums[2 * kStep + w];
                enters += values.carry * all;
            }
            const int64_t at_head = place.at_step * p.heads + first_head + n / p.channel_tiles - 1;
            p.enters[(at_head * p.column_tiles + place.column_tile) * kStep + i] = enters;
        }
    }

    __syncthreads();
    load_tile<kStep, kStep / 8, kThreads>(
        base,
        {p.d_scores + (place.at_step * p.groups + place.group) * (kStep * kStep), kStep, kStep, kStep, true});
    wait_for_tiles();
    add_product<true, kStep, kColumns>(d_b, base, kPairsPitch, c_rows, at, at.row, kStep);
    add_product<false, kStep, kColumns>(d_c, base, kPairsPitch, b_rows, at, 0, at.row + 16);
    __syncthreads();
    write_result<kColumns>(rest + L::kB, d_b, at);
    write_result<kColumns>(rest + L::kC, d_c, at);
    __syncthreads();
    uint16_t* out = p.d_xbc + place.token * p.conv_channels + of_group;
    store_tile<kColumns / 8, kThreads>(out + p.b_offset, p.conv_channels, rest + L::kB, range.count,
                                       p.state - column, p.d_bc_aligned);
    store_tile<kColumns / 8, kThreads>(out + p.c_offset, p.conv_channels, rest + L::kC, range.count,
                                       p.state - column, p.d_bc_aligned);
}

template <int kWidth, int kColumns, bool kAligned = true>
void launch(const Context& context, Params p) {
    using L = Layout<kWidth, kColumns>;
    p.stages = two_stages_fit(context, L::bytes(2)) ? 2 : 1;
    launch(context, shared_kernel<kWidth, kColumns, kAligned>, p.batch * p.steps * p.groups * p.column_tiles,
           kThreads, L::bytes(p.stages), p);
}

template <int kColumns>
void launch(const Context& context, const Params& p) {
    if (!p.all_aligned())
        launch<64, kColumns, false>(context, p);
    else
        p.tile_width <= 32 ? launch<32, kColumns>(context, p) : launch<64, kColumns>(context, p);
}

}  // namespace

void take_shared(const Context& context, const Params& p) {
    column_tile(p.state) == 32 ? launch<32>(context, p) : launch<64>(context, p);
}

}  // namespace minipuzzle::cuda::plain_backward
