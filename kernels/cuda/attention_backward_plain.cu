// The gradients of exact attention, with the probabilities formed again block by block (Dao et al. 2022,
// "FlashAttention", arXiv 2205.14135, algorithm 4): with S = q k^T / sqrt(P), Pr = exp(S - lse),
//   delta = rowsum(d_out * out),  dS = Pr * (d_out v^T - delta)
//   d_v = Pr^T d_out,  d_k = dS^T q / sqrt(P),  d_q = dS k / sqrt(P).
// Three kernels, none of which adds to what another block wrote: delta; then d_k and d_v, a block owning some
// keys of one kv head and walking over the query blocks of all its query heads; then d_q, a block owning some
// queries of one head and walking over key blocks. Scores are formed twice for that, seven products instead
// of five, and sums have one order.
//
// A warp owns its rows (keys, then queries) alone: Pr and dS of its rows, as they come out of a product, are
// the left operand of the next, and their gradients stay in float32 registers until the end. Pr and dS are
// rounded to bf16 as operands only.
//
// Ideal work at the 8B shape (32 query and 8 kv heads of 128): five causal products, 10 T^2 HP / 2; at T =
// 8192 that is 1.37 TFLOP (1.92 as done here) against 0.34 GB of operands.
#include <cmath>

#include "kernels/cuda/attention_backward_plain.h"
#include "kernels/cuda/attention_plain.h"
#include "kernels/cuda/attention_tiles.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

// Per query: log2(e) * lse, and delta.
struct QueryStatistics {
    float lse_log2, delta;
};

struct GradientParams {
    const uint16_t *q, *k, *v, *out, *d_out;
    const float* lse;
    QueryStatistics* statistics;  // [B, H, T]
    const int32_t* document;      // null: none
    uint16_t *d_q, *d_k, *d_v;
    int64_t batch;
    int time, heads, kv_heads, group;  // group: query heads of a kv head
    int row_blocks;                    // of one head: keys, or queries
    HeadFormat format;
    float scale, scale_log2;  // 1 / sqrt(head_dim), and times log2(e)

    __device__ int64_t q_pitch() const { return static_cast<int64_t>(heads) * format.head_dim; }
    __device__ int64_t kv_pitch() const { return static_cast<int64_t>(kv_heads) * format.head_dim; }
    // Where token 0 of a head lies.
    __device__ int64_t q_offset(int64_t sequence, int head) const {
        return sequence * time * q_pitch() + static_cast<int64_t>(head) * format.head_dim;
    }
    __device__ int64_t kv_offset(int64_t sequence, int kv_head) const {
        return sequence * time * kv_pitch() + static_cast<int64_t>(kv_head) * format.head_dim;
    }
    __device__ QueryStatistics* statistics_of(int64_t sequence, int head) const {
        return statistics + (sequence * heads + head) * time;
    }
};

// ---- delta

// (token, head) pairs that a thread works on, all their loads under way at once.
constexpr int kPairs = 4;

