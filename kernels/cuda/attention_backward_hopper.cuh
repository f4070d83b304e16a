// The two kernels of the attention backward on tensor cores of compute capability 9.0a, head_dim 128. With
// s = scale q k^T, P = exp(s - lse), dP = d_out v^T and dS = P (dP - delta), delta = rowsum(d_out * out):
//   d_v = P^T d_out,  d_k = scale dS^T q,  d_q = scale dS k.
// `key_gradients` owns a block of keys of one kv head and walks the query heads that read it and, for each,
// the queries from the diagonal on; scores are formed transposed, so that P^T and dS^T are left operands as
// the accumulators lie. `query_gradients` owns a block of queries and walks the keys from the diagonal back.
// Scores and dP are thus formed twice: seven products instead of five, for sums in a fixed order without
// atomics, semaphores or partial sums in memory.
//
// In both, two warpgroups have 64 rows each and tiles come through a ring of stages: every warp counts itself
// out of a stage when it no longer reads it, and the one that is last starts the copies of what comes there
// next, so nobody waits for another to be done. (A third warpgroup for the copies would leave the others 240
// registers, which these kernels exceed by few.) A warpgroup's products are started as early as their
// operands allow and waited for as late as possible: exponentials are taken while dP is formed, and dS while
// P's product runs.
//
// Rows beyond the sequence are read as zeros by the copy engine, have statistics that make P zero, and are
// not written. Keys beyond it are masked as later ones.
#pragma once

#include "kernels/cuda/wgmma.cuh"

namespace minipuzzle::cuda::attention_backward {

constexpr int kDim = 128;
constexpr int kBlock = 128;  // rows that a block of threads owns, 64 a warpgroup
constexpr int kStep = 64;    // queries that key_gradients takes at a time
constexpr int kThreads = 256;

// A tile is two blocks of 64 columns, each rows of 128 bytes in the swizzled order.
constexpr uint32_t kBlockTile = kBlock * kDim * 2, kStepTile = kStep * kDim * 2;
constexpr uint32_t kBlockHalf = kBlockTile / 2, kStepHalf = kStepTile / 2;

// Statistics of 64 rows: -lse log2(e), then delta; steps of a head follow one another, an even number.
constexpr int kStatisticsFloats = 2 * kStep;
constexpr uint32_t kStatisticsBytes = kStatisticsFloats * 4;

struct Params {
    const float* statistics = nullptr;  // [B, H, steps, 2, 64]
    int time = 0, heads = 0, kv_heads = 0;
    int steps = 0;  // of 64 queries, up to an even number
    int batch = 0;
    float scale = 0, scale_log2 = 0;  // 1 / sqrt(head_dim), and that times log2(e)
};

struct KeyMaps {
    CUtensorMap q, d_out;  // boxes of 64 rows of one head
    CUtensorMap k, v;      // boxes of 128 rows
    CUtensorMap d_k, d_v;  // boxes of 16 rows of 64 columns
};
struct QueryMaps {
    CUtensorMap q, d_out, k, v;  // boxes of 128 rows
    CUtensorMap d_q;             // boxes of 16 rows of 64 columns
};

// Where one stands in a ring of stages.
template <int kStages>
struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ void advance() {
        if (++stage == kStages) stage = 0, parity ^= 1;
    }
    __device__ int before() const { return stage == 0 ? kStages - 1 : stage - 1; }
};

// One lane of every warp: whether it is the last to leave a stage.
__device__ inline bool last_to_leave(uint32_t counter) {
    constexpr uint32_t kWarps = kThreads / 32;
    return sm90::count_up(counter) % kWarps == kWarps - 1;
}
// Barriers that the copy engine completes, and counters of who has left, for one thread to set up.
__device__ inline void set_up_ring(uint32_t barriers, uint32_t counters, int stages) {
    for (int i = 0; i < stages; ++i) {
        sm90::barrier_init(barriers + i * 8, 1);
        store_shared(counters + i * 4, 0u);
    }
}

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
struct QueryLayout {
    static constexpr int kKeyStages = 3, kValueStages = 2;
    static constexpr uint32_t kQ = 0, kDOut = kBlockTile, kK = 2 * kBlockTile;
    static constexpr uint32_t kV = kK + kKeyStages * kBlockTile;
    static constexpr uint32_t kKFull = kV + kValueStages * kBlockTile, kVFull = kKFull + kKeyStages * 8;
    static constexpr uint32_t kOwn = kVFull + kValueStages * 8, kKLeft = kOwn + 8;
    static constexpr uint32_t kVLeft = kKLeft + kKeyStages * 4, kBytes = kVLeft + kValueStages * 4;
    static_assert(kBytes <= 232448);
};

