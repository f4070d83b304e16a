// The scan backward on compute capability 9.0a, per head: dx, the terms of d delta, and M, the gradient of
// C B^T, summed over a group's heads. A block takes one chunk and (a slice of) the heads of one group.
// Everything is laid out with a row per token j that is read, a column per token i that reads it:
//   G_ji  = x_j . dy_i
//   u_j   = 2^(s_last - s_j) dS B_j + sum_{i>=j} (B_j . C_i) 2^(s_i - s_j) dy_i,   dx_j = delta_j u_j + D
//   dy_j M_ji += G_ji delta_j 2^(s_i - s_j),   W_ji = that term times (B_j . C_i)
// A warpgroup owns 64 rows, a warp 16: the first has a block of 64 x 64 pairs on the diagonal ("own") and one
// beyond it ("far"), the second its own only. M stays in registers, B C^T in shared memory as bf16.
#pragma once

#include "kernels/cuda/ssd_backward_tiles.cuh"

namespace minipuzzle::cuda::ssd_backward {

template <int kP, int kN>
struct HeadsLayout {
    using X = XTiles<kP>;
    static constexpr int kStages = 2, kBlocks = kN / 64;
    static constexpr int kStateBytes = kBlocks * kP * 128;
    // One stage: x, dy, dS, and three rows of steps.
    static constexpr int kDy = X::kBytes, kDState = 2 * X::kBytes, kStageBytes = kDState + kStateBytes;
    static constexpr int kStepBytes = 3 * kRowBytes;
    static constexpr int kB = 0, kStage0 = kBlocks * kBlockBytes;
    static constexpr int kC = kStage0;  // until C B^T is taken
    static constexpr int kSteps =
        kStage0 + (kStages * kStageBytes > kStage0 ? kStages * kStageBytes : kStage0);
    // B C^T as bf16, each thread's own values: the two blocks on the diagonal, and the far one.
    static constexpr int kBc = kSteps + kStages * kStepBytes, kBcBytes = 64 * 64 * 2;
    static constexpr int kMarks = kBc + 3 * kBcBytes;
    static constexpr int kBarriers = kMarks + kChunk * 4;  // one per stage, and that of B and C
    static constexpr int kCounters = kBarriers + (kStages + 1) * 8;
    static constexpr int kBytes = kCounters + kStages * 4;
    static_assert(kBytes <= 232448);
};

// What a thread's two rows (g and g + 8 of its warp's 16) need and gather for one head.
struct Rows {
    float s[2], delta[2], exit[2];
    float later[2], skip[2];  // sums of W over the blocks after; G_jj
    float within[2][4];       // W inside the warp's own block of 16 x 16: [tile of 8 columns][row, column]
};

// A warp of the warpgroup `kGroup`.
template <int kP, int kN, bool kDocuments, int kGroup>
struct HeadsWarp {
    using L = HeadsLayout<kP, kN>;
    using X = XTiles<kP>;
    static constexpr int kOwnRow = 64 * kGroup;
    static constexpr bool kFar = kGroup == 0;
    int warp, lane;

    __device__ int row() const { return kOwnRow + 16 * warp; }

    // G for the columns from `column` on. Asynchronous.
    __device__ void start_gram(float (&gram)[32], uint32_t stage, int column) const {
#pragma unroll
        for (int k = 0; k < kP / 16; ++k)
            sm90::Wgmma<64>::shared(gram, X::along_channels(stage, kOwnRow, k),
                                    X::along_channels(stage + L::kDy, column, k), k > 0);
    }

    // From G: adds to M, forms the weights of dy in u as an operand, and the sums of W. `columns` receives
    // the sums of W over the warp's 16 rows, without those inside its own block of 16 x 16.
    template <bool kOwn>
    __device__ void weigh(float (&gram)[32], uint32_t bc_place, float (&m)[32], uint32_t (&weights)[4][4],
                          Rows& rows, float (&columns)[16], const float* s, const int* marks,
                          int column) const {
        uint4 bc;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            columns[2 * n] = columns[2 * n + 1] = 0;
            if (n % 2 == 0) bc = load_shared_16(bc_place + (n / 2 * 128 + 32 * warp + lane) * 16);
            if (kOwn && n / 2 < warp) {
                weights[n / 2][n % 2 * 2] = weights[n / 2][n % 2 * 2 + 1] = 0;
                continue;
            }
            const bool diagonal = kOwn && n / 2 == warp;
            const int i = column + 8 * n + lane % 4 * 2;
            const float2 s_i = *reinterpret_cast<const float2*>(s + i);
            int2 first = {0, 0};
            if constexpr (kDocuments) first = *reinterpret_cast<const int2*>(marks + i);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int j = row() + lane / 4 + 8 * r;
                float e0 = exp2_fast(s_i.x - rows.s[r]), e1 = exp2_fast(s_i.y - rows.s[r]);
                if (diagonal) {
                    if (i < j) e0 = 0;
                    if (i + 1 < j) e1 = 0;
                }
                if constexpr (kDocuments) {
                    if (j < (first.x & (kReached - 1))) e0 = 0;
                    if (j < (first.y & (kReached - 1))) e1 = 0;
                }
                const float g0 = gram[4 * n + 2 * r], g1 = gram[4 * n + 2 * r + 1];
                const float m0 = g0 * (e0 * rows.delta[r]), m1 = g1 * (e1 * rows.delta[r]);
                const uint32_t pair = n % 2 == 0 ? (r == 0 ? bc.x : bc.y) : (r == 0 ? bc.z : bc.w);
                const float bc0 = low_value(pair), bc1 = high_value(pair);
                m[4 * n + 2 * r] += m0;
                m[4 * n + 2 * r + 1] += m1;
                weights[n / 2][n % 2 * 2 + r] = pack_bf16(e0 * bc0, e1 * bc1);
                if (diagonal) {
                    rows.within[n % 2][2 * r] = m0 * bc0;
                    rows.within[n % 2][2 * r + 1] = m1 * bc1;
                    if (i == j) rows.skip[r] = g0;
                    if (i + 1 == j) rows.skip[r] = g1;
                } else {
                    const float w0 = m0 * bc0, w1 = m1 * bc1;
                    rows.later[r] += w0 + w1;
                    columns[2 * n] += w0;
                    columns[2 * n + 1] += w1;
                }
            }
        }
    }

    // Exchanges kHalf values with the lane 2 kHalf away: each keeps the sums of its half of 2 kHalf values.
    template <int kHalf>
    __device__ void halve(float (&values)[16]) const {
        const bool upper = lane & 2 * kHalf;
#pragma unroll
        for (int k = 0; k < kHalf; ++k) {
            const float given = upper ? values[k] : values[k + kHalf];
            const float kept = upper ? values[k + kHalf] : values[k];
            values[k] = kept + __shfl_xor_sync(~0u, given, 2 * kHalf);
        }
    }
    // Adds `columns` up over the warp's rows and writes them for the 64 tokens from `to` on: lanes exchange
    // halves, so that each ends with one pair of columns.
    __device__ void write_columns(float (&columns)[16], float* to) const {
        halve<8>(columns);
        halve<4>(columns);
        halve<2>(columns);
        const int tile = lane / 16 * 4 + lane / 8 % 2 * 2 + lane / 4 % 2;
        *reinterpret_cast<float2*>(to + 8 * tile + lane % 4 * 2) = {columns[0], columns[1]};
    }

    // Of the warp's own block, for each of its tokens k: the sum of W_ji over j < k <= i.
    __device__ void write_within(const Rows& rows, float* to) const {
        const int t = lane % 4;
        float sums[4] = {};  // of k = 8 tile + 2 t + e, [2 tile + e]
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float after = 0;  // the sum over i beyond this tile
#pragma unroll
            for (int tile = 1; tile >= 0; --tile) {
                const float right = rows.within[tile][2 * r + 1], both = right + rows.within[tile][2 * r];
                float sum = both;  // over this and the following lanes of the row
                float other = __shfl_down_sync(~0u, sum, 1, 4);
                if (t < 3) sum += other;
                other = __shfl_down_sync(~0u, sum, 2, 4);
                if (t < 2) sum += other;
                float beyond = __shfl_down_sync(~0u, sum, 1, 4);
                beyond = (t < 3 ? beyond : 0.f) + after;
                const int j = lane / 4 + 8 * r, k = 8 * tile + 2 * t;
                if (j < k) sums[2 * tile] += both + beyond;
                if (j < k + 1) sums[2 * tile + 1] += right + beyond;
                after += __shfl_sync(~0u, sum, 0, 4);
            }
        }
