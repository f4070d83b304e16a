// What the plain attention kernels share, forward and backward: tiles of one head's rows in shared memory,
// and which keys a row may see where documents are packed.
#pragma once

#include <cmath>

#include "kernels/cuda/mma.cuh"

namespace minipuzzle::cuda {

// ---- rows in shared memory

// Where piece `piece` (16 bytes) of a row lies inside its row: permuted so that eight rows' equal pieces,
// which ldmatrix reads at once, fall into different banks. kDim is a multiple of 32.
template <int kDim>
__device__ __forceinline__ int swizzled(int row, int piece) {
    return (kDim % 64 == 0 ? piece ^ (row % 8) : piece ^ (row / 2 % 4)) * 16;
}
// From the address of a row's piece 0 or 1 to that of the piece `ahead` (even) further on. Rows begin at
// multiples of the permutation's span, so the step is an exclusive or, and a constant beyond the span.
template <int kDim>
__device__ __forceinline__ uint32_t pieces_ahead(uint32_t address, int ahead) {
    constexpr int kPermuted = kDim % 64 == 0 ? 0x70 : 0x30;
    return (address ^ (ahead * 16 & kPermuted)) + (ahead * 16 & ~kPermuted);
}
// The address that a lane begins with, inside rows that begin at `rows`; `first_piece` is a multiple of the
// permutation's span.
template <int kDim>
__device__ __forceinline__ uint32_t lane_address(uint32_t rows, LaneBlock lane, int first_piece = 0) {
    return rows + lane.row * 2 * kDim + swizzled<kDim>(lane.row, first_piece + lane.piece);
}

// Rows of one head in memory.
struct HeadFormat {
    int head_dim;
    bool aligned;  // every row begins on 16 bytes
};

// kRows rows of one head, the first of them at `from`, to shared memory; zeros beyond row `inside` and beyond
// head_dim. A thread keeps its piece of the row and goes down the rows.
template <int kDim, int kRows, int kThreads>
__device__ __forceinline__ void load_rows(uint32_t to, const uint16_t* from, int64_t pitch, int inside,
                                          const HeadFormat& format) {
    constexpr int kPieces = kDim / 8;
    constexpr int kLanes = kPieces <= 4 ? 4 : kPieces <= 8 ? 8 : kPieces <= 16 ? 16 : 32;  // of a row
    constexpr int kStep = kThreads / kLanes;
    const int piece = threadIdx.x % kLanes, first_row = threadIdx.x / kLanes;
    static_assert(kPieces <= kLanes && kRows % kStep == 0);
    if (piece >= kPieces) return;
    const uint16_t* source = from + first_row * pitch + piece * 8;
    const int count = format.head_dim - piece * 8;
    if (format.aligned) {
#pragma unroll
        for (int row = first_row, n = 0; n < kRows / kStep; ++n, row += kStep, source += kStep * pitch)
            copy_async(to + row * 2 * kDim + swizzled<kDim>(row, piece), source, row < inside && count > 0);
    } else {
#pragma unroll 1
        for (int row = first_row; row < kRows; row += kStep, source += kStep * pitch)
            store_shared(to + row * 2 * kDim + swizzled<kDim>(row, piece),
                         gather_16(source, row < inside ? count : 0));
    }
}

// Pieces [first_piece, first_piece + kPieces) of the warp's kRows rows from shared memory to `to`, the
// address of the first row; rows from `inside` on are left out.
template <int kDim, int kRows, int kPieces>
__device__ __forceinline__ void store_rows(uint16_t* to, int64_t pitch, int inside, const HeadFormat& format,
                                           uint32_t rows, int first_piece = 0) {
    for (int i = threadIdx.x % kWarp; i < kRows * kPieces; i += kWarp) {
        const int row = i / kPieces, piece = first_piece + i % kPieces, count = format.head_dim - piece * 8;
        if (row >= inside || count <= 0) continue;
        const uint4 values = load_shared_16(rows + row * 2 * kDim + swizzled<kDim>(row, piece));
        uint16_t* place = to + row * pitch + piece * 8;
        if (format.aligned) {
            *reinterpret_cast<uint4*>(place) = values;
        } else {
            const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
            for (int e = 0; e < 8; ++e)
                if (e < count) place[e] = static_cast<uint16_t>(pairs[e / 2] >> (e % 2 * 16));
        }
    }
}

// ---- documents

// The first place in [low, high) that is not `before`, `high` where there is none; places that are come
// first. All lanes of a warp search together: each round leaves a 32nd of the range.
template <class Before>
__device__ __forceinline__ int first_not(Before before, int low, int high) {
    const int lane = threadIdx.x % kWarp;
    while (low < high) {
        const int step = (high - low + kWarp - 1) / kWarp, at = low + lane * step;
        const int count = __popc(__ballot_sync(kAllLanes, at < high && before(at)));
        if (count == 0) return low;
        high = min(high, low + count * step);
        low += (count - 1) * step + 1;
    }
    return low;
}
// The first token of the document that token t belongs to.
__device__ __forceinline__ int first_of_document(const int32_t* document, int t) {
    const int32_t own = document[t];
    return first_not([&](int at) { return document[at] < own; }, 0, t);
}
// The last token of the document that token t belongs to.
__device__ __forceinline__ int last_of_document(const int32_t* document, int t, int time) {
    const int32_t own = document[t];
    return first_not([&](int at) { return document[at] <= own; }, t + 1, time) - 1;
}

// Writes, for each of the warp's rows, the first key that it may see.
template <int kRows>
__device__ __forceinline__ void find_first_keys(int* first_keys, int time, const int32_t* document,
                                                int warp_row) {
    const int lane = threadIdx.x % kWarp, row = warp_row + lane;
    int first = 0;
    if (document && warp_row < time) {
        const int lowest = first_of_document(document, warp_row);
        const bool opens = lane > 0 && row < time && document[row] != document[row - 1];
        // Of the warp's rows up to this one, the last that opens a document.
        const unsigned openings = __ballot_sync(kAllLanes, opens) & (0xffffffffu >> (31 - lane));
        first = openings ? warp_row + 31 - __clz(openings) : lowest;
    }
    if (lane < kRows) first_keys[lane] = first;
    __syncwarp();
}

// Writes, for each of the warp's rows taken as keys, the last query that may see it; key t is seen by no
// query before t, so a row beyond the sequence by none.
template <int kRows>
__device__ __forceinline__ void find_last_queries(int* last_queries, int time, const int32_t* document,
                                                  int warp_row) {
    const int lane = threadIdx.x % kWarp, row = warp_row + lane;
    int last = time - 1;
    if (document && warp_row < time) {
        const int highest = last_of_document(document, min(warp_row + kRows, time) - 1, time);
        const bool closes = lane < kRows - 1 && row + 1 < time && document[row] != document[row + 1];
        // Of the warp's rows from this one on, the first that closes a document.
        const unsigned closings = __ballot_sync(kAllLanes, closes) & (0xffffffffu << lane);
        last = closings ? warp_row + __ffs(closings) - 1 : highest;
    }
    if (lane < kRows) last_queries[lane] = last;
    __syncwarp();
}

// ---- products of a warp

// A lane's share of 16 * kTiles rows and kColumns columns of float32 (mma.cuh says which elements).
template <int kTiles, int kColumns>
using TileRows = float[kTiles][kColumns / 8][4];

template <int kTiles, int kColumns>
__device__ __forceinline__ void clear(float (&c)[kTiles][kColumns][4]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) c[tile][n][e] = 0;
}

