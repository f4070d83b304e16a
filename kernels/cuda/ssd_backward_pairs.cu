// Pairs of tokens inside a step of the plain backward scan, and dx. One block per (sequence, step, group)
// goes through the group's heads. With E_ij = e^{s_i - s_j} for i >= j of one document, else 0; per head
//   M_ij = (d_y_i . x_j) delta_j E_ij, summed over the heads: the gradient of C_i . B_j
//   W_ij = M_ij (C_i . B_j); within_k = sum over i >= k, j < k of W_ij
//   u_j  = e^{s_last - s_j} dS_out B_j + sum_i (C_i . B_j) E_ij d_y_i
//   dx_j = delta_j u_j + D d_y_j; sums over channels for ssd_backward_plain.cu.
// within is a product too: (L W)_kj = sum over i >= k of W_ij with L's ones on and above the diagonal, then
// row k is added up left of k. W is rounded to bf16 for it, as M and the scores C_i . B_j E_ij are.
//
// At the 8B shape: reads x, d_y and dS_out once (0.54 GB), writes dx; per token 2 HPN + 64 H (2 P + 64),
// 30 GFLOP.
#include "kernels/cuda/ssd_backward_plain.cuh"

namespace minipuzzle::cuda::plain_backward {
namespace {

constexpr int kThreads = 256;  // 4 warps down the tokens, 2 across
template <int kValue>
struct Constant {
    static constexpr int value = kValue;
};
constexpr uint32_t kOne = 0x3f80;  // of bf16
constexpr int kTiles = 4;          // of 8 columns, per warp, of a result of kStep columns

// One stage holds what a head needs; with two, the next head's comes while this one is computed. C lies in
// the last stage until the first head that goes there.
template <int kWidth, int kState>
struct Layout {
    static constexpr int kXPitch = 2 * (kWidth + 8), kStatePitch = 2 * (kState + 8);
    static constexpr int kX = 0, kDy = kX + kStep * kXPitch, kLeaving = kDy + kStep * kXPitch;
    static constexpr int kValues = kLeaving + kWidth * kStatePitch;
    static constexpr int kOfHead = kValues + static_cast<int>(sizeof(StepValues));
    static constexpr int kStage = kOfHead > kStep* kStatePitch ? kOfHead : kStep* kStatePitch;
    // Behind the stages, from their end on:
    static constexpr int kB = 0, kScores = kB + kStep * kStatePitch, kPaths = kScores + kStep * kPairsPitch;
    static constexpr int kSums = kPaths + kStep * kPairsPitch;  // [2 halves] PairSums
    static constexpr int kMarks = kSums + 2 * static_cast<int>(sizeof(PairSums));
    static constexpr int kRest = kMarks + kStep * 4;
    static constexpr int bytes(int stages) { return stages * kStage + kRest; }
};

// A block's place.
struct Place {
    int64_t at_step, token;
    int step, group;
    __device__ explicit Place(const Params& p) {
        group = static_cast<int>(blockIdx.x % p.groups);
        at_step = blockIdx.x / p.groups;
        step = static_cast<int>(at_step % p.steps);
        token = at_step / p.steps * p.time + StepRange(p, step).begin;
    }
};

// What a warp owns of a 64 x 64 result: rows from `row` on, columns from `first` on.
struct WarpPlace {
    int lane, row, half;
    __device__ WarpPlace()
        : lane(threadIdx.x % kWarp), row(threadIdx.x / kWarp / 2 * 16), half(threadIdx.x / kWarp % 2) {}
    __device__ int i(int r) const { return row + lane / 4 + r * 8; }  // r: 0 or 1
    // The first of the lane's two columns in tile n of a result whose warps have `width` columns.
    __device__ int j(int n, int width) const { return half * width + n * 8 + lane % 4 * 2; }
};

// Calls use(a constant) with the warp's first row, so that the blocks it leaves out are known to the
// compiler.
template <class Use>
__device__ __forceinline__ void with_row(int row, Use use) {
    switch (row / 16) {
        case 0:
            return use(Constant<0>{});
        case 1:
            return use(Constant<16>{});
        case 2:
            return use(Constant<32>{});
        default:
            return use(Constant<48>{});
    }
}

// result += left right^T over kDepth columns of both, blocks on and below the diagonal only.
template <int kDepth>
__device__ __forceinline__ void add_lower_product(float (&result)[kTiles][4], uint32_t left, uint32_t right,
                                                  int pitch, const WarpPlace& at, int depth) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
        if (k >= depth) break;
        uint32_t a[4];
        load_left<false>(a, left, pitch, at.row, k);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const int column = at.half * 32 + n * 16;
            if (column > at.row) continue;
            uint32_t b[4];
            load_right<false>(b, right, pitch, column, k);
            multiply_add_16(result[2 * n], result[2 * n + 1], a, b);
        }
    }
}

