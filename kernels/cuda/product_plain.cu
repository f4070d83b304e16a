// A product (+ residual) in any form, for shapes and addresses no library algorithm takes. FLOPs: 2 * rows *
// inputs * outputs on the float32 units; each block reads its 64 rows of x and of weight once. Correct and
// steady, not fast.
#include <cuda_bf16.h>

#include "kernels/cuda/product_plain.h"
#include "kernels/cuda/quantise.cuh"

namespace minipuzzle::cuda {

namespace {

constexpr int kTile = 64;   // rows, and outputs, of one block
constexpr int kDepth = 16;  // inputs staged at a time
constexpr int kThreads = 256;
constexpr int kEach = 4;  // rows, and outputs, of one thread, strided by 16

// An operand of bf16 or E4M3 codes: `lines` are the rows of x, or the outputs of weight.
struct Operand {
    const void* at;
    int64_t line_stride, input_stride;  // elements; one of them is 1
};

struct Arguments {
    Operand x, weight;
    const float *x_scale, *weight_scale;  // of codes
    const void* residual;
    void* out;
    int64_t rows, inputs, outputs, output_tiles;
};

__device__ float load(const float* from) { return *from; }
__device__ float load(const __nv_bfloat16* from) { return __bfloat162float(*from); }
__device__ float load(const uint8_t* from) { return decode(*from); }
__device__ void store(float* to, float value) { *to = value; }
__device__ void store(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }

// Stages lines first + 0..63, inputs input + 0..15; zero outside. Consecutive threads read neighbours.
template <class In>
__device__ void stage(float (&tile)[kDepth][kTile + 1], const Operand& operand, int64_t first, int64_t count,
                      int64_t input, int64_t inputs) {
    const bool along_inputs = operand.input_stride == 1;
    for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
        const int depth = along_inputs ? i % kDepth : i / kTile, line = along_inputs ? i / kDepth : i % kTile;
        const bool inside = first + line < count && input + depth < inputs;
        tile[depth][line] =
            inside ? load(static_cast<const In*>(operand.at) + (first + line) * operand.line_stride +
                          (input + depth) * operand.input_stride)
                   : 0.0f;
    }
}

template <class In, class Out>
__global__ void __launch_bounds__(kThreads) product_kernel(Arguments a) {
    __shared__ float x[kDepth][kTile + 1], weight[kDepth][kTile + 1];
    const int64_t row = static_cast<int64_t>(blockIdx.x) / a.output_tiles * kTile;
    const int64_t output = static_cast<int64_t>(blockIdx.x) % a.output_tiles * kTile;
    const int own_row = threadIdx.x / 16, own_output = threadIdx.x % 16;

    float sum[kEach][kEach] = {};
    for (int64_t input = 0; input < a.inputs; input += kDepth) {
        stage<In>(x, a.x, row, a.rows, input, a.inputs);
        stage<In>(weight, a.weight, output, a.outputs, input, a.inputs);
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
            if (a.x_scale) value *= a.x_scale[r] * a.weight_scale[o];
            if (a.residual) value += load(static_cast<const Out*>(a.residual) + r * a.outputs + o);
            store(static_cast<Out*>(a.out) + r * a.outputs + o, value);
        }
}

Operand x_of(const Product& product) {
    if (product.form == ProductForm::weight_gradient) return {product.x, 1, product.rows};
    return {product.x, product.inputs, 1};
}

Operand weight_of(const Product& product) {
    if (product.form == ProductForm::forward) return {product.weight, product.inputs, 1};
    return {product.weight, 1, product.outputs};
}

template <class In>
void launch(cudaStream_t stream, const Arguments& arguments, int blocks, DType out_type) {
    if (out_type == DType::f32)
        product_kernel<In, float><<<blocks, kThreads, 0, stream>>>(arguments);
    else
        product_kernel<In, __nv_bfloat16><<<blocks, kThreads, 0, stream>>>(arguments);
    MP_CUDA_LAUNCHED();
}

}  // namespace

void product_plain(const Context& context, const Product& product) {
    if (product.rows == 0 || product.outputs == 0) return;
    const int64_t output_tiles = div_up(product.outputs, kTile);
    const Arguments arguments{.x = x_of(product),
                              .weight = weight_of(product),
                              .x_scale = product.x_scale,
                              .weight_scale = product.weight_scale,
                              .residual = product.residual,
                              .out = product.out,
                              .rows = product.rows,
                              .inputs = product.inputs,
                              .outputs = product.outputs,
                              .output_tiles = output_tiles};
    const int blocks = narrow<int>(div_up(product.rows, kTile) * output_tiles);
    if (product.quantised())
        launch<uint8_t>(context.stream, arguments, blocks, product.out_type);
    else
        launch<__nv_bfloat16>(context.stream, arguments, blocks, product.out_type);
}

}  // namespace minipuzzle::cuda
