// Rows as E4M3 codes with a scale each, of values as they are and of their squared ReLU: a row is read once
// and held in registers while its largest magnitude is found.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/quantise.h"

namespace minipuzzle::cuda {
namespace {

constexpr int kLongRowThreads = 512;

struct Rows {
    const bf16* x;
    CodeRows out;
    int64_t count, width;
    Reuse reuse;  // of out
};

struct AsIs {
    __device__ float operator()(float v) const { return v; }
};
struct SquaredRelu {
    __device__ float operator()(float v) const {
        const float positive = v < 0 ? 0.0f : v;  // keeps NaN
        return positive * positive;
    }
};

// The same bits, which the compiler cannot know: values made of them before are made again instead of kept,
// as there are no registers for them.
__device__ Packed<8> renewed(Packed<8> v) {
#pragma unroll
    for (uint32_t& pair : v.pairs) asm volatile("" : "+r"(pair));
    return v;
}

template <class Map>
__device__ void map_vector(const Packed<8>& packed, float (&v)[8]) {
    unpack(packed, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = Map()(v[j]);
}

// As normalise_held in norm.cu: blockDim.y rows per block, thread x holds vectors x, x + blockDim.x, ...
template <class Map, int kHeld, bool kOneWarp>
__global__ void __launch_bounds__(kOneWarp ? RowLayout::kBlockThreads : RowLayout::kMostThreads,
                                  kOneWarp ? 4 : 2) quantise_held(const Rows rows) {
    __shared__ uint32_t partials[2][kWarp];
    int turn = 0;
    const int begin = static_cast<int>(threadIdx.x) * 8, step = static_cast<int>(blockDim.x) * 8;
    for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < rows.count;
         first += int64_t{gridDim.x} * blockDim.y) {
        const int64_t row = first + threadIdx.y;
        // Elements from this thread's first on; none where there is no row.
        const int width = row < rows.count ? static_cast<int>(rows.width) - begin : 0;
        const bf16* x = rows.x + row * rows.width + begin;
        Packed<8> held[kHeld] = {};
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            if (h * step < width) held[h] = load<8>(x + h * step);
        }
        uint32_t largest = 0;
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            float v[8];
            map_vector<Map>(held[h], v);
            largest = largest_magnitude(v, largest);
        }
        largest = kOneWarp ? warp_max(largest) : row_max(largest, partials[turn ^= 1]);
        const float scale = quantising_scale(largest), inverse = reciprocal(scale);
        if (threadIdx.x == 0 && width > 0) rows.out.scale[row] = scale;
        uint8_t* codes = rows.out.codes + row * rows.width + begin;
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            if (h * step >= width) continue;
            float v[8];
            map_vector<Map>(renewed(held[h]), v);
            store_codes(codes + h * step, v, inverse, rows.reuse);
        }
    }
}

// A row per block, read twice: rows too long to be held, and widths or addresses that vectors do not fit.
template <class Map>
__global__ void __launch_bounds__(kLongRowThreads) quantise_long(const Rows rows) {
    __shared__ uint32_t partials[2][kWarp];
    int turn = 0;
    for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
        const bf16* x = rows.x + row * rows.width;
        uint32_t largest = 0;
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x)
            largest = max(largest, magnitude(Map()(__bfloat162float(x[i]))));
        const float scale = quantising_scale(row_max(largest, partials[turn ^= 1]));
        const float inverse = reciprocal(scale);
        if (threadIdx.x == 0) rows.out.scale[row] = scale;
        uint8_t* codes = rows.out.codes + row * rows.width;
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x)
            codes[i] = encode(Map()(__bfloat162float(x[i])) * inverse);
    }
}

using Kernel = void (*)(Rows);

// row_layout() and, beyond it, rows of up to 8 vectors a thread.
RowLayout long_row_layout(int64_t vectors) {
    const RowLayout layout = row_layout(vectors);
    if (layout.fits()) return layout;
    for (const int held : {6, 8}) {
        const int64_t threads = div_up(vectors, int64_t{held} * kWarp) * kWarp;
        if (threads <= RowLayout::kMostThreads) return {.held = held, .threads = static_cast<int>(threads)};
    }
    return {};
}

template <class Map>
Kernel held_kernel(const RowLayout& layout) {
    constexpr Kernel kWarpKernels[] = {quantise_held<Map, 1, true>, quantise_held<Map, 2, true>,
                                       quantise_held<Map, 3, true>, quantise_held<Map, 4, true>};
    if (layout.one_warp()) return kWarpKernels[layout.held - 1];
    switch (layout.held) {
        case 2:
            return quantise_held<Map, 2, false>;
        case 4:
            return quantise_held<Map, 4, false>;
        case 6:
            return quantise_held<Map, 6, false>;
        default:
            return quantise_held<Map, 8, false>;
    }
}

template <class Map>
void quantise(const Context& context, const Tensor& x, const Tensor& out, const Tensor& scale) {
    const Rows rows{.x = bf16_data(x),
                    .out = code_rows(out, scale),
                    .count = x.rows(),
                    .width = x.columns(),
                    .reuse = reuse_of(out.bytes())};
    if (rows.count == 0) return;
    const RowLayout layout = long_row_layout(div_up(rows.width, 8));
    if (layout.fits() && vectors_fit(rows.x, rows.width) && code_vectors_fit(rows.out.codes, rows.width)) {
        const dim3 block(layout.threads, layout.together());
        held_kernel<Map>(
            layout)<<<grid_size(div_up(rows.count, layout.together())), block, 0, context.stream>>>(rows);
    } else {
        quantise_long<Map><<<grid_size(rows.count), kLongRowThreads, 0, context.stream>>>(rows);
    }
    MP_CUDA_LAUNCHED();
}

}  // namespace

// 8B: 2 * I read and I + 4 written per token (12 KiB at I 4096); 2 FLOPs per element.
void run(const Context& context, const QuantizeRows& args) {
    quantise<AsIs>(context, args.x, args.out, args.scale);
}

// 8B: 2 * F read and F + 4 written per token (63 KiB at F 21504); 4 FLOPs per element.
void quantised_squared_relu(const Context& context, const SquaredReluForward& args) {
    quantise<SquaredRelu>(context, args.x, args.out, args.out_scale);
}

}  // namespace minipuzzle::cuda
