// Statistics of many models' logits against one base's. Token chunks are outermost, so that float32 logits of
// all tokens never exist at once: the chunk's base logits are one product, a kernel takes each row's
// log-sum-exp, argmax and power; then, variant by variant, one product and one kernel that reads both rows
// once.
//
// A row belongs to one block. Each thread keeps an online softmax (Milakov & Gimelshein 2018) in float32 over
// its columns, batch by batch; threads are combined in double, in an order fixed by the vocabulary alone.
// Exponentials are powers of two of L z, with L the float32 nearest to log2(e); log2 sums are divided by L
// itself, so that what is computed is a softmax at temperature 1 + 1.3e-8 whatever the logits' size (off by
// entropy * 1.3e-8).
//
// With p the base's distribution and d = z - z_base, KL(base || variant) = lse - lse_base - sum p d / sum p.
// The sum of p is taken again beside sum p d, with the same rounding, so that a shift of all logits cancels.
#include <cuda_bf16.h>

#include <algorithm>
#include <climits>

#include "kernels/cuda/logit_rows.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/products.h"

namespace minipuzzle::cuda {
namespace {

constexpr int64_t kChunkBytes = int64_t{512} << 20;  // float32 logits of one chunk, at most
// Tiles of the library's products are 128, 192 or 256 rows high: chunks of 1024 rows, of which the last 64
// fill a third of a tile 192 high, took 12 % longer a row than chunks of 768.
constexpr int64_t kRowStep = 768, kRowTile = 192, kLargestChunk = 8448;

// ---- a thread's part of a row -------------------------------------------------------------------

// A softmax so far. The sum is relative to 2^shift, shift = L * largest as rounded.
struct OnlineSoftmax {
    float largest = kLowest;
    int argmax = INT_MAX;
    float sum = 0;  // sum 2^(L z - shift)

    // Rounded here, never inside a fused operation: every term is relative to this very number.
    __device__ float shift() const { return __fmul_rn(largest, kLog2E); }

    template <class Columns, int kCount>
    __device__ void take(const float (&z)[kCount], int begin) {
        const float before = shift();
        int place = -1;
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            if (z[j] > largest) largest = z[j], place = j;
        }
        if (place >= 0) argmax = Columns::of(begin, place);
        const float now = shift();
        float batch = 0;
#pragma unroll
        for (int j = 0; j < kCount; ++j) batch += power_of_two(fmaf(z[j], kLog2E, -now));
        sum = fmaf(sum, power_of_two(before - now), batch);
    }
};

// ---- threads combined ---------------------------------------------------------------------------

// The block's largest logit and its lowest column, in every thread.
template <int kThreads>
__device__ void find_largest(float& largest, int& argmax) {
    constexpr int kWarps = kThreads / kWarp;
    __shared__ float warp_largest[kWarps];
    __shared__ int warp_argmax[kWarps];
    const auto take = [&](float other, int column) {
        if (other > largest || (other == largest && column < argmax)) largest = other, argmax = column;
    };
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(~0u, largest, lanes);
        take(other, __shfl_xor_sync(~0u, argmax, lanes));
    }
    if (threadIdx.x % kWarp == 0) {
        warp_largest[threadIdx.x / kWarp] = largest;
        warp_argmax[threadIdx.x / kWarp] = argmax;
    }
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) take(warp_largest[warp], warp_argmax[warp]);
}

// A whole row's softmax out of the threads': `share` becomes this thread's part of the sum, relative to the
// shift that is returned.
template <int kThreads>
__device__ float combine(OnlineSoftmax& row, double& share) {
    const float own = row.shift();
    find_largest<kThreads>(row.largest, row.argmax);
    const float shift = row.shift();
    share = row.sum * power_of_two(own - shift);
    return shift;
}

__device__ double natural_lse(float shift, double sum) {
    return (static_cast<double>(shift) + log2(sum)) / static_cast<double>(kLog2E);
}

// ---- the base's rows ----------------------------------------------------------------------------

struct BaseStatistics {
    double lse;  // natural
    float lse2;  // L * lse: the base-2 logarithm of the same sum
    int argmax;
};

// Pointers stand at the chunk's first row; outputs may be null.
struct BaseRows {
    const float* logits;  // [rows, vocabulary]
    int64_t vocabulary;
    const int32_t* targets;
    BaseStatistics* statistics;
    float *loss, *correct, *power;
};

// Reads 4 V bytes a row; one exponential and about ten instructions a logit.
template <int kThreads, bool kVector>
__global__ void __launch_bounds__(kThreads) compare_base(BaseRows args) {
    using RowColumns = Columns<kThreads, kVector>;
    const int64_t r = blockIdx.x;
    const int target = args.targets[r];
    if (target < 0) {
        if (threadIdx.x > 0) return;
        set(args.loss, r, 0), set(args.correct, r, 0), set(args.power, r, 0);
        return;
    }
    const float* z = args.logits + r * args.vocabulary;
    OnlineSoftmax row;
    float power = 0;
    RowColumns::for_each(static_cast<int>(args.vocabulary), [&]<int kCount>(int begin, Count<kCount>) {
        float values[kCount];
        RowColumns::load(z, begin, values);
        row.take<RowColumns>(values, begin);
#pragma unroll
        for (int j = 0; j < kCount; ++j) power = fmaf(values[j], values[j], power);
    });
    double sums[2] = {0, power};
    const float shift = combine<kThreads>(row, sums[0]);
    add_up<kThreads>(sums);
    if (threadIdx.x > 0) return;
    const double lse = natural_lse(shift, sums[0]);
    args.statistics[r] = {lse, static_cast<float>(lse * static_cast<double>(kLog2E)), row.argmax};
    set(args.loss, r, lse - static_cast<double>(z[target]));
    set(args.correct, r, row.argmax == target);
    set(args.power, r, sums[1]);
}

// ---- a variant's rows ---------------------------------------------------------------------------

struct VariantRows {
    const float *logits, *base_logits;  // [rows, vocabulary]
    int64_t vocabulary;
    const int32_t* targets;
    const BaseStatistics* statistics;
    float *loss, *correct, *kl, *agrees, *error;
};

// Sums over a thread's columns: p (the base's probability), p d, d^2.
struct Divergence {
    float base_lse2;
    float mass = 0, weighted = 0, error = 0;

    template <int kCount>
    __device__ void take(const float (&z)[kCount], const float (&z_base)[kCount]) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            const float p = power_of_two(fmaf(z_base[j], kLog2E, -base_lse2));
            const float d = z[j] - z_base[j];
            mass += p;
            weighted = fmaf(p, d, weighted);
            error = fmaf(d, d, error);
        }
    }
};

__device__ void write_variant(const VariantRows& args, int64_t r, double lse, int argmax,
                              const double (&sums)[4]) {
    const int target = args.targets[r];
    const BaseStatistics base = args.statistics[r];
    // Never negative but for rounding; NaN passes through.
    const double kl = lse - base.lse - sums[2] / sums[1];
    set(args.loss, r, lse - static_cast<double>(args.logits[r * args.vocabulary + target]));
    set(args.correct, r, argmax == target);
    set(args.kl, r, kl < 0 ? 0 : kl);
    set(args.agrees, r, argmax == base.argmax);
    set(args.error, r, sums[3]);
}

// Reads 8 V bytes a row; two exponentials and about seventeen instructions a column. The softmax is taken
// exactly as the base's, so that equal logits give a KL of exactly 0.
template <int kThreads, bool kVector>
__global__ void __launch_bounds__(kThreads) compare_variant(VariantRows args) {
    using RowColumns = Columns<kThreads, kVector>;
    const int64_t r = blockIdx.x;
    if (args.targets[r] < 0) {
        if (threadIdx.x > 0) return;
        for (float* out : {args.loss, args.correct, args.kl, args.agrees, args.error}) set(out, r, 0);
        return;
    }
    const float *z = args.logits + r * args.vocabulary, *z_base = args.base_logits + r * args.vocabulary;
    OnlineSoftmax row;
    Divergence divergence{.base_lse2 = args.statistics[r].lse2};
    RowColumns::for_each(static_cast<int>(args.vocabulary), [&]<int kCount>(int begin, Count<kCount>) {
        float values[kCount], base_values[kCount];
        RowColumns::load(z, begin, values);
        RowColumns::load(z_base, begin, base_values);
        row.take<RowColumns>(values, begin);
        divergence.take(values, base_values);
    });
    double sums[4] = {0, divergence.mass, divergence.weighted, divergence.error};
    const float shift = combine<kThreads>(row, sums[0]);
    add_up<kThreads>(sums);
    if (threadIdx.x == 0) write_variant(args, r, natural_lse(shift, sums[0]), row.argmax, sums);
}

// ---- hidden states ------------------------------------------------------------------------------

struct HiddenRows {
    const __nv_bfloat16 *hidden, *base;  // [rows, width]
    int64_t width;
    const int32_t* targets;
    float *mse, *cosine;
};

constexpr int kHiddenThreads = 128;

// Sums over a row of |h - b|^2, |h|^2, |b|^2 and h b: products of bf16 values are exact in float32, four or
// eight of them are added there, the rest in double.
template <int kCount>
__device__ void take_hidden(const __nv_bfloat16 (&h)[kCount], const __nv_bfloat16 (&b)[kCount],
                            double (&sums)[4]) {
    float part[4] = {};
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        const float x = __bfloat162float(h[j]), y = __bfloat162float(b[j]);
        part[0] = fmaf(x - y, x - y, part[0]);
        part[1] = fmaf(x, x, part[1]);
        part[2] = fmaf(y, y, part[2]);
        part[3] = fmaf(x, y, part[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += part[i];
}

// Reads 4 D bytes a row.
template <bool kVector>
__global__ void __launch_bounds__(kHiddenThreads) compare_hidden(HiddenRows args) {
    constexpr int kStep = kVector ? 8 : 1;
    struct alignas(kStep * 2) Values {
        __nv_bfloat16 at[kStep];
    };
    const int64_t r = blockIdx.x;
    if (args.targets[r] < 0) {
        if (threadIdx.x == 0) set(args.mse, r, 0), set(args.cosine, r, 0);
        return;
    }
    double sums[4] = {};
    for (int64_t i = threadIdx.x * kStep; i < args.width; i += kHiddenThreads * kStep) {
        const Values h = *reinterpret_cast<const Values*>(args.hidden + r * args.width + i);
        const Values b = *reinterpret_cast<const Values*>(args.base + r * args.width + i);
        take_hidden(h.at, b.at, sums);
    }
    add_up<kHiddenThreads>(sums);
    if (threadIdx.x > 0) return;
    const double norms = sqrt(sums[1] * sums[2]);
    set(args.mse, r, sums[0] / static_cast<double>(args.width));
    set(args.cosine, r, norms != 0 ? sums[3] / norms : 0);
}

// ---- launchers ----------------------------------------------------------------------------------

// Rows of a chunk, from the vocabulary alone: what kChunkBytes hold, in whole kRowStep or at least whole
// kRowTile, so that the product's last row of tiles is full.
int64_t chunk_rows(int64_t vocabulary) {
    const int64_t fit = std::clamp<int64_t>(kChunkBytes / (4 * vocabulary), 1, kLargestChunk);
    for (const int64_t step : {kRowStep, kRowTile})
        if (fit >= step) return fit / step * step;
    return fit;
}

bool wants_logits(const LogitsComparison& out) {
    return out.loss || out.correct || out.kl || out.agrees || out.error;
}

// What a chunk needs, laid out in the scratch memory.
struct Scratch {
    int64_t rows, logits_bytes, statistics_bytes;
    bool variants;

    explicit Scratch(const CompareLogits& args)
        : rows(std::min(chunk_rows(args.base.head.size(0)), args.targets.size(0))),
          logits_bytes(aligned(rows * args.base.head.size(0) * 4)),
          statistics_bytes(aligned(rows * static_cast<int64_t>(sizeof(BaseStatistics)))),
          variants(std::any_of(args.variants.begin(), args.variants.end(), wants_logits)) {}

    int64_t bytes() const { return statistics_bytes + logits_bytes * (variants ? 2 : 1); }
    BaseStatistics* statistics(std::byte* memory) const { return reinterpret_cast<BaseStatistics*>(memory); }
    float* base_logits(std::byte* memory) const {
        return reinterpret_cast<float*>(memory + statistics_bytes);
    }
    float* logits(std::byte* memory) const {
        return reinterpret_cast<float*>(memory + statistics_bytes + logits_bytes);
    }
};

void launch(const Context& context, const BaseRows& args, int64_t rows) {
    MP_LAUNCH_ROWS(compare_base, context, rows, args);
}

void launch(const Context& context, const VariantRows& args, int64_t rows) {
    MP_LAUNCH_ROWS(compare_variant, context, rows, args);
}

void launch_hidden(const Context& context, const CompareLogits& args, const LogitsComparison& out) {
    const HiddenRows rows{.hidden = reinterpret_cast<const __nv_bfloat16*>(out.variant.hidden.data),
                          .base = reinterpret_cast<const __nv_bfloat16*>(args.base.hidden.data),
                          .width = args.base.hidden.size(1),
                          .targets = args.targets.as<int32_t>(),
                          .mse = at(out.hidden_mse, 0),
                          .cosine = at(out.cosine, 0)};
    const auto grid = static_cast<unsigned>(args.targets.size(0));
    const auto address = reinterpret_cast<uintptr_t>(rows.hidden) | reinterpret_cast<uintptr_t>(rows.base);
    if (rows.width % 8 == 0 && address % 16 == 0)
        compare_hidden<true><<<grid, kHiddenThreads, 0, context.stream>>>(rows);
    else
        compare_hidden<false><<<grid, kHiddenThreads, 0, context.stream>>>(rows);
    MP_CUDA_LAUNCHED();
}

// The call's chunks of rows, one after the other.
class ChunkRun {
  public:
    ChunkRun(const Context& context, Products& products, const CompareLogits& args, const Scratch& scratch)
        : context_(context), products_(products), args_(args), scratch_(scratch) {}

    void run(int64_t begin, int64_t count) const {
        form_logits(args_.base, begin, count, scratch_.base_logits(context_.scratch));
        launch(context_, base_rows(begin), count);
        for (const LogitsComparison& out : args_.variants) {
            if (!wants_logits(out)) continue;
            form_logits(out.variant, begin, count, scratch_.logits(context_.scratch));
            launch(context_, variant_rows(out, begin), count);
        }
    }

  private:
    void form_logits(const LmHead& lm, int64_t begin, int64_t count, float* logits) const {
        products_.run(context_, {.x = lm.hidden.slice(begin, count).data,
                                 .weight = lm.head.data,
                                 .out = reinterpret_cast<std::byte*>(logits),
                                 .rows = count,
                                 .inputs = lm.hidden.size(1),
                                 .outputs = lm.head.size(0),
                                 .out_type = DType::f32});
    }

    BaseRows base_rows(int64_t begin) const {
        return {.logits = scratch_.base_logits(context_.scratch),
                .vocabulary = args_.base.head.size(0),
                .targets = args_.targets.as<int32_t>() + begin,
                .statistics = scratch_.statistics(context_.scratch),
                .loss = at(args_.base_loss, begin),
                .correct = at(args_.base_correct, begin),
                .power = at(args_.base_power, begin)};
    }

    VariantRows variant_rows(const LogitsComparison& out, int64_t begin) const {
        return {.logits = scratch_.logits(context_.scratch),
                .base_logits = scratch_.base_logits(context_.scratch),
                .vocabulary = args_.base.head.size(0),
                .targets = args_.targets.as<int32_t>() + begin,
                .statistics = scratch_.statistics(context_.scratch),
                .loss = at(out.loss, begin),
                .correct = at(out.correct, begin),
                .kl = at(out.kl, begin),
                .agrees = at(out.agrees, begin),
                .error = at(out.error, begin)};
    }

    const Context& context_;
    Products& products_;
    const CompareLogits& args_;
    const Scratch& scratch_;
};

}  // namespace

// At the 8B shape (V 131072, D 4096), one base and n variants, for each chunk of 768 tokens: 0.82 TFLOP a
// model in products; 0.40 GB of base logits read once and 0.81 GB for each variant by the kernels here.
void run(const Context& context, Products& products, const CompareLogits& args) {
    const int64_t rows = args.targets.size(0), vocabulary = args.base.head.size(0);
    if (rows == 0) return;
    MP_ASSERT(vocabulary > 0 && vocabulary <= INT_MAX / 2 && rows <= INT_MAX);
    const Scratch scratch(args);
    MP_ASSERT(scratch.bytes() <= context.scratch_capacity);
    for (const LogitsComparison& out : args.variants) {
        if (out.hidden_mse || out.cosine) launch_hidden(context, args, out);
    }
    if (!scratch.variants && !args.base_loss && !args.base_correct && !args.base_power) return;
    const ChunkRun chunks(context, products, args, scratch);
    for (int64_t begin = 0; begin < rows; begin += scratch.rows)
        chunks.run(begin, std::min(scratch.rows, rows - begin));
}

int64_t scratch_bytes(const CompareLogits& args) {
    return args.base.head.size(0) > 0 ? Scratch(args).bytes() : 0;
}

}  // namespace minipuzzle::cuda
