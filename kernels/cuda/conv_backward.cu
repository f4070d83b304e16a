// The gradient of the causal depthwise convolution of the Mamba-2 mixer and its SiLU. With v the sum before
// the SiLU, recomputed, and dv = d_xbc * silu'(v):
//   dx[t] = sum_k weight[k] * dv[t + Kc-1-k];  d_weight[k] = sum_t dv[t] * x[t - (Kc-1) + k];  d_bias = sum
//   dv
// where taps into another document are dropped. Sums over tokens go from a thread's run to its block, from
// there to scratch memory, and from there, in double, to the gradients: always in the same order.
#include "kernels/cuda/conv.cuh"
#include "kernels/cuda/copies.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/partial_sums.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kRuns = 4;  // runs of a block, one per warp
constexpr int kTaps = 4;  // of the fast path
constexpr int kHalo = kTaps - 1;
constexpr int kMostRun = 256;  // tokens of a run

// What the kernels read and write besides.
struct Gradient {
    ConvInput in;
    const bf16* d_xbc;  // [batch, time, channels]
    bf16* d_rows;       // the x|B|C part of d_zxbcdt, pitch as `in`'s
    bf16* d_initial;    // [batch, channels, taps-1] or null
    float* partials;    // [blocks along tokens, taps + 1 (the bias), channels]
    int64_t run;        // tokens of one run, a multiple of a warp
    int64_t runs;       // of one sequence
    Reuse reuse;        // of d_rows
};

// A run of one sequence.
struct Run {
    int64_t sequence, begin, end;
};

__device__ Run run_of(const Gradient& g, int64_t index) {
    const int64_t sequence = index / g.runs, begin = index % g.runs * g.run;
    return {.sequence = sequence, .begin = begin, .end = min(begin + g.run, g.in.time)};
}

// d silu(v) / dv.
__device__ float silu_slope(float v) {
    const float s = sigmoid(v);
    return fmaf(s, fmaf(-v, s, v), s);
}

// Four taps over W channels of one thread. The last four values and the last four gradients dv of each
// channel are rings, indexed by the token's place in groups of four.
template <int W>
struct FourTaps {
    float weight[kTaps][W], bias[W] = {}, value[kTaps][W], dv[kTaps][W] = {};
    float d_weight[kTaps][W] = {}, d_bias[W] = {};

    // Takes in the token of this place.
    __device__ void take(const Packed<W>& token, const Packed<W>& d_token, int place) {
        unpack(token, value[place]);
        unpack(d_token, dv[place]);
    }
    // Turns its gradient into dv; its share of the sums over tokens only where kOwn.
    template <bool kOwn>
    __device__ void advance(int place) {
#pragma unroll
        for (int j = 0; j < W; ++j) {
            float v = bias[j];
#pragma unroll
            for (int k = 0; k < kTaps; ++k) v = fmaf(weight[k][j], value[(place + 1 + k) % kTaps][j], v);
            dv[place][j] *= silu_slope(v);
            if (!kOwn) continue;
            d_bias[j] += dv[place][j];
#pragma unroll
            for (int k = 0; k < kTaps; ++k)
                d_weight[k][j] = fmaf(dv[place][j], value[(place + 1 + k) % kTaps][j], d_weight[k][j]);
        }
    }
    // In place of a token that the tokens before it do not reach.
    __device__ void next_unseen(int place) {
#pragma unroll
        for (int j = 0; j < W; ++j) dv[place][j] = 0;
    }
    // The gradient of the token kHalo before the one of this place.
    __device__ Packed<W> gradient(int place) const {
        float sum[W];
#pragma unroll
        for (int j = 0; j < W; ++j) {
            sum[j] = 0;
#pragma unroll
            for (int k = kTaps - 1; k >= 0; --k)
                sum[j] = fmaf(weight[k][j], dv[(place + kTaps - k) % kTaps][j], sum[j]);
        }
        return pack(sum);
    }
    __device__ void forget_value(int place) {
#pragma unroll
        for (int j = 0; j < W; ++j) value[place][j] = 0;
    }
    // What has place p + 1 gets place p.
    __device__ void rotate() {
#pragma unroll
        for (int j = 0; j < W; ++j) {
            const float first_value = value[0][j], first_dv = dv[0][j];
#pragma unroll
            for (int p = 0; p + 1 < kTaps; ++p) {
                value[p][j] = value[p + 1][j];
                dv[p][j] = dv[p + 1][j];
            }
            value[kTaps - 1][j] = first_value;
            dv[kTaps - 1][j] = first_dv;
        }
    }
};

// What a warp keeps in shared memory: the rows of the group of four tokens at work and of the kStages - 1
// next ones, under way, and where documents start: bit u of word w says that token w * kWarp + u of the run
// starts another one than the token before it.
template <int W, int kStages>
struct WalkMemory {
    Copied<W> tokens[kStages][kTaps][kWarp], d_tokens[kStages][kTaps][kWarp];
    uint32_t starts[kMostRun / kWarp];
};

// One thread's walk along a run; `to` is the place of the gradient of the token kHalo before the current one.
template <int W, int kStages, bool kDocuments, Reuse kReuse>
struct Walk {
    const Gradient& g;
    WalkMemory<W, kStages>& memory;
    const bf16 *from, *d_from;
    bf16* to;
    int64_t pitch, d_pitch;
    int count, available;  // tokens of the run; those and the ones beyond its end that its last tokens reach
    // Where tokens complete the gradient of the token kHalo before: not at once in a run, or in a document.
    int complete_from = kHalo;
    int stage = kStages - 1;  // of the group at work
    FourTaps<W> taps;

    __device__ Walk(const Gradient& gradient, WalkMemory<W, kStages>& shared, const Run& run, int64_t channel)
        : g(gradient),
          memory(shared),
          pitch(g.in.pitch),
          d_pitch(g.in.channels),
          count(static_cast<int>(run.end - run.begin)),
          available(static_cast<int>(min(run.end + kHalo, g.in.time) - run.begin)) {
        const int64_t first = run.sequence * g.in.time + run.begin;
        const bool goes_on = run.begin > 0;  // the run does not begin its sequence
        const int32_t* document = kDocuments ? g.in.document + first : nullptr;
        from = g.in.rows + first * pitch + channel;
        d_from = g.d_xbc + first * d_pitch + channel;
        to = g.d_rows + (first - kHalo) * pitch + channel;
        const bf16* row = from;
#pragma unroll
        for (int i = 0; i + 1 < kStages; ++i) fetch(i, i * kTaps);
        load_taps(g.in.weight + channel * kTaps, taps.weight);
        if (g.in.bias) unpack(load<W, Reuse::again>(g.in.bias + channel), taps.bias);
        taps.forget_value(0);
#pragma unroll
        for (int k = 1; k < kTaps; ++k) {  // the token that has place k lies kTaps - k before the run
            if (goes_on) {
                unpack(load<W, Reuse::again>(row + (k - kTaps) * pitch), taps.value[k]);
            } else {
#pragma unroll
                for (int j = 0; j < W; ++j)
                    taps.value[k][j] = value_at(g.in, run.sequence, channel + j, k - kTaps);
            }
            if (kDocuments && goes_on && document[k - kTaps] != document[0]) taps.forget_value(k);
        }
        if (kDocuments) find_documents(document, goes_on);
    }
    // All of a run's starts are asked for at once. Tokens beyond the run that do not see its last one are
    // no longer available.
    __device__ void find_documents(const int32_t* document, bool goes_on) {
        const int lane = static_cast<int>(threadIdx.x), before_run = goes_on ? -1 : 0;
#pragma unroll
        for (int word = 0; word < kMostRun / kWarp; ++word) {
            const int index = word * kWarp + lane, at = min(index, count - 1);
            const int before = index < count ? max(index - 1, before_run) : at;
            const uint32_t starts = __ballot_sync(0xffffffffu, document[at] != document[before]);
            if (lane == 0) memory.starts[word] = starts;
        }
        const int beyond = min(count + lane, available - 1);
        const bool seen = count + lane < available && document[beyond] == document[count - 1];
        available = count + __ffs(static_cast<int>(~__ballot_sync(0xffffffffu, seen))) - 1;
        __syncwarp();
    }
    // The tokens from `index` on, where there are any.
    __device__ void fetch(int to_stage, int index) {
        const int lane = static_cast<int>(threadIdx.x);
#pragma unroll
        for (int u = 0; u < kTaps; ++u) {
            if (index + u < available) {
                copy(memory.tokens[to_stage][u][lane], from);
                copy(memory.d_tokens[to_stage][u][lane], d_from);
            }
            from += pitch;
            d_from += d_pitch;
        }
        end_copies();
    }
    // The group at `index` of the run is there afterwards, and one more comes under way.
    __device__ void next_group(int index) {
        fetch(stage, index + (kStages - 1) * kTaps);  // in place of the last one
        stage = stage + 1 == kStages ? 0 : stage + 1;
        wait_for_copies<kStages - 1>();
    }
    // Takes in a token of the group.
    __device__ void take(int place, int token) {
        const int lane = static_cast<int>(threadIdx.x);
        taps.take(read(memory.tokens[stage][token][lane]), read(memory.d_tokens[stage][token][lane]), place);
    }
    // After the token `index` of the run.
    __device__ void emit(int place, int index) {
        if (index >= complete_from) store<W>(to, taps.gradient(place), kReuse);
        to += pitch;
    }
    // The token of this place starts a document: the gradients before it are complete, the values before it
    // out of sight.
    __device__ void start_document(int place, int index) {
#pragma unroll
        for (int i = 0; i < kHalo; ++i) {
            taps.next_unseen((place + i) % kTaps);
            if (index + i >= complete_from)
                store<W>(to + i * pitch, taps.gradient((place + i) % kTaps), kReuse);
            taps.forget_value((place + 1 + i) % kTaps);
        }
        complete_from = index + kHalo;
    }
    // The group's tokens one after another: one of them starts a document, or completes no gradient, or the
    // sequence ends with them.
    __device__ void step_singly(int group, uint32_t starts) {
        const int tokens = min(count - group, kTaps);
#pragma unroll 1
        for (int u = 0; u < tokens; ++u) {
            if (kDocuments && (starts >> u & 1)) start_document(0, group + u);
            take(0, u);
            taps.template advance<true>(0);
            emit(0, group + u);
            taps.rotate();
        }
    }
    __device__ void step_together() {
#pragma unroll
        for (int u = 0; u < kTaps; ++u) {
            take(u, u);
            taps.template advance<true>(u);
            store<W>(to, taps.gradient(u), kReuse);
            to += pitch;
        }
    }
    __device__ void follow() {
        int group = 0;
#pragma unroll 1
        for (; group < count; group += kTaps) {
            next_group(group);
            const uint32_t starts = kDocuments ? memory.starts[group / kWarp] >> group % kWarp & 15 : 0;
            if (starts || group < complete_from || count - group < kTaps)
                step_singly(group, starts);
            else
                step_together();
        }
        next_group(group);  // empty where the sequence ends
#pragma unroll
        for (int i = 0; i < kHalo; ++i) {
            if (count + i < available) {
                take(i, i);
                taps.template advance<false>(i);
            } else {
                taps.next_unseen(i);
            }
            emit(i, count + i);
        }
    }
};

