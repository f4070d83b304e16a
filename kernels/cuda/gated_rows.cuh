// What the two forward kernels of the gated norm share: their arguments, and a group's gated values.
#pragma once

#include "kernels/cuda/vectors.cuh"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

struct GatedRows {
    const bf16 *y, *z;
    const float* weight;
    bf16* out;                                   // null where the result is quantised
    int64_t count, inner, pitch, groups, width;  // pitch of z; width of a group
    float eps;
};

inline GatedRows gated_rows(const GatedNormForward& args) {
    const MambaShape& s = args.shape;
    return {.y = bf16_data(args.y),
            .z = bf16_data(args.zxbcdt),
            .weight = args.weight.as<float>(),
            .out = nullptr,
            .count = args.y.rows(),
            .inner = s.inner(),
            .pitch = s.projection(),
            .groups = s.groups,
            .width = div_exact(s.inner(), s.groups),
            .eps = static_cast<float>(args.eps)};
}

inline bool inputs_fit_vectors(const GatedRows& rows) {
    return vectors_fit(rows.y, rows.width) && vectors_fit(rows.z, rows.pitch) &&
           vectors_fit(rows.weight, rows.width);
}

// rsqrt(mean square + eps).
__device__ inline float group_scale(const GatedRows& rows, float square_sum) {
    return rsqrtf(square_sum / static_cast<float>(rows.width) + rows.eps);
}

// q = y * silu(z) of this thread's vectors threadIdx.x, threadIdx.x + blockDim.x, ... of a group that is
// `width` wide (0: of none); returns the sum of their squares.
template <int kHeld>
__device__ inline float gate_group(const GatedRows& rows, int64_t row, int64_t group, int width,
                                   float (&q)[kHeld][8]) {
    const int first = static_cast<int>(threadIdx.x) * 8, step = static_cast<int>(blockDim.x) * 8;
    const bf16* y = rows.y + row * rows.inner + group * rows.width + first;
    const bf16* z = rows.z + row * rows.pitch + group * rows.width + first;
    Packed<8> held_y[kHeld] = {}, held_z[kHeld] = {};
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
        if (first + h * step >= width) continue;
        held_y[h] = load<8>(y + h * step);
        held_z[h] = load<8>(z + h * step);
    }
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
    return sum;
}

// q of channel c.
__device__ inline float gated_value(const GatedRows& rows, int64_t row, int64_t c) {
    return __bfloat162float(rows.y[row * rows.inner + c]) *
           silu(__bfloat162float(rows.z[row * rows.pitch + c]));
}

}  // namespace minipuzzle::cuda