// c = a b^T over kDim, both stored row by row; `a` and `b` are the lane's addresses by rows and by columns.
template <int kDim, int kTiles, int kEighths>
__device__ __forceinline__ void multiply_by_rows(float (&c)[kTiles][kEighths][4], uint32_t a, uint32_t b) {
    constexpr int kPitch = 2 * kDim;
    clear(c);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
        const uint32_t a_step = pieces_ahead<kDim>(a, 2 * step), b_step = pieces_ahead<kDim>(b, 2 * step);
        uint32_t left[kTiles][4];
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) load_matrices(left[tile], a_step + tile * 16 * kPitch);
#pragma unroll
        for (int n = 0; n < kEighths / 2; ++n) {
            uint32_t right[4];
            load_matrices(right, b_step + n * 16 * kPitch);
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
                multiply_add(c[tile][2 * n], left[tile], right[0], right[1]);
                multiply_add(c[tile][2 * n + 1], left[tile], right[2], right[3]);
            }
        }
    }
}

// c += a b with a rounded to bf16 and b stored row by row, rows of kDim; `b` is the lane's address by rows in
// the first of the columns.
template <int kDim, int kTiles, int kColumnEighths, int kDepthEighths>
__device__ __forceinline__ void multiply_add_columns(float (&c)[kTiles][kColumnEighths][4],
                                                     const float (&a)[kTiles][kDepthEighths][4], uint32_t b) {
#pragma unroll
    for (int step = 0; step < kDepthEighths / 2; ++step) {
        uint32_t left[kTiles][4];
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float(&from)[4] = a[tile][2 * step + half];
                left[tile][2 * half] = pack_bf16(from[0], from[1]);
                left[tile][2 * half + 1] = pack_bf16(from[2], from[3]);
            }
#pragma unroll
        for (int n = 0; n < kColumnEighths / 2; ++n) {
            uint32_t right[4];
            load_matrices_transposed(right, pieces_ahead<kDim>(b, 2 * n) + step * 16 * 2 * kDim);
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
                multiply_add(c[tile][2 * n], left[tile], right[0], right[1]);
                multiply_add(c[tile][2 * n + 1], left[tile], right[2], right[3]);
            }
        }
    }
}

// ---- masks

// -inf where the query of a row may not see the key of a column: later than it, or of an earlier document.
template <int kTiles, int kEighths>
__device__ __forceinline__ void mask_keys(float (&scores)[kTiles][kEighths][4], const int* first_keys,
                                          int warp_row, int first_key) {
    const int lane = threadIdx.x % kWarp;
    const int origin = first_key + lane % 4 * 2;  // keys are counted from this lane's first column
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = tile * 16 + lane / 4 + half * 8;
            const int last = warp_row + row - origin, first = first_keys[row] - origin;
#pragma unroll
            for (int n = 0; n < kEighths; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int key = n * 8 + e;
                    if (key > last || key < first) scores[tile][n][2 * half + e] = -INFINITY;
                }
        }
}

// -inf where the query of a column may not see the key of a row: earlier than it, or of a later document.
template <int kTiles, int kEighths>
__device__ __forceinline__ void mask_queries(float (&scores)[kTiles][kEighths][4], const int* last_queries,
                                             int warp_key, int first_query) {
    const int lane = threadIdx.x % kWarp;
    const int origin = first_query + lane % 4 * 2;  // queries are counted from this lane's first column
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = tile * 16 + lane / 4 + half * 8;
            const int first = warp_key + row - origin, last = last_queries[row] - origin;
#pragma unroll
            for (int n = 0; n < kEighths; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int query = n * 8 + e;
                    if (query < first || query > last) scores[tile][n][2 * half + e] = -INFINITY;
                }
        }
}

}  // namespace minipuzzle::cuda
