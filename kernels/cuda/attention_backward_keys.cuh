// Gradients of keys and values; see attention_backward_tiles.cuh.
#pragma once

#include "kernels/cuda/attention_backward_tiles.cuh"

namespace minipuzzle::cuda::attention_backward {

struct KeyMaps {
    CUtensorMap q, d_out;  // boxes of 64 rows of one head
    CUtensorMap k, v;      // boxes of 128 rows
    CUtensorMap d_k, d_v;  // boxes of 16 rows of 64 columns
};

// Places in shared memory.
struct KeyLayout {
    static constexpr int kStages = 4;
    static constexpr uint32_t kK = 0, kV = kBlockTile, kQ = 2 * kBlockTile;
    static constexpr uint32_t kDOut = kQ + kStages * kStepTile;
    static constexpr uint32_t kStatistics = kDOut + kStages * kStepTile;
    static constexpr uint32_t kFull = kStatistics + kStages * kStatisticsBytes;
    static constexpr uint32_t kOwn = kFull + kStages * 8, kLeft = kOwn + 8;
    static constexpr uint32_t kBytes = kLeft + kStages * 4;
    static_assert(kBytes <= 232448);
};

// The blocks of keys of a grid: those with the most queries first, all sequences and kv heads side by side.
struct KeyTask {
    int sequence, kv_head, first_head, end_head, first_key;
    int first_step, steps;  // of 64 queries of each head, from the diagonal
    __device__ explicit KeyTask(const Params& p) {
        const int pairs = p.batch * p.kv_heads, pair = blockIdx.x % pairs, block = blockIdx.x / pairs;
        sequence = pair / p.kv_heads;
        kv_head = pair % p.kv_heads;
        first_head = kv_head * (p.heads / p.kv_heads);
        end_head = first_head + p.heads / p.kv_heads;
        first_key = block * kBlock;
        first_step = block * (kBlock / kStep);
        steps = (p.time + kStep - 1) / kStep - first_step;
    }
};

// The copies of a block, in order: the walk over the query heads of the kv head, and over the steps of each.
struct KeyFeed {
    using L = KeyLayout;
    const KeyMaps& maps;
    const Params& p;
    const KeyTask& task;
    const uint32_t shared;

    // One thread: the block's keys and values.
    __device__ void load_own() const {
        const uint32_t full = shared + L::kOwn;
        sm90::barrier_expect(full, 2 * kBlockTile);
        sm90::copy_box_in(shared + L::kK, maps.k, full, 0, task.first_key, 2 * task.kv_head, task.sequence);
        sm90::copy_box_in(shared + L::kV, maps.v, full, 0, task.first_key, 2 * task.kv_head, task.sequence);
    }
    // One thread: a step, counted from the head's diagonal, to a stage.
    __device__ void load(int head, int step, int stage) const {
        const int64_t of_head = static_cast<int64_t>(task.sequence) * p.heads + head;
        const float* statistics =
            p.statistics + (of_head * p.steps + task.first_step + step) * kStatisticsFloats;
        const uint32_t full = shared + L::kFull + stage * 8;
        const int row = (task.first_step + step) * kStep;
        sm90::barrier_expect(full, 2 * kStepTile + kStatisticsBytes);
        sm90::copy_box_in(shared + L::kQ + stage * kStepTile, maps.q, full, 0, row, 2 * head, task.sequence);
        sm90::copy_in(shared + L::kStatistics + stage * kStatisticsBytes, statistics, kStatisticsBytes, full);
        sm90::copy_box_in(shared + L::kDOut + stage * kStepTile, maps.d_out, full, 0, row, 2 * head,
                          task.sequence);
    }
};

// A step of the walk.
struct KeyStep {
    int head, step = 0;
    __device__ void advance(const KeyTask& task) {
        if (++step == task.steps) step = 0, ++head;
    }
};

// Of scores^T, those of queries before their keys; `key` is the lane's first key, counted from its first
// query.
__device__ inline void mask_earlier_queries(float (&scores)[kStep / 2], int key) {
#pragma unroll
    for (int j = 0; j < kStep / 2; ++j)
        if (j / 4 * 8 + j % 2 < key + j % 4 / 2 * 8) scores[j] = -INFINITY;
}
// P^T from scores^T, in place and as an operand. `shift` is that of the lane's first query.
__device__ inline void take_weights(float (&scores)[kStep / 2], float scale_log2, const float* shift,
                                    uint32_t (&weights)[kStep / 16][4]) {
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
        const float2 of = load_pair(shift + 8 * j);
        float* s = scores + 4 * j;
        s[0] = exp2_fast(fmaf(s[0], scale_log2, of.x)), s[1] = exp2_fast(fmaf(s[1], scale_log2, of.y));
        s[2] = exp2_fast(fmaf(s[2], scale_log2, of.x)), s[3] = exp2_fast(fmaf(s[3], scale_log2, of.y));
        weights[j / 2][j % 2 * 2] = pack_bf16(s[0], s[1]);
        weights[j / 2][j % 2 * 2 + 1] = pack_bf16(s[2], s[3]);
    }
}
// dS^T from P^T and dP^T, as an operand; likewise.
__device__ inline void take_d_weights(const float (&p)[kStep / 2], const float (&d_p)[kStep / 2],
                                      const float* delta, uint32_t (&d_weights)[kStep / 16][4]) {
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
        const float2 of = load_pair(delta + 8 * j);
        const float *w = p + 4 * j, *d = d_p + 4 * j;
        d_weights[j / 2][j % 2 * 2] = pack_bf16(w[0] * (d[0] - of.x), w[1] * (d[1] - of.y));
        d_weights[j / 2][j % 2 * 2 + 1] = pack_bf16(w[2] * (d[2] - of.x), w[3] * (d[3] - of.y));
    }
}

// One warpgroup's 64 keys.
__device__ inline void multiply_keys(const KeyFeed& feed, const unsigned char* memory, int group, int warp) {
    using L = KeyLayout;
    const KeyMaps& maps = feed.maps;
    const Params& p = feed.p;
    const KeyTask& task = feed.task;
    const uint32_t shared = feed.shared;
    const int lane = threadIdx.x % 32;
    const int first_row = group * 64 + warp * 16;  // of the warp, in the block
    const uint32_t k = shared + L::kK + group * 64 * 128, v = shared + L::kV + group * 64 * 128;
    float d_k[kDim / 2], d_v[kDim / 2];
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) d_k[i] = d_v[i] = 0;
    uint32_t weights[kStep / 16][4], d_weights[kStep / 16][4];  // P^T and dS^T in A's layout
    sm90::set_zero(weights);
    sm90::set_zero(d_weights);

    KeyStep now{task.first_head}, next{task.first_head};
    Ring<L::kStages> ring;
    // All copies that have room.
#pragma unroll 1
    for (int i = 0; i < L::kStages; ++i) {
        if (threadIdx.x == 0 && next.head < task.end_head) feed.load(next.head, next.step, i);
        next.advance(task);
    }
    const auto leave_step_before = [&](bool first) {
        if (!first) {
            const int stage = ring.before();
            if (lane == 0 && last_to_leave(shared + L::kLeft + stage * 4) && next.head < task.end_head)
                feed.load(next.head, next.step, stage);
            next.advance(task);
        }
        __syncwarp();
    };
    sm90::barrier_wait(shared + L::kOwn, 0);
#pragma unroll 1
    for (bool first = true; now.head < task.end_head; first = false) {
        const uint32_t q = shared + L::kQ + ring.stage * kStepTile,
                       d_out = shared + L::kDOut + ring.stage * kStepTile;
        float scores[kStep / 2], d_p[kStep / 2];
        sm90::barrier_wait(shared + L::kFull + ring.stage * 8, ring.parity);
        sm90::wgmma_fence();
        multiply_rows<kStep, kBlockHalf, kStepHalf>(scores, k, q);
        sm90::wgmma_commit();
        multiply_rows<kStep, kBlockHalf, kStepHalf>(d_p, v, d_out);
        sm90::wgmma_commit();
        sm90::wgmma_wait<1>();  // all but dP, the products of the step before too
        sm90::pin(scores);
        sm90::pin(weights);
        sm90::pin(d_weights);
        leave_step_before(first);
        const float* const statistics =
            reinterpret_cast<const float*>(memory + L::kStatistics + ring.stage * kStatisticsBytes) +
            lane % 4 * 2;
        // Both counted from the block's first key.
        if (now.step * kStep < first_row + 15)
            mask_earlier_queries(scores, first_row + lane / 4 - now.step * kStep - lane % 4 * 2);
        take_weights(scores, p.scale_log2, statistics, weights);
        sm90::wgmma_fence();
        add_product<kStep / 16, kStepHalf>(d_v, weights, d_out);
        sm90::wgmma_commit();
        sm90::wgmma_wait<1>();  // dP
        sm90::pin(d_p);
        take_d_weights(scores, d_p, statistics + kStep, d_weights);
        sm90::wgmma_fence();
        add_product<kStep / 16, kStepHalf>(d_k, d_weights, q);
        sm90::wgmma_commit();
        ring.advance();
        now.advance(task);
    }
    sm90::wgmma_wait<0>();
    sm90::pin(d_k);
    sm90::pin(d_v);
    sm90::pin(weights);
    sm90::pin(d_weights);
    sm90::named_barrier(1 + group, 128);  // the warpgroup no longer reads its keys and values
    const int column = task.kv_head * kDim, row = task.first_key + first_row;
    if (row < p.time) {
        store_rows(d_k, p.scale, shared + L::kK + first_row * 128, maps.d_k, column, row, task.sequence);
        store_rows(d_v, 1.0f, shared + L::kV + first_row * 128, maps.d_v, column, row, task.sequence);
    }
    if (lane == 0) sm90::copies_out_wait_read();  // before the block's shared memory goes
}

// grid B * K * ceil(T / 128), kThreads threads.
__global__ void __launch_bounds__(kThreads, 1)
    key_gradients(const __grid_constant__ KeyMaps maps, const __grid_constant__ Params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using L = KeyLayout;
    extern __shared__ __align__(1024) unsigned char memory[];
    const uint32_t shared = sm90::shared_address(memory);
    const KeyTask task(p);
    sm90::let_next_kernel_start();  // query_gradients fills what these blocks leave idle
    const KeyFeed feed{maps, p, task, shared};
    if (threadIdx.x == 0) {
        set_up_ring(shared + L::kFull, shared + L::kLeft, L::kStages);
        sm90::barrier_init(shared + L::kOwn, 1);
        sm90::fence_barrier_init();
        feed.load_own();
    }
    __syncthreads();
    multiply_keys(feed, memory, __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0),
                  __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32 % 4), 0));
#endif
}

}  // namespace minipuzzle::cuda::attention_backward