#pragma unroll
        for (float& sum : sums) {
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        }
        if (lane < 4) {
            *reinterpret_cast<float2*>(to + 2 * t) = {sums[0], sums[1]};
            *reinterpret_cast<float2*>(to + 8 + 2 * t) = {sums[2], sums[3]};
        }
    }

    // Adds up one value a row and writes it.
    __device__ void write_rows(float first, float second, float* to) const {
        first = sum_of_row(first), second = sum_of_row(second);
        if (lane % 4 == 0) to[row() + lane / 4] = first, to[row() + lane / 4 + 8] = second;
    }

    __device__ static void scale(Channels<kP>& u, const float (&factors)[2]) {
#pragma unroll
        for (int k = 0; k < kP / 16; ++k)
#pragma unroll
            for (int i = 0; i < 8; ++i) u.columns(k)[i] *= factors[i / 2 % 2];
    }

    // B C^T of this warpgroup's rows and the columns from `column` on, as bf16.
    __device__ void take_bc(uint32_t place, uint32_t shared, int column) const {
        constexpr auto kWide = sm90::Swizzle::b128;
        const sm90::Descriptor b = sm90::descriptor<kWide>(shared + L::kB + kOwnRow * 128, 0),
                               c = sm90::descriptor<kWide>(shared + L::kC + column * 128, 0);
        float product[32];
        sm90::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kN / 16; ++k) {
            const int step = k / 4 * kBlockBytes + k % 4 * 32;
            sm90::Wgmma<64>::shared(product, b + step, c + step, k > 0);
        }
        sm90::wgmma_commit();
        sm90::wgmma_wait<0>();
        sm90::pin(product);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* v = product + 8 * i;
            store_shared(place + (i * 128 + 32 * warp + lane) * 16,
                         make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                                    pack_bf16(v[6], v[7])));
        }
    }

    // One block of 64 x 64 of M, rows j.
    __device__ void write_m(const float (&m)[32], float* to, int column) const {
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int r = 0; r < 2; ++r)
                *reinterpret_cast<float2*>(to + (row() + lane / 4 + 8 * r) * kChunk + column + 8 * n +
                                           lane % 4 * 2) = {m[4 * n + 2 * r], m[4 * n + 2 * r + 1]};
    }

    __device__ void barrier() const { sm90::named_barrier(1 + kGroup, 128); }

    // One head, whose tiles are in `stage`. dx is left where x was.
    __device__ void take_head(uint32_t stage, uint32_t shared, const float* steps, const int* marks,
                              float (&m_own)[32], float (&m_far)[32], float* sums,
                              const float* skip_of_head) const {
        const float* s = steps;
        Channels<kP> u;
        float gram[32];
        sm90::wgmma_fence();
        u.template start<kN>(shared + L::kB + kOwnRow * 128, stage + L::kDState);
        sm90::wgmma_commit();
        start_gram(gram, stage, kOwnRow);
        sm90::wgmma_commit();

        Rows rows;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int j = row() + lane / 4 + 8 * r;
            rows.s[r] = s[j], rows.delta[r] = steps[kChunk + j], rows.exit[r] = steps[2 * kChunk + j];
            rows.later[r] = rows.skip[r] = 0;
        }
        {
            uint32_t x[kP / 16][4];
            X::read(stage, row(), lane, x);
            sm90::wgmma_wait<1>();
            u.pin();
            float leaves[2];
            dot(u, x, leaves);
            write_rows(leaves[0] * rows.exit[0] * rows.delta[0], leaves[1] * rows.exit[1] * rows.delta[1],
                       sums + kLeaves * kChunk);
            scale(u, rows.exit);
        }
        sm90::wgmma_wait<0>();
        sm90::pin(gram);

        uint32_t weights[4][4];
        float columns[16];
        float* earlier = sums + (kEarlier0 + 4 * kGroup + warp) * kChunk;
        weigh<true>(gram, shared + L::kBc + kGroup * L::kBcBytes, m_own, weights, rows, columns, s, marks,
                    kOwnRow);
        u.pin();
        sm90::wgmma_fence();
        u.add(weights, stage + L::kDy, kOwnRow);
        if constexpr (kFar) start_gram(gram, stage, 64);
        sm90::wgmma_commit();
        if (4 * kGroup + warp < 7) write_columns(columns, earlier + kOwnRow);
        write_within(rows, sums + kWithin * kChunk + row());
        write_skip(rows, sums + kSkip * kChunk);
        sm90::wgmma_wait<0>();
        sm90::pin(weights);
        if constexpr (kFar) {
            sm90::pin(gram);
            weigh<false>(gram, shared + L::kBc + 2 * L::kBcBytes, m_far, weights, rows, columns, s, marks,
                         64);
            u.pin();
            sm90::wgmma_fence();
            u.add(weights, stage + L::kDy, 64);
            sm90::wgmma_commit();
            write_columns(columns, earlier + 64);
            sm90::wgmma_wait<0>();
            sm90::pin(weights);
        }
        const float skip = *skip_of_head;
        u.pin();
        write_rows(rows.later[0], rows.later[1], sums + kLater * kChunk);
        finish_x(u, stage, rows, sums, skip);
    }

    __device__ void write_skip(const Rows& rows, float* to) const {
        // Only one of a row's four lanes holds G_jj, the others hold 0.
        write_rows(rows.skip[0], rows.skip[1], to);
    }

    __device__ void finish_x(Channels<kP>& u, uint32_t stage, const Rows& rows, float* sums,
                             float skip) const {
        uint32_t x[kP / 16][4];
        X::read(stage, row(), lane, x);
        float direct[2];
        dot(u, x, direct);
        write_rows(direct[0], direct[1], sums + kDirect * kChunk);
        X::read(stage + L::kDy, row(), lane, x);
#pragma unroll
        for (int k = 0; k < kP / 16; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = u.columns(k) + 2 * i;
                x[k][i] = pack_bf16(fmaf(skip, low_value(x[k][i]), rows.delta[i % 2] * pair[0]),
                                    fmaf(skip, high_value(x[k][i]), rows.delta[i % 2] * pair[1]));
            }
        barrier();  // no warp's products read x any more
        X::write(stage, row(), lane, x);
        sm90::fence_async_shared();
        barrier();
    }
};

// Which chunk and heads a block takes, and its copies into the two stages.
template <int kP, int kN>
struct HeadsBlock {
    using L = HeadsLayout<kP, kN>;
    using X = XTiles<kP>;
    const Maps& maps;
    const Arguments& args;
    unsigned char* memory;
    uint32_t shared;
    int slice, group, place, chunk, sequence, token, first_head, heads;  // place: sequence * chunks + chunk

    __device__ HeadsBlock(const Maps& of_maps, const Arguments& of_args, unsigned char* of_memory)
        : maps(of_maps), args(of_args), memory(of_memory), shared(sm90::shared_address(of_memory)) {
        slice = blockIdx.x % args.slices, group = blockIdx.x / args.slices % args.groups;
        place = blockIdx.x / args.slices / args.groups;
        chunk = place % args.chunks, sequence = place / args.chunks, token = chunk * kChunk;
        first_head = group * args.heads_per_group + slice * args.slice_heads;
        heads = min(args.slice_heads, args.heads_per_group - slice * args.slice_heads);
    }
    __device__ uint32_t stage(int i) const { return shared + L::kStage0 + i % L::kStages * L::kStageBytes; }
    __device__ uint32_t full(int i) const { return shared + L::kBarriers + i % L::kStages * 8; }
    __device__ uint32_t bc_barrier() const { return shared + L::kBarriers + L::kStages * 8; }
    __device__ uint32_t counter(int i) const { return shared + L::kCounters + i % L::kStages * 4; }
    __device__ int* marks() const { return reinterpret_cast<int*>(memory + L::kMarks); }

    // Sets the barriers up and starts the copies of B and C; one thread.
    __device__ void set_up() const {
        for (int i = 0; i < L::kStages; ++i) {
            sm90::barrier_init(full(i), 1);
            store_shared(counter(i), 0u);
        }
        sm90::barrier_init(bc_barrier(), 1);
        sm90::fence_barrier_init();
        sm90::barrier_expect(bc_barrier(), 2 * L::kBlocks * kBlockBytes);
        for (int block = 0; block < L::kBlocks; ++block) {
            const int column = group * L::kBlocks + block;
            sm90::copy_box_in(shared + L::kB + block * kBlockBytes, maps.bc, bc_barrier(), 0, token, column,
                              0, sequence);
            sm90::copy_box_in(shared + L::kC + block * kBlockBytes, maps.bc, bc_barrier(), 0, token, column,
                              1, sequence);
        }
    }
    // Starts the copies of the block's i-th head.
    __device__ void load(int i) const {
        const uint32_t to = stage(i), barrier = full(i);
        const int head = first_head + i;
        sm90::barrier_expect(barrier, L::kStageBytes + L::kStepBytes);
        X::load(to, maps.x, maps.x_rest, barrier, token, head, sequence);
        X::load(to + L::kDy, maps.d_y, maps.d_y_rest, barrier, token, head, sequence);
        for (int block = 0; block < L::kBlocks; ++block)
            sm90::copy_box_in(to + L::kDState + block * (kP * 128), maps.d_states, barrier, 0, 0, block,
                              place * args.heads + head);
        const int64_t of_head = static_cast<int64_t>(sequence) * args.heads + head;
        sm90::copy_in(shared + L::kSteps + i % L::kStages * L::kStepBytes,
                      args.steps + ((of_head * args.chunks + chunk) * kStepRows + kSums) * kChunk,
                      L::kStepBytes, barrier);
    }
    // Stores a warpgroup's 64 rows of dx, which lie where x was, and refills the stage when both have; one
    // thread of each.
    __device__ void store(int i, int row) const {
        const int head = first_head + i;
        if (token + row < args.time) {
            sm90::copy_box_out(maps.d_x, stage(i) + row * 2 * X::kMain, head * kP, token + row, sequence);
            if constexpr (X::kRest > 0)
                sm90::copy_box_out(maps.d_x_rest, stage(i) + X::kMainBytes + row * 2 * X::kRest,
                                   head * kP + X::kMain, token + row, sequence);
            sm90::copies_out_commit();
            sm90::copies_out_wait_read();
        }
        const uint32_t before = sm90::count_up(counter(i));
        if (before % 2 == 1 && i + L::kStages < heads) load(i + L::kStages);
    }
};

// What one warpgroup does.
template <int kP, int kN, bool kDocuments, int kGroup>
__device__ inline void take_heads_of(const HeadsBlock<kP, kN>& block) {
    using L = HeadsLayout<kP, kN>;
    using Warp = HeadsWarp<kP, kN, kDocuments, kGroup>;
    const Arguments& args = block.args;
    // Anew for each head: what follows from them would not fit the registers across heads.
    const auto warp = [] { return Warp{thread_again() / 32 % 4, thread_again() % 32}; };
    const Warp w = warp();
    w.take_bc(block.shared + L::kBc + kGroup * L::kBcBytes, block.shared, Warp::kOwnRow);
    if constexpr (Warp::kFar) w.take_bc(block.shared + L::kBc + 2 * L::kBcBytes, block.shared, 64);
    sm90::named_barrier(3, 256);  // C has been read
    if (threadIdx.x == 0)
        for (int i = 0; i < L::kStages && i < block.heads; ++i) block.load(i);

    float m_own[32], m_far[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) m_own[i] = m_far[i] = 0;
    for (int i = 0; i < block.heads; ++i) {
        const int head = block.first_head + i;
        const auto* steps =
            reinterpret_cast<const float*>(block.memory + L::kSteps + i % L::kStages * L::kStepBytes);
        float* sums =
            args.sums + (static_cast<int64_t>(block.place) * args.heads + head) * (kSumRows * kChunk);
        sm90::barrier_wait(block.full(i), i / L::kStages & 1);
        warp().take_head(block.stage(i), block.shared, steps, block.marks(), m_own, m_far, sums,
                         args.skip + head);
        if (threadIdx.x % 128 == 0) block.store(i, Warp::kOwnRow);
        __syncwarp();
    }
    const int64_t blocks = args.batch * args.chunks * args.groups;
    float* d_cb =
        args.d_cb + (block.slice * blocks + static_cast<int64_t>(block.place) * args.groups + block.group) *
                        (kChunk * kChunk);
    w.write_m(m_own, d_cb, Warp::kOwnRow);
    if constexpr (Warp::kFar) w.write_m(m_far, d_cb, 64);
}

// grid B * chunks * groups * slices, 256 threads.
template <int kP, int kN, bool kDocuments>
__global__ void __launch_bounds__(256, 1)
    take_heads(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char memory[];
    const HeadsBlock<kP, kN> block(maps, args, memory);
    if (threadIdx.x == 0) block.set_up();
    if (kDocuments && threadIdx.x < kChunk)
        block.marks()[threadIdx.x] = args.marks[static_cast<int64_t>(block.place) * kChunk + threadIdx.x];
    __syncthreads();
    sm90::barrier_wait(block.bc_barrier(), 0);
    if (__shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0) == 0)
        take_heads_of<kP, kN, kDocuments, 0>(block);
    else
        take_heads_of<kP, kN, kDocuments, 1>(block);
#endif
}

}  // namespace minipuzzle::cuda::ssd_backward
