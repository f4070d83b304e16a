// Element-wise operations.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/quantise.h"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float squared_relu(float x) {
    const float positive = x < 0 ? 0.0f : x;  // keeps NaN
    return positive * positive;
}

struct SquaredReluOf {
    const bf16* x;
    template <int W>
    __device__ Packed<W> apply(int64_t i) const {
        float v[W];
        unpack(load<W>(x + i), v);
#pragma unroll
        for (int j = 0; j < W; ++j) v[j] = squared_relu(v[j]);
        return pack(v);
    }
};

struct SquaredReluGradientOf {
    const bf16 *x, *d_out;
    template <int W>
    __device__ Packed<W> apply(int64_t i) const {
        const Packed<W> read_x = load<W>(x + i), read_d = load<W>(d_out + i);
        float v[W], d[W];
        unpack(read_x, v);
        unpack(read_d, d);
#pragma unroll
        for (int j = 0; j < W; ++j) d[j] *= 2 * (v[j] < 0 ? 0.0f : v[j]);  // keeps NaN
        return pack(d);
    }
};

struct SumOf {
    const bf16 *a, *b;
    template <int W>
    __device__ Packed<W> apply(int64_t i) const {
        const Packed<W> read_a = load<W>(a + i), read_b = load<W>(b + i);
        float v[W], w[W];
        unpack(read_a, v);
        unpack(read_b, w);
#pragma unroll
        for (int j = 0; j < W; ++j) v[j] += w[j];
        return pack(v);
    }
};

// out[i] for i in [first, count), a vector per thread. Operands may be `out`.
template <int W, class Operation>
__global__ void __launch_bounds__(kThreads)
    map_elements(const Operation operation, bf16* out, int64_t first, int64_t count, Reuse reuse) {
    const int64_t step = int64_t{gridDim.x} * kThreads * W;
    for (int64_t i = first + (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W; i < count; i += step)
        store(out + i, operation.template apply<W>(i), reuse);
}

// Whole vectors first where they fit, then what is left.
template <class Operation>
void map(const Context& context, const Operation& operation, bf16* out, int64_t count, bool vectors) {
    const int64_t whole = vectors ? count / 8 * 8 : 0, rest = count - whole;
    const Reuse reuse = reuse_of(count * 2);
    if (whole > 0)
        map_elements<8><<<grid_size(div_up(whole / 8, kThreads)), kThreads, 0, context.stream>>>(
            operation, out, 0, whole, reuse);
    if (rest > 0)
        map_elements<1><<<grid_size(div_up(rest, kThreads)), kThreads, 0, context.stream>>>(
            operation, out, whole, count, reuse);
    MP_CUDA_LAUNCHED();
}

}  // namespace

// 8B: 2 * F read and 2 * F written per token (84 KiB at F 21504); 2 FLOPs per element.
void run(const Context& context, const SquaredReluForward& args) {
    if (args.out.dtype == DType::f8_e4m3) return quantised_squared_relu(context, args);
    const bf16* x = bf16_data(args.x);
    bf16* out = bf16_data(args.out);
    map(context, SquaredReluOf{x}, out, args.x.elements(), vectors_fit(x, 0) && vectors_fit(out, 0));
}

// 8B: 4 * F read and 2 * F written per token (126 KiB at F 21504); 2 FLOPs per element.
void run(const Context& context, const SquaredReluBackward& args) {
    const bf16 *x = bf16_data(args.x), *d_out = bf16_data(args.d_out);
    bf16* d_x = bf16_data(args.d_x);
    map(context, SquaredReluGradientOf{x, d_out}, d_x, args.x.elements(),
        vectors_fit(x, 0) && vectors_fit(d_out, 0) && vectors_fit(d_x, 0));
}

// 8B: 4 * D read and 2 * D written per token (24 KiB at D 4096); 1 FLOP per element.
void run(const Context& context, const Add& args) {
    const bf16 *a = bf16_data(args.a), *b = bf16_data(args.b);
    bf16* out = bf16_data(args.out);
    map(context, SumOf{a, b}, out, args.a.elements(),
        vectors_fit(a, 0) && vectors_fit(b, 0) && vectors_fit(out, 0));
}

}  // namespace minipuzzle::cuda
