// How operations are cut into tasks: fixed blocks that depend on shapes alone, never on the number of
// threads.
#pragma once

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

// Output columns that one product task takes: at 128 rows the product then runs at 98 % of its full speed.
inline constexpr int64_t kColumnBlock = 512;
// Elements that one element-wise task takes.
inline constexpr int64_t kElementBlock = 1 << 15;

template <class T>
MatrixMap<T> matrix(T* data, int64_t rows, int64_t columns, int64_t stride) {
    return MatrixMap<T>(data, rows, columns, Eigen::OuterStride<>(stride));
}
template <class T>
ConstMatrixMap<T> matrix(const T* data, int64_t rows, int64_t columns, int64_t stride) {
    return ConstMatrixMap<T>(data, rows, columns, Eigen::OuterStride<>(stride));
}

// [begin, begin + count) of an axis.
struct Block {
    int64_t begin, count;
    int64_t end() const { return begin + count; }
};

// An axis of n entries in blocks of at most `size`.
struct Blocks {
    int64_t n, size;
    int64_t count() const { return div_up(n, size); }
    Block operator[](int64_t index) const {
        return {.begin = index * size, .count = std::min(size, n - index * size)};
    }
};

// R rows as sequences of equal length, each in blocks of `size` rows counted from its own start.
struct SequenceBlocks {
    int64_t sequences, length, size;
    int64_t per_sequence() const { return div_up(length, size); }
    int64_t count() const { return sequences * per_sequence(); }
    Block operator[](int64_t index) const {
        const Block inside = Blocks{length, size}[index % per_sequence()];
        return {.begin = index / per_sequence() * length + inside.begin, .count = inside.count};
    }
};

// body(block) for every block of n elements, in parallel.
template <class Body>
void for_blocks(ThreadPool& pool, int64_t n, int64_t size, Body&& body) {
    const Blocks blocks{n, size};
    pool.parallel_for(blocks.count(), [&](int64_t task, int) { body(blocks[task]); });
}

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
