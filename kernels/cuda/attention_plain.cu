// Exact attention with the softmax taken as the keys come by (Milakov & Gimelshein 2018; Dao et al. 2022,
// "FlashAttention", arXiv 2205.14135, and 2023, arXiv 2307.08691). A block owns some query rows of one head
// and walks the key blocks that any of them may see, from the diagonal back to the first document's first
// key. A warp owns its rows alone, so statistics never leave a group of four lanes. Scores and the running
// output stay in float32 registers; the probabilities are rounded to bf16 as an operand only, their sum is
// not.
//
// Ideal work at the 8B shape (32 query and 8 kv heads of 128, T tokens): 2 * T^2 * 32 * 128 = 8192 T^2 FLOPs,
// a causal half of 4 T^2 HP; bytes 2 * T * (2 * 4096 + 2 * 1024) = 20480 T. At T = 8192 that is 550 GFLOP
// against 168 MB: 0.6 ms of a Hopper's arithmetic against 0.04 ms of its memory.
//
// Bits: key blocks are counted from the row's start and a query block's result depends on nothing but its
// sequence, so neither the batch nor a place in it shows.
#include <cmath>

#include "kernels/cuda/attention_plain.h"
#include "kernels/cuda/attention_tiles.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr float kLn2 = 0.69314718055994531f;

struct AttentionParams {
    const uint16_t *q, *k, *v;
    const int32_t* document;  // null: none
    uint16_t* out;
    float* lse;  // null: not wanted
    int time, heads, kv_heads, query_blocks;
    HeadFormat format;
    float scale_log2;  // log2(e) / sqrt(head_dim): exponentials are taken to base 2
};

// kDim: head_dim padded; kTiles: 16-row tiles of queries per warp; kKeys: keys of a block.
template <int kDim_, int kTiles_, int kKeys_, int kBlocks_>
struct AttentionShape {
    static constexpr int kDim = kDim_, kTiles = kTiles_, kKeys = kKeys_;
    static constexpr int kBlocks = kBlocks_;  // of threads on a multiprocessor
    static constexpr int kWarpRows = 16 * kTiles;
    static constexpr int kRows = kWarps * kWarpRows;
    static constexpr int kPitch = 2 * kDim;  // bytes of a row in shared memory
    static constexpr int kTileBytes = kKeys * kPitch;
    // Queries, two stages of keys and values, the first key of each query, and where the block's rows lie: no
    // register holds that through the loop.
    static constexpr int kFirstKeys = kRows * kPitch + 4 * kTileBytes;
    static constexpr int kOffsets = kFirstKeys + kRows * 4;
    static constexpr int kSharedBytes = kOffsets + 16;
};

// The running output and softmax statistics of a lane's rows.
template <class Shape>
struct Running {
    TileRows<Shape::kTiles, Shape::kDim> out;
    float largest[Shape::kTiles][2];  // of the raw scores so far
    float sum[Shape::kTiles][2];      // of this lane's columns only

    __device__ Running() {
        clear(out);
#pragma unroll
        for (int tile = 0; tile < Shape::kTiles; ++tile)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                largest[tile][half] = -INFINITY;
                sum[tile][half] = 0;
            }
    }
};

template <class Shape>
using Scores = TileRows<Shape::kTiles, Shape::kKeys>;

// Scores to unnormalised probabilities, in place; the running sums and output move to the new maxima.
template <class Shape>
__device__ __forceinline__ void advance_softmax(Scores<Shape>& scores, Running<Shape>& running,
                                                float scale_log2) {
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
        float fade[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float largest = running.largest[tile][half];
            const float before = largest;
#pragma unroll
            for (int n = 0; n < Shape::kKeys / 8; ++n)
                largest = fmaxf(largest, fmaxf(scores[tile][n][2 * half], scores[tile][n][2 * half + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
            running.largest[tile][half] = largest;
            // A row that has seen no key yet keeps -inf; its exponentials are then taken against 0.
            // Shifts are rounded on their own, never inside a fused operation: the sum's terms are relative
            // to the rounded shift, and a maximum that stays makes a fade of exactly 1.
            const float shift = largest == -INFINITY ? 0.0f : __fmul_rn(largest, scale_log2);
            fade[half] = exp2_fast(__fmul_rn(before, scale_log2) - shift);
            float sum = running.sum[tile][half] * fade[half];
#pragma unroll
            for (int n = 0; n < Shape::kKeys / 8; ++n)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    const float probability = exp2_fast(fmaf(scores[tile][n][e], scale_log2, -shift));
                    scores[tile][n][e] = probability;
                    sum += probability;
                }
            running.sum[tile][half] = sum;
        }
        // Maxima settle early: most blocks leave the warp's rows as they are.
        if (!__any_sync(kAllLanes, fade[0] != 1.0f || fade[1] != 1.0f)) continue;
#pragma unroll
        for (int n = 0; n < Shape::kDim / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) running.out[tile][n][e] *= fade[e / 2];
    }
}

// Divides by the sums, writes lse, and leaves the rows in the warp's own part of the queries' shared memory,
// in bf16.
template <class Shape>
__device__ __forceinline__ void finish_rows(const Running<Shape>& running, const AttentionParams& p,
                                            float* lse, int warp_row, uint32_t rows) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = running.sum[tile][half];
            sum += __shfl_xor_sync(kAllLanes, sum, 1);
            sum += __shfl_xor_sync(kAllLanes, sum, 2);
            const int row = tile * 16 + lane / 4 + 8 * half;
            if (lse && lane % 4 == 0 && warp_row + row < p.time)
                lse[warp_row + row] =
                    (__fmul_rn(running.largest[tile][half], p.scale_log2) + log2f(sum)) * kLn2;
            const float share = 1.0f / sum;
#pragma unroll
            for (int n = 0; n < Shape::kDim / 8; ++n)
                store_shared(rows + row * Shape::kPitch + swizzled<Shape::kDim>(row, n) + lane % 4 * 4,
                             pack_bf16(running.out[tile][n][2 * half] * share,
                                       running.out[tile][n][2 * half + 1] * share));
        }
}

// One block of query rows of one head. Blocks are numbered with heads fastest (heads that share keys run side
// by side), then query blocks from the longest to the shortest, then sequences.
template <class Shape>
__global__ void __launch_bounds__(kThreads, Shape::kBlocks) attention_kernel(const AttentionParams p) {
    extern __shared__ __align__(128) std::byte shared[];
    const int head = blockIdx.x % p.heads;
    const int place = blockIdx.x / p.heads;
    const int query_block = p.query_blocks - 1 - place % p.query_blocks;
    const int64_t sequence = place / p.query_blocks;
    const int kv_head = head / (p.heads / p.kv_heads);
    const int first_query = query_block * Shape::kRows;
    const int64_t q_pitch = static_cast<int64_t>(p.heads) * p.format.head_dim;
    const int64_t kv_pitch = static_cast<int64_t>(p.kv_heads) * p.format.head_dim;
    const int64_t q_offset = sequence * p.time * q_pitch + static_cast<int64_t>(head) * p.format.head_dim;
    const int64_t kv_offset =
        sequence * p.time * kv_pitch + static_cast<int64_t>(kv_head) * p.format.head_dim;
    const int32_t* document = p.document ? p.document + sequence * p.time : nullptr;

    int64_t* const kept_offsets = reinterpret_cast<int64_t*>(shared + Shape::kOffsets);
    if (threadIdx.x == 0) {
        kept_offsets[0] = q_offset;
        kept_offsets[1] = (sequence * p.heads + head) * p.time;
    }
    const uint32_t q_shared = shared_address(shared);
    const uint32_t stages = q_shared + Shape::kRows * Shape::kPitch;
    load_rows<Shape::kDim, Shape::kRows, kThreads>(q_shared, p.q + q_offset + first_query * q_pitch, q_pitch,
                                                   p.time - first_query, p.format);

    const int last_block = (min(first_query + Shape::kRows, p.time) - 1) / Shape::kKeys;
    const auto load_block = [&](int block) {
        const uint32_t stage = stages + (block % 2) * 2 * Shape::kTileBytes;
        const int first_key = block * Shape::kKeys, inside = p.time - first_key;
        const int64_t offset = kv_offset + first_key * kv_pitch;
        load_rows<Shape::kDim, Shape::kKeys, kThreads>(stage, p.k + offset, kv_pitch, inside, p.format);
        load_rows<Shape::kDim, Shape::kKeys, kThreads>(stage + Shape::kTileBytes, p.v + offset, kv_pitch,
                                                       inside, p.format);
        commit_copies();
    };
    // From the diagonal back to the first document's first key: where that is, is found while the diagonal
    // comes.
    load_block(last_block);
    const int first_block = document ? first_of_document(document, first_query) / Shape::kKeys : 0;

    int* const all_first_keys = reinterpret_cast<int*>(shared + Shape::kFirstKeys);
    find_first_keys<Shape::kWarpRows>(all_first_keys + threadIdx.x / kWarp * Shape::kWarpRows, p.time,
                                      document, first_query + threadIdx.x / kWarp * Shape::kWarpRows);
    Running<Shape> running;
    for (int block = last_block; block >= first_block; --block) {
        wait_for_copies<0>();
        __syncthreads();  // the block has come, and everyone is done with the one before it
        if (block > first_block) load_block(block - 1);
        const int first_key = block * Shape::kKeys, end_key = first_key + Shape::kKeys;
        const int thread = thread_again(), lane = thread % kWarp,
                  warp_begin = thread / kWarp * Shape::kWarpRows;
        const int warp_row = first_query + warp_begin;
        const int* first_keys = all_first_keys + warp_begin;
        if (first_key >= warp_row + Shape::kWarpRows || end_key <= first_keys[0]) continue;
        const uint32_t keys = stages + block % 2 * 2 * Shape::kTileBytes, values = keys + Shape::kTileBytes;
        Scores<Shape> scores;
        multiply_by_rows<Shape::kDim>(
            scores,
            lane_address<Shape::kDim>(q_shared + warp_begin * Shape::kPitch, lane_block_by_rows(lane)),
            lane_address<Shape::kDim>(keys, lane_block_by_columns(lane)));
        if (end_key > warp_row + 1 || first_key < first_keys[Shape::kWarpRows - 1])
            mask_keys(scores, first_keys, warp_row, first_key);
        advance_softmax<Shape>(scores, running, p.scale_log2);
        multiply_add_columns<Shape::kDim>(
            running.out, scores,
            lane_address<Shape::kDim>(values, lane_block_by_rows(thread_again() % kWarp)));
    }

    const int warp_begin = threadIdx.x / kWarp * Shape::kWarpRows, warp_row = first_query + warp_begin;
    const uint32_t q_warp = q_shared + warp_begin * Shape::kPitch;
    float* lse = p.lse ? p.lse + kept_offsets[1] : nullptr;
    __syncwarp();
    finish_rows<Shape>(running, p, lse, warp_row, q_warp);
    __syncwarp();
    const int64_t pitch = static_cast<int64_t>(p.heads) * p.format.head_dim;
    store_rows<Shape::kDim, Shape::kWarpRows, Shape::kDim / 8>(p.out + kept_offsets[0] + warp_row * pitch,
                                                               pitch, p.time - warp_row, p.format, q_warp);
}

