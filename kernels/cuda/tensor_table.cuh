// One launch over many tensors of very different sizes: each is cut into pieces of a fixed number of
// elements, a block takes a piece. The table travels as a kernel parameter (up to 32 KB), so nothing is
// copied and nothing waits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/check.h"

namespace minipuzzle::cuda {

// Tensors of one launch; a model of more takes several.
constexpr int kTableTensors = 512;

// Whose piece a block has: `first` counts the pieces of the tensors before each one.
struct PieceTable {
    int tensors = 0;
    uint32_t pieces = 0;
    uint32_t first[kTableTensors];
    int64_t elements[kTableTensors];

    // Its number in the table.
    int add(int64_t count, int64_t piece_elements) {
        MP_ASSERT(tensors < kTableTensors);
        first[tensors] = pieces;
        elements[tensors] = count;
        pieces = narrow<uint32_t>(pieces + div_up(count, piece_elements));
        return tensors++;
    }
    // Whether the pieces of one tensor more would still be a grid.
    bool has_room(int64_t count, int64_t piece_elements) const {
        return tensors < kTableTensors && pieces + div_up(count, piece_elements) <= 0x7fffffff;
    }
};

// A block's piece: elements [begin, begin + count) of a tensor.
struct Piece {
    int tensor;
    int count;
    int64_t begin;
};

// The last tensor that begins at or before the piece; those without elements begin where the next one does.
__device__ inline Piece find_piece(const PieceTable& table, uint32_t piece, int piece_elements) {
    int low = 0, high = table.tensors;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (table.first[middle] <= piece)
            low = middle;
        else
            high = middle;
    }
    const int64_t begin = int64_t{piece - table.first[low]} * piece_elements;
    return {low, static_cast<int>(min(table.elements[low] - begin, int64_t{piece_elements})), begin};
}

}  // namespace minipuzzle::cuda