// A head's row of one token per `lanes` (a power of two) neighbouring lanes, eight columns each.
__global__ void __launch_bounds__(kThreads) statistics_kernel(const GradientParams p, int lanes) {
    const int64_t all_rows = p.batch * p.time * p.heads;
    const int step = kThreads / lanes;  // rows that the block takes at once
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * step * kPairs + threadIdx.x / lanes;
    const int lane = threadIdx.x % lanes, dim = p.format.head_dim, count = dim - lane * 8;
    uint4 out[kPairs], d_out[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
        const int64_t row = first_row + i * step, at = row * dim + lane * 8;
        const bool inside = row < all_rows && count > 0;
        out[i] = d_out[i] = make_uint4(0, 0, 0, 0);
        if (inside && p.format.aligned) {
            out[i] = *reinterpret_cast<const uint4*>(p.out + at);
            d_out[i] = *reinterpret_cast<const uint4*>(p.d_out + at);
        } else if (inside) {
            out[i] = gather_16(p.out + at, count);
            d_out[i] = gather_16(p.d_out + at, count);
        }
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
        const uint32_t left[4] = {out[i].x, out[i].y, out[i].z, out[i].w};
        const uint32_t right[4] = {d_out[i].x, d_out[i].y, d_out[i].z, d_out[i].w};
        float sum = 0;
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            sum = fmaf(low_value(left[pair]), low_value(right[pair]), sum);
            sum = fmaf(high_value(left[pair]), high_value(right[pair]), sum);
        }
        for (int distance = lanes / 2; distance > 0; distance /= 2)
            sum += __shfl_xor_sync(kAllLanes, sum, distance);
        const int64_t row = first_row + i * step;
        if (row >= all_rows || lane != 0) continue;
        const int64_t token = row / p.heads, sequence = token / p.time;
        const int64_t at = (sequence * p.heads + row % p.heads) * p.time + token % p.time;
        p.statistics[at] = {p.lse[at] * kLog2E, sum};
    }
}

// ---- d_k and d_v

// kDim: head_dim padded; kSlices: blocks that share the columns of d_k and d_v of the same keys (each forms
// the scores again); kTiles: 16-row tiles of keys per warp; kQueries: queries of a step; kBlocks: of threads
// on a multiprocessor.
template <int kDim_, int kSlices_, int kTiles_, int kQueries_, int kBlocks_>
struct KeyShape {
    static constexpr int kDim = kDim_, kSlices = kSlices_, kTiles = kTiles_, kQueries = kQueries_;
    static constexpr int kBlocks = kBlocks_;
    static constexpr int kColumns = kDim / kSlices;
    static constexpr int kWarpRows = 16 * kTiles;
    static constexpr int kRows = kWarps * kWarpRows;
    static constexpr int kPitch = 2 * kDim;  // bytes of a row in shared memory
    static constexpr int kTileBytes = kQueries * kPitch;
    static constexpr int kStatisticsBytes = kQueries * static_cast<int>(sizeof(QueryStatistics));
    // Keys, values, two stages of q, d_out and statistics, and the last query of each key.
    static constexpr int kStages = 2 * kRows * kPitch;
    static constexpr int kStatistics = kStages + 4 * kTileBytes;
    static constexpr int kLastQueries = kStatistics + 2 * kStatisticsBytes;
    static constexpr int kWalk = kLastQueries + 4 * kRows;  // a KeyWalk
    static constexpr int kSharedBytes = kWalk + 32;
    // Slices begin at multiples of the span of the rows' permutation (64 columns, or 32).
    static_assert(kSlices == 1 || kColumns % 64 == 0);
};

// Scores and d_out v^T of keys (rows) and queries (columns) to Pr and dS, in place. `statistics` is the
// shared address of the lane's first query.
template <int kTiles, int kEighths>
__device__ __forceinline__ void differentiate_columns(float (&scores)[kTiles][kEighths][4],
                                                      float (&d_scores)[kTiles][kEighths][4],
                                                      uint32_t statistics, float scale_log2) {
#pragma unroll
    for (int n = 0; n < kEighths; ++n) {
        const uint4 bits = load_shared_16(statistics + n * 8 * sizeof(QueryStatistics));
        const float lse_log2[2] = {__uint_as_float(bits.x), __uint_as_float(bits.z)};
        const float delta[2] = {__uint_as_float(bits.y), __uint_as_float(bits.w)};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float p = exp2_fast(fmaf(scores[tile][n][e], scale_log2, -lse_log2[e % 2]));
                scores[tile][n][e] = p;
                d_scores[tile][n][e] = p * (d_scores[tile][n][e] - delta[e % 2]);
            }
    }
}

// A warp's gradients, times `scale`, rounded into its own rows in shared memory, from column `first_piece` *
// 8 on.
template <int kDim, int kTiles, int kEighths>
__device__ __forceinline__ void round_rows(const float (&gradients)[kTiles][kEighths][4], float scale,
                                           uint32_t rows, int first_piece = 0) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = tile * 16 + lane / 4 + 8 * half;
#pragma unroll
            for (int n = 0; n < kEighths; ++n)
                store_shared(rows + row * 2 * kDim + swizzled<kDim>(row, first_piece + n) + lane % 4 * 4,
                             pack_bf16(gradients[tile][n][2 * half] * scale,
                                       gradients[tile][n][2 * half + 1] * scale));
        }
}

// 8 bytes to shared memory, zeros where `inside` is false.
__device__ __forceinline__ void copy_async_8(uint32_t to, const void* from, bool inside) {
    const int bytes = inside ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Where things of the block's first query head, and its keys, lie, and the query blocks of each head: read
// anew at each use, so that no register holds it through the loop.
struct KeyWalk {
    int64_t queries, statistics, keys;
    int first_block, last_block;
};

// The queries of one step, of head `head` of the group: q, d_out and statistics into a stage, as one group of
// copies.
template <class Shape>
__device__ __forceinline__ void load_queries(const GradientParams& p, uint32_t base, int stage,
                                             const KeyWalk& walk, int head, int first_query) {
    const int64_t pitch = p.q_pitch();
    const int64_t offset = walk.queries + head * p.format.head_dim + first_query * pitch;
    const int inside = p.time - first_query;
    const uint32_t tiles = base + Shape::kStages + stage * 2 * Shape::kTileBytes;
    load_rows<Shape::kDim, Shape::kQueries, kThreads>(tiles, p.q + offset, pitch, inside, p.format);
    load_rows<Shape::kDim, Shape::kQueries, kThreads>(tiles + Shape::kTileBytes, p.d_out + offset, pitch,
                                                      inside, p.format);
    const int query = threadIdx.x;
    if (query < Shape::kQueries)
        copy_async_8(
            base + Shape::kStatistics + stage * Shape::kStatisticsBytes + query * 8,
            p.statistics + walk.statistics + static_cast<int64_t>(head) * p.time + first_query + query,
            query < inside);
    commit_copies();
}

// One block of keys of one kv head, or a slice of its columns. Blocks are numbered with kv heads fastest,
// then slices, then key blocks from the longest walk (the first keys) to the shortest, then sequences.
template <class Shape>
__global__ void __launch_bounds__(kThreads, Shape::kBlocks) key_gradients_kernel(const GradientParams p) {
    extern __shared__ __align__(128) std::byte shared[];
    constexpr int kDim = Shape::kDim;
    const int kv_head = blockIdx.x % p.kv_heads;
    const int slice = blockIdx.x / p.kv_heads % Shape::kSlices;
    const int place = blockIdx.x / p.kv_heads / Shape::kSlices;
    const int first_key = place % p.row_blocks * Shape::kRows;
    const int64_t sequence = place / p.row_blocks;
    const int32_t* document = p.document ? p.document + sequence * p.time : nullptr;
    const uint32_t base = shared_address(shared);

    const int64_t kv_pitch = p.kv_pitch(), kv_offset = p.kv_offset(sequence, kv_head) + first_key * kv_pitch;
    load_rows<kDim, Shape::kRows, kThreads>(base, p.k + kv_offset, kv_pitch, p.time - first_key, p.format);
    load_rows<kDim, Shape::kRows, kThreads>(base + Shape::kRows * Shape::kPitch, p.v + kv_offset, kv_pitch,
                                            p.time - first_key, p.format);
    KeyWalk own{p.q_offset(sequence, kv_head * p.group), (sequence * p.heads + kv_head * p.group) * p.time,
                kv_offset, first_key / Shape::kQueries, 0};
    load_queries<Shape>(p, base, 0, own, 0, own.first_block * Shape::kQueries);
    const int last_key = min(first_key + Shape::kRows, p.time) - 1;
    const int last_query = document ? last_of_document(document, last_key, p.time) : p.time - 1;
    own.last_block = last_query / Shape::kQueries;
    KeyWalk& walk = *reinterpret_cast<KeyWalk*>(shared + Shape::kWalk);
    if (threadIdx.x == 0) walk = own;

    int* const all_last_queries = reinterpret_cast<int*>(shared + Shape::kLastQueries);
    find_last_queries<Shape::kWarpRows>(all_last_queries + threadIdx.x / kWarp * Shape::kWarpRows, p.time,
                                        document, first_key + threadIdx.x / kWarp * Shape::kWarpRows);
    TileRows<Shape::kTiles, Shape::kColumns> d_k, d_v;
    clear(d_k);
    clear(d_v);
    int stage = 0;
    for (int head = 0, block = own.first_block; head < p.group; stage ^= 1) {
        wait_for_copies<0>();
        __syncthreads();  // the queries have come, and everyone is done with those before them
        const int first_query = block * Shape::kQueries;
        if (++block > walk.last_block) {
            block = walk.first_block;
            ++head;
        }
        if (head < p.group) load_queries<Shape>(p, base, stage ^ 1, walk, head, block * Shape::kQueries);
        const int thread = thread_again(), lane = thread % kWarp,
                  warp_begin = thread / kWarp * Shape::kWarpRows;
        const int warp_key = first_key + warp_begin;
        const int* last_queries = all_last_queries + warp_begin;
        const int end_query = first_query + Shape::kQueries;
        if (end_query <= warp_key || first_query > last_queries[Shape::kWarpRows - 1]) continue;

        const uint32_t queries = base + Shape::kStages + stage * 2 * Shape::kTileBytes;
        const uint32_t keys = lane_address<kDim>(base + warp_begin * Shape::kPitch, lane_block_by_rows(lane));
        const uint32_t columns = lane_address<kDim>(queries, lane_block_by_columns(lane));
        TileRows<Shape::kTiles, Shape::kQueries> scores, d_scores;
        multiply_by_rows<kDim>(scores, keys, columns);
        if (first_query < warp_key + Shape::kWarpRows - 1 || end_query - 1 > last_queries[0])
            mask_queries(scores, last_queries, warp_key, first_query);
        multiply_by_rows<kDim>(d_scores, keys + Shape::kRows * Shape::kPitch, columns + Shape::kTileBytes);
        differentiate_columns(scores, d_scores,
                              base + Shape::kStatistics + stage * Shape::kStatisticsBytes + lane % 4 * 16,
                              p.scale_log2);
        const uint32_t rows =
            lane_address<kDim>(queries, lane_block_by_rows(lane), slice * (Shape::kColumns / 8));
        multiply_add_columns<kDim>(d_v, scores, rows + Shape::kTileBytes);
        multiply_add_columns<kDim>(d_k, d_scores, rows);
    }

    const int warp_begin = threadIdx.x / kWarp * Shape::kWarpRows, warp_key = first_key + warp_begin;
    const uint32_t keys = base + warp_begin * Shape::kPitch, values = keys + Shape::kRows * Shape::kPitch;
    const int first_piece = slice * (Shape::kColumns / 8);
    const int64_t offset = walk.keys + warp_begin * p.kv_pitch();
    __syncwarp();
    round_rows<kDim>(d_k, p.scale, keys, first_piece);
    round_rows<kDim>(d_v, 1.0f, values, first_piece);
    __syncwarp();
    store_rows<kDim, Shape::kWarpRows, Shape::kColumns / 8>(p.d_k + offset, p.kv_pitch(), p.time - warp_key,
                                                            p.format, keys, first_piece);
    store_rows<kDim, Shape::kWarpRows, Shape::kColumns / 8>(p.d_v + offset, p.kv_pitch(), p.time - warp_key,
                                                            p.format, values, first_piece);
}

// ---- d_q

// kDim: head_dim padded; kTiles: 16-row tiles of queries per warp; kKeys: keys of a step; kBlocks: of threads
// on a multiprocessor.
template <int kDim_, int kTiles_, int kKeys_, int kBlocks_>
struct QueryShape {
    static constexpr int kDim = kDim_, kTiles = kTiles_, kKeys = kKeys_, kBlocks = kBlocks_;
    static constexpr int kWarpRows = 16 * kTiles;
    static constexpr int kRows = kWarps * kWarpRows;
    static constexpr int kPitch = 2 * kDim;  // bytes of a row in shared memory
    static constexpr int kTileBytes = kKeys * kPitch;
    // q, d_out, two stages of keys and values, and per query its statistics and its first key.
    static constexpr int kStages = 2 * kRows * kPitch;
    static constexpr int kStatistics = kStages + 4 * kTileBytes;
    static constexpr int kFirstKeys = kStatistics + kRows * static_cast<int>(sizeof(QueryStatistics));
    static constexpr int kOffset = kFirstKeys + 4 * kRows;  // where the block's rows lie
    static constexpr int kSharedBytes = kOffset + 8;
};

// As differentiate_columns(), of queries (rows) and keys (columns); `statistics` are the warp's rows'.
template <int kTiles, int kEighths>
__device__ __forceinline__ void differentiate_rows(float (&scores)[kTiles][kEighths][4],
                                                   float (&d_scores)[kTiles][kEighths][4],
                                                   const QueryStatistics* statistics, float scale_log2) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const QueryStatistics own = statistics[tile * 16 + lane / 4 + 8 * half];
#pragma unroll
            for (int n = 0; n < kEighths; ++n)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e)
                    d_scores[tile][n][e] = (d_scores[tile][n][e] - own.delta) *
                                           exp2_fast(fmaf(scores[tile][n][e], scale_log2, -own.lse_log2));
        }
}