// Turns one head's d_y x^T into M (added to `m`), and writes the scores and W as operands.
__device__ __forceinline__ void weigh_pairs(const float (&gram)[kTiles][4], const float (&cb)[kTiles][4],
                                            float (&m)[kTiles][4], unsigned char* scores,
                                            unsigned char* paths, const StepValues& values,
                                            const int32_t* marks, const WarpPlace& at) {
    float high[2], low[2];
    int32_t mark[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        high[r] = values.high[at.i(r)], low[r] = values.low[at.i(r)];
        if (marks) mark[r] = marks[at.i(r)];
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
        const int j = at.j(n, 32);
        if (j / 16 * 16 > at.row) continue;  // never read
        const float2 highs = *reinterpret_cast<const float2*>(&values.high[j]);
        const float2 lows = *reinterpret_cast<const float2*>(&values.low[j]);
        const float2 deltas = *reinterpret_cast<const float2*>(&values.delta[j]);
        const int32_t marks_j[2] = {marks ? marks[j] : 0, marks ? marks[j + 1] : 0};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float score[2], path[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float difference =
                    (high[r] - (e ? highs.y : highs.x)) + (low[r] - (e ? lows.y : lows.x));
                float decay = exp2_fast(fminf(difference, 0.0f));
                if (j + e > at.i(r) || marks_j[e] != mark[r]) decay = 0.0f;
                const float d_score = gram[n][2 * r + e] * (decay * (e ? deltas.y : deltas.x));
                m[n][2 * r + e] += d_score;
                score[e] = cb[n][2 * r + e] * decay;
                path[e] = cb[n][2 * r + e] * d_score;
            }
            const int place = at.i(r) * kPairsPitch + j * 2;
            *reinterpret_cast<uint32_t*>(scores + place) = pack_bf16(score[0], score[1]);
            *reinterpret_cast<uint32_t*>(paths + place) = pack_bf16(path[0], path[1]);
        }
    }
}

// The warp's part of `within`: (L W) for its rows k and columns j, added up over j < k, per row.
__device__ __forceinline__ void sum_paths(float (&within)[2], uint32_t paths, const WarpPlace& at) {
    float sums[kTiles][4] = {};
    // L's block on the diagonal has ones where the column is not before the row.
    uint32_t upper[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int column = at.lane % 4 * 2 + r / 2 * 8, row = at.lane / 4 + r % 2 * 8;
        upper[r] = (column >= row ? kOne : 0) | (column + 1 >= row ? kOne << 16 : 0);
    }
    with_row(at.row, [&](auto row) {
#pragma unroll
        for (int k = row.value; k < kStep; k += 16) {
            uint32_t ones[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) ones[r] = k == row.value ? upper[r] : kOne | kOne << 16;
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                if (n * 16 > row.value) continue;
                const int column = at.half * 32 + n * 16;
                if (column > row.value) continue;
                uint32_t right[4];
                load_right<true>(right, paths, kPairsPitch, column, k);
                multiply_add_16(sums[2 * n], sums[2 * n + 1], ones, right);
            }
        }
    });
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
            if (at.j(n, 32) + e % 2 < at.i(e / 2)) within[e / 2] += sums[n][e];
}

// The copies of one block.
template <int kWidth, int kState, bool kAligned>
struct Loads {
    using L = Layout<kWidth, kState>;
    const Params& p;
    const Place& place;
    const StepRange& range;
    const uint16_t* rows;  // of xbc, the step's first

    __device__ int channels(int tile) const { return min(p.tile_width, p.head_dim - tile * p.tile_width); }
    // One part of B or C.
    __device__ __forceinline__ void part(uint32_t to, int64_t offset, int part) const {
        load_tile<kStep, kState / 8, kThreads>(
            to, {rows + offset + int64_t{place.group} * p.state + part * kState, p.conv_channels, range.count,
                 p.state - part * kState, kAligned || p.bc_aligned});
    }
    __device__ __forceinline__ void x(uint32_t stage, int head, int tile) const {
        const int64_t from = int64_t{head} * p.head_dim + tile * p.tile_width;
        load_tile<kStep, kWidth / 8, kThreads>(stage + L::kX, {rows + from, p.conv_channels, range.count,
                                                               channels(tile), kAligned || p.x_aligned});
        load_tile<kStep, kWidth / 8, kThreads>(
            stage + L::kDy, {p.d_y + place.token * p.inner + from, p.inner, range.count, channels(tile),
                             kAligned || p.d_y_aligned});
    }
    __device__ __forceinline__ void leaving(uint32_t stage, int head, int tile, int part) const {
        const int64_t from = (place.at_step * p.heads + head) * p.head_elements() +
                             int64_t{tile} * p.tile_width * p.state_pitch + part * kState;
        load_tile<kWidth, kState / 8, kThreads>(
            stage + L::kLeaving,
            {p.leaving + from, p.state_pitch, channels(tile), p.state_pitch - part * kState, true});
    }
    // What of a head is loaded before it is begun.
    __device__ __forceinline__ void head(uint32_t stage, int head, bool stays) const {
        load_values(stage + L::kValues, p.values[place.at_step * p.heads + head]);
        x(stage, head, 0);
        if (stays) leaving(stage, head, 0, 0);
    }
};

// u's part that comes from behind the step, without its decay: B dS_out^T over one part of the state.
template <int kWidth, int kState>
__device__ __forceinline__ void add_from_exit(float (&u)[kWidth / 16][4], uint32_t b, uint32_t leaving,
                                              const WarpPlace& at, int depth) {
    constexpr int kPitch = Layout<kWidth, kState>::kStatePitch;
#pragma unroll
    for (int k = 0; k < kState; k += 16) {
        if (k >= depth) break;
        uint32_t left[4];
        load_left<false>(left, b, kPitch, at.row, k);
#pragma unroll
        for (int n = 0; n < kWidth / 32; ++n) {
            uint32_t right[4];
            load_right<false>(right, leaving, kPitch, at.half * (kWidth / 2) + n * 16, k);
            multiply_add_16(u[2 * n], u[2 * n + 1], left, right);
        }
    }
}

// u's part from inside the step: scores^T d_y.
template <int kWidth>
__device__ __forceinline__ void add_within_step(float (&u)[kWidth / 16][4], uint32_t scores, uint32_t d_y,
                                                const WarpPlace& at) {
    with_row(at.row, [&](auto row) {
#pragma unroll
        for (int k = row.value; k < kStep; k += 16) {
            uint32_t left[4];
            load_left<true>(left, scores, kPairsPitch, row.value, k);
#pragma unroll
            for (int n = 0; n < kWidth / 32; ++n) {
                uint32_t right[4];
                load_right<true>(right, d_y, 2 * (kWidth + 8), at.half * (kWidth / 2) + n * 16, k);
                multiply_add_16(u[2 * n], u[2 * n + 1], left, right);
            }
        }
    });
}

// One lane's part of the sums over channels, for its two rows.
struct RowSums {
    float within[2] = {}, leaves[2] = {}, direct[2] = {}, skip[2] = {};
};

// u's decay from the step's end, and its products with x so far.
template <int kWidth>
__device__ __forceinline__ void decay_from_exit(float (&u)[kWidth / 16][4], RowSums& sums,
                                                const unsigned char* x, const StepValues& values,
                                                const WarpPlace& at) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float to_exit = values.to_exit[at.i(r)];
#pragma unroll
        for (int n = 0; n < kWidth / 16; ++n) {
            const uint32_t pair =
                *reinterpret_cast<const uint32_t*>(x + at.i(r) * 2 * (kWidth + 8) + at.j(n, kWidth / 2) * 2);
            u[n][2 * r] *= to_exit, u[n][2 * r + 1] *= to_exit;
            sums.leaves[r] = fmaf(u[n][2 * r], low_value(pair), sums.leaves[r]);
            sums.leaves[r] = fmaf(u[n][2 * r + 1], high_value(pair), sums.leaves[r]);
        }
    }
}

// dx takes x's place, which only this lane reads now.
template <int kWidth>
__device__ __forceinline__ void write_d_x(const float (&u)[kWidth / 16][4], RowSums& sums, unsigned char* x,
                                          const unsigned char* d_y, const StepValues& values, float d,
                                          const WarpPlace& at) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float delta = values.delta[at.i(r)];
#pragma unroll
        for (int n = 0; n < kWidth / 16; ++n) {
            const int offset = at.i(r) * 2 * (kWidth + 8) + at.j(n, kWidth / 2) * 2;
            uint32_t* place = reinterpret_cast<uint32_t*>(x + offset);
            const uint32_t pair = *place, d_pair = *reinterpret_cast<const uint32_t*>(d_y + offset);
            sums.direct[r] = fmaf(u[n][2 * r], low_value(pair), sums.direct[r]);
            sums.direct[r] = fmaf(u[n][2 * r + 1], high_value(pair), sums.direct[r]);
            sums.skip[r] = fmaf(low_value(d_pair), low_value(pair), sums.skip[r]);
            sums.skip[r] = fmaf(high_value(d_pair), high_value(pair), sums.skip[r]);
            *place = pack_bf16(fmaf(delta, u[n][2 * r], d * low_value(d_pair)),
                               fmaf(delta, u[n][2 * r + 1], d * high_value(d_pair)));
        }
    }
}

// The warp's sums to its half's place.
__device__ __forceinline__ void write_sums(PairSums& to, const RowSums& sums, const StepValues& values,
                                           const WarpPlace& at) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int i = at.i(r);
        const float within = sum_of_row(sums.within[r]), leaves = sum_of_row(sums.leaves[r]);
        const float direct = sum_of_row(sums.direct[r]), skip = sum_of_row(sums.skip[r]);
        if (at.lane % 4 > 0) continue;
        to.within[i] = within;
        to.leaves[i] = leaves * values.delta[i];
        to.direct[i] = direct;
        to.skip[i] = skip;
    }
}

// kAligned: all rows begin on 16 bytes.
template <int kWidth, int kState, bool kAligned>
__global__ void __launch_bounds__(kThreads, kAligned ? 2 : 1) pairs_kernel(const Params p) {
    using L = Layout<kWidth, kState>;
    extern __shared__ __align__(128) unsigned char shared[];
    unsigned char* rest = shared + p.stages * L::kStage;
    const uint32_t base = shared_address(shared), b = shared_address(rest + L::kB);
    const uint32_t scores = shared_address(rest + L::kScores), paths = shared_address(rest + L::kPaths);
    PairSums* sums = reinterpret_cast<PairSums*>(rest + L::kSums);
    const Place place(p);
    const StepRange range(p, place.step);
    const WarpPlace at;
    const Loads<kWidth, kState, kAligned> load{p, place, range, p.xbc + place.token * p.conv_channels};
    const int parts = (p.state + kState - 1) / kState;
    const bool one_tile = p.channel_tiles == 1, stays = one_tile && parts == 1;
    int32_t* marks = nullptr;
    if (p.marks) {
        marks = reinterpret_cast<int32_t*>(rest + L::kMarks);
        if (threadIdx.x < kStep) marks[threadIdx.x] = p.marks[place.at_step * kStep + threadIdx.x];
    }

    const int first_head = place.group * p.heads_per_group;
    float cb[kTiles][4] = {}, m[kTiles][4] = {};
    for (int part = 0; part < parts; ++part) {
        const uint32_t c = base + (p.stages - 1) * L::kStage;
        __syncthreads();
        load.part(b, p.b_offset, part);
        load.part(c, p.c_offset, part);
        if (p.stages == 2) load.head(base, first_head, stays);
        wait_for_tiles();
        add_lower_product<kState>(cb, c, b, L::kStatePitch, at, min(kState, p.state - part * kState));
    }

    for (int n = 0; n < p.heads_per_group; ++n) {
        const int head = first_head + n;
        const int64_t at_head = place.at_step * p.heads + head;
        unsigned char* of_head = shared + (n & (p.stages - 1)) * L::kStage;
        const uint32_t stage = shared_address(of_head);
        const StepValues& values = *reinterpret_cast<const StepValues*>(of_head + L::kValues);
        if (p.stages == 1) {
            __syncthreads();  // everyone is done with the head before
            load.head(stage, head, stays);
        }
        wait_for_tiles();
        if (p.stages == 2 && n + 1 < p.heads_per_group)
            load.head(base + (n + 1) % 2 * L::kStage, head + 1, stays);

        float gram[kTiles][4] = {};
        for (int tile = 0; tile < p.channel_tiles; ++tile) {
            if (tile > 0) {
                __syncthreads();
                load.x(stage, head, tile);
                wait_for_tiles();
            }
            add_lower_product<kWidth>(gram, stage + L::kDy, stage + L::kX, L::kXPitch, at,
                                      load.channels(tile));
        }
        weigh_pairs(gram, cb, m, rest + L::kScores, rest + L::kPaths, values, marks, at);
        __syncthreads();
        RowSums of_rows;
        sum_paths(of_rows.within, paths, at);

        for (int tile = 0; tile < p.channel_tiles; ++tile) {
            float u[kWidth / 16][4] = {};
            for (int part = 0; part < parts; ++part) {
                if (!stays) {
                    __syncthreads();
                    if (!one_tile && part == 0) load.x(stage, head, tile);
                    load.leaving(stage, head, tile, part);
                    if (parts > 1) load.part(b, p.b_offset, part);
                    wait_for_tiles();
                }
                add_from_exit<kWidth, kState>(u, b, stage + L::kLeaving, at, p.state - part * kState);
            }
            decay_from_exit<kWidth>(u, of_rows, of_head + L::kX, values, at);
            add_within_step<kWidth>(u, scores, stage + L::kDy, at);
            write_d_x<kWidth>(u, of_rows, of_head + L::kX, of_head + L::kDy, values, p.d[head], at);
            if (tile == p.channel_tiles - 1) write_sums(sums[at.half], of_rows, values, at);
            __syncthreads();
            store_tile<kWidth / 8, kThreads>(
                p.d_xbc + place.token * p.conv_channels + int64_t{head} * p.head_dim + tile * p.tile_width,
                p.conv_channels, of_head + L::kX, range.count, load.channels(tile), p.d_x_aligned);
        }
        const float* both = reinterpret_cast<const float*>(sums);
        reinterpret_cast<float*>(&p.pair_sums[at_head])[threadIdx.x] =
            both[threadIdx.x] + both[kThreads + threadIdx.x];
    }

    uint16_t* d_scores = p.d_scores + (place.at_step * p.groups + place.group) * (kStep * kStep);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r)
            *reinterpret_cast<uint32_t*>(d_scores + at.i(r) * kStep + at.j(n, 32)) =
                pack_bf16(m[n][2 * r], m[n][2 * r + 1]);
}
static_assert(sizeof(PairSums) == 4 * kThreads);

template <int kWidth, int kState, bool kAligned = true>
void launch(const Context& context, Params p) {
    using L = Layout<kWidth, kState>;
    p.stages = p.channel_tiles == 1 && p.state <= kState && two_stages_fit(context, L::bytes(2)) ? 2 : 1;
    launch(context, pairs_kernel<kWidth, kState, kAligned>, p.batch * p.steps * p.groups, kThreads,
           L::bytes(p.stages), p);
}
template <int kState>
void launch(const Context& context, const Params& p) {
    p.tile_width <= 32 ? launch<32, kState>(context, p) : launch<64, kState>(context, p);
}

}  // namespace

void take_pairs(const Context& context, const Params& p) {
    if (!p.all_aligned())
        launch<64, 128, false>(context, p);
    else if (p.state <= 32)
        launch<32>(context, p);
    else if (p.state <= 64)
        launch<64>(context, p);
    else
        launch<128>(context, p);
}

}  // namespace minipuzzle::cuda::plain_backward
