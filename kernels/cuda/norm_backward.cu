// RMS norm, backward. With r = rsqrt(mean(x^2) + eps) and g = weight * d_out:
//   d_x += r * (g - x * r^2 * mean(g * x));  d_weight += sum over rows of d_out * x * r.
// The row's statistics are formed anew, which costs nothing beside reading x.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/row_sums.cuh"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {
namespace {

// Blocks that walk over rows when d_weight is wanted, each with a partial sum of its own.
constexpr int64_t kMostSlices = 640;
constexpr int kLongRowThreads = 512;
// Shared memory that a kernel may use unasked.
constexpr int64_t kPlainShared = int64_t{48} << 10;

struct Rows {
    const bf16 *x, *d_out;
    const float* weight;
    bf16* d_x;
    float* slices;  // [blocks, width], a block's part of d_weight
    int64_t count, width;
    float eps;
    Reuse reuse;  // of d_x
};

// What a row's elements are multiplied by: r, and r^2 * mean(g * x). `sums`: of x^2 and of g * x.
struct RowFactors {
    float scale, back;
    __device__ RowFactors(const Rows& rows, const Sums<2>& sums) {
        const float width = static_cast<float>(rows.width);
        scale = rsqrtf(sums.values[0] / width + rows.eps);
        back = sums.values[1] / width * scale * scale;
    }
};

// ---- rows held in registers

// The part of d_weight that this block's rows make, in shared memory: a thread adds to what lies there for
// its own columns, so no barrier is needed until the end. Eight columns are two float4 in two planes, which
// keeps a warp's accesses free of bank conflicts.
class WeightSums {
  public:
    __device__ WeightSums(float4* memory, int vectors)
        : mine_(memory + 2 * threadIdx.y * vectors), vectors_(vectors) {
        for (int i = threadIdx.x; i < vectors_; i += blockDim.x)
            mine_[i] = mine_[vectors_ + i] = make_float4(0, 0, 0, 0);
    }
    __device__ void add(int vector, const float (&v)[8]) {
        float4 &a = mine_[vector], &b = mine_[vectors_ + vector];
        a = make_float4(a.x + v[0], a.y + v[1], a.z + v[2], a.w + v[3]);
        b = make_float4(b.x + v[4], b.y + v[5], b.z + v[6], b.w + v[7]);
    }
    // The block's rows that went side by side, added in order. `memory`: as given to the constructor.
    __device__ void write(const float4* memory, float* to) const {
        __syncthreads();
        const int threads = blockDim.x * blockDim.y;
        for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < 2 * vectors_; i += threads) {
            float4 sum = memory[i];
            for (int y = 1; y < blockDim.y; ++y) {
                const float4 v = memory[2 * y * vectors_ + i];
                sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
            }
            const int column = i < vectors_ ? i * 8 : (i - vectors_) * 8 + 4;
            *reinterpret_cast<float4*>(to + column) = sum;
        }
    }

  private:
    float4* mine_;
    int vectors_;
};

// Asks for the line (128 bytes, 8 vectors) of a row's vector to be brought into L2: the block's next row is
// on its way while this one is summed up, and takes no registers.
__device__ void fetch_line(const bf16* row, int vector) {
    if (vector % 8 == 0) asm volatile("prefetch.global.L2 [%0];" ::"l"(row + vector * 8));
}

// blockDim.y rows at a time per block, each held in the registers of blockDim.x threads. Thread x holds
// vectors x, x + blockDim.x, ...
template <int kHeld, bool kOneWarp, bool kWeight>
__global__ void __launch_bounds__(kOneWarp ? RowLayout::kBlockThreads : RowLayout::kMostThreads,
                                  RowLayout::blocks_wanted(kHeld, kOneWarp)) backward_held(const Rows rows) {
    extern __shared__ float4 weight_memory[];
    __shared__ Sums<2> partials[2][kOneWarp ? 1 : kWarp];
    const int vectors = static_cast<int>(rows.width / 8);
    WeightSums weight_sums(weight_memory, kWeight ? vectors : 0);
    int turn = 0;
    const int64_t step = int64_t{gridDim.x} * blockDim.y;
    for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < rows.count; first += step) {
        const int64_t row = first + threadIdx.y;
        const int held_vectors = row < rows.count ? vectors : 0;
        const bf16 *x_row = rows.x + row * rows.width, *d_row = rows.d_out + row * rows.width;
        bf16* d_x_row = rows.d_x + row * rows.width;
        Packed<8> x[kHeld] = {}, d_out[kHeld] = {}, d_x[kHeld] = {};
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const int i = threadIdx.x + h * blockDim.x;
            if (i >= held_vectors) continue;
            x[h] = load<8>(x_row + i * 8);
            d_out[h] = load<8>(d_row + i * 8);
        }
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const int i = threadIdx.x + h * blockDim.x;
            if (i < held_vectors) d_x[h] = load<8>(d_x_row + i * 8);
        }
        if (row + step < rows.count) {
            const int64_t ahead = step * rows.width;
#pragma unroll
            for (int h = 0; h < kHeld; ++h) {
                const int i = threadIdx.x + h * blockDim.x;
                if (i >= vectors) continue;
                fetch_line(x_row + ahead, i);
                fetch_line(d_row + ahead, i);
                fetch_line(d_x_row + ahead, i);
            }
        }
        Sums<2> sums;
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const int i = threadIdx.x + h * blockDim.x;
            if (i >= held_vectors) continue;
            float v[8], d[8], w[8];
            unpack(x[h], v);
            unpack(d_out[h], d);
            load_weights(rows.weight + i * 8, w);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                sums.values[0] = fmaf(v[j], v[j], sums.values[0]);
                sums.values[1] = fmaf(w[j] * d[j], v[j], sums.values[1]);
            }
        }
        const RowFactors f(rows, kOneWarp ? warp_sums(sums) : row_sums(sums, partials[turn ^= 1]));
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const int i = threadIdx.x + h * blockDim.x;
            if (i >= held_vectors) continue;
            float v[8], d[8], w[8], sum[8];
            unpack(x[h], v);
            unpack(d_out[h], d);
            unpack(d_x[h], sum);
            load_weights(rows.weight + i * 8, w);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                sum[j] = fmaf(f.scale, w[j] * d[j] - v[j] * f.back, sum[j]);
                if (kWeight) v[j] = d[j] * (v[j] * f.scale);
            }
            store(d_x_row + i * 8, pack(sum), rows.reuse);
            if (kWeight) weight_sums.add(i, v);
        }
    }
    if (kWeight) weight_sums.write(weight_memory, rows.slices + blockIdx.x * rows.width);
}

using Kernel = void (*)(Rows);

template <bool kWeight>
Kernel held_kernel(const RowLayout& layout) {
    constexpr Kernel kWarpKernels[] = {backward_held<1, true, kWeight>, backward_held<2, true, kWeight>,
                                       backward_held<3, true, kWeight>, backward_held<4, true, kWeight>};
    if (layout.one_warp()) return kWarpKernels[layout.held - 1];
    return layout.held == 2 ? Kernel(backward_held<2, false, kWeight>)
                            : Kernel(backward_held<4, false, kWeight>);
}

// ---- any row

// A row per block, read twice: rows too long to be held, and widths or addresses that vectors do not fit.
__global__ void __launch_bounds__(kLongRowThreads) backward_long(const Rows rows, float* scales) {
    __shared__ Sums<2> partials[2][kWarp];
    int turn = 0;
    for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
        const bf16 *x = rows.x + row * rows.width, *d_out = rows.d_out + row * rows.width;
        bf16* d_x = rows.d_x + row * rows.width;
        Sums<2> sums;
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x) {
            const float v = __bfloat162float(x[i]), d = __bfloat162float(d_out[i]);
            sums.values[0] = fmaf(v, v, sums.values[0]);
            sums.values[1] = fmaf(rows.weight[i] * d, v, sums.values[1]);
        }
        const RowFactors f(rows, row_sums(sums, partials[turn ^= 1]));
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x) {
            const float v = __bfloat162float(x[i]), g = rows.weight[i] * __bfloat162float(d_out[i]);
            d_x[i] = __float2bfloat16_rn(fmaf(f.scale, g - v * f.back, __bfloat162float(d_x[i])));
        }
        if (threadIdx.x == 0) scales[row] = f.scale;
    }
}

// ---- the sum over rows

constexpr int kColumns = 32, kLanes = 16;
constexpr int64_t kSliceRows = 256, kMostLongSlices = 64;

// Of kColumns columns, what each thread summed, added lane by lane: in lane 0.
__device__ float lane_sum(float value, float (&sums)[kLanes][kColumns]) {
    sums[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    float total = 0;
    if (threadIdx.y == 0) {
        for (int lane = 0; lane < kLanes; ++lane) total += sums[lane][threadIdx.x];
    }
    return total;
}

// slices[blockIdx.y, c] = sum of d_out * x * scale over that slice's rows.
__global__ void __launch_bounds__(kColumns* kLanes) sum_rows(const Rows rows, const float* scales) {
    __shared__ float sums[kLanes][kColumns];
    const int64_t column = int64_t{blockIdx.x} * kColumns + threadIdx.x;
    const int64_t slice_rows = (rows.count + gridDim.y - 1) / gridDim.y;
    const int64_t begin = blockIdx.y * slice_rows, end = min(begin + slice_rows, rows.count);
    float sum = 0;
    if (column < rows.width) {
        for (int64_t row = begin + threadIdx.y; row < end; row += kLanes) {
            const int64_t i = row * rows.width + column;
            sum = fmaf(__bfloat162float(rows.d_out[i]), __bfloat162float(rows.x[i]) * scales[row], sum);
        }
    }
    sum = lane_sum(sum, sums);
    if (threadIdx.y == 0 && column < rows.width) rows.slices[blockIdx.y * rows.width + column] = sum;
}

// d_weight[c] += sum over slices, each lane's slices in order, then the lanes.
__global__ void __launch_bounds__(kColumns* kLanes)
    add_slices(const float* slices, int64_t count, int64_t width, float* d_weight) {
    __shared__ float sums[kLanes][kColumns];
    const int64_t column = int64_t{blockIdx.x} * kColumns + threadIdx.x;
    float sum = 0;
    if (column < width) {
#pragma unroll 8
        for (int64_t slice = threadIdx.y; slice < count; slice += kLanes)
            sum += slices[slice * width + column];
    }
    sum = lane_sum(sum, sums);
    if (threadIdx.y == 0 && column < width) d_weight[column] += sum;
}

// ---- launches

int64_t held_slices(int64_t rows, const RowLayout& layout) {
    return std::min(div_up(rows, layout.together()), kMostSlices);
}
int64_t long_slices(int64_t rows) { return std::min(div_up(rows, kSliceRows), kMostLongSlices); }

void add_slices(const Context& context, const Rows& rows, int64_t count, float* d_weight) {
    add_slices<<<grid_size(div_up(rows.width, kColumns)), dim3(kColumns, kLanes), 0, context.stream>>>(
        rows.slices, count, rows.width, d_weight);
    MP_CUDA_LAUNCHED();
}

// With d_weight as many blocks as run at once, so that there are few partial sums; otherwise one block for
// each turn, which is quicker.
void run_held(const Context& context, const RowLayout& layout, const Rows& rows, float* d_weight) {
    const Kernel kernel = d_weight ? held_kernel<true>(layout) : held_kernel<false>(layout);
    const dim3 block(layout.threads, layout.together());
    int64_t blocks = div_up(rows.count, layout.together());
    int64_t shared = 0;
    if (d_weight) {
        shared = layout.together() * rows.width * static_cast<int64_t>(sizeof(float));
        if (shared > kPlainShared)
            MP_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(shared)));
        int resident = 0;
        MP_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel,
                                                              layout.threads * layout.together(), shared));
        blocks = std::min({blocks, kMostSlices, int64_t{std::max(resident, 1)} * context.multiprocessors});
    }
    kernel<<<grid_size(blocks), block, shared, context.stream>>>(rows);
    MP_CUDA_LAUNCHED();
    if (d_weight) add_slices(context, rows, blocks, d_weight);
}

void run_long(const Context& context, Rows rows, float* d_weight) {
    float* scales = reinterpret_cast<float*>(context.scratch);
    rows.slices = scales + rows.count;
    backward_long<<<grid_size(rows.count), kLongRowThreads, 0, context.stream>>>(rows, scales);
    MP_CUDA_LAUNCHED();
    if (!d_weight) return;
    const int64_t slices = long_slices(rows.count);
    const dim3 grid(grid_size(div_up(rows.width, kColumns)), static_cast<unsigned>(slices));
    sum_rows<<<grid, dim3(kColumns, kLanes), 0, context.stream>>>(rows, scales);
    MP_CUDA_LAUNCHED();
    add_slices(context, rows, slices, d_weight);
}

}  // namespace

// The partial sums of d_weight of either path; addresses, which decide between them, are not known here.
int64_t scratch_bytes(const RmsNormBackward& args) {
    const int64_t rows = args.x.rows(), width = args.x.columns();
    const RowLayout layout = row_layout(div_up(width, 8));
    const int64_t held = layout.fits() ? held_slices(rows, layout) * width : 0;
    return std::max(held, rows + long_slices(rows) * width) * static_cast<int64_t>(sizeof(float));
}

// 8B: x, d_out and d_x read, d_x written, 8 * D per token (32 KiB at D 4096; the weight stays in the caches);
// 14 FLOPs per element.
void run(const Context& context, const RmsNormBackward& args) {
    const Rows rows{.x = bf16_data(args.x),
                    .d_out = bf16_data(args.d_out),
                    .weight = args.weight.as<float>(),
                    .d_x = bf16_data(args.d_x),
                    .slices = reinterpret_cast<float*>(context.scratch),
                    .count = args.x.rows(),
                    .width = args.x.columns(),
                    .eps = static_cast<float>(args.eps),
                    .reuse = reuse_of(args.d_x.bytes())};
    if (rows.count == 0) return;
    MP_ASSERT(context.scratch_capacity >= scratch_bytes(args));
    float* d_weight = args.d_weight.as<float>();
    const RowLayout layout = row_layout(div_up(rows.width, 8));
    if (layout.fits() && vectors_fit(rows.x, rows.width) && vectors_fit(rows.d_out, rows.width) &&
        vectors_fit(rows.d_x, rows.width) && vectors_fit(rows.weight, rows.width))
        run_held(context, layout, rows, d_weight);
    else
        run_long(context, rows, d_weight);
}

}  // namespace minipuzzle::cuda