// d = A B^T for A [64, 128] and B [kColumns, 128] in shared memory; asynchronous. kAHalf and kBHalf are the
// distances of their two blocks of columns.
template <int kColumns, uint32_t kAHalf, uint32_t kBHalf>
__device__ inline void multiply_rows(float (&d)[kColumns / 2], uint32_t a, uint32_t b) {
    constexpr auto kSwizzle = sm90::Swizzle::b128;
    const sm90::Descriptor of_a = sm90::descriptor<kSwizzle>(a, 0), of_b = sm90::descriptor<kSwizzle>(b, 0);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k)
        sm90::Wgmma<kColumns>::shared(d, of_a + (k / 4 * kAHalf + k % 4 * 32),
                                      of_b + (k / 4 * kBHalf + k % 4 * 32), k > 0);
}

// d += A B for A [64, 16 kParts] in registers and B [16 kParts, 128] in shared memory; asynchronous.
template <int kParts, uint32_t kHalf>
__device__ inline void add_product(float (&d)[kDim / 2], const uint32_t (&a)[kParts][4], uint32_t b) {
    const sm90::Descriptor of_b = sm90::descriptor<sm90::Swizzle::b128>(b, kHalf);
#pragma unroll
    for (int k = 0; k < kParts; ++k)
        sm90::Wgmma<kDim>::registers_by_shared<true>(d, a[k], of_b + k * 16 * 128, 1);
}

// A warp's 16 rows, times `factor` and rounded, into its rows of a tile of 128 rows at `tile`, and from there
// to memory: `column` and `row` are those of [B, T, heads * 128].
__device__ inline void store_rows(const float (&values)[kDim / 2], float factor, uint32_t tile,
                                  const CUtensorMap& map, int column, int row, int sequence) {
    const int lane = threadIdx.x % 32;
    const uint32_t at = tile + sm90::swizzled<sm90::Swizzle::b128>(lane % 16, lane / 16);
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
        const float* v = values + 8 * j;
        sm90::store_matrices((at ^ (j % 4 << 5)) + j / 4 * kBlockHalf,
                             pack_bf16(v[0] * factor, v[1] * factor), pack_bf16(v[2] * factor, v[3] * factor),
                             pack_bf16(v[4] * factor, v[5] * factor),
                             pack_bf16(v[6] * factor, v[7] * factor));
    }
    sm90::fence_async_shared();
    __syncwarp();
    if (lane == 0) {
        sm90::copy_box_out(map, tile, column, row, sequence);
        sm90::copy_box_out(map, tile + kBlockHalf, column + 64, row, sequence);
        sm90::copies_out_commit();
    }
}

__device__ inline float2 load_pair(const float* from) { return *reinterpret_cast<const float2*>(from); }

// ---- keys and values

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
    sm90::barrier_wait(shared + L::kOwn, 0);
#pragma unroll 1
    for (int behind = 0; now.head < task.end_head; ++behind) {
        const uint32_t q = shared + L::kQ + ring.stage * kStepTile,
                       d_out = shared + L::kDOut + ring.stage * kStepTile;
        float scores[kStep / 2], d_p[kStep / 2];
        // The step before the last one is done with; this one's predecessor may still be multiplied.
        if (behind >= 2) {
            const int stage = (ring.stage + L::kStages - 2) % L::kStages;
            if (lane == 0 && last_to_leave(shared + L::kLeft + stage * 4) && next.head < task.end_head)
                feed.load(next.head, next.step, stage);
            next.advance(task);
        }
        __syncwarp();
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

// ---- queries

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
        if (block == task.block) mask_later_keys(scores, first_row + lane / 4 - lane % 4 * 2);
#pragma unroll
        for (int j = 0; j < kBlock / 2; ++j)
            scores[j] = exp2_fast(fmaf(scores[j], p.scale_log2, shift[j % 4 / 2]));
        if (block < task.block && lane == 0 && last_to_leave(shared + L::kKLeft + keys.before() * 4))
            feed.load_k(block + 1 - L::kKeyStages, keys.before());
        __syncwarp();
        sm90::wgmma_wait<0>();  // dP
        sm90::pin(d_p);
        take_d_weights(scores, d_p, delta, d_weights);
        sm90::wgmma_fence();
        add_product<kBlock / 16, kBlockHalf>(d_q, d_weights, k);
        sm90::wgmma_commit();
        if (lane == 0 && last_to_leave(shared + L::kVLeft + values.stage * 4))
            feed.load_v(block - L::kValueStages, values.stage);
        __syncwarp();
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
