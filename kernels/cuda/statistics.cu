// Sums in a fixed order, and counter-based random numbers.
#include <numbers>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/vectors.cuh"
#include "kernels/random.h"

namespace minipuzzle::cuda {
namespace {

// ---- activation sums

// Where the units' channels lie in x [B, T, pitch], and how much there is of them.
struct Units {
    const bf16* x;  // channel 0 of unit 0, token 0
    int64_t batch, time, pitch, units, channels;
};

constexpr int kColumnLanes = 16, kColumnSlices = 32;

// Units of one channel. A block sums W * kColumnLanes of them over one sequence. Slice s takes tokens s,
// s + kColumnSlices, ...; then the slices are added in order.
template <int W, bool kSquared>
__global__ void __launch_bounds__(kColumnLanes* kColumnSlices) sum_columns(Units from, float* out) {
    constexpr int kColumns = kColumnLanes * W, kThreads = kColumnLanes * kColumnSlices;
    __shared__ float sums[kColumnSlices][kColumns];
    const int lane = threadIdx.x % kColumnLanes, slice = threadIdx.x / kColumnLanes;
    const int64_t blocks = (from.units + kColumns - 1) / kColumns;
    for (int64_t task = blockIdx.x; task < from.batch * blocks; task += gridDim.x) {
        const int64_t sequence = task / blocks, first = task % blocks * kColumns;
        const int64_t column = first + lane * W;
        float sum[W] = {};
        if (column < from.units) {
            const bf16* at = from.x + sequence * from.time * from.pitch + column;
#pragma unroll 4
            for (int64_t t = slice; t < from.time; t += kColumnSlices) {
                float v[W];
                unpack(load<W>(at + t * from.pitch), v);
#pragma unroll
                for (int j = 0; j < W; ++j)
                    sum[j] = kSquared ? fmaf(v[j], v[j], sum[j]) : sum[j] + fabsf(v[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < W; ++j) sums[slice][lane * W + j] = sum[j];
        __syncthreads();
        for (int c = threadIdx.x; c < kColumns && first + c < from.units; c += kThreads) {
            float total = 0;
            for (int s = 0; s < kColumnSlices; ++s) total += sums[s][c];
            out[sequence * from.units + first + c] = total;
        }
        __syncthreads();
    }
}

constexpr int kUnitWarps = 32;

// Units of many channels, which are few (a layer's KV heads). A block sums one over one sequence. Warp w
// takes tokens w, w + kUnitWarps, ...; then the warps are added in order.
template <int W, bool kSquared>
__global__ void __launch_bounds__(kUnitWarps* kWarp) sum_units(Units from, float* out) {
    __shared__ float sums[kUnitWarps];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (int64_t task = blockIdx.x; task < from.batch * from.units; task += gridDim.x) {
        const int64_t sequence = task / from.units, unit = task % from.units;
        const bf16* at = from.x + sequence * from.time * from.pitch + unit * from.channels;
        float sum = 0;
#pragma unroll 4
        for (int64_t t = warp; t < from.time; t += kUnitWarps) {
            float square = 0;
            for (int64_t c = lane * W; c < from.channels; c += kWarp * W) {
                float v[W];
                unpack(load<W>(at + t * from.pitch + c), v);
#pragma unroll
                for (int j = 0; j < W; ++j) square = fmaf(v[j], v[j], square);
            }
            square = warp_sum(square);
            sum += kSquared ? square : sqrtf(square);
        }
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            float total = 0;
            for (int w = 0; w < kUnitWarps; ++w) total += sums[w];
            out[task] = total;
        }
        __syncthreads();
    }
}

template <int W, bool kSquared>
void sum_activations(const Context& context, const Units& from, float* out) {
    if (from.channels == 1)
        sum_columns<W, kSquared><<<grid_size(from.batch * div_up(from.units, int64_t{kColumnLanes} * W)),
                                   kColumnLanes * kColumnSlices, 0, context.stream>>>(from, out);
    else
        sum_units<W, kSquared>
            <<<grid_size(from.batch * from.units), kUnitWarps * kWarp, 0, context.stream>>>(from, out);
    MP_CUDA_LAUNCHED();
}

// ---- sums of powers over sequences

constexpr int kPowerThreads = 256;

__global__ void __launch_bounds__(kPowerThreads)
    accumulate_powers(const float* x, double* total, int64_t batch, int64_t units, double scale,
                      double power) {
    const int64_t n = int64_t{blockIdx.x} * kPowerThreads + threadIdx.x;
    if (n >= units) return;
    double sum = total[n];
    for (int64_t b = 0; b < batch; ++b) {
        const double value = scale * static_cast<double>(x[b * units + n]);
        sum += power == 2 ? value * value : power == 1 ? value : sqrt(value);
    }
    total[n] = sum;
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

// 8B: per token 2 * F read (42 KiB at F 21504), 2 * H P of a Mamba layer (16 KiB) or of attention (8 KiB);
// 4 bytes written per sequence and unit; 1 or 2 FLOPs per element. A layer has few units of many channels, so
// those do not fill the device; its attention layers are few as well.
void run(const Context& context, const ActivationSums& args) {
    const Units from{.x = bf16_data(args.x) + args.first,
                     .batch = args.x.size(0),
                     .time = args.x.size(1),
                     .pitch = args.x.columns(),
                     .units = args.out.columns(),
                     .channels = args.channels};
    if (args.out.elements() == 0) return;
    float* out = args.out.as<float>();
    const int64_t row = from.channels == 1 ? from.units : from.channels;
    if (vectors_fit(from.x, from.pitch) && row % 8 == 0)
        args.squared ? sum_activations<8, true>(context, from, out)
                     : sum_activations<8, false>(context, from, out);
    else
        args.squared ? sum_activations<1, true>(context, from, out)
                     : sum_activations<1, false>(context, from, out);
}

// 4 bytes read per sequence and unit, 16 read and written per unit: 1.1 MB at F 21504 and 8 sequences.
void run(const Context& context, const AccumulatePowers& args) {
    const int64_t units = args.total.elements();
    if (args.x.elements() == 0) return;
    accumulate_powers<<<grid_size(div_up(units, int64_t{kPowerThreads})), kPowerThreads, 0, context.stream>>>(
        args.x.as<float>(), args.total.as<double>(), args.x.size(0), units, args.scale, args.power);
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
