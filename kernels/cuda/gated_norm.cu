// The gated group RMS norm of the Mamba-2 mixer, gate before norm: float32 throughout, one rounding at the
// end.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kLongGroupThreads = 512;

struct GatedRows {
    const bf16 *y, *z;
    const float* weight;
    bf16* out;
    int64_t count, inner, pitch, groups, width;  // pitch of z; width of a group
    float eps;
};

// rsqrt(mean square + eps).
__device__ float group_scale(const GatedRows& rows, float square_sum) {
    return rsqrtf(square_sum / static_cast<float>(rows.width) + rows.eps);
}

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
        const bf16* y = rows.y + row * rows.inner + group * rows.width + first;
        const bf16* z = rows.z + row * rows.pitch + group * rows.width + first;
        Packed<8> held_y[kHeld] = {}, held_z[kHeld] = {};
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            if (first + h * step >= width) continue;
            held_y[h] = load<8>(y + h * step);
            held_z[h] = load<8>(z + h * step);
        }
        float q[kHeld][8];
        float sum = 0;
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            float gate[8];
            unpack(held_y[h], q[h]);
            unpack(held_z[h], gate);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                q[h][j] *= silu(gate[j]);
                sum = fmaf(q[h][j], q[h][j], sum);
            }
        }
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
        const bf16* y = rows.y + row * rows.inner + first;
        const bf16* z = rows.z + row * rows.pitch + first;
        const auto gated = [&](int64_t i) { return __bfloat162float(y[i]) * silu(__bfloat162float(z[i])); };
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
    return cuda::vectors_fit(rows.y, rows.width) && cuda::vectors_fit(rows.z, rows.pitch) &&
           cuda::vectors_fit(rows.out, rows.width) && cuda::vectors_fit(rows.weight, rows.width);
}

}  // namespace

// 8B: 4 * inner read and 2 * inner written per token (48 KiB at inner 8192; the weight stays in the caches);
// 6 FLOPs, an exponential and a reciprocal per element.
void run(const Context& context, const GatedNormForward& args) {
    const MambaShape& s = args.shape;
    const GatedRows rows{.y = bf16_data(args.y),
                         .z = bf16_data(args.zxbcdt),
                         .weight = args.weight.as<float>(),
                         .out = bf16_data(args.out),
                         .count = args.y.rows(),
                         .inner = s.inner(),
                         .pitch = s.projection(),
                         .groups = s.groups,
                         .width = div_exact(s.inner(), s.groups),
                         .eps = static_cast<float>(args.eps)};
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