// The keys of one step: k and v into a stage, as one group of copies.
template <class Shape>
__device__ __forceinline__ void load_keys(const GradientParams& p, uint32_t base, int64_t kv_offset,
                                          int block) {
    const int first_key = block * Shape::kKeys, inside = p.time - first_key;
    const int64_t pitch = p.kv_pitch(), offset = kv_offset + first_key * pitch;
    const uint32_t tiles = base + Shape::kStages + block % 2 * 2 * Shape::kTileBytes;
    load_rows<Shape::kDim, Shape::kKeys, kThreads>(tiles, p.k + offset, pitch, inside, p.format);
    load_rows<Shape::kDim, Shape::kKeys, kThreads>(tiles + Shape::kTileBytes, p.v + offset, pitch, inside,
                                                   p.format);
    commit_copies();
}

// One block of query rows of one head, numbered and walked as in the forward (attention_plain.cu).
template <class Shape>
__global__ void __launch_bounds__(kThreads, Shape::kBlocks) query_gradients_kernel(const GradientParams p) {
    extern __shared__ __align__(128) std::byte shared[];
    constexpr int kDim = Shape::kDim;
    const int head = blockIdx.x % p.heads;
    const int place = blockIdx.x / p.heads;
    const int first_query = (p.row_blocks - 1 - place % p.row_blocks) * Shape::kRows;
    const int64_t sequence = place / p.row_blocks;
    const int32_t* document = p.document ? p.document + sequence * p.time : nullptr;
    const uint32_t base = shared_address(shared);

    const int64_t q_offset = p.q_offset(sequence, head) + first_query * p.q_pitch();
    const int64_t kv_offset = p.kv_offset(sequence, head / p.group);
    int64_t& kept_offset = *reinterpret_cast<int64_t*>(shared + Shape::kOffset);
    if (threadIdx.x == 0) kept_offset = q_offset;
    const int inside = p.time - first_query;
    load_rows<kDim, Shape::kRows, kThreads>(base, p.q + q_offset, p.q_pitch(), inside, p.format);
    load_rows<kDim, Shape::kRows, kThreads>(base + Shape::kRows * Shape::kPitch, p.d_out + q_offset,
                                            p.q_pitch(), inside, p.format);
    const int last_block = (min(first_query + Shape::kRows, p.time) - 1) / Shape::kKeys;
    load_keys<Shape>(p, base, kv_offset, last_block);
    const int first_block = document ? first_of_document(document, first_query) / Shape::kKeys : 0;

    QueryStatistics* const all_statistics = reinterpret_cast<QueryStatistics*>(shared + Shape::kStatistics);
    for (int row = threadIdx.x; row < Shape::kRows; row += kThreads)
        all_statistics[row] =
            row < inside ? p.statistics_of(sequence, head)[first_query + row] : QueryStatistics{0, 0};
    int* const all_first_keys = reinterpret_cast<int*>(shared + Shape::kFirstKeys);
    find_first_keys<Shape::kWarpRows>(all_first_keys + threadIdx.x / kWarp * Shape::kWarpRows, p.time,
                                      document, first_query + threadIdx.x / kWarp * Shape::kWarpRows);
    TileRows<Shape::kTiles, kDim> d_q;
    clear(d_q);
    for (int block = last_block; block >= first_block; --block) {
        wait_for_copies<0>();
        __syncthreads();  // the keys have come, and everyone is done with those before them
        if (block > first_block) load_keys<Shape>(p, base, kv_offset, block - 1);
        const int thread = thread_again(), lane = thread % kWarp,
                  warp_begin = thread / kWarp * Shape::kWarpRows;
        const int warp_row = first_query + warp_begin;
        const int* first_keys = all_first_keys + warp_begin;
        const int first_key = block * Shape::kKeys, end_key = first_key + Shape::kKeys;
        if (first_key >= warp_row + Shape::kWarpRows || end_key <= first_keys[0]) continue;

        const uint32_t keys = base + Shape::kStages + block % 2 * 2 * Shape::kTileBytes;
        const uint32_t queries =
            lane_address<kDim>(base + warp_begin * Shape::kPitch, lane_block_by_rows(lane));
        const uint32_t columns = lane_address<kDim>(keys, lane_block_by_columns(lane));
        TileRows<Shape::kTiles, Shape::kKeys> scores, d_scores;
        multiply_by_rows<kDim>(scores, queries, columns);
        if (end_key > warp_row + 1 || first_key < first_keys[Shape::kWarpRows - 1])
            mask_keys(scores, first_keys, warp_row, first_key);
        multiply_by_rows<kDim>(d_scores, queries + Shape::kRows * Shape::kPitch, columns + Shape::kTileBytes);
        differentiate_rows(scores, d_scores, all_statistics + warp_begin, p.scale_log2);
        multiply_add_columns<kDim>(d_q, d_scores, lane_address<kDim>(keys, lane_block_by_rows(lane)));
    }

    const int warp_begin = threadIdx.x / kWarp * Shape::kWarpRows, warp_row = first_query + warp_begin;
    const uint32_t rows = base + warp_begin * Shape::kPitch;
    __syncwarp();
    round_rows<kDim>(d_q, p.scale, rows);
    __syncwarp();
    store_rows<kDim, Shape::kWarpRows, kDim / 8>(p.d_q + p.q_offset(sequence, head) + warp_row * p.q_pitch(),
                                                 p.q_pitch(), p.time - warp_row, p.format, rows);
}

