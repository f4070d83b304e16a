// The causal depthwise convolution of the Mamba-2 mixer, followed by SiLU.
#include "kernels/cuda/conv.cuh"
#include "kernels/cuda/operations.h"

namespace minipuzzle::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRun = 32;  // tokens that one thread follows: as many as a warp has lanes

// What the kernels read and write.
struct Conv : ConvInput {
    bf16 *xbc, *final_state;  // [batch, time, channels], [batch, channels, taps-1] or null
    Reuse reuse;              // of xbc
};

// One sequence's share, and a run of its tokens over a block of channels.
struct Task {
    int64_t sequence, begin, end, first_channel;
};

// Neighbouring tasks are neighbouring channels, then neighbouring runs, so that what two runs both read is in
// cache.
__device__ Task task_of(const Conv& conv, int64_t index, int64_t channels_per_task) {
    const int64_t channel_blocks = (conv.channels + channels_per_task - 1) / channels_per_task;
    const int64_t runs = (conv.time + kRun - 1) / kRun;
    const int64_t begin = index / channel_blocks % runs * kRun;
    return {.sequence = index / channel_blocks / runs,
            .begin = begin,
            .end = min(begin + kRun, conv.time),
            .first_channel = index % channel_blocks * channels_per_task};
}

// Four taps over W channels of one thread. The last four values of each channel are a ring, indexed by the
// token's place in groups of four.
template <int W>
struct FourTaps {
    static constexpr int kTaps = 4;
    float weight[kTaps][W], bias[W] = {}, ring[kTaps][W];

    // Everything but the value at `place` is of another document.
    __device__ void forget_others(int place) {
#pragma unroll
        for (int k = 1; k < kTaps; ++k) forget((place + k) % kTaps);
    }
    __device__ void forget(int place) {
#pragma unroll
        for (int j = 0; j < W; ++j) ring[place][j] = 0;
    }
    // Takes in the token of this place.
    __device__ Packed<W> next(const Packed<W>& token, int place) {
        unpack(token, ring[place]);
        float v[W];
#pragma unroll
        for (int j = 0; j < W; ++j) {
            v[j] = bias[j];
#pragma unroll
            for (int k = 0; k < kTaps; ++k) v[j] = fmaf(weight[k][j], ring[(place + 1 + k) % kTaps][j], v[j]);
            v[j] = silu(v[j]);
        }
        return pack(v);
    }
};

// Bit u: token `begin` + u of the run starts another document than the token before it. Asked by whole warps.
__device__ uint32_t document_starts(const int32_t* document, const Task& task) {
    static_assert(kRun == kWarp);
    const int64_t t = task.begin + threadIdx.x % kWarp;
    const bool starts = t > 0 && t < task.end && document[t] != document[t - 1];
    return __ballot_sync(0xffffffffu, starts);
}

// Follows `count` tokens (kWhole: kRun of them); the rows of kAhead tokens are under way in front of the one
// worked on.
template <int W, int kAhead, bool kDocuments, bool kWhole, Reuse kReuse>
__device__ void follow_run(FourTaps<W>& taps, Packed<W> (&ahead)[kAhead], const bf16* from, bf16* to,
                           int64_t pitch, int64_t out_pitch, int count, uint32_t starts) {
    static_assert(kAhead % FourTaps<W>::kTaps == 0 && kRun % kAhead == 0);
    from += kAhead * pitch;
#pragma unroll 1
    for (int group = 0; group < (kWhole ? kRun : count); group += kAhead) {
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
            if (!kWhole && group + u >= count) return;
            const int place = u % FourTaps<W>::kTaps;
            if (kDocuments && (starts >> u & 1)) taps.forget_others(place);
            const Packed<W> token = ahead[u];
            if (kWhole ? group + kAhead < kRun : group + kAhead + u < count)
                ahead[u] = load<W, Reuse::again>(from);
            store<W>(to, taps.next(token, place), kReuse);
            from += pitch;
            to += out_pitch;
        }
        starts >>= kAhead;
    }
}

// A run of one sequence over W channels per thread. kBlocks blocks fit a multiprocessor.
template <int W, int kAhead, int kBlocks, bool kDocuments, Reuse kReuse>
__global__ void __launch_bounds__(kThreads, kBlocks) convolve_four_taps(const Conv conv) {
    constexpr int kTaps = FourTaps<W>::kTaps;
    const Task task = task_of(conv, blockIdx.x, kThreads * W);
    const int32_t* document = kDocuments ? conv.document + task.sequence * conv.time : nullptr;
    const uint32_t starts = kDocuments ? document_starts(document, task) : 0;
    const int64_t channel = task.first_channel + int64_t{threadIdx.x} * W;
    if (channel >= conv.channels) return;

    const int64_t first = task.sequence * conv.time + task.begin;
    const bf16* from = conv.rows + first * conv.pitch + channel;
    bf16* to = conv.xbc + first * conv.channels + channel;
    const int count = static_cast<int>(task.end - task.begin);
    Packed<W> ahead[kAhead] = {};
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
        if (u < count) ahead[u] = load<W, Reuse::again>(from + u * conv.pitch);
    }

    FourTaps<W> taps;
    load_taps(conv.weight + channel * kTaps, taps.weight);
    if (conv.bias) unpack(load<W, Reuse::again>(conv.bias + channel), taps.bias);
#pragma unroll
    for (int k = 1; k < kTaps; ++k) {  // the token that has place k lies kTaps - k before the run
        if (task.begin > 0) {
            unpack(load<W, Reuse::again>(from + (k - kTaps) * conv.pitch), taps.ring[k]);
        } else {
#pragma unroll
            for (int j = 0; j < W; ++j)
                taps.ring[k][j] = value_at(conv, task.sequence, channel + j, k - kTaps);
        }
        if (kDocuments && !same_document(document, task.begin + k - kTaps, task.begin)) taps.forget(k);
    }
    if (count == kRun)
        follow_run<W, kAhead, kDocuments, true, kReuse>(taps, ahead, from, to, conv.pitch, conv.channels,
                                                        count, starts);
    else
        follow_run<W, kAhead, kDocuments, false, kReuse>(taps, ahead, from, to, conv.pitch, conv.channels,
                                                         count, starts);
}

// Any number of taps, any alignment: a channel per thread. The same sums in the same order.
__global__ void __launch_bounds__(kThreads) convolve_any(const Conv conv) {
    const Task task = task_of(conv, blockIdx.x, kThreads);
    const int64_t channel = task.first_channel + threadIdx.x;
    if (channel >= conv.channels) return;
    const int32_t* document = conv.document ? conv.document + task.sequence * conv.time : nullptr;
    const float bias = conv.bias ? __bfloat162float(conv.bias[channel]) : 0.0f;
    for (int64_t t = task.begin; t < task.end; ++t) {
        float v = bias;
        for (int64_t k = 0; k < conv.taps; ++k) {
            const int64_t from = t - (conv.taps - 1) + k;
            if (!same_document(document, from, t)) continue;
            v = fmaf(__bfloat162float(conv.weight[channel * conv.taps + k]),
                     value_at(conv, task.sequence, channel, from), v);
        }
        conv.xbc[(task.sequence * conv.time + t) * conv.channels + channel] = __float2bfloat16_rn(silu(v));
    }
}

// The last taps-1 values before the convolution of the last token's document, older ones zero.
__global__ void __launch_bounds__(kThreads) keep_final_state(const Conv conv) {
    const int64_t kept = conv.taps - 1, count = conv.batch * conv.channels * kept;
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
         i += int64_t{gridDim.x} * kThreads) {
        const int64_t sequence = i / kept / conv.channels, channel = i / kept % conv.channels;
        const int64_t from = conv.time - kept + i % kept;
        const int32_t* document = conv.document ? conv.document + sequence * conv.time : nullptr;
        const bool seen = conv.time == 0 || same_document(document, from, conv.time - 1);
        conv.final_state[i] = __float2bfloat16_rn(seen ? value_at(conv, sequence, channel, from) : 0.0f);
    }
}

template <int W, int kAhead, int kBlocks, Reuse kReuse>
void launch_four_taps(const Context& context, const Conv& conv) {
    const int64_t tasks = conv.batch * div_up(conv.time, kRun) * div_up(conv.channels, kThreads * W);
    const auto kernel = conv.document ? convolve_four_taps<W, kAhead, kBlocks, true, kReuse>
                                      : convolve_four_taps<W, kAhead, kBlocks, false, kReuse>;
    kernel<<<narrow<unsigned>(tasks), kThreads, 0, context.stream>>>(conv);
}

void convolve(const Context& context, const Conv& conv) {
    const bool vectors = conv.taps == 4 && vectors_fit(conv.rows, conv.pitch) &&
                         vectors_fit(conv.weight, 0) && vectors_fit(conv.bias, 0) &&
                         vectors_fit(conv.xbc, conv.channels);
    if (vectors) {
        const auto launch = conv.reuse == Reuse::once ? launch_four_taps<4, 8, 6, Reuse::once>
                                                      : launch_four_taps<4, 8, 6, Reuse::again>;
        launch(context, conv);
    } else {
        const int64_t tasks = conv.batch * div_up(conv.time, kRun) * div_up(conv.channels, kThreads);
        convolve_any<<<narrow<unsigned>(tasks), kThreads, 0, context.stream>>>(conv);
    }
    MP_CUDA_LAUNCHED();
}

}  // namespace

// 8B: 2 * conv_channels read and as much written per token (40 KiB at 10240 channels; the three rows before a
// run come from cache); 2 * Kc + 4 FLOPs, an exponential and a reciprocal per element.
void run(const Context& context, const ConvForward& args) {
    const Conv conv{conv_input(args), bf16_data(args.xbc), bf16_data(args.final_state),
                    reuse_of(args.xbc.bytes())};
    if (conv.batch == 0) return;
    if (conv.time > 0) convolve(context, conv);
    const int64_t kept = conv.batch * conv.channels * (conv.taps - 1);
    if (!args.final_state || kept == 0) return;
    keep_final_state<<<grid_size(div_up(kept, kThreads)), kThreads, 0, context.stream>>>(conv);
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda
