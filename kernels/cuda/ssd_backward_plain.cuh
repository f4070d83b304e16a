// What the kernels of the plain backward scan share. A row is cut into steps of up to 64 tokens that end
// where chunks do; a step's tensors lie in scratch memory one step after the other. Exponents are to base 2.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/mma.cuh"

namespace minipuzzle::cuda::plain_backward {

inline constexpr int kStep = 64;  // tokens of a step
inline constexpr int kPairsPitch = 2 * (kStep + 8);

// One step of one head. Tokens beyond the step's end have delta 0 and repeat the last one's s.
struct alignas(16) StepValues {
    float high[kStep], low[kStep];  // s_i log2(e), the running sum of delta A up to and with i
    float delta[kStep];
    float to_exit[kStep];     // e^{s_last - s_i}; 0 for a document other than the last token's
    float from_entry[kStep];  // e^{s_i}; 0 where the entering state is another document's
    float slope[kStep];       // d delta / d dt
    float carry;              // of the state across the step; 0 where the document changes
    float padding[3];
};

// Per token of one step and head, sums over channels: paths through the token that begin and end inside the
// step, V (see ssd_backward_plain.cu), u . x and d_y . x.
struct PairSums {
    float within[kStep], leaves[kStep], direct[kStep], skip[kStep];
};

struct Params {
    const uint16_t *xbc, *zxbcdt, *d_y;
    const float *dt_bias, *a_log, *d, *chunk_states;
    const int32_t* document;     // null: none
    const float* d_final_state;  // null: zero
    uint16_t *d_xbc, *d_zxbcdt;
    float *d_dt_bias, *d_a_log, *d_d;
    float* d_initial_state;  // null: not wanted

    StepValues* values;            // [B, steps, H]
    int32_t* marks;                // [B, steps, kStep]; equal for tokens of one document; null: one document
    uint16_t *entering, *leaving;  // [B, steps, H, P, state_pitch] bf16: S_in and dS_out of each step
    uint16_t* d_scores;            // [B, steps, G, kStep, kStep] bf16: the gradient of C_i . B_j
    PairSums* pair_sums;           // [B, steps, H]
    float* enters;                 // [B, steps, H, column_tiles, kStep]: U, parts of the sum over the state
    float* parameter_sums;         // [3, H, B * steps]

    int64_t batch;
    int time, heads, head_dim, state, groups, heads_per_group;
    int64_t conv_channels, projection, inner, b_offset, c_offset;  // b and c within a row of xbc
    int chunk, chunks, steps_per_chunk, steps;
    int state_pitch;                // of rows of entering and leaving: a multiple of 8
    int column_tiles;               // the state in tiles of the widths that column_tile() gives
    int channel_tiles, tile_width;  // of a head's channels; the width is a multiple of 16, at most 64
    int stages;                     // of loads in shared memory, set where a kernel is launched
    float dt_min, dt_max;
    bool x_aligned, bc_aligned, d_y_aligned, d_x_aligned, d_bc_aligned;  // rows begin on 16 bytes
    __host__ bool all_aligned() const { return x_aligned && bc_aligned && d_y_aligned; }

    __host__ __device__ int64_t head_elements() const { return int64_t{head_dim} * state_pitch; }
};

// The tile of the state that one block takes: columns.
inline int column_tile(int state) { return state <= 32 ? 32 : 64; }

struct StepRange {
    int begin, count;
    __device__ StepRange(const Params& p, int step) {
        const int in_chunk = step % p.steps_per_chunk, chunk_begin = step / p.steps_per_chunk * p.chunk;
        begin = chunk_begin + in_chunk * kStep;
        count = min(kStep, min(p.chunk - in_chunk * kStep, p.time - begin));
    }
};

// ---- tiles between device and shared memory

// Rows of bf16 values: `rows` of them with `columns` values exist, what lies beyond is taken as zero.
struct Rows {
    const uint16_t* from;
    int64_t pitch;
    int rows, columns;
    bool aligned;  // rows begin on 16 bytes and columns come in eights
};

// kRows rows of kPieces pieces (16 bytes) to shared memory by kThreads threads: a thread keeps its piece and
// goes down the rows.
template <int kRows, int kPieces, int kThreads>
__device__ __forceinline__ void load_tile(uint32_t to, const Rows& source) {
    constexpr int kPitch = 2 * (kPieces * 8 + 8), kRowsApart = kThreads / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    const int first_row = static_cast<int>(threadIdx.x) / kPieces;
    const uint16_t* from = source.from + first_row * source.pitch + piece * 8;
    const int columns = source.columns - piece * 8;
    to += first_row * kPitch + piece * 16;
    if (source.aligned) {
#pragma unroll
        for (int row = 0; row < kRows; row += kRowsApart)
            if (kRows % kRowsApart == 0 || first_row + row < kRows)
                copy_async(to + row * kPitch, from + row * source.pitch,
                           first_row + row < source.rows && columns > 0);
    } else {
#pragma unroll 1
        for (int row = 0; row < kRows; row += kRowsApart)
            if (kRows % kRowsApart == 0 || first_row + row < kRows)
                store_shared(to + row * kPitch, gather_16(from + row * source.pitch,
                                                          first_row + row < source.rows ? columns : 0));
    }
}

// The other way: the values that exist.
template <int kPieces, int kThreads>
__device__ __forceinline__ void store_tile(uint16_t* to, int64_t to_pitch, const unsigned char* from,
                                           int rows, int columns, bool aligned) {
    constexpr int kPitch = 2 * (kPieces * 8 + 8);
    if (aligned) {
#pragma unroll 2
        for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += kThreads) {
            const int row = i / kPieces, piece = i % kPieces;
            if (piece * 8 < columns)
                *reinterpret_cast<uint4*>(to + row * to_pitch + piece * 8) =
                    *reinterpret_cast<const uint4*>(from + row * kPitch + piece * 16);
        }
    } else {
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces * 8; i += kThreads) {
            const int row = i / (kPieces * 8), column = i % (kPieces * 8);
            if (column < columns)
                to[row * to_pitch + column] = reinterpret_cast<const uint16_t*>(from + row * kPitch)[column];
        }
    }
}