// ---- launches

void launch_statistics(const Context& context, const GradientParams& p) {
    int lanes = 1;
    while (lanes * 8 < p.format.head_dim) lanes *= 2;
    static_assert(kAttentionPlainHeadDim <= 8 * kWarp);
    const int64_t blocks = div_up(p.batch * p.time * p.heads * lanes, kThreads * kPairs);
    MP_ASSERT(blocks <= INT32_MAX);
    statistics_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, context.stream>>>(p, lanes);
    MP_CUDA_LAUNCHED();
}

// `blocks_of_rows`: of the grid, for each block of the rows of a sequence.
template <class Shape>
void launch_rows(void (*kernel)(GradientParams), const Context& context, GradientParams p,
                 int64_t blocks_of_rows) {
    p.row_blocks = narrow<int>(div_up(p.time, Shape::kRows));
    const int64_t blocks = p.batch * p.row_blocks * blocks_of_rows;
    MP_ASSERT(blocks <= INT32_MAX);
    MP_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes));
    kernel<<<static_cast<unsigned>(blocks), kThreads, Shape::kSharedBytes, context.stream>>>(p);
    MP_CUDA_LAUNCHED();
}

template <class Keys, class Queries>
void launch(const Context& context, const GradientParams& p) {
    launch_statistics(context, p);
    launch_rows<Keys>(key_gradients_kernel<Keys>, context, p, int64_t{p.kv_heads} * Keys::kSlices);
    launch_rows<Queries>(query_gradients_kernel<Queries>, context, p, p.heads);
}

uint16_t* bits_of(const Tensor& tensor) { return reinterpret_cast<uint16_t*>(tensor.data); }

}  // namespace

int64_t attention_backward_plain_scratch_bytes(const AttentionBackward& args) {
    return args.lse.elements() * static_cast<int64_t>(sizeof(QueryStatistics));
}

void attention_backward_plain(const Context& context, const AttentionBackward& args) {
    if (args.head_dim > kAttentionPlainHeadDim)
        throw Error(ErrorKind::other, "attention: head_dim " + std::to_string(args.head_dim) + ", at most " +
                                          std::to_string(kAttentionPlainHeadDim) +
                                          " is implemented on CUDA devices");
    if (args.q.elements() == 0) return;
    MP_ASSERT(context.scratch_capacity >= attention_backward_plain_scratch_bytes(args));
    GradientParams p{};
    p.q = bits_of(args.q);
    p.k = bits_of(args.k);
    p.v = bits_of(args.v);
    p.out = bits_of(args.out);
    p.d_out = bits_of(args.d_out);
    p.lse = args.lse.as<float>();
    p.statistics = reinterpret_cast<QueryStatistics*>(context.scratch);
    p.document = args.document ? args.document.as<int32_t>() : nullptr;
    p.d_q = bits_of(args.d_q);
    p.d_k = bits_of(args.d_k);
    p.d_v = bits_of(args.d_v);
    p.batch = args.q.size(0);
    p.time = narrow<int>(args.q.size(1));
    p.heads = narrow<int>(args.heads);
    p.kv_heads = narrow<int>(args.kv_heads);
    p.group = p.heads / p.kv_heads;
    p.format = {.head_dim = narrow<int>(args.head_dim), .aligned = args.head_dim % 8 == 0};
    for (const Tensor& each : {args.q, args.k, args.v, args.out, args.d_out, args.d_q, args.d_k, args.d_v})
        p.format.aligned = p.format.aligned && on_16_bytes(each.data);
    p.scale = 1 / std::sqrt(static_cast<float>(args.head_dim));
    p.scale_log2 = kLog2E * p.scale;

    const int64_t dim = args.head_dim;
    if (dim <= 32) return launch<KeyShape<32, 1, 1, 64, 4>, QueryShape<32, 1, 64, 4>>(context, p);
    if (dim <= 64) return launch<KeyShape<64, 1, 2, 32, 2>, QueryShape<64, 2, 64, 2>>(context, p);
    if (dim <= 96) return launch<KeyShape<96, 1, 1, 64, 2>, QueryShape<96, 2, 32, 2>>(context, p);
    if (dim <= 128) return launch<KeyShape<128, 1, 1, 64, 2>, QueryShape<128, 2, 32, 2>>(context, p);
    if (dim <= 192) return launch<KeyShape<192, 3, 1, 32, 2>, QueryShape<192, 1, 32, 2>>(context, p);
    launch<KeyShape<256, 2, 1, 16, 2>, QueryShape<256, 1, 16, 2>>(context, p);
}

}  // namespace minipuzzle::cuda