template <class Shape>
void launch(const Context& context, AttentionParams p, int64_t batch) {
    p.query_blocks = narrow<int>(div_up(p.time, Shape::kRows));
    const int64_t blocks = batch * p.query_blocks * p.heads;
    MP_ASSERT(blocks <= INT32_MAX);
    MP_CUDA(cudaFuncSetAttribute(attention_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 Shape::kSharedBytes));
    attention_kernel<Shape>
        <<<static_cast<unsigned>(blocks), kThreads, Shape::kSharedBytes, context.stream>>>(p);
    MP_CUDA_LAUNCHED();
}

}  // namespace

void attention_forward_plain(const Context& context, const AttentionForward& args) {
    if (args.head_dim > kAttentionPlainHeadDim)
        throw Error(ErrorKind::other, "attention: head_dim " + std::to_string(args.head_dim) + ", at most " +
                                          std::to_string(kAttentionPlainHeadDim) +
                                          " is implemented on CUDA devices");
    const int64_t batch = args.q.size(0), time = args.q.size(1);
    if (batch * time == 0) return;
    AttentionParams p{};
    p.q = reinterpret_cast<const uint16_t*>(args.q.data);
    p.k = reinterpret_cast<const uint16_t*>(args.k.data);
    p.v = reinterpret_cast<const uint16_t*>(args.v.data);
    p.document = args.document ? args.document.as<int32_t>() : nullptr;
    p.out = reinterpret_cast<uint16_t*>(args.out.data);
    p.lse = args.lse ? args.lse.as<float>() : nullptr;
    p.time = narrow<int>(time);
    p.heads = narrow<int>(args.heads);
    p.kv_heads = narrow<int>(args.kv_heads);
    p.format.head_dim = narrow<int>(args.head_dim);
    p.format.aligned = p.format.head_dim % 8 == 0 && on_16_bytes(p.q) && on_16_bytes(p.k) &&
                       on_16_bytes(p.v) && on_16_bytes(p.out);
    p.scale_log2 = kLog2E / std::sqrt(static_cast<float>(p.format.head_dim));

    if (p.format.head_dim <= 32) return launch<AttentionShape<32, 2, 32, 4>>(context, p, batch);
    if (p.format.head_dim <= 64) return launch<AttentionShape<64, 2, 96, 2>>(context, p, batch);
    if (p.format.head_dim <= 96) return launch<AttentionShape<96, 2, 64, 2>>(context, p, batch);
    if (p.format.head_dim <= 128) return launch<AttentionShape<128, 2, 64, 2>>(context, p, batch);
    if (p.format.head_dim <= 192) return launch<AttentionShape<192, 1, 32, 2>>(context, p, batch);
    launch<AttentionShape<256, 1, 32, 2>>(context, p, batch);
}

}  // namespace minipuzzle::cuda