__device__ __forceinline__ void load_values(uint32_t to, const StepValues& from) {
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(sizeof(StepValues) / 16);
         i += static_cast<int>(blockDim.x))
        copy_async(to + i * 16, reinterpret_cast<const unsigned char*>(&from) + i * 16, true);
}

__device__ __forceinline__ void wait_for_tiles() {
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
}

// ---- operands of products from shared memory. `tile` is the address of element (0, 0).

// 16 rows of the left operand from row m on, 16 columns from k on; stored [m][k], or [k][m] if kTransposed.
template <bool kTransposed>
__device__ __forceinline__ void load_left(uint32_t (&to)[4], uint32_t tile, int pitch, int m, int k) {
    const int lane = threadIdx.x % kWarp;
    if constexpr (kTransposed) {
        const LaneBlock at = lane_block_by_columns(lane);
        load_matrices_transposed(to, tile + (k + at.row) * pitch + (m / 8 + at.piece) * 16);
    } else {
        const LaneBlock at = lane_block_by_rows(lane);
        load_matrices(to, tile + (m + at.row) * pitch + (k / 8 + at.piece) * 16);
    }
}

// 16 columns of the right operand from column n on (to[0..1] the first eight), 16 rows from k on; stored
// [n][k], or [k][n] if kTransposed.
template <bool kTransposed>
__device__ __forceinline__ void load_right(uint32_t (&to)[4], uint32_t tile, int pitch, int n, int k) {
    const int lane = threadIdx.x % kWarp;
    if constexpr (kTransposed) {
        const LaneBlock at = lane_block_by_rows(lane);
        load_matrices_transposed(to, tile + (k + at.row) * pitch + (n / 8 + at.piece) * 16);
    } else {
        const LaneBlock at = lane_block_by_columns(lane);
        load_matrices(to, tile + (n + at.row) * pitch + (k / 8 + at.piece) * 16);
    }
}

__device__ __forceinline__ void multiply_add_16(float (&low)[4], float (&high)[4], const uint32_t (&left)[4],
                                                const uint32_t (&right)[4]) {
    multiply_add(low, left, right[0], right[1]);
    multiply_add(high, left, right[2], right[3]);
}

// The sum over the four lanes that hold a row of a result, in each of them.
__device__ __forceinline__ float sum_of_row(float value) {
    value += __shfl_xor_sync(kAllLanes, value, 1);
    return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// ---- the kernels' launches, in their order

void take_steps(const Context& context, const Params& p);
void walk_states(const Context& context, const Params& p);
void take_pairs(const Context& context, const Params& p);
void take_shared(const Context& context, const Params& p);
void finish(const Context& context, const Params& p);

// Whether two blocks of this much shared memory fit a multiprocessor, which has a little more than a block
// may take.
inline bool two_stages_fit(const Context& context, int bytes) {
    return 2 * (bytes + 1024) <= context.shared_memory_per_block + 1024;
}

// Blocks of `threads` threads with `shared` bytes of dynamic shared memory.
template <class Kernel>
void launch(const Context& context, Kernel* kernel, int64_t blocks, int threads, int shared,
            const Params& p) {
    if (blocks == 0) return;
    MP_ASSERT(blocks <= INT32_MAX && shared <= context.shared_memory_per_block);
    if (shared > 48 * 1024)
        MP_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    kernel<<<static_cast<unsigned>(blocks), threads, shared, context.stream>>>(p);
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda::plain_backward
