// RMS norm over the last axis (Zhang & Sennrich 2019): statistics in float32, one rounding at the end.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/quantise.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kLongRowThreads = 512;

struct Rows {
    const bf16* x;
    const float* weight;
    bf16* out;
    CodeRows codes;  // instead of out
    int64_t count, width;
    float eps;
    Reuse reuse;  // of out
};

// rsqrt(mean square + eps).
__device__ float row_scale(const Rows& rows, float square_sum) {
    return rsqrtf(square_sum / static_cast<float>(rows.width) + rows.eps);
}

// blockDim.y rows per block, each held in the registers of blockDim.x threads from its one read on: it may be
// written in place. Thread x holds vectors x, x + blockDim.x, ...
template <int kHeld, bool kOneWarp, bool kQuantised>
__global__ void __launch_bounds__(kOneWarp ? RowLayout::kBlockThreads : RowLayout::kMostThreads)
    normalise_held(const Rows rows) {
    __shared__ float partials[2][kWarp];
    __shared__ uint32_t tops[kWarp];  // read between the barriers of two sums
    int turn = 0;
    const int64_t step = int64_t{gridDim.x} * blockDim.y;
    for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < rows.count; first += step) {
        const int64_t row = first + threadIdx.y;
        const int64_t width = row < rows.count ? rows.width : 0;
        const bf16* x = rows.x + row * rows.width;
        Packed<8> held[kHeld] = {};
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const int64_t i = (int64_t{threadIdx.x} + h * blockDim.x) * 8;
            if (i < width) held[h] = load<8>(x + i);
        }
        float sum = 0;
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            float v[8];
            unpack(held[h], v);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum = fmaf(v[j], v[j], sum);
        }
        const float scale = row_scale(rows, kOneWarp ? warp_sum(sum) : row_sum(sum, partials[turn ^= 1]));
        const auto normalised = [&](int h, int64_t i, float(&v)[8]) {
            float w[8];
            unpack(held[h], v);
            load_weights(rows.weight + i, w);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = w[j] * (v[j] * scale);
        };
        if constexpr (!kQuantised) {
            bf16* out = rows.out + row * rows.width;
#pragma unroll
            for (int h = 0; h < kHeld; ++h) {
                const int64_t i = (int64_t{threadIdx.x} + h * blockDim.x) * 8;
                if (i >= width) continue;
                float v[8];
                normalised(h, i, v);
                store(out + i, pack(v), rows.reuse);
            }
        } else {
            float v[kHeld][8] = {};
            uint32_t largest = 0;
#pragma unroll
            for (int h = 0; h < kHeld; ++h) {
                const int64_t i = (int64_t{threadIdx.x} + h * blockDim.x) * 8;
                if (i < width) normalised(h, i, v[h]);
                largest = largest_magnitude(v[h], largest);
            }
            largest = kOneWarp ? warp_max(largest) : row_max(largest, tops);
            const float code_scale = quantising_scale(largest), inverse = reciprocal(code_scale);
            if (threadIdx.x == 0 && width > 0) rows.codes.scale[row] = code_scale;
            uint8_t* codes = rows.codes.codes + row * rows.width;
#pragma unroll
            for (int h = 0; h < kHeld; ++h) {
                const int64_t i = (int64_t{threadIdx.x} + h * blockDim.x) * 8;
                if (i < width) store_codes(codes + i, v[h], inverse, rows.reuse);
            }
        }
    }
}

// A row per block, read twice (three times for codes): rows too long to be held, and widths or addresses that
// vectors do not fit.
__global__ void __launch_bounds__(kLongRowThreads) normalise_long(const Rows rows) {
    __shared__ float partials[2][kWarp];
    __shared__ uint32_t tops[kWarp];
    int turn = 0;
    for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
        const bf16* x = rows.x + row * rows.width;
        float sum = 0;
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x) {
            const float v = __bfloat162float(x[i]);
            sum = fmaf(v, v, sum);
        }
        const float scale = row_scale(rows, row_sum(sum, partials[turn ^= 1]));
        const auto normalised = [&](int64_t i) { return rows.weight[i] * (__bfloat162float(x[i]) * scale); };
        if (!rows.codes) {
            bf16* out = rows.out + row * rows.width;
            for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x)
                out[i] = __float2bfloat16_rn(normalised(i));
            continue;
        }
        uint32_t largest = 0;
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x)
            largest = max(largest, magnitude(normalised(i)));
        const float code_scale = quantising_scale(row_max(largest, tops));
        const float inverse = reciprocal(code_scale);
        if (threadIdx.x == 0) rows.codes.scale[row] = code_scale;
        uint8_t* codes = rows.codes.codes + row * rows.width;
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x)
            codes[i] = encode(normalised(i) * inverse);
    }
}

using Kernel = void (*)(Rows);

template <bool kQuantised>
Kernel held_kernel(const RowLayout& layout) {
    constexpr Kernel kWarpKernels[] = {
        normalise_held<1, true, kQuantised>, normalise_held<2, true, kQuantised>,
        normalise_held<3, true, kQuantised>, normalise_held<4, true, kQuantised>};
    if (layout.one_warp()) return kWarpKernels[layout.held - 1];
    return layout.held == 2 ? Kernel(normalise_held<2, false, kQuantised>)
                            : Kernel(normalise_held<4, false, kQuantised>);
}

}  // namespace

// 8B: 2 * D read and 2 * D written per token (16 KiB at D 4096; the weight stays in the caches); 4 FLOPs per
// element. Quantised: D + 4 written instead.
void run(const Context& context, const RmsNormForward& args) {
    const CodeRows codes = code_rows(args.out, args.out_scale);
    const Rows rows{.x = bf16_data(args.x),
                    .weight = args.weight.as<float>(),
                    .out = codes ? nullptr : bf16_data(args.out),
                    .codes = codes,
                    .count = args.x.rows(),
                    .width = args.x.columns(),
                    .eps = static_cast<float>(args.eps),
                    .reuse = reuse_of(args.out.bytes())};
    if (rows.count == 0) return;
    const RowLayout layout = row_layout(div_up(rows.width, 8));
    if (layout.fits() && vectors_fit(rows.x, rows.width) && vectors_fit(rows.out, rows.width) &&
        vectors_fit(rows.weight, rows.width) && code_vectors_fit(codes.codes, rows.width)) {
        const Kernel kernel = codes ? held_kernel<true>(layout) : held_kernel<false>(layout);
        const dim3 block(layout.threads, layout.together());
        kernel<<<grid_size(div_up(rows.count, layout.together())), block, 0, context.stream>>>(rows);
    } else {
        normalise_long<<<grid_size(rows.count), kLongRowThreads, 0, context.stream>>>(rows);
    }
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda
