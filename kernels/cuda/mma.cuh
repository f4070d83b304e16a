// Tensor-core products of one warp for every device from compute capability 8.0 on: mma.sync m16n8k16 on bf16
// with float32 accumulation, the loads of its operands from shared memory (ldmatrix), asynchronous copies to
// shared memory (cp.async), and bf16 conversions.
//
// Who holds what (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and t = lane % 4, a lane
// holds
//   of A, 16 x 16: a[0] = (g, 2t..2t+1), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..)
//   of B, 16 x 8:  b0 = (2t..2t+1, g), b1 = (2t + 8.., g)
//   of C, 16 x 8:  c[0..1] = (g, 2t..2t+1), c[2..3] = (g + 8, 2t..2t+1)
// so C of two neighbouring column tiles, rounded to bf16, is an A operand without any exchange.
#pragma once

#include <cstdint>

namespace minipuzzle::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// The thread's number, read anew: what follows from it inside a loop is not kept in registers around it.
__device__ __forceinline__ int thread_again() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// ---- bf16, as its bits

__device__ __forceinline__ float bf16_value(uint16_t bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
// The two values of a packed pair, the first in the low half.
__device__ __forceinline__ float low_value(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_value(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ __forceinline__ uint16_t round_bf16(float value) {
    return static_cast<uint16_t>(pack_bf16(value, 0.0f));
}

// log2(e), with which exponentials become powers of two.
inline constexpr float kLog2E = 1.4426950408889634f;
// 2^x, relative error about 2^-22; 0 for -inf.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Whether 16 bytes may be read at `memory` at once.
inline bool on_16_bytes(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

// ---- shared memory

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes, both addresses multiples of 16, or writes 16 zero bytes where `inside` is false; `from` is
// then not read.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool inside) {
    const int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for this thread's copies of all groups but the newest `kNewest`; a barrier has to follow.
template <int kNewest>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

__device__ __forceinline__ void store_shared(uint32_t to, uint32_t value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t to, uint4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w)
                 : "memory");
}
__device__ __forceinline__ uint4 load_shared_16(uint32_t from) {
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(from)
                 : "memory");
    return value;
}

// Up to eight bf16 values of a row that need not be aligned, zeros after `count` of them (which may be <= 0).
__device__ __forceinline__ uint4 gather_16(const uint16_t* from, int count) {
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t low = 2 * i < count ? from[2 * i] : 0u;
        const uint32_t high = 2 * i + 1 < count ? from[2 * i + 1] : 0u;
        pair[i] = low | high << 16;
    }
    return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

// ---- products

// Four 8 x 8 matrices of bf16; lane l gives the address of row l % 8 of matrix l / 8. A lane receives
// elements (g, 2t..2t+1) of each matrix, or of its transpose.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row_address)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row_address)
                 : "memory");
}

// c += a * b for a 16 x 16 and b 16 x 8.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Which row, and which eight columns (a "piece" of 16 bytes), a lane addresses inside a 16 x 16 block for the
// operands of multiply_add. Pieces count from the block's first column.
struct LaneBlock {
    int row, piece;
};
// A from a block stored row by row [m][k]; with load_matrices_transposed, B from a block stored [k][n]: then
// to[0], to[1] are the operand of columns 0..7 and to[2], to[3] that of columns 8..15.
__device__ __forceinline__ LaneBlock lane_block_by_rows(int lane) { return {lane % 16, lane / 16}; }
// B from a block stored [n][k]: to[0], to[1] for n in 0..7, to[2], to[3] for n in 8..15. With
// load_matrices_transposed, A from a block stored [k][m].
__device__ __forceinline__ LaneBlock lane_block_by_columns(int lane) {
    return {lane % 8 + lane / 16 * 8, lane / 8 % 2};
}

}  // namespace minipuzzle::cuda
