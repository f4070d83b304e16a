// Sums in a fixed order, and counter-based random numbers.
#include <numbers>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/vectors.cuh"
#include "kernels/random.h"

namespace minipuzzle::cuda {
namespace {

// ---- column sums

constexpr int kColumnLanes = 16, kColumnSlices = 32;

// A block sums W * kColumnLanes columns of one sequence. Slice s takes tokens s, s + kColumnSlices, ...; then
// the slices are added in order.
template <int W>
__global__ void __launch_bounds__(kColumnLanes* kColumnSlices)
    sum_columns(const bf16* x, float* out, int64_t batch, int64_t time, int64_t width) {
    constexpr int kColumns = kColumnLanes * W, kThreads = kColumnLanes * kColumnSlices;
    __shared__ float sums[kColumnSlices][kColumns];
    const int lane = threadIdx.x % kColumnLanes, slice = threadIdx.x / kColumnLanes;
    const int64_t blocks = (width + kColumns - 1) / kColumns;
    for (int64_t task = blockIdx.x; task < batch * blocks; task += gridDim.x) {
        const int64_t sequence = task / blocks, first = task % blocks * kColumns;
        const int64_t column = first + lane * W;
        float sum[W] = {};
        if (column < width) {
            const bf16* at = x + sequence * time * width + column;
#pragma unroll 4
            for (int64_t t = slice; t < time; t += kColumnSlices) {
                float v[W];
                unpack(load<W>(at + t * width), v);
#pragma unroll
                for (int j = 0; j < W; ++j) sum[j] += fabsf(v[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < W; ++j) sums[slice][lane * W + j] = sum[j];
        __syncthreads();
        for (int c = threadIdx.x; c < kColumns && first + c < width; c += kThreads) {
            float total = 0;
            for (int s = 0; s < kColumnSlices; ++s) total += sums[s][c];
            out[sequence * width + first + c] = total;
        }
        __syncthreads();
    }
}

// ---- squared norm

constexpr int kNormThreads = 256;
constexpr int64_t kNormPiece = 16384;  // elements of one block, at least
constexpr int64_t kNormBlocks = 2048;  // at most

int64_t norm_blocks(int64_t count) { return std::min(div_up(count, kNormPiece), kNormBlocks); }

__device__ double to_double(bf16 v) { return static_cast<double>(__bfloat162float(v)); }
__device__ double to_double(float v) { return static_cast<double>(v); }

template <class T, int W>
struct alignas(sizeof(T) * W) Elements {
    T values[W];
};

// Thread i of all threads sums vectors i, i + threads, ... and the elements after the last whole vector
// likewise.
template <class T, int W>
__global__ void __launch_bounds__(kNormThreads) sum_squares(const T* x, int64_t count, double* partials) {
    __shared__ double warps[kWarp];
    const int64_t threads = int64_t{gridDim.x} * kNormThreads;
    const int64_t thread = int64_t{blockIdx.x} * kNormThreads + threadIdx.x;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = thread; i < count / W; i += threads) {
        const Elements<T, W> held = reinterpret_cast<const Elements<T, W>*>(x)[i];
#pragma unroll
        for (int j = 0; j < W; ++j) sum = fma(to_double(held.values[j]), to_double(held.values[j]), sum);
    }
    for (int64_t i = count / W * W + thread; i < count; i += threads)
        sum = fma(to_double(x[i]), to_double(x[i]), sum);
    sum = row_sum(sum, warps);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kNormThreads)
    add_partials(const double* partials, int64_t count, double* total) {
    __shared__ double warps[kWarp];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += kNormThreads) sum += partials[i];
    sum = row_sum(sum, warps);
    if (threadIdx.x == 0) *total = sum;
}

template <class T>
void sum_squares(const Context& context, const T* x, int64_t count, double* partials) {
    constexpr int kVector = 16 / sizeof(T);
    const auto kernel = vectors_fit(x, 0) ? sum_squares<T, kVector> : sum_squares<T, 1>;
    kernel<<<grid_size(norm_blocks(count)), kNormThreads, 0, context.stream>>>(x, count, partials);
    MP_CUDA_LAUNCHED();
}

// ---- random numbers

constexpr int kRandomThreads = 256;

// kernels/random.h: counter_normal.
__device__ double normal(uint64_t key, int64_t index) {
    const double radius = sqrt(-2 * log(counter_uniform(key, 2 * index)));
    return radius * cos(2 * std::numbers::pi * counter_uniform(key, 2 * index + 1));
}

__device__ void put(float* to, double value) { *to = static_cast<float>(value); }
__device__ void put(bf16* to, double value) { *to = __double2bfloat16(value); }

template <class T>
__global__ void __launch_bounds__(kRandomThreads)
    draw_normals(T* out, int64_t count, uint64_t key, double scale) {
    for (int64_t i = int64_t{blockIdx.x} * kRandomThreads + threadIdx.x; i < count;
         i += int64_t{gridDim.x} * kRandomThreads)
        put(out + i, scale * normal(key, i));
}

template <class T>
void draw_normals(const Context& context, T* out, const RandomNormal& args) {
    const int64_t count = args.out.elements();
    if (count == 0) return;
    draw_normals<<<grid_size(div_up(count, kRandomThreads)), kRandomThreads, 0, context.stream>>>(
        out, count, args.key, args.scale);
    MP_CUDA_LAUNCHED();
}

}  // namespace

// 8B: 2 * F read per token (42 KiB at F 21504), 4 * F written per sequence; 1 FLOP per element.
void run(const Context& context, const AbsoluteColumnSums& args) {
    const int64_t batch = args.x.size(0), time = args.x.size(1), width = args.x.size(2);
    if (batch == 0 || width == 0) return;
    const bf16* x = bf16_data(args.x);
    const bool vectors = vectors_fit(x, width);
    const int64_t columns = kColumnLanes * (vectors ? 8 : 1);
    const auto kernel = vectors ? sum_columns<8> : sum_columns<1>;
    kernel<<<grid_size(batch * div_up(width, columns)), kColumnLanes * kColumnSlices, 0, context.stream>>>(
        x, args.out.as<float>(), batch, time, width);
    MP_CUDA_LAUNCHED();
}

// The partial sum of every block, then the total.
int64_t scratch_bytes(const SquaredNorm& args) {
    return (norm_blocks(args.x.elements()) + 1) * static_cast<int64_t>(sizeof(double));
}

// Every element read once, 2 FLOPs (in double) each; the host waits.
void run(const Context& context, const SquaredNorm& args) {
    *args.out = 0;
    const int64_t count = args.x.elements(), blocks = norm_blocks(count);
    if (count == 0) return;
    MP_ASSERT(context.scratch_capacity >= scratch_bytes(args));
    double* partials = reinterpret_cast<double*>(context.scratch);
    if (args.x.dtype == DType::f32)
        sum_squares(context, args.x.as<float>(), count, partials);
    else
        sum_squares(context, bf16_data(args.x), count, partials);
    add_partials<<<1, kNormThreads, 0, context.stream>>>(partials, blocks, partials + blocks);
    MP_CUDA_LAUNCHED();
    MP_CUDA(
        cudaMemcpyAsync(args.out, partials + blocks, sizeof(double), cudaMemcpyDeviceToHost, context.stream));
    MP_CUDA(cudaStreamSynchronize(context.stream));
}

// Every element written once; about 150 FLOPs (in double) each, which is what takes the time.
void run(const Context& context, const RandomNormal& args) {
    if (args.out.dtype == DType::f32)
        draw_normals(context, args.out.as<float>(), args);
    else
        draw_normals(context, bf16_data(args.out), args);
}

}  // namespace minipuzzle::cuda
