// Instructions of compute capability 9.0a as functions: warpgroup matrix products (wgmma), memory barriers in
// shared memory (mbarrier), the bulk copy engine, and the fences between them. Names and meanings are those
// of the PTX instruction set, sections "Asynchronous Warpgroup Level Matrix Instructions", "mbarrier" and
// "cp.async.bulk".
//
// Include only where __CUDA_ARCH_FEAT_SM90_ALL guards the device code that calls these.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/mma.cuh"

namespace minipuzzle::cuda::sm90 {

// ---- addresses and barriers

__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine.
__device__ inline void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives and announces `bytes` that the copy engine will deliver.
__device__ inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
// Waits until the phase of that parity is complete.
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "waiting:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra finished;\n"
        "bra waiting;\n"
        "finished:\n"
        "}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}
// A barrier among `threads` threads of the block; id 0 is __syncthreads'.
__device__ inline void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Adds 1 to a counter in shared memory and returns what was there. Relaxed: enough to say that reads are
// done, as their values have arrived.
__device__ inline uint32_t count_up(uint32_t counter) {
    uint32_t before;
    asm volatile("atom.relaxed.cta.shared::cta.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "r"(counter)
                 : "memory");
    return before;
}

// Where the kernel before in the stream may still run (programmatic dependent launch): waits until it is done
// and its writes are seen; and lets the kernel after start.
__device__ inline void wait_for_kernel_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ inline void let_next_kernel_start() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// What this thread wrote to shared memory by ordinary stores becomes visible to wgmma and the copy engine
// (after a barrier, for other threads' use of them).
__device__ inline void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- the copy engine

// The box at those coordinates of a map, innermost first, to shared memory; elements outside read 0.
__device__ inline void copy_box_in(uint32_t to, const CUtensorMap& map, uint32_t barrier, int c0, int c1,
                                   int c2, int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
        "%4, %5, "
        "%6}], [%2];" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}
__device__ inline void copy_box_in(uint32_t to, const CUtensorMap& map, uint32_t barrier, int c0, int c1,
                                   int c2, int c3, int c4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
        "%4, %5, "
        "%6, %7}], [%2];" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
}
// From shared memory to a box; elements outside are dropped.
__device__ inline void copy_box_out(const CUtensorMap& map, uint32_t from, int c0, int c1, int c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
        "r"(from), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
// `bytes` (a multiple of 16) of consecutive memory.
__device__ inline void copy_in(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
        : "memory");
}
__device__ inline void copies_out_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until the copies that this thread committed have read their shared memory.
__device__ inline void copies_out_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// ---- 8x8 matrices of bf16 between shared memory and the registers of a warp

using cuda::load_matrices;
using cuda::load_matrices_transposed;
__device__ inline void store_matrices(uint32_t address, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r0),
                 "r"(r1), "r"(r2), "r"(r3)
                 : "memory");
}

// ---- wgmma

// Width in bytes of the rows of a tile, and with it the pattern in which 16-byte pieces of a row are
// exchanged: piece p of row r lies at place p ^ (r * width / 128) % (width / 16).
enum class Swizzle { b32 = 32, b64 = 64, b128 = 128 };

// Where piece `piece` of row `row` of a tile lies, in bytes from the tile's start.
template <Swizzle kSwizzle>
__host__ __device__ constexpr uint32_t swizzled(uint32_t row, uint32_t piece) {
    constexpr uint32_t kWidth = static_cast<uint32_t>(kSwizzle);
    return row * kWidth + ((piece ^ ((row * kWidth / 128) % (kWidth / 16))) << 4);
}

// A matrix descriptor, as two halves so that moving along an operand is one 32-bit addition. For both kinds
// of operand eight rows of a tile, as the copy engine writes them, are one unit, and `stride` is the distance
// of units along the rows: rows are M or N where the operand is contiguous along K ("K major"), and K where
// it is contiguous along M or N. `leading` is then the distance of tiles along M or N, of no meaning for K
// major operands.
struct Descriptor {
    uint32_t low, high;
    __device__ Descriptor operator+(uint32_t bytes) const { return {low + (bytes >> 4), high}; }
};
template <Swizzle kSwizzle>
__device__ inline Descriptor descriptor(uint32_t address, uint32_t leading) {
    constexpr uint32_t kMode = kSwizzle == Swizzle::b128 ? 1 : kSwizzle == Swizzle::b64 ? 2 : 3;
    constexpr uint32_t kStride = 8 * static_cast<uint32_t>(kSwizzle);
    return {(address >> 4) | (leading >> 4 << 16), kMode << 30 | kStride >> 4};
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `kPending` of the committed groups are not done.
template <int kPending>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of accumulators across a fence or a wait.
template <int kCount>
__device__ inline void pin(float (&values)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
// Likewise for an operand in registers: it is kept until here, the products that read it being done.
template <int kRows, int kColumns>
__device__ inline void pin(uint32_t (&values)[kRows][kColumns]) {
#pragma unroll
    for (auto& row : values)
#pragma unroll
        for (uint32_t& value : row) asm volatile("" : "+r"(value)::"memory");
}
template <int kRows, int kColumns>
__device__ inline void set_zero(uint32_t (&values)[kRows][kColumns]) {
#pragma unroll
    for (auto& row : values)
#pragma unroll
        for (uint32_t& value : row) value = 0;
}

// d += A B (d = A B where !accumulate) with A [64, 16], B [16, kColumns], d as the accumulator of one
// warpgroup: thread t of warp w holds of row 16 w + t / 4 (+ 8) columns 8 j + 2 (t % 4) (+ 1) in d[4 j], d[4
// j + 1] (d[4 j + 2], d[4 j + 3]).
template <int kColumns>
struct Wgmma;

#define MP_LIST_8(a, b, c, d, e, f, g, h) \
    "%" #a ", %" #b ", %" #c ", %" #d ", %" #e ", %" #f ", %" #g ", %" #h
#define MP_NAMES_8 MP_LIST_8(0, 1, 2, 3, 4, 5, 6, 7)
#define MP_NAMES_16 MP_NAMES_8 ", " MP_LIST_8(8, 9, 10, 11, 12, 13, 14, 15)
#define MP_NAMES_32 \
    MP_NAMES_16 ", " MP_LIST_8(16, 17, 18, 19, 20, 21, 22, 23) ", " MP_LIST_8(24, 25, 26, 27, 28, 29, 30, 31)
#define MP_NAMES_64                                                                \
    MP_NAMES_32 ", " MP_LIST_8(32, 33, 34, 35, 36, 37, 38, 39) ", " MP_LIST_8(     \
        40, 41, 42, 43, 44, 45, 46, 47) ", " MP_LIST_8(48, 49, 50, 51, 52, 53, 54, \
                                                       55) ", " MP_LIST_8(56, 57, 58, 59, 60, 61, 62, 63)
#define MP_NAMES_128 \
    MP_NAMES_64 ", " MP_LIST_8(64, 65, 66, 67, 68, 69, 70, 71) ", " MP_LIST_8(72, 73, 74, 75, 76, 77, 78, 79) ", "     \
        MP_LIST_8(80, 81, 82, 83, 84, 85, 86, 87) ", " MP_LIST_8(88, 89, 90, 91, 92, 93, 94, 95) ", " MP_LIST_8(       \
            96, 97, 98, 99, 100, 101, 102, 103) ", " MP_LIST_8(104, 105, 106, 107, 108, 109, 110, 111) ", " MP_LIST_8( \
            112, 113, 114, 115, 116, 117, 118, 119) ", " MP_LIST_8(120, 121, 122, 123, 124, 125, 126, 127)

#define MP_OUT_8(d, i)                                                                          \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define MP_OUT_16(d, i) MP_OUT_8(d, i), MP_OUT_8(d, i + 8)
#define MP_OUT_32(d, i) MP_OUT_16(d, i), MP_OUT_16(d, i + 16)
#define MP_OUT_64(d, i) MP_OUT_32(d, i), MP_OUT_32(d, i + 32)
#define MP_OUT_128(d, i) MP_OUT_64(d, i), MP_OUT_64(d, i + 64)

// `k0` ... number the operands behind the `registers` accumulators.
#define MP_DEFINE_WGMMA(columns, registers, k0, k1, k2, k3, k4, k5, k6, k7)                                  \
    template <>                                                                                              \
    struct Wgmma<columns> {                                                                                  \
        /* A and B in shared memory, both K major. */                                                        \
        static __device__ void shared(float* d, Descriptor a, Descriptor b, int accumulate) {                \
            asm volatile("{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %" #k4 ", 0;\nmov.b64 a, {%" #k0 \
                         ", %" #k1 "};\nmov.b64 b, {%" #k2 ", %" #k3                                         \
                         "};\nwgmma.mma_async.sync.aligned.m64n" #columns                                    \
                         "k16.f32.bf16.bf16 {" MP_NAMES_##registers "}, a, b, p, 1, 1, 0, 0;\n}\n"           \
                         : MP_OUT_##registers(d, 0)                                                          \
                         : "r"(a.low), "r"(a.high), "r"(b.low), "r"(b.high), "r"(accumulate));               \
        }                                                                                                    \
        /* A in registers, B in shared memory: kAlongN says contiguous along N, else K major. */             \
        template <bool kAlongN>                                                                              \
        static __device__ void registers_by_shared(float* d, const uint32_t (&a)[4], Descriptor b,           \
                                                   int accumulate) {                                         \
            asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %" #k6 ", 0;\nmov.b64 b, {%" #k4    \
                         ", %" #k5 "};\nwgmma.mma_async.sync.aligned.m64n" #columns                          \
                         "k16.f32.bf16.bf16 {" MP_NAMES_##registers                                          \
                         "}, {%" #k0 ", %" #k1 ", %" #k2 ", %" #k3 "}, b, p, 1, 1, %" #k7 ";\n}\n"           \
                         : MP_OUT_##registers(d, 0)                                                          \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high),              \
                           "r"(accumulate), "n"(kAlongN ? 1 : 0));                                           \
        }                                                                                                    \
    }

MP_DEFINE_WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14, 15);
MP_DEFINE_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22, 23);
MP_DEFINE_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38, 39);
MP_DEFINE_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70, 71);
MP_DEFINE_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134, 135);

}  // namespace minipuzzle::cuda::sm90
