// Gradients of attention in a fixed order of summation: scratch memory, tensor maps, launches.
//
// At the 8B shape (32 query and 8 kv heads of 128, B 1, T 8192) the five products below the diagonal are
// 5 T^2 H P = 1.37 TFLOP; forming scores and dP twice makes it seven, 1.92 TFLOP, 2.7 ms at 700 TFLOP/s.
// Ideal bytes: q, out, d_out and d_q 67 MB each, k, v, d_k and d_v 17 MB each, 0.34 GB, 0.08 ms of memory.
#include "kernels/cuda/attention_backward_hopper.h"

#include <cmath>

#include "kernels/cuda/attention_backward_keys.cuh"
#include "kernels/cuda/attention_backward_queries.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/tensor_map.h"

namespace minipuzzle::cuda {
namespace {

namespace back = attention_backward;

constexpr int kStatisticsThreads = 256, kRowThreads = back::kDim / 8;

__device__ float add_pair(float sum, uint32_t a, uint32_t b) {
    return fmaf(high_value(a), high_value(b), fmaf(low_value(a), low_value(b), sum));
}

// Per row of a head -lse log2(e) and delta = sum of d_out * out, laid out in steps of 64 rows; rows beyond
// the sequence get statistics that make their probabilities 0. A row is 16 threads', heads fastest, then
// rows. Ideal bytes: out and d_out, 134 MB at the 8B shape.
__global__ void __launch_bounds__(kStatisticsThreads)
    take_row_statistics(const uint4* out, const uint4* d_out, const float* lse, float* statistics, int time,
                        int heads, int steps) {
    const int64_t row =
        static_cast<int64_t>(blockIdx.x) * (kStatisticsThreads / kRowThreads) + threadIdx.x / kRowThreads;
    const int head = static_cast<int>(row % heads), rows = steps * back::kStep;
    const int64_t place = row / heads, sequence = place / rows;
    const int token = static_cast<int>(place % rows), piece = threadIdx.x % kRowThreads;
    const int64_t of_head = sequence * heads + head;
    float delta = 0, shift = -1e30f;
    if (token < time) {
        const int64_t at = ((sequence * time + token) * heads + head) * kRowThreads + piece;
        const uint4 a = __ldcs(out + at), b = d_out[at];
        delta = add_pair(add_pair(0, a.x, b.x), a.y, b.y);
        delta = add_pair(add_pair(delta, a.z, b.z), a.w, b.w);
        shift = lse[of_head * time + token] * -kLog2E;
    }
#pragma unroll
    for (int distance = kRowThreads / 2; distance > 0; distance /= 2)
        delta += __shfl_xor_sync(~0u, delta, distance);
    float* to =
        statistics + (of_head * steps + token / back::kStep) * back::kStatisticsFloats + token % back::kStep;
    if (piece == 0) {
        to[0] = shift;
        to[back::kStep] = delta;
    }
}

int64_t padded_steps(const AttentionBackward& args) {
    return div_up(args.q.size(1), int64_t{back::kBlock}) * (back::kBlock / back::kStep);
}

// Boxes of so many rows of one head of [B, T, heads * 128], as two blocks of 64 columns.
CUtensorMap map_in(const Tensor& tensor, int64_t rows) {
    const int64_t time = tensor.size(1), pitch = tensor.size(2) * 2;
    return make_map(
        tensor.data,
        {{64, 2, 64}, {time, pitch, rows}, {tensor.size(2) / 64, 128, 2}, {tensor.size(0), time * pitch, 1}});
}
// Boxes of 16 rows and 64 columns.
CUtensorMap map_out(const Tensor& tensor) {
    const int64_t time = tensor.size(1), pitch = tensor.size(2) * 2;
    return make_map(tensor.data,
                    {{tensor.size(2), 2, 64}, {time, pitch, 16}, {tensor.size(0), time * pitch, 1}});
}

// `early`: the kernel may begin as soon as every block of the one before has.
template <class Maps>
void launch(const Context& context, void (*kernel)(Maps, back::Params), int64_t blocks, uint32_t shared_bytes,
            const Maps& maps, const back::Params& params, bool early) {
    MP_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = early;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(back::kThreads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = context.stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    MP_CUDA(cudaLaunchKernelEx(&config, kernel, maps, params));
}

}  // namespace

bool may_use_hopper_backward(const AttentionBackward& args) {
    // Blocks of the largest grid, take_row_statistics', are within its limit.
    const int64_t rows = args.q.size(0) * padded_steps(args) * back::kStep * args.heads;
    if (args.head_dim != back::kDim || args.document || rows > int64_t{INT32_MAX} * 16) return false;
    for (const Tensor* tensor :
         {&args.q, &args.k, &args.v, &args.out, &args.d_out, &args.d_q, &args.d_k, &args.d_v})
        if (!on_16_bytes(tensor->data)) return false;
    return true;
}

int64_t attention_backward_hopper_scratch_bytes(const AttentionBackward& args) {
    return args.q.size(0) * args.heads * padded_steps(args) * back::kStatisticsBytes;
}

void attention_backward_hopper(const Context& context, const AttentionBackward& args) {
    const int64_t batch = args.q.size(0), time = args.q.size(1);
    if (batch * time == 0) return;
    MP_ASSERT(attention_backward_hopper_scratch_bytes(args) <= context.scratch_capacity);
    auto* statistics = reinterpret_cast<float*>(context.scratch);
    back::Params params;
    params.statistics = statistics;
    params.time = narrow<int>(time);
    params.heads = narrow<int>(args.heads);
    params.kv_heads = narrow<int>(args.kv_heads);
    params.steps = narrow<int>(padded_steps(args));
    params.batch = narrow<int>(batch);
    params.scale = 1.0f / std::sqrt(static_cast<float>(back::kDim));
    params.scale_log2 = kLog2E / std::sqrt(static_cast<float>(back::kDim));

    const int64_t rows = batch * params.steps * back::kStep * args.heads;
    take_row_statistics<<<static_cast<unsigned>(rows / (kStatisticsThreads / kRowThreads)),
                          kStatisticsThreads, 0, context.stream>>>(
        reinterpret_cast<const uint4*>(args.out.data), reinterpret_cast<const uint4*>(args.d_out.data),
        args.lse.as<float>(), statistics, params.time, params.heads, params.steps);
    MP_CUDA_LAUNCHED();

    const int64_t blocks = batch * div_up(time, int64_t{back::kBlock});
    const back::KeyMaps key_maps{map_in(args.q, back::kStep),
                                 map_in(args.d_out, back::kStep),
                                 map_in(args.k, back::kBlock),
                                 map_in(args.v, back::kBlock),
                                 map_out(args.d_k),
                                 map_out(args.d_v)};
    launch(context, back::key_gradients, blocks * args.kv_heads, back::KeyLayout::kBytes, key_maps, params,
           false);
    const back::QueryMaps query_maps{map_in(args.q, back::kBlock), map_in(args.d_out, back::kBlock),
                                     map_in(args.k, back::kBlock), map_in(args.v, back::kBlock),
                                     map_out(args.d_q)};
    launch(context, back::query_gradients, blocks * args.heads, back::QueryLayout::kBytes, query_maps, params,
           true);
}

}  // namespace minipuzzle::cuda
