// What the convolution of the Mamba-2 mixer and its gradient read.
#pragma once

#include "kernels/cuda/vectors.cuh"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// The x|B|C part of a row of zxbcdt begins at `rows`.
struct ConvInput {
    const bf16* rows;
    const bf16 *weight, *bias;  // [channels, taps], [channels] or null
    const int32_t* document;    // [batch, time] or null
    const bf16* initial;        // [batch, channels, taps-1] or null
    int64_t batch, time, channels, taps, pitch;
};

// Of ConvForward or ConvBackward.
template <class Args>
ConvInput conv_input(const Args& args) {
    const MambaShape& s = args.shape;
    return {.rows = bf16_data(args.zxbcdt) + s.inner(),
            .weight = bf16_data(args.weight),
            .bias = bf16_data(args.bias),
            .document = args.document.template as<int32_t>(),
            .initial = bf16_data(args.initial_state),
            .batch = args.zxbcdt.size(0),
            .time = args.zxbcdt.size(1),
            .channels = s.conv_channels(),
            .taps = s.conv_kernel,
            .pitch = s.projection()};
}

// Whether tokens `from` <= t of a sequence see each other; positions before the row belong to its first
// document.
__device__ inline bool same_document(const int32_t* document, int64_t from, int64_t t) {
    return !document || document[max(from, int64_t{0})] == document[t];
}

// The value before the convolution that tap `from` < t finds; 0 where there is none.
__device__ inline float value_at(const ConvInput& conv, int64_t sequence, int64_t channel, int64_t from) {
    if (from >= 0) return __bfloat162float(conv.rows[(sequence * conv.time + from) * conv.pitch + channel]);
    if (!conv.initial) return 0;
    const int64_t kept = conv.taps - 1;
    return __bfloat162float(conv.initial[(sequence * conv.channels + channel) * kept + kept + from]);
}

// The weights of W channels from [W, kTaps] as they lie in memory.
template <int kTaps, int W>
__device__ inline void load_taps(const bf16* from, float (&weight)[kTaps][W]) {
    float flat[kTaps][W];
#pragma unroll
    for (int part = 0; part < kTaps; ++part) unpack(load<W, Reuse::again>(from + part * W), flat[part]);
#pragma unroll
    for (int i = 0; i < kTaps * W; ++i) weight[i % kTaps][i / kTaps] = flat[i / W][i % W];
}

}  // namespace minipuzzle::cuda
