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

namespace minipuzzle::cuda::ssd_backward {
namespace {

constexpr int kThreads = 256;  // 4 warps down the tokens, 2 across
constexpr int kTiles = 4;      // of 8 columns, per warp, of a result of kStep columns

template <int kWidth, int kState>
struct Layout {
    static constexpr int kXPitch = 2 * (kWidth + 8), kStatePitch = 2 * (kState + 8);
    static constexpr int kB = 0;
    static constexpr int kC = kB + kStep * kStatePitch, kLeaving = kC;  // C first, then a head's dS_out
    static constexpr int kX = kC + kStep * kStatePitch, kDy = kX + kStep * kXPitch;
    static constexpr int kScores = kDy + kStep * kXPitch, kPaths = kScores + kStep * kPairsPitch;
    static constexpr int kValues = kPaths + kStep * kPairsPitch;
    static constexpr int kSums = kValues + static_cast<int>(sizeof(StepValues));  // [2 halves] PairSums
    static constexpr int kMarks = kSums + 2 * static_cast<int>(sizeof(PairSums));
    static constexpr int kBytes = kMarks + kStep * 4;
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
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
        if (k < at.row) continue;
        // Ones where the column (i) is not before the row (k).
        uint32_t ones[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int i = k + at.lane % 4 * 2 + r / 2 * 8, row = at.i(r % 2);
            ones[r] = (i >= row ? 0x3f80u : 0u) | (i + 1 >= row ? 0x3f800000u : 0u);
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const int column = at.half * 32 + n * 16;
            if (column > at.row) continue;
            uint32_t right[4];
            load_right<true>(right, paths, kPairsPitch, column, k);
            multiply_add_16(sums[2 * n], sums[2 * n + 1], ones, right);
        }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
            if (at.j(n, 32) + e % 2 < at.i(e / 2)) within[e / 2] += sums[n][e];
}

template <int kWidth, int kState>
__global__ void __launch_bounds__(kThreads, 2) pairs_kernel(const Params p) {
    using L = Layout<kWidth, kState>;
    constexpr int kHalf = kWidth / 2, kUTiles = kHalf / 8;  // u: 64 tokens by kWidth channels
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t base = shared_address(shared);
    const Place place(p);
    const StepRange range(p, place.step);
    const WarpPlace at;
    const int thread = threadIdx.x, lane = at.lane;
    const uint16_t* rows = p.xbc + place.token * p.conv_channels;
    const int parts = (p.state + kState - 1) / kState;
    const bool one_tile = p.channel_tiles == 1, stays = one_tile && parts == 1;
    const StepValues& values = *reinterpret_cast<const StepValues*>(shared + L::kValues);
    float* sums = reinterpret_cast<float*>(shared + L::kSums) + at.half * (sizeof(PairSums) / 4);
    int32_t* marks = nullptr;
    if (p.marks) {
        marks = reinterpret_cast<int32_t*>(shared + L::kMarks);
        if (thread < kStep) marks[thread] = p.marks[place.at_step * kStep + thread];
    }
    const auto load_part = [&](int to, int64_t offset, int part) {
        load_tile<kStep, kState / 8>(
            base + to, {rows + offset + int64_t{place.group} * p.state + part * kState, p.conv_channels,
                        range.count, p.state - part * kState, p.bc_aligned});
    };

    float cb[kTiles][4] = {}, m[kTiles][4] = {};
    for (int part = 0; part < parts; ++part) {
        __syncthreads();
        load_part(L::kB, p.b_offset, part);
        load_part(L::kC, p.c_offset, part);
        wait_for_tiles();
        add_lower_product<kState>(cb, base + L::kC, base + L::kB, L::kStatePitch, at,
                                  min(kState, p.state - part * kState));
    }

    for (int head = place.group * p.heads_per_group; head < (place.group + 1) * p.heads_per_group; ++head) {
        const int64_t at_head = place.at_step * p.heads + head;
        const int64_t x_at = int64_t{head} * p.head_dim;
        const auto channels_of = [&](int tile) {
            return min(p.tile_width, p.head_dim - tile * p.tile_width);
        };
        const auto load_x = [&](int tile) {
            const int64_t from = x_at + tile * p.tile_width;
            load_tile<kStep, kWidth / 8>(
                base + L::kX, {rows + from, p.conv_channels, range.count, channels_of(tile), p.x_aligned});
            load_tile<kStep, kWidth / 8>(base + L::kDy, {p.d_y + place.token * p.inner + from, p.inner,
                                                         range.count, channels_of(tile), p.d_y_aligned});
        };
        const auto load_leaving = [&](int tile, int part) {
            load_tile<kWidth, kState / 8>(
                base + L::kLeaving, {p.leaving + at_head * p.head_elements() +
                                         int64_t{tile} * p.tile_width * p.state_pitch + part * kState,
                                     p.state_pitch, channels_of(tile), p.state_pitch - part * kState, true});
        };

        __syncthreads();
        load_values(base + L::kValues, p.values[at_head]);
        if (stays) load_leaving(0, 0);
        float gram[kTiles][4] = {};
        for (int tile = 0; tile < p.channel_tiles; ++tile) {
            if (tile > 0) __syncthreads();
            load_x(tile);
            wait_for_tiles();
            add_lower_product<kWidth>(gram, base + L::kDy, base + L::kX, L::kXPitch, at, channels_of(tile));
        }
        weigh_pairs(gram, cb, m, shared + L::kScores, shared + L::kPaths, values, marks, at);
        __syncthreads();
        float within[2] = {}, leaves[2] = {}, direct[2] = {}, skip[2] = {};
        sum_paths(within, base + L::kPaths, at);

        for (int tile = 0; tile < p.channel_tiles; ++tile) {
            const int channels = channels_of(tile);
            float u[kUTiles][4] = {};
            for (int part = 0; part < parts; ++part) {
                if (!stays) {
                    __syncthreads();
                    if (!one_tile && part == 0) load_x(tile);
                    load_leaving(tile, part);
                    if (parts > 1) load_part(L::kB, p.b_offset, part);
                    wait_for_tiles();
                }
#pragma unroll
                for (int k = 0; k < kState; k += 16) {
                    if (k >= p.state - part * kState) break;
                    uint32_t left[4];
                    load_left<false>(left, base + L::kB, L::kStatePitch, at.row, k);
#pragma unroll
                    for (int n = 0; n < kUTiles / 2; ++n) {
                        uint32_t right[4];
                        load_right<false>(right, base + L::kLeaving, L::kStatePitch, at.half * kHalf + n * 16,
                                          k);
                        multiply_add_16(u[2 * n], u[2 * n + 1], left, right);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float to_exit = values.to_exit[at.i(r)];
#pragma unroll
                for (int n = 0; n < kUTiles; ++n) {
                    const uint32_t x = *reinterpret_cast<const uint32_t*>(
                        shared + L::kX + at.i(r) * L::kXPitch + at.j(n, kHalf) * 2);
                    u[n][2 * r] *= to_exit, u[n][2 * r + 1] *= to_exit;
                    leaves[r] = fmaf(u[n][2 * r], low_value(x), leaves[r]);
                    leaves[r] = fmaf(u[n][2 * r + 1], high_value(x), leaves[r]);
                }
            }
#pragma unroll
            for (int k = 0; k < kStep; k += 16) {
                if (k < at.row) continue;
                uint32_t left[4];
                load_left<true>(left, base + L::kScores, kPairsPitch, at.row, k);
#pragma unroll
                for (int n = 0; n < kUTiles / 2; ++n) {
                    uint32_t right[4];
                    load_right<true>(right, base + L::kDy, L::kXPitch, at.half * kHalf + n * 16, k);
                    multiply_add_16(u[2 * n], u[2 * n + 1], left, right);
                }
            }
            // dx takes x's place, which only this lane reads now.
            const float d = p.d[head];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float delta = values.delta[at.i(r)];
#pragma unroll
                for (int n = 0; n < kUTiles; ++n) {
                    const int offset = at.i(r) * L::kXPitch + at.j(n, kHalf) * 2;
                    uint32_t* x_place = reinterpret_cast<uint32_t*>(shared + L::kX + offset);
                    const uint32_t x = *x_place;
                    const uint32_t d_y = *reinterpret_cast<const uint32_t*>(shared + L::kDy + offset);
                    direct[r] = fmaf(u[n][2 * r], low_value(x), direct[r]);
                    direct[r] = fmaf(u[n][2 * r + 1], high_value(x), direct[r]);
                    skip[r] = fmaf(low_value(d_y), low_value(x), skip[r]);
                    skip[r] = fmaf(high_value(d_y), high_value(x), skip[r]);
                    *x_place = pack_bf16(fmaf(delta, u[n][2 * r], d * low_value(d_y)),
                                         fmaf(delta, u[n][2 * r + 1], d * high_value(d_y)));
                }
            }
            __syncthreads();
            store_tile<kWidth / 8>(p.d_xbc + place.token * p.conv_channels + x_at + tile * p.tile_width,
                                   p.conv_channels, shared + L::kX, range.count, channels, p.d_x_aligned);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float of_row[4] = {sum_of_row(within[r]), sum_of_row(leaves[r]) * values.delta[at.i(r)],
                                     sum_of_row(direct[r]), sum_of_row(skip[r])};
            if (lane % 4 == 0)
#pragma unroll
                for (int q = 0; q < 4; ++q) sums[q * kStep + at.i(r)] = of_row[q];
        }
        __syncthreads();
        const float* both = reinterpret_cast<const float*>(shared + L::kSums);
        reinterpret_cast<float*>(&p.pair_sums[at_head])[thread] = both[thread] + both[4 * kStep + thread];
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

template <int kWidth, int kState>
void launch(const Context& context, const Params& p) {
    launch(context, pairs_kernel<kWidth, kState>, p.batch * p.steps * p.groups, kThreads,
           Layout<kWidth, kState>::kBytes, p);
}
template <int kState>
void launch(const Context& context, const Params& p) {
    p.tile_width <= 32 ? launch<32, kState>(context, p) : launch<64, kState>(context, p);
}

}  // namespace

void take_pairs(const Context& context, const Params& p) {
    if (p.state <= 32)
        launch<32>(context, p);
    else if (p.state <= 64)
        launch<64>(context, p);
    else
        launch<128>(context, p);
}

}  // namespace minipuzzle::cuda::ssd_backward
