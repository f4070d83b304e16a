// Element-wise operations.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 2;  // vectors of one operand that a thread has in flight

__device__ float squared_relu(float x) {
    const float positive = x < 0 ? 0.0f : x;  // keeps NaN
    return positive * positive;
}

struct SquaredReluOf {
    const bf16* x;
    template <int W>
    __device__ Packed<W> read(int64_t i) const {
        return load<W>(x + i);
    }
    template <int W>
    __device__ Packed<W> apply(const Packed<W>& read) const {
        float v[W];
        unpack(read, v);
#pragma unroll
        for (int j = 0; j < W; ++j) v[j] = squared_relu(v[j]);
        return pack(v);
    }
};

template <int W>
struct PackedPair {
    Packed<W> a, b;
};

struct SumOf {
    const bf16 *a, *b;
    template <int W>
    __device__ PackedPair<W> read(int64_t i) const {
        return {load<W>(a + i), load<W>(b + i)};
    }
    template <int W>
    __device__ Packed<W> apply(const PackedPair<W>& read) const {
        float v[W], w[W];
        unpack(read.a, v);
        unpack(read.b, w);
#pragma unroll
        for (int j = 0; j < W; ++j) v[j] += w[j];
        return pack(v);
    }
};

// out[i] for i in [first, count): a thread reads kHeld vectors before it writes the first. Operands may be
// `out`.
template <int W, class Operation>
__global__ void __launch_bounds__(kThreads)
    map_elements(const Operation operation, bf16* out, int64_t first, int64_t count, Reuse reuse) {
    using Read = decltype(operation.template read<W>(0));
    constexpr int64_t kPiece = int64_t{kThreads} * kHeld * W;
    for (int64_t begin = first + blockIdx.x * kPiece; begin < count; begin += gridDim.x * kPiece) {
        Read held[kHeld];
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const int64_t i = begin + (h * kThreads + threadIdx.x) * W;
            if (i < count) held[h] = operation.template read<W>(i);
        }
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const int64_t i = begin + (h * kThreads + threadIdx.x) * W;
            if (i < count) store(out + i, operation.template apply<W>(held[h]), reuse);
        }
    }
}

// Whole vectors first where they fit, then what is left.
template <class Operation>
void map(const Context& context, const Operation& operation, bf16* out, int64_t count, bool vectors) {
    const int64_t whole = vectors ? count / 8 * 8 : 0, rest = count - whole;
    const Reuse reuse = reuse_of(count * 2);
    constexpr int64_t kVectors = kThreads * kHeld;
    if (whole > 0)
        map_elements<8><<<grid_size(div_up(whole / 8, kVectors)), kThreads, 0, context.stream>>>(
            operation, out, 0, whole, reuse);
    if (rest > 0)
        map_elements<1><<<grid_size(div_up(rest, kVectors)), kThreads, 0, context.stream>>>(
            operation, out, whole, count, reuse);
    MP_CUDA_LAUNCHED();
}

}  // namespace

// 8B: 2 * F read and 2 * F written per token (84 KiB at F 21504); 2 FLOPs per element.
void run(const Context& context, const SquaredReluForward& args) {
    const bf16* x = bf16_data(args.x);
    bf16* out = bf16_data(args.out);
    map(context, SquaredReluOf{x}, out, args.x.elements(), vectors_fit(x, 0) && vectors_fit(out, 0));
}

// 8B: 4 * D read and 2 * D written per token (24 KiB at D 4096); 1 FLOP per element.
void run(const Context& context, const Add& args) {
    const bf16 *a = bf16_data(args.a), *b = bf16_data(args.b);
    bf16* out = bf16_data(args.out);
    map(context, SumOf{a, b}, out, args.a.elements(),
        vectors_fit(a, 0) && vectors_fit(b, 0) && vectors_fit(out, 0));
}

}  // namespace minipuzzle::cuda
