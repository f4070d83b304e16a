// The vocabulary losses and their gradient. Token chunks are outermost, so that float32 logits of all tokens
// never exist at once: the chunk's logits are one product a model, one kernel takes each row's log-sum-exps
// and losses and leaves the row's gradient where the student's logits lay, and two products carry it on to
// the hidden states and to the head.
//
// A row belongs to one block. It goes over the row twice: first each thread keeps online softmaxes (Milakov &
// Gimelshein 2018) in float32 over its columns, batch by batch, and threads are combined in double, in an
// order fixed by the vocabulary alone; then the gradient is formed and written as bf16, from the row's first
// byte on. Column v lands where column v / 2 was, which the block has read by then (write_gradient sees to
// it).
//
// With z the student's logits, t the teacher's, T the temperature, p = softmax(z / T), q = softmax(t / T):
//   T^2 KL(q || p) = T sum q (t - z) + T^2 (lse(z / T) - lse(t / T)),     d / dz_v = T (p_v - q_v)
//   T^2 KL(p || q) = T sum p (z - t) + T^2 (lse(t / T) - lse(z / T)),     d / dz_v = p_v (z_v - t_v - sum p
//   (z - t))
// Exponentials are powers of two of a z, with a the float32 nearest to L / T, so that what is computed are
// softmaxes at a temperature off by less than 2^-24 of itself, whatever the logits' size.
#include <algorithm>
#include <climits>
#include <cmath>

#include "kernels/cuda/logit_rows.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/top_logits.h"

namespace minipuzzle::cuda {
namespace {

// ---- a thread's part of a row -------------------------------------------------------------------

// Pointers stand at the chunk's first row; outputs may be null.
struct LossRows {
    float* logits;            // [rows, vocabulary]
    const float* teacher;     // [rows, vocabulary]; null without a teacher
    const float* thresholds;  // [rows]: the teacher's least logit that counts; null where all count
    int64_t vocabulary;
    const int32_t* targets;
    float *ce, *kl, *reverse_kl;
    double temperature;
    float softening;   // a
    bool separate_ce;  // the cross-entropy's softmax is not the softened one
    bool has_gradient;
    double ce_scale, kl_scale,
        reverse_scale;  // what the gradients of ce, T^2 KL and T^2 reverse KL count for
};

// The largest logit so far. Sums are relative to 2^shift, shift = factor * largest as rounded: here, never
// inside a fused operation, so that every term is relative to this very number.
struct Largest {
    float value = kLowest;

    __device__ float shift(float factor) const { return __fmul_rn(value, factor); }
    template <int kCount>
    __device__ void take(const float (&z)[kCount]) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) value = fmaxf(value, z[j]);  // NaN leaves it as it is
    }
};

__device__ float scaled_exponential(float z, float factor, float shift) {
    return power_of_two(fmaf(z, factor, -shift));
}

// A sum relative to `shift` after another batch, when it was relative to `before`.
__device__ float faded(float sum, float before, float shift, float batch) {
    return fmaf(sum, power_of_two(before - shift), batch);
}

// Sums over a thread's columns, of powers of two relative to the largest logits' shifts.
template <bool kTeacher>
struct RowSums {
    Largest student, teacher;
    float hard = 0;                    // the student's at temperature 1, where that is separate
    float soft = 0, soft_gap = 0;      // the student's softened, and weighted with z - t
    float taught = 0, taught_gap = 0;  // the teacher's softened, and weighted with t - z

    template <int kCount>
    __device__ void take(const float (&z)[kCount], const float (&t)[kCount], const LossRows& args,
                         float threshold) {
        const Largest student_before = student, teacher_before = teacher;
        student.take(z);
        if (args.separate_ce) {
            const float shift = student.shift(kLog2E);
            float batch = 0;
#pragma unroll
            for (int j = 0; j < kCount; ++j) batch += scaled_exponential(z[j], kLog2E, shift);
            hard = faded(hard, student_before.shift(kLog2E), shift, batch);
        }
        const float a = args.softening, before = student_before.shift(a), shift = student.shift(a);
        float batch = 0, gap = 0;
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            const float e = scaled_exponential(z[j], a, shift);
            batch += e;
            if constexpr (kTeacher) gap = fmaf(e, z[j] - t[j], gap);
        }
        soft = faded(soft, before, shift, batch);
        if constexpr (kTeacher) {
            soft_gap = faded(soft_gap, before, shift, gap);
            teacher.take(t);
            take_teacher(z, t, a, teacher_before.shift(a), threshold);
        }
    }

    template <int kCount>
    __device__ void take_teacher(const float (&z)[kCount], const float (&t)[kCount], float a, float before,
                                 float threshold) {
        const float shift = teacher.shift(a);
        float batch = 0, gap = 0;
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            const float e = t[j] < threshold ? 0.0f : scaled_exponential(t[j], a, shift);
            batch += e;
            gap = fmaf(e, t[j] - z[j], gap);
        }
        taught = faded(taught, before, shift, batch);
        taught_gap = faded(taught_gap, before, shift, gap);
    }
};

