// A product (+ residual) in any form, for shapes and addresses no library algorithm takes. FLOPs: 2 * rows *
// inputs * outputs on the float32 units; each block reads its 64 rows of x and of weight once. Correct and
// steady, not fast.
#include <cuda_bf16.h>

#include "kernels/cuda/product_plain.h"

namespace minipuzzle::cuda {

namespace {

constexpr int kTile = 64;   // rows, and outputs, of one block
constexpr int kDepth = 16;  // inputs staged at a time
constexpr int kThreads = 256;
constexpr int kEach = 4;  // rows, and outputs, of one thread, strided by 16

// An operand: `lines` are the rows of x, or the outputs of weight.
struct Operand {
    const __nv_bfloat16* at;
    int64_t line_stride, input_stride;  // elements; one of them is 1
};

struct Arguments {
    Operand x, weight;
    const void* residual;
    void* out;
    int64_t rows, inputs, outputs, output_tiles;
};

__device__ float load(const float* from) { return *from; }
__device__ float load(const __nv_bfloat16* from) { return __bfloat162float(*from); }
__device__ void store(float* to, float value) { *to = value; }
__device__ void store(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }

// Stages lines first + 0..63, inputs input + 0..15; zero outside. Consecutive threads read neighbours.
__device__ void stage(float (&tile)[kDepth][kTile + 1], const Operand& operand, int64_t first, int64_t count,
                      int64_t input, int64_t inputs) {
    const bool along_inputs = operand.input_stride == 1;
    for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
        const int depth = along_inputs ? i % kDepth : i / kTile, line = along_inputs ? i / kDepth : i % kTile;
        const bool inside = first + line < count && input + depth < inputs;
        tile[depth][line] = inside ? load(operand.at + (first + line) * operand.line_stride +
                                          (input + depth) * operand.input_stride)
                                   : 0.0f;
    }
}

template <class Out>
__global__ void __launch_bounds__(kThreads) product_kernel(Arguments a) {
    __shared__ float x[kDepth][kTile + 1], weight[kDepth][kTile + 1];
    const int64_t row = static_cast<int64_t>(blockIdx.x) / a.output_tiles * kTile;
    const int64_t output = static_cast<int64_t>(blockIdx.x) % a.output_tiles * kTile;
    const int own_row = threadIdx.x / 16, own_output = threadIdx.x % 16;

    float sum[kEach][kEach] = {};
    for (int64_t input = 0; input < a.inputs; input += kDepth) {
        stage(x, a.x, row, a.rows, input, a.inputs);
        stage(weight, a.weight, output, a.outputs, input, a.inputs);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kDepth; ++k)
#pragma unroll
            for (int i = 0; i < kEach; ++i)
#pragma unroll
                for (int j = 0; j < kEach; ++j)
                    sum[i][j] = fmaf(x[k][own_row + 16 * i], weight[k][own_output + 16 * j], sum[i][j]);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int64_t r = row + own_row + 16 * i, o = output + own_output + 16 * j;
            if (r >= a.rows || o >= a.outputs) continue;
            float value = sum[i][j];
            if (a.residual) value += load(static_cast<const Out*>(a.residual) + r * a.outputs + o);
            store(static_cast<Out*>(a.out) + r * a.outputs + o, value);
        }
}

Operand x_of(const Product& product) {
    const auto* at = reinterpret_cast<const __nv_bfloat16*>(product.x);
    if (product.form == ProductForm::weight_gradient) return {at, 1, product.rows};
    return {at, product.inputs, 1};
}

Operand weight_of(const Product& product) {
    const auto* at = reinterpret_cast<const __nv_bfloat16*>(product.weight);
    if (product.form == ProductForm::forward) return {at, product.inputs, 1};
    return {at, 1, product.outputs};
}

}  // namespace

void product_plain(const Context& context, const Product& product) {
    if (product.rows == 0 || product.outputs == 0) return;
    const int64_t output_tiles = div_up(product.outputs, kTile);
    const Arguments arguments{x_of(product), weight_of(product), product.residual, product.out,
                              product.rows,  product.inputs,     product.outputs,  output_tiles};
    const int blocks = narrow<int>(div_up(product.rows, kTile) * output_tiles);
    if (product.out_type == DType::f32)
        product_kernel<float><<<blocks, kThreads, 0, context.stream>>>(arguments);
    else
        product_kernel<__nv_bfloat16><<<blocks, kThreads, 0, context.stream>>>(arguments);
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda
