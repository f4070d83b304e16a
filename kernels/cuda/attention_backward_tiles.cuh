// What the two kernels of the attention backward on tensor cores of compute capability 9.0a share; head_dim
// 128. With s = scale q k^T, P = exp(s - lse), dP = d_out v^T, delta = rowsum(d_out * out) and
// dS = P (dP - delta) (Dao et al. 2022, arXiv 2205.14135, appendix B):
//   d_v = P^T d_out,  d_k = scale dS^T q,  d_q = scale dS k.
// A block of `key_gradients` owns keys of one kv head and walks the query heads that read it and, for each,
// the queries from the diagonal on; scores are formed transposed, so that P^T and dS^T are left operands as
// the accumulators lie. A block of `query_gradients` owns queries and walks the keys from the diagonal back.
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

}  // namespace minipuzzle::cuda::attention_backward