// ---- a whole row --------------------------------------------------------------------------------

// What the gradient is made of: at column v, with e(z) the powers of two relative to these shifts,
//   hard e_hard(z) + e_soft(z) (soft + soft_gap (z - t)) - taught e_taught(t), less `target` at the target.
struct GradientFactors {
    float hard_shift, soft_shift, taught_shift;
    float hard, soft, soft_gap, taught, target;
};

// The block's largest of each value, in every thread.
template <int kThreads, int kValues>
__device__ void find_largest_of(float* const (&values)[kValues]) {
    constexpr int kWarps = kThreads / kWarp;
    __shared__ float of_warps[kWarps][kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
        float& value = *values[i];
#pragma unroll
        for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
            value = fmaxf(value, __shfl_xor_sync(~0u, value, lanes));
        if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp][i] = value;
    }
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp)
#pragma unroll
        for (int i = 0; i < kValues; ++i) *values[i] = fmaxf(*values[i], of_warps[warp][i]);
}

enum Sum { hard, soft, soft_gap, taught, taught_gap, sum_count };

// Writes the row's losses and gives what its gradient is made of. `sums` are the whole row's.
template <bool kTeacher>
__device__ GradientFactors finish_row(const LossRows& args, int64_t r, const Largest& student,
                                      const Largest& teacher, const double (&sums)[sum_count]) {
    const float a = args.softening;
    const double temperature = args.temperature;
    GradientFactors factors{.hard_shift = student.shift(kLog2E),
                            .soft_shift = student.shift(a),
                            .taught_shift = teacher.shift(a)};
    const double hard_sum = args.separate_ce ? sums[hard] : sums[soft];
    const double lse =
        (static_cast<double>(factors.hard_shift) + log2(hard_sum)) / static_cast<double>(kLog2E);
    const auto z_target = static_cast<double>(args.logits[r * args.vocabulary + args.targets[r]]);
    set(args.ce, r, lse - z_target);
    const double ce_factor = args.ce_scale / hard_sum;
    double soft_factor = args.separate_ce ? 0 : ce_factor;
    if constexpr (kTeacher) {
        // T (log-sum-exp of z / T less that of t / T): in base 2, a units to one of a logit.
        const double difference = (static_cast<double>(factors.soft_shift) + log2(sums[soft]) -
                                   static_cast<double>(factors.taught_shift) - log2(sums[taught])) /
                                  static_cast<double>(a);
        const double gap = sums[soft_gap] / sums[soft];
        const double kl = temperature * (sums[taught_gap] / sums[taught] + difference);
        const double reverse = temperature * (gap - difference);
        // Never negative but for rounding; NaN passes through.
        set(args.kl, r, kl < 0 ? 0 : kl);
        set(args.reverse_kl, r, reverse < 0 ? 0 : reverse);
        soft_factor += (args.kl_scale * temperature - args.reverse_scale * gap) / sums[soft];
        factors.soft_gap = static_cast<float>(args.reverse_scale / sums[soft]);
        factors.taught = static_cast<float>(args.kl_scale * temperature / sums[taught]);
    }
    factors.hard = static_cast<float>(args.separate_ce ? ce_factor : 0);
    factors.soft = static_cast<float>(soft_factor);
    factors.target = static_cast<float>(args.ce_scale);
    return factors;
}

// First time over the row: its losses, and the factors of its gradient in every thread.
template <int kThreads, bool kVector, bool kTeacher>
__device__ GradientFactors sum_row(const LossRows& args, int64_t r) {
    using RowColumns = Columns<kThreads, kVector>;
    const float* z = args.logits + r * args.vocabulary;
    const float* t = kTeacher ? args.teacher + r * args.vocabulary : nullptr;
    const float threshold = args.thresholds ? args.thresholds[r] : -INFINITY;
    RowSums<kTeacher> row;
    RowColumns::for_each(static_cast<int>(args.vocabulary), [&]<int kCount>(int begin, Count<kCount>) {
        float values[kCount], taught[kCount];
        RowColumns::load(z, begin, values);
        if constexpr (kTeacher) RowColumns::load(t, begin, taught);
        row.take(values, taught, args, threshold);
    });
    const float a = args.softening;
    const Largest own = row.student, own_teacher = row.teacher;
    find_largest_of<kThreads>({&row.student.value, &row.teacher.value});
    const double fade = power_of_two(own.shift(a) - row.student.shift(a));
    const double teacher_fade = power_of_two(own_teacher.shift(a) - row.teacher.shift(a));
    double sums[sum_count] = {row.hard * power_of_two(own.shift(kLog2E) - row.student.shift(kLog2E)),
                              row.soft * fade, row.soft_gap * fade, row.taught * teacher_fade,
                              row.taught_gap * teacher_fade};
    add_up<kThreads>(sums);
    __shared__ GradientFactors factors;
    if (threadIdx.x == 0) factors = finish_row<kTeacher>(args, r, row.student, row.teacher, sums);
    __syncthreads();
    return factors;
}

// ---- the gradient -------------------------------------------------------------------------------

template <bool kVector>
__device__ void store_step(bf16* to, const float* values) {
    if constexpr (kVector)
        *reinterpret_cast<uint2*>(to) =
            make_uint2(pack_pair(values[0], values[1]), pack_pair(values[2], values[3]));
    else
        *to = __float2bfloat16_rn(values[0]);
}

// Zeros over the row's gradient.
template <int kThreads, bool kVector>
__device__ void clear_gradient(const LossRows& args, int64_t r) {
    using RowColumns = Columns<kThreads, kVector>;
    constexpr float kZeros[4] = {};
    bf16* gradient = reinterpret_cast<bf16*>(args.logits + r * args.vocabulary);
    for (int64_t v = RowColumns::first(); v < args.vocabulary; v += kThreads * RowColumns::kStep)
        store_step<kVector>(gradient + v, kZeros);
}

// Second time over the row. Columns v up to `end` are written over the logits of columns up to end / 2:
// before that every thread must have read so far, which takes a barrier only each time `end` has doubled.
template <int kThreads, bool kVector, bool kTeacher>
__device__ void write_gradient(const LossRows& args, int64_t r, const GradientFactors& factors) {
    using RowColumns = Columns<kThreads, kVector>;
    constexpr int kStep = RowColumns::kStep;
    const int vocabulary = static_cast<int>(args.vocabulary), target = args.targets[r];
    const float* z = args.logits + r * args.vocabulary;
    const float* t = kTeacher ? args.teacher + r * args.vocabulary : nullptr;
    const float a = args.softening, threshold = args.thresholds ? args.thresholds[r] : -INFINITY;
    bf16* gradient = reinterpret_cast<bf16*>(args.logits + r * args.vocabulary);

    int read_by_all = 0;
    for (int block = 0; block < vocabulary; block += RowColumns::kStride) {
        const int begin = block + RowColumns::first();
        float values[kBatch] = {}, taught[kBatch] = {};
#pragma unroll
        for (int j = 0; j < kBatch; j += kStep) {
            const int v = RowColumns::of(begin, j);
            if (v >= vocabulary) continue;
            RowColumns::load_step(z + v, values + j);
            if constexpr (kTeacher) RowColumns::load_step(t + v, taught + j);
        }
        if (block + RowColumns::kStride > 2 * read_by_all) {
            __syncthreads();
            read_by_all = block + RowColumns::kStride;
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
            const float value = values[j];
            float sum = 0;
            if (args.separate_ce) sum = factors.hard * scaled_exponential(value, kLog2E, factors.hard_shift);
            const float e = scaled_exponential(value, a, factors.soft_shift);
            if constexpr (kTeacher) {
                sum = fmaf(e, fmaf(factors.soft_gap, value - taught[j], factors.soft), sum);
                if (taught[j] >= threshold)
                    sum = fmaf(-factors.taught, scaled_exponential(taught[j], a, factors.taught_shift), sum);
            } else {
                sum = fmaf(e, factors.soft, sum);
            }
            values[j] = RowColumns::of(begin, j) == target ? sum - factors.target : sum;
        }
#pragma unroll
        for (int j = 0; j < kBatch; j += kStep) {
            const int v = RowColumns::of(begin, j);
            if (v < vocabulary) store_step<kVector>(gradient + v, values + j);
        }
    }
}

// With a teacher 16 V bytes a row are read and 2 V written; two exponentials and about fourteen instructions
// a column each time over. Without one half of the reading.
template <int kThreads, bool kVector, bool kTeacher>
__device__ void vocabulary_loss_row(const LossRows& args) {
    const int64_t r = blockIdx.x;
    if (args.targets[r] < 0) {
        if (args.has_gradient) clear_gradient<kThreads, kVector>(args, r);
        if (threadIdx.x > 0) return;
        set(args.ce, r, 0);
        if constexpr (kTeacher) set(args.kl, r, 0), set(args.reverse_kl, r, 0);
        return;
    }
    const GradientFactors factors = sum_row<kThreads, kVector, kTeacher>(args, r);
    if (args.has_gradient) write_gradient<kThreads, kVector, kTeacher>(args, r, factors);
}

template <int kThreads, bool kVector>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads) distillation_rows(LossRows args) {
    vocabulary_loss_row<kThreads, kVector, true>(args);
}

template <int kThreads, bool kVector>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads) cross_entropy_rows(LossRows args) {
    vocabulary_loss_row<kThreads, kVector, false>(args);
}

// ---- launchers ----------------------------------------------------------------------------------

constexpr int64_t kLogitsBytes = int64_t{2304} << 20;  // of float32 logits of one chunk, at most
// Tiles of the library's products are 128, 192 or 256 rows high.
constexpr int64_t kRowStep = 768, kRowTile = 256;

bool wants_gradient(const VocabularyLoss& args) { return args.d_hidden || args.d_head; }

// Whether the teacher's logits are needed.
bool uses_teacher(const VocabularyLoss& args) {
    const bool counts = args.kl_weight != 0 || args.reverse_kl_weight != 0;
    return args.teacher.head && (args.kl || args.reverse_kl || (wants_gradient(args) && counts));
}

// What a chunk needs, laid out in the scratch memory.
struct Scratch {
    int64_t most_rows;  // of a chunk, from the vocabulary alone
    int64_t rows, logits_bytes, thresholds_bytes;
    bool teacher;

    explicit Scratch(const VocabularyLoss& args) : teacher(uses_teacher(args)) {
        const int64_t vocabulary = args.student.head.size(0), row_bytes = 4 * vocabulary * (teacher ? 2 : 1);
        most_rows = std::clamp<int64_t>(kLogitsBytes / row_bytes, 1, INT_MAX);
        for (const int64_t step : {kRowStep, kRowTile})
            if (most_rows >= step) {
                most_rows = most_rows / step * step;
                break;
            }
        rows = std::min(most_rows, args.targets.size(0));
        logits_bytes = aligned(rows * vocabulary * 4);
        const bool selects = teacher && args.top_k > 0 && args.top_k < vocabulary;
        thresholds_bytes = selects ? aligned(rows * 4) : 0;
    }

    int64_t bytes() const { return logits_bytes * (teacher ? 2 : 1) + thresholds_bytes; }
    float* logits(std::byte* memory) const { return reinterpret_cast<float*>(memory); }
    float* teacher_logits(std::byte* memory) const {
        return teacher ? reinterpret_cast<float*>(memory + logits_bytes) : nullptr;
    }
    float* thresholds(std::byte* memory) const {
        return thresholds_bytes > 0 ? reinterpret_cast<float*>(memory + 2 * logits_bytes) : nullptr;
    }
};

// Runs the chunks one after another.
class LossChunks {
  public:
    LossChunks(const Context& context, Products& products, const VocabularyLoss& args, const Scratch& scratch)
        : context_(context),
          products_(products),
          args_(args),
          scratch_(scratch),
          logits_(scratch.logits(context.scratch)),
          teacher_logits_(scratch.teacher_logits(context.scratch)),
          thresholds_(scratch.thresholds(context.scratch)) {}

    void run(int64_t begin, int64_t count) const {
        form_logits(args_.student, begin, count, logits_);
        if (teacher_logits_) form_logits(args_.teacher, begin, count, teacher_logits_);
        const LossRows rows = loss_rows(begin);
        if (thresholds_)
            find_top_logits(
                context_, {teacher_logits_, rows.vocabulary, rows.targets, args_.top_k, thresholds_}, count);
        if (teacher_logits_)
            MP_LAUNCH_ROWS(distillation_rows, context_, count, rows);
        else
            MP_LAUNCH_ROWS(cross_entropy_rows, context_, count, rows);
        if (args_.d_hidden) hidden_gradient(begin, count);
        if (args_.d_head) head_gradient(begin, count);
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

    LossRows loss_rows(int64_t begin) const {
        const bool teacher = teacher_logits_ != nullptr;
        const double temperature = teacher ? args_.temperature : 1;
        return {.logits = logits_,
                .teacher = teacher_logits_,
                .thresholds = thresholds_,
                .vocabulary = args_.student.head.size(0),
                .targets = args_.targets.as<int32_t>() + begin,
                .ce = at(args_.ce, begin),
                .kl = at(args_.kl, begin),
                .reverse_kl = args_.top_k > 0 ? nullptr : at(args_.reverse_kl, begin),
                .temperature = temperature,
                .softening = static_cast<float>(M_LOG2E / temperature),
                .separate_ce = temperature != 1 && (args_.ce || args_.ce_weight != 0),
                .has_gradient = wants_gradient(args_),
                .ce_scale = args_.scale * args_.ce_weight,
                .kl_scale = args_.scale * args_.kl_weight,
                .reverse_scale = args_.scale * args_.reverse_kl_weight};
    }

    // The gradient lies in every other half of the logits' memory: rows are 2 V bf16 apart.
    void hidden_gradient(int64_t begin, int64_t count) const {
        const int64_t vocabulary = args_.student.head.size(0);
        products_.run(context_, {.form = ProductForm::input_gradient,
                                 .x = reinterpret_cast<const std::byte*>(logits_),
                                 .weight = args_.student.head.data,
                                 .out = args_.d_hidden.slice(begin, count).data,
                                 .rows = count,
                                 .inputs = vocabulary,
                                 .outputs = args_.d_hidden.size(1),
                                 .x_pitch = 2 * vocabulary,
                                 .reference_rows = scratch_.most_rows});
    }
    void head_gradient(int64_t begin, int64_t count) const {
        const int64_t vocabulary = args_.student.head.size(0);
        products_.run(context_, {.form = ProductForm::weight_gradient,
                                 .x = reinterpret_cast<const std::byte*>(logits_),
                                 .weight = args_.student.hidden.slice(begin, count).data,
                                 .residual = args_.d_head.data,
                                 .out = args_.d_head.data,
                                 .rows = vocabulary,
                                 .inputs = count,
                                 .outputs = args_.d_head.size(1),
                                 .out_type = DType::f32,
                                 .x_pitch = 2 * vocabulary});
    }

    const Context& context_;
    Products& products_;
    const VocabularyLoss& args_;
    const Scratch& scratch_;
    float *logits_, *teacher_logits_, *thresholds_;
};

}  // namespace

// At the 8B shape (V 131072, D 4096) with a teacher as wide, 8192 tokens: four products of 8.8 TFLOP. Ideal
// bytes of the rows: 6 V float32 a token (written, and read twice, by each model) and 3 V bf16, 29 GB; of the
// head's gradient 4.3 GB a chunk. Products alone take 50 ms at 700 TFLOP/s.
void run(const Context& context, Products& products, const VocabularyLoss& args) {
    const int64_t rows = args.targets.size(0), vocabulary = args.student.head.size(0);
    if (rows == 0) return;
    MP_ASSERT(vocabulary > 0 && vocabulary <= INT_MAX / 4 && rows <= INT_MAX);
    const Scratch scratch(args);
    MP_ASSERT(scratch.bytes() <= context.scratch_capacity);
    const LossChunks chunks(context, products, args, scratch);
    for (int64_t begin = 0; begin < rows; begin += scratch.rows)
        chunks.run(begin, std::min(scratch.rows, rows - begin));
}

int64_t scratch_bytes(const VocabularyLoss& args) {
    return args.student.head.size(0) > 0 ? Scratch(args).bytes() : 0;
}

}  // namespace minipuzzle::cuda
