// The gated group RMS norm of the Mamba-2 mixer, gate before norm: float32 throughout, one rounding at the
// end.
#include "kernels/cuda/gated_rows.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/quantise.h"

namespace minipuzzle::cuda {
namespace {

constexpr int kLongGroupThreads = 512;

// One token's groups, blockDim.y of them per block, each held in the registers of blockDim.x threads from its
// one read on: `out` may be y. Thread x holds vectors x, x + blockDim.x, ...
template <int kHeld, bool kOneWarp, Reuse kReuse>
__global__ void __launch_bounds__(kOneWarp ? RowLayout::kBlockThreads : RowLayout::kMostThreads,
                                  kOneWarp ? 4 : 2) normalise_held(const GatedRows rows) {
    __shared__ float partials[2][kWarp];
    const int64_t group = int64_t{blockIdx.y} * blockDim.y + threadIdx.y;
    const int width = group < rows.groups ? static_cast<int>(rows.width) : 0;
    const int first = static_cast<int>(threadIdx.x) * 8, step = static_cast<int>(blockDim.x) * 8;
    int turn = 0;
    for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
        float q[kHeld][8];
        const float sum = gate_group(rows, row, group, width, q);
        const float scale = group_scale(rows, kOneWarp ? warp_sum(sum) : row_sum(sum, partials[turn ^= 1]));
        const float* weight = rows.weight + group * rows.width + first;
        bf16* out = rows.out + row * rows.inner + group * rows.width + first;
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            if (first + h * step >= width) continue;
            float w[8];
            load_weights(weight + h * step, w);
#pragma unroll
            for (int j = 0; j < 8; ++j) w[j] *= q[h][j] * scale;
            store(out + h * step, pack(w), kReuse);
        }
    }
}

// One group of one token per block, read twice: groups too long to be held, and sizes that vectors do not
// fit.
__global__ void __launch_bounds__(kLongGroupThreads) normalise_long(const GatedRows rows) {
    __shared__ float partials[2][kWarp];
    int turn = 0;
    const int64_t tasks = rows.count * rows.groups;
    for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
        const int64_t row = task / rows.groups, first = task % rows.groups * rows.width;
        const auto gated = [&](int64_t i) { return gated_value(rows, row, first + i); };
        float sum = 0;
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x) sum = fmaf(gated(i), gated(i), sum);
        const float scale = group_scale(rows, row_sum(sum, partials[turn ^= 1]));
        bf16* out = rows.out + row * rows.inner + first;
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x)
            out[i] = __float2bfloat16_rn(rows.weight[first + i] * (gated(i) * scale));
    }
}

using Kernel = void (*)(GatedRows);

template <Reuse kReuse>
Kernel held_kernel(const RowLayout& layout) {
    constexpr Kernel kWarpKernels[] = {normalise_held<1, true, kReuse>, normalise_held<2, true, kReuse>,
                                       normalise_held<3, true, kReuse>, normalise_held<4, true, kReuse>};
    if (layout.one_warp()) return kWarpKernels[layout.held - 1];
    return layout.held == 2 ? Kernel(normalise_held<2, false, kReuse>)
                            : Kernel(normalise_held<4, false, kReuse>);
}

bool vectors_fit(const GatedRows& rows) {
    return inputs_fit_vectors(rows) && cuda::vectors_fit(rows.out, rows.width);
}

}  // namespace

// 8B: 4 * inner read and 2 * inner written per token (48 KiB at inner 8192; the weight stays in the caches);
// 6 FLOPs, an exponential and a reciprocal per element.
void run(const Context& context, const GatedNormForward& args) {
    if (args.out.dtype == DType::f8_e4m3) return quantised_gated_norm(context, args);
    const MambaShape& s = args.shape;
    GatedRows rows = gated_rows(args);
    rows.out = bf16_data(args.out);
    if (rows.count == 0) return;
    constexpr int64_t kMostGridRows = 65535;
    const RowLayout layout = row_layout(div_up(rows.width, 8));
    const int together = layout.fits() ? static_cast<int>(std::min<int64_t>(s.groups, layout.together())) : 1;
    const int64_t group_blocks = div_up(s.groups, together);
    if (layout.fits() && vectors_fit(rows) && group_blocks <= kMostGridRows) {
        const dim3 grid(grid_size(rows.count), static_cast<unsigned>(group_blocks));
        const auto kernel = reuse_of(args.out.bytes()) == Reuse::once ? held_kernel<Reuse::once>(layout)
                                                                      : held_kernel<Reuse::again>(layout);
        kernel<<<grid, dim3(layout.threads, together), 0, context.stream>>>(rows);
    } else {
        normalise_long<<<grid_size(rows.count * rows.groups), kLongGroupThreads, 0, context.stream>>>(rows);
    }
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda
