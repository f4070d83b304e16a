// Gradients of queries; see attention_backward_tiles.cuh.
#pragma once

#include "kernels/cuda/attention_backward_tiles.cuh"

namespace minipuzzle::cuda::attention_backward {

struct QueryMaps {
    CUtensorMap q, d_out, k, v;  // boxes of 128 rows
    CUtensorMap d_q;             // boxes of 16 rows of 64 columns
};

// Places in shared memory.
struct QueryLayout {
    static constexpr int kKeyStages = 3, kValueStages = 2;
    static constexpr uint32_t kQ = 0, kDOut = kBlockTile, kK = 2 * kBlockTile;
    static constexpr uint32_t kV = kK + kKeyStages * kBlockTile;
    static constexpr uint32_t kKFull = kV + kValueStages * kBlockTile, kVFull = kKFull + kKeyStages * 8;
    static constexpr uint32_t kOwn = kVFull + kValueStages * 8, kKLeft = kOwn + 8;
    static constexpr uint32_t kVLeft = kKLeft + kKeyStages * 4, kBytes = kVLeft + kValueStages * 4;
    static_assert(kBytes <= 232448);
};

// The blocks of queries of a grid: those that see the most keys first, all sequences and heads side by side.
struct QueryTask {
    int sequence, head, kv_head, block;
    __device__ explicit QueryTask(const Params& p) {
        const int rows = p.batch * p.heads, row = blockIdx.x % rows;
        sequence = row / p.heads;
        head = row % p.heads;
        kv_head = head / (p.heads / p.kv_heads);
        block = p.steps / 2 - 1 - static_cast<int>(blockIdx.x / rows);
    }
};

// The copies of a block; each for one thread.
struct QueryFeed {
    using L = QueryLayout;
    const QueryMaps& maps;
    const Params& p;
    const QueryTask& task;
    const uint32_t shared;

    __device__ void load_own() const {
        const uint32_t full = shared + L::kOwn;
        const int row = task.block * kBlock, half = 2 * task.head;
        sm90::barrier_expect(full, 2 * kBlockTile);
        sm90::copy_box_in(shared + L::kQ, maps.q, full, 0, row, half, task.sequence);
        sm90::copy_box_in(shared + L::kDOut, maps.d_out, full, 0, row, half, task.sequence);
    }
    // A block of keys or of values to a stage; nothing where there is no such block.
    __device__ void load_k(int block, int stage) const {
        load(maps.k, block, shared + L::kK + stage * kBlockTile, shared + L::kKFull + stage * 8);
    }
    __device__ void load_v(int block, int stage) const {
        load(maps.v, block, shared + L::kV + stage * kBlockTile, shared + L::kVFull + stage * 8);
    }

  private:
    __device__ void load(const CUtensorMap& map, int block, uint32_t to, uint32_t full) const {
        if (block < 0) return;
        sm90::barrier_expect(full, kBlockTile);
        sm90::copy_box_in(to, map, full, 0, block * kBlock, 2 * task.kv_head, task.sequence);
    }
};

// Of scores, those of keys after their queries; `query` is the lane's first query, counted from its first
// key.
__device__ inline void mask_later_keys(float (&scores)[kBlock / 2], int query) {
#pragma unroll
    for (int j = 0; j < kBlock / 2; ++j)
        if (j / 4 * 8 + j % 2 > query + j % 4 / 2 * 8) scores[j] = -INFINITY;
}
// dS from P and dP, as an operand.
__device__ inline void take_d_weights(const float (&p)[kBlock / 2], const float (&d_p)[kBlock / 2],
                                      const float (&delta)[2], uint32_t (&d_weights)[kBlock / 16][4]) {
#pragma unroll
    for (int j = 0; j < kBlock / 8; ++j) {
        const float *w = p + 4 * j, *d = d_p + 4 * j;
        d_weights[j / 2][j % 2 * 2] = pack_bf16(w[0] * (d[0] - delta[0]), w[1] * (d[1] - delta[0]));
        d_weights[j / 2][j % 2 * 2 + 1] = pack_bf16(w[2] * (d[2] - delta[1]), w[3] * (d[3] - delta[1]));
    }
}

// One warpgroup's 64 queries.
__device__ inline void multiply_queries(const QueryFeed& feed, int group, int warp) {
    using L = QueryLayout;
    const QueryMaps& maps = feed.maps;
    const Params& p = feed.p;
    const QueryTask& task = feed.task;
    const uint32_t shared = feed.shared;
    const int lane = threadIdx.x % 32;
    const int first_row = group * 64 + warp * 16;
    const uint32_t q = shared + L::kQ + group * 64 * 128, d_out = shared + L::kDOut + group * 64 * 128;
    float d_q[kDim / 2];
#pragma unroll
    for (float& value : d_q) value = 0;
    uint32_t d_weights[kBlock / 16][4];  // dS in A's layout
    sm90::set_zero(d_weights);
    float shift[2], delta[2];  // of the lane's two queries
    const int64_t of_head = static_cast<int64_t>(task.sequence) * p.heads + task.head;
    const float* const statistics = p.statistics +
                                    (of_head * p.steps + task.block * 2 + group) * kStatisticsFloats +
                                    warp * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        shift[half] = __ldcg(statistics + 8 * half);
        delta[half] = __ldcg(statistics + kStep + 8 * half);
    }

    Ring<L::kKeyStages> keys;
    Ring<L::kValueStages> values;
    sm90::barrier_wait(shared + L::kOwn, 0);
#pragma unroll 1
    for (int block = task.block; block >= 0; --block) {
        const uint32_t k = shared + L::kK + keys.stage * kBlockTile,
                       v = shared + L::kV + values.stage * kBlockTile;
        float scores[kBlock / 2], d_p[kBlock / 2];
        sm90::barrier_wait(shared + L::kKFull + keys.stage * 8, keys.parity);
        sm90::wgmma_fence();
        multiply_rows<kBlock, kBlockHalf, kBlockHalf>(scores, q, k);
        sm90::wgmma_commit();
        sm90::barrier_wait(shared + L::kVFull + values.stage * 8, values.parity);
        sm90::wgmma_fence();
        multiply_rows<kBlock, kBlockHalf, kBlockHalf>(d_p, d_out, v);
        sm90::wgmma_commit();
        sm90::wgmma_wait<1>();  // all but dP, the product of the step before too
        sm90::pin(scores);
        sm90::pin(d_weights);
        if (block < task.block && lane == 0 && last_to_leave(shared + L::kKLeft + keys.before() * 4))
            feed.load_k(block + 1 - L::kKeyStages, keys.before());
        __syncwarp();
        if (block == task.block) mask_later_keys(scores, first_row + lane / 4 - lane % 4 * 2);
#pragma unroll
        for (int j = 0; j < kBlock / 2; ++j)
            scores[j] = exp2_fast(fmaf(scores[j], p.scale_log2, shift[j % 4 / 2]));
        sm90::wgmma_wait<0>();  // dP
        sm90::pin(d_p);
        if (lane == 0 && last_to_leave(shared + L::kVLeft + values.stage * 4))
            feed.load_v(block - L::kValueStages, values.stage);
        __syncwarp();
        take_d_weights(scores, d_p, delta, d_weights);
        sm90::wgmma_fence();
        add_product<kBlock / 16, kBlockHalf>(d_q, d_weights, k);
        sm90::wgmma_commit();
        keys.advance();
        values.advance();
    }
    sm90::wgmma_wait<0>();
    sm90::pin(d_q);
    sm90::pin(d_weights);
    sm90::named_barrier(1 + group, 128);  // the warpgroup no longer reads its queries
    const int row = task.block * kBlock + first_row;
    if (row < p.time)
        store_rows(d_q, p.scale, shared + L::kQ + first_row * 128, maps.d_q, task.head * kDim, row,
                   task.sequence);
    if (lane == 0) sm90::copies_out_wait_read();  // before the block's shared memory goes
}

// grid B * H * ceil(T / 128), kThreads threads.
__global__ void __launch_bounds__(kThreads, 1)
    query_gradients(const __grid_constant__ QueryMaps maps, const __grid_constant__ Params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using L = QueryLayout;
    extern __shared__ __align__(1024) unsigned char memory[];
    const uint32_t shared = sm90::shared_address(memory);
    const QueryTask task(p);
    const QueryFeed feed{maps, p, task, shared};
    if (threadIdx.x == 0) {
        set_up_ring(shared + L::kKFull, shared + L::kKLeft, L::kKeyStages);
        set_up_ring(shared + L::kVFull, shared + L::kVLeft, L::kValueStages);
        sm90::barrier_init(shared + L::kOwn, 1);
        sm90::fence_barrier_init();
        feed.load_own();
        for (int i = 0; i < L::kKeyStages; ++i) {
            feed.load_k(task.block - i, i);
            if (i < L::kValueStages) feed.load_v(task.block - i, i);
        }
    }
    __syncthreads();
    multiply_queries(feed, __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0),
                     __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32 % 4), 0));
    // The grid is done when key_gradients, which may have begun before, is done too.
    if (blockIdx.x == gridDim.x - 1) sm90::wait_for_kernel_before();
#endif
}

}  // namespace minipuzzle::cuda::attention_backward