// kRuns runs over the W * kWarp channels of a warp; threads beyond the last channel repeat its work. kBlocks
// blocks fit a multiprocessor.
template <int W, int kStages, int kBlocks, bool kDocuments, Reuse kReuse>
__global__ void __launch_bounds__(kWarp* kRuns, kBlocks) convolve_back_four_taps(const Gradient g) {
    __shared__ float sums[kRuns][kTaps + 1][W][kWarp];
    __shared__ WalkMemory<W, kStages> memory[kRuns];
    const int64_t channel_blocks = (g.in.channels + kWarp * W - 1) / (kWarp * W);
    const int64_t block = blockIdx.x / channel_blocks, first = blockIdx.x % channel_blocks * (kWarp * W);
    const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
    const int live = static_cast<int>(min(g.in.batch * g.runs - block * kRuns, int64_t{kRuns}));
    if (warp < live) {
        Walk<W, kStages, kDocuments, kReuse> walk(g, memory[warp], run_of(g, block * kRuns + warp),
                                                  min(first + lane * W, g.in.channels - W));
        walk.follow();
#pragma unroll
        for (int j = 0; j < W; ++j) {
#pragma unroll
            for (int k = 0; k < kTaps; ++k) sums[warp][k][j][lane] = walk.taps.d_weight[k][j];
            sums[warp][kTaps][j][lane] = walk.taps.d_bias[j];
        }
    }
    __syncthreads();
    float* partials = g.partials + block * (kTaps + 1) * g.in.channels + first;
    for (int i = warp * kWarp + lane; i < (kTaps + 1) * W * kWarp; i += kRuns * kWarp) {
        const int k = i / (W * kWarp), channel = i % (W * kWarp);
        if (first + channel >= g.in.channels) continue;
        float sum = sums[0][k][channel % W][channel / W];
        for (int r = 1; r < live; ++r) sum += sums[r][k][channel % W][channel / W];
        partials[k * g.in.channels + channel] = sum;
    }
}

// ---- any number of taps

// dv of token t.
__device__ float gradient_before_silu(const Gradient& g, int64_t sequence, int64_t channel, int64_t t) {
    const ConvInput& in = g.in;
    const int32_t* document = in.document ? in.document + sequence * in.time : nullptr;
    float v = in.bias ? __bfloat162float(in.bias[channel]) : 0.0f;
    for (int64_t k = 0; k < in.taps; ++k) {
        const int64_t from = t - (in.taps - 1) + k;
        if (!same_document(document, from, t)) continue;
        v = fmaf(__bfloat162float(in.weight[channel * in.taps + k]), value_at(in, sequence, channel, from),
                 v);
    }
    return __bfloat162float(g.d_xbc[(sequence * in.time + t) * in.channels + channel]) * silu_slope(v);
}

// The gradient of the value at position t, which may lie before the row.
__device__ float gradient_at(const Gradient& g, int64_t sequence, int64_t channel, int64_t t) {
    const ConvInput& in = g.in;
    const int32_t* document = in.document ? in.document + sequence * in.time : nullptr;
    float sum = 0;
    for (int64_t k = in.taps - 1; k >= 0; --k) {
        const int64_t reached = t + in.taps - 1 - k;
        if (reached < 0 || reached >= in.time || !same_document(document, t, reached)) continue;
        sum = fmaf(__bfloat162float(in.weight[channel * in.taps + k]),
                   gradient_before_silu(g, sequence, channel, reached), sum);
    }
    return sum;
}

// A channel per thread and a run per block; dv is computed anew wherever it is used.
__global__ void __launch_bounds__(kWarp* kRuns) convolve_back_any(const Gradient g) {
    const ConvInput& in = g.in;
    const int64_t threads = kWarp * kRuns, channel_blocks = (in.channels + threads - 1) / threads;
    const int64_t channel = blockIdx.x % channel_blocks * threads + threadIdx.x;
    if (channel >= in.channels) return;
    const int64_t block = blockIdx.x / channel_blocks;
    const Run run = run_of(g, block);
    const int32_t* document = in.document ? in.document + run.sequence * in.time : nullptr;
    for (int64_t t = run.begin; t < run.end; ++t)
        g.d_rows[(run.sequence * in.time + t) * in.pitch + channel] =
            __float2bfloat16_rn(gradient_at(g, run.sequence, channel, t));
    float* partials = g.partials + block * (in.taps + 1) * in.channels + channel;
    for (int64_t k = 0; k <= in.taps; ++k) {
        float sum = 0;
        for (int64_t t = run.begin; t < run.end; ++t) {
            const int64_t from = t - (in.taps - 1) + k;
            if (k < in.taps && !same_document(document, from, t)) continue;
            const float value = k < in.taps ? value_at(in, run.sequence, channel, from) : 1.0f;
            sum = fmaf(gradient_before_silu(g, run.sequence, channel, t), value, sum);
        }
        partials[k * in.channels] = sum;
    }
}

// d_initial [batch, channels, taps-1], one element per thread.
__global__ void __launch_bounds__(kWarp* kRuns) initial_gradient(const Gradient g) {
    const int64_t kept = g.in.taps - 1, count = g.in.batch * g.in.channels * kept;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
         i += int64_t{gridDim.x} * blockDim.x) {
        const int64_t sequence = i / kept / g.in.channels, channel = i / kept % g.in.channels;
        g.d_initial[i] = __float2bfloat16_rn(gradient_at(g, sequence, channel, i % kept - kept));
    }
}

// Partials of [taps + 1, channels] columns; d_weight is [channels, taps], d_bias [channels] or null.
__global__ void __launch_bounds__(kWarp* PartialSums::kSlices)
    add_to_gradients(const PartialSums sums, int64_t channels, int64_t taps, float* d_weight, float* d_bias) {
    int64_t column;
    float sum;
    if (!sum_column(sums, column, sum)) return;
    const int64_t k = column / channels, channel = column % channels;
    if (k < taps)
        d_weight[channel * taps + k] += sum;
    else if (d_bias)
        d_bias[channel] += sum;
}

// ---- launches

// Tokens of one run: long ones read few rows twice and leave few partials, short ones fill the device.
int64_t run_length(int64_t batch, int64_t time, int64_t channels) {
    constexpr int64_t kEnoughWarps = 8192;
    for (const int64_t run : {kMostRun, 128, 64}) {
        if (batch * div_up(time, run) * div_up(channels, 4 * kWarp) >= kEnoughWarps) return run;
    }
    return 32;
}

// Blocks along tokens; each leaves a partial. The slower path has a block per run.
int64_t partial_count(int64_t batch, int64_t runs, bool fast) {
    return fast ? div_up(batch * runs, int64_t{kRuns}) : batch * runs;
}

template <int W, int kStages, int kBlocks>
void launch_four_taps(const Context& context, const Gradient& g) {
    const bool once = g.reuse == Reuse::once;
    const auto kernel = g.in.document
                            ? (once ? convolve_back_four_taps<W, kStages, kBlocks, true, Reuse::once>
                                    : convolve_back_four_taps<W, kStages, kBlocks, true, Reuse::again>)
                            : (once ? convolve_back_four_taps<W, kStages, kBlocks, false, Reuse::once>
                                    : convolve_back_four_taps<W, kStages, kBlocks, false, Reuse::again>);
    const int64_t blocks =
        partial_count(g.in.batch, g.runs, true) * div_up(g.in.channels, int64_t{W} * kWarp);
    kernel<<<narrow<unsigned>(blocks), dim3(kWarp, kRuns), 0, context.stream>>>(g);
    MP_CUDA_LAUNCHED();
}

void launch_any(const Context& context, const Gradient& g) {
    constexpr int64_t kThreads = kWarp * kRuns;
    const int64_t blocks = g.in.batch * g.runs * div_up(g.in.channels, kThreads);
    convolve_back_any<<<narrow<unsigned>(blocks), kThreads, 0, context.stream>>>(g);
    MP_CUDA_LAUNCHED();
}

// Whether vectors of 4 bf16 may be read at `memory` and at every `pitch` elements from there.
bool fours_fit(const void* memory, int64_t pitch) {
    return reinterpret_cast<uintptr_t>(memory) % 8 == 0 && pitch % 4 == 0;
}

bool fours_fit(const Gradient& g) {
    return fours_fit(g.in.rows, g.in.pitch) && fours_fit(g.in.weight, 0) && fours_fit(g.in.bias, 0) &&
           fours_fit(g.d_xbc, g.in.channels) && fours_fit(g.d_rows, g.in.pitch);
}

}  // namespace

int64_t scratch_bytes(const ConvBackward& args) {
    const int64_t batch = args.d_xbc.size(0), time = args.d_xbc.size(1), channels = args.d_xbc.size(2);
    const int64_t runs = div_up(time, run_length(batch, time, channels));
    // Whether memory is aligned for the faster path is not known here; the slower one leaves more.
    return partial_count(batch, runs, false) * (args.shape.conv_kernel + 1) * channels *
           int64_t{sizeof(float)};
}

// 8B: 4 * conv_channels read and 2 * conv_channels written per token (60 KiB at 10240 channels; of a run of
// 256 tokens six rows of zxbcdt and three of d_xbc are read twice, and the partials of 1024 tokens take
// 20 * conv_channels written and read); 6 * Kc + 10 FLOPs, an exponential and a reciprocal per element.
void run(const Context& context, const ConvBackward& args) {
    const ConvInput in = conv_input(args);
    Gradient g{.in = in,
               .d_xbc = bf16_data(args.d_xbc),
               .d_rows = bf16_data(args.d_zxbcdt) + args.shape.inner(),
               .d_initial = bf16_data(args.d_initial_state),
               .partials = reinterpret_cast<float*>(context.scratch),
               .run = run_length(in.batch, in.time, in.channels),
               .runs = 0,
               .reuse = reuse_of(args.d_xbc.bytes())};
    g.runs = div_up(in.time, g.run);
    if (in.batch == 0) return;
    MP_ASSERT(context.scratch_capacity >= scratch_bytes(args));
    const bool fast = in.taps == kTaps && fours_fit(g);
    if (in.time > 0) {
        if (fast)
            launch_four_taps<4, 3, 4>(context, g);
        else
            launch_any(context, g);
        const PartialSums sums{.partials = g.partials,
                               .rows = partial_count(in.batch, g.runs, fast),
                               .columns = (in.taps + 1) * in.channels};
        add_to_gradients<<<sums.grid(), PartialSums::block(), 0, context.stream>>>(
            sums, in.channels, in.taps, args.d_weight.as<float>(), args.d_bias.as<float>());
        MP_CUDA_LAUNCHED();
    }
    const int64_t kept = in.batch * in.channels * (in.taps - 1);
    if (!g.d_initial || kept == 0) return;
    initial_gradient<<<grid_size(div_up(kept, int64_t{kWarp * kRuns})), kWarp * kRuns, 0, context.stream>>>(
        g);
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda
