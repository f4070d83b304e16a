// The vocabulary losses and their gradient. Logits of all tokens never exist at once, neither in float32 nor
// their gradient in bf16: a block of tokens has room for the gradient of its logits, a chunk of that block
// for the logits themselves. A chunk's logits are one product a model, and one kernel takes each row's
// log-sum-exps and losses and writes the row's gradient; over a whole block two products carry that on to the
// hidden states and to the head. (The head's gradient is read and written once a block, which is why blocks
// are larger than chunks.)
//
// A row belongs to one thread block, which goes over it twice: first each thread keeps online softmaxes
// (Milakov & Gimelshein 2018) in float32 over its columns, batch by batch, and threads are combined in
// double, in an order fixed by the vocabulary alone; then the gradient is formed.
//
// With z the student's logits, t the teacher's, T the temperature, p = softmax(z / T), q = softmax(t / T):
//   T^2 KL(q || p) = T sum q (t - z) + T^2 (lse(z / T) - lse(t / T)),  derivative T (p_v - q_v)
//   T^2 KL(p || q) = T sum p (z - t) + T^2 (lse(t / T) - lse(z / T)),  p_v (z_v - t_v - sum p (z - t))
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
    const float* logits;      // [rows, vocabulary]
    const float* teacher;     // [rows, vocabulary]; null without a teacher
    const float* thresholds;  // [rows]: the teacher's least logit that counts; null where all count
    int64_t vocabulary;
    const int32_t* targets;
    float *ce, *kl, *reverse_kl;
    double temperature;
    float softening;   // a
    bool separate_ce;  // the cross-entropy's softmax is not the softened one
    bf16* gradient;    // [rows, vocabulary], out
    // What the gradients of ce, T^2 KL and T^2 reverse KL count for.
    double ce_scale, kl_scale, reverse_scale;
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
        // T (log-sum-exp of z / T less that of t / T): in base 2, a units to one of a logit. Equal logits
        // give 0.
        const double soft_lse = static_cast<double>(factors.soft_shift) + log2(sums[soft]);
        const double taught_lse = static_cast<double>(factors.taught_shift) + log2(sums[taught]);
        const double difference = (soft_lse - taught_lse) / static_cast<double>(a);
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

// The values of one step, past the caches: nothing reads them before the block's products.
template <bool kVector>
__device__ void store_step(bf16* to, const float* values) {
    if constexpr (kVector)
        __stcs(reinterpret_cast<uint2*>(to),
               make_uint2(pack_pair(values[0], values[1]), pack_pair(values[2], values[3])));
    else
        *to = __float2bfloat16_rn(values[0]);
}

// Zeros over the row's gradient.
template <int kThreads, bool kVector>
__device__ void clear_gradient(const LossRows& args, int64_t r) {
    using RowColumns = Columns<kThreads, kVector>;
    constexpr float kZeros[4] = {};
    bf16* gradient = args.gradient + r * args.vocabulary;
    for (int64_t v = RowColumns::first(); v < args.vocabulary; v += kThreads * RowColumns::kStep)
        store_step<kVector>(gradient + v, kZeros);
}

// The gradient at one column.
template <bool kTeacher>
__device__ float gradient_at(float z, float t, const LossRows& args, const GradientFactors& factors,
                             float threshold) {
    float sum = 0;
    if (args.separate_ce) sum = factors.hard * scaled_exponential(z, kLog2E, factors.hard_shift);
    const float e = scaled_exponential(z, args.softening, factors.soft_shift);
    if constexpr (!kTeacher) return fmaf(e, factors.soft, sum);
    sum = fmaf(e, fmaf(factors.soft_gap, z - t, factors.soft), sum);
    if (t < threshold) return sum;
    return fmaf(-factors.taught, scaled_exponential(t, args.softening, factors.taught_shift), sum);
}

// Second time over the row.
template <int kThreads, bool kVector, bool kTeacher>
__device__ void write_gradient(const LossRows& args, int64_t r, const GradientFactors& factors) {
    using RowColumns = Columns<kThreads, kVector>;
    const float* z = args.logits + r * args.vocabulary;
    const float* t = kTeacher ? args.teacher + r * args.vocabulary : nullptr;
    const float threshold = args.thresholds ? args.thresholds[r] : -INFINITY;
    const int target = args.targets[r];
    bf16* gradient = args.gradient + r * args.vocabulary;
    RowColumns::for_each(static_cast<int>(args.vocabulary), [&]<int kCount>(int begin, Count<kCount>) {
        float values[kCount], taught[kCount];
        RowColumns::load(z, begin, values);
        if constexpr (kTeacher) RowColumns::load(t, begin, taught);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            values[j] = gradient_at<kTeacher>(values[j], kTeacher ? taught[j] : 0, args, factors, threshold);
            if (RowColumns::of(begin, j) == target) values[j] -= factors.target;
        }
#pragma unroll
        for (int j = 0; j < kCount; j += RowColumns::kStep)
            store_step<kVector>(gradient + RowColumns::of(begin, j), values + j);
    });
}

// With a teacher 16 V bytes a row are read and 2 V written; two exponentials and about fourteen instructions
// a column each time over. Without one half of the reading.
template <int kThreads, bool kVector, bool kTeacher>
__device__ void vocabulary_loss_row(const LossRows& args) {
    const int64_t r = blockIdx.x;
    if (args.targets[r] < 0) {
        if (args.gradient) clear_gradient<kThreads, kVector>(args, r);
        if (threadIdx.x > 0) return;
        set(args.ce, r, 0);
        if constexpr (kTeacher) set(args.kl, r, 0), set(args.reverse_kl, r, 0);
        return;
    }
    const GradientFactors factors = sum_row<kThreads, kVector, kTeacher>(args, r);
    if (args.gradient) write_gradient<kThreads, kVector, kTeacher>(args, r, factors);
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

// Of a chunk's float32 logits and of a block's bf16 gradient, at most.
constexpr int64_t kLogitsBytes = int64_t{1} << 30, kGradientBytes = int64_t{1} << 30;
constexpr int64_t kRowStep = 256;  // tiles of the library's products are 128 or 256 rows high

// Rows that `bytes` hold, in whole steps where there is one.
int64_t fitting_rows(int64_t bytes, int64_t row_bytes) {
    const int64_t fit = std::clamp<int64_t>(bytes / row_bytes, 1, INT_MAX);
    return fit >= kRowStep ? fit / kRowStep * kRowStep : fit;
}

// `count` rows in parts of at most `most`: the size of all parts but the last, about as large.
int64_t part_rows(int64_t count, int64_t most) {
    if (count <= most) return count;
    const int64_t even = div_up(count, div_up(count, most));
    return std::min(most, div_up(even, kRowStep) * kRowStep);
}

bool wants_gradient(const VocabularyLoss& args) { return args.d_hidden || args.d_head; }

// Whether the teacher's logits are needed.
bool uses_teacher(const VocabularyLoss& args) {
    const bool counts = args.kl_weight != 0 || args.reverse_kl_weight != 0;
    return args.teacher.head && (args.kl || args.reverse_kl || (wants_gradient(args) && counts));
}

// What a block and its chunks need, laid out in the scratch memory.
struct Scratch {
    bool teacher;
    int64_t most_rows;  // of a block, from the vocabulary alone
    int64_t block_rows, chunk_rows;
    int64_t logits_bytes, gradient_bytes = 0, thresholds_bytes = 0;

    explicit Scratch(const VocabularyLoss& args) : teacher(uses_teacher(args)) {
        const int64_t vocabulary = args.student.head.size(0), rows = args.targets.size(0);
        most_rows = fitting_rows(kGradientBytes, 2 * vocabulary);
        block_rows = part_rows(rows, most_rows);
        chunk_rows = part_rows(block_rows, fitting_rows(kLogitsBytes, 4 * vocabulary * (teacher ? 2 : 1)));
        logits_bytes = aligned(chunk_rows * vocabulary * 4);
        if (wants_gradient(args)) gradient_bytes = aligned(block_rows * vocabulary * 2);
        if (teacher && args.top_k > 0 && args.top_k < vocabulary) thresholds_bytes = aligned(chunk_rows * 4);
    }

    int64_t bytes() const { return logits_bytes * (teacher ? 2 : 1) + gradient_bytes + thresholds_bytes; }
};

// Runs the blocks one after another, and each block's chunks.
class LossBlocks {
  public:
    LossBlocks(const Context& context, Products& products, const VocabularyLoss& args, const Scratch& scratch)
        : context_(context), products_(products), args_(args), scratch_(scratch) {
        std::byte* next = context.scratch;
        const auto take = [&](int64_t bytes) {
            std::byte* memory = bytes > 0 ? next : nullptr;
            next += bytes;
            return memory;
        };
        logits_ = reinterpret_cast<float*>(take(scratch.logits_bytes));
        teacher_logits_ = reinterpret_cast<float*>(take(scratch.teacher ? scratch.logits_bytes : 0));
        gradient_ = reinterpret_cast<bf16*>(take(scratch.gradient_bytes));
        thresholds_ = reinterpret_cast<float*>(take(scratch.thresholds_bytes));
    }

    void run(int64_t begin, int64_t count) const {
        for (int64_t chunk = 0; chunk < count; chunk += scratch_.chunk_rows)
            run_chunk(begin + chunk, std::min(scratch_.chunk_rows, count - chunk),
                      gradient_ ? gradient_ + chunk * args_.student.head.size(0) : nullptr);
        if (args_.d_hidden) hidden_gradient(begin, count);
        if (args_.d_head) head_gradient(begin, count);
    }

  private:
    void run_chunk(int64_t begin, int64_t count, bf16* gradient) const {
        form_logits(args_.student, begin, count, logits_);
        if (teacher_logits_) form_logits(args_.teacher, begin, count, teacher_logits_);
        const LossRows rows = loss_rows(begin, gradient);
        if (thresholds_)
            find_top_logits(
                context_, {teacher_logits_, rows.vocabulary, rows.targets, args_.top_k, thresholds_}, count);
        if (teacher_logits_)
            MP_LAUNCH_ROWS(distillation_rows, context_, count, rows);
        else
            MP_LAUNCH_ROWS(cross_entropy_rows, context_, count, rows);
    }

    void form_logits(const LmHead& lm, int64_t begin, int64_t count, float* logits) const {
        products_.run(context_, {.x = lm.hidden.slice(begin, count).data,
                                 .weight = lm.head.data,
                                 .out = reinterpret_cast<std::byte*>(logits),
                                 .rows = count,
                                 .inputs = lm.hidden.size(1),
                                 .outputs = lm.head.size(0),
                                 .out_type = DType::f32});
    }

    LossRows loss_rows(int64_t begin, bf16* gradient) const {
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
                .gradient = gradient,
                .ce_scale = args_.scale * args_.ce_weight,
                .kl_scale = args_.scale * args_.kl_weight,
                .reverse_scale = args_.scale * args_.reverse_kl_weight};
    }

    void hidden_gradient(int64_t begin, int64_t count) const {
        products_.run(context_, {.form = ProductForm::input_gradient,
                                 .x = reinterpret_cast<const std::byte*>(gradient_),
                                 .weight = args_.student.head.data,
                                 .out = args_.d_hidden.slice(begin, count).data,
                                 .rows = count,
                                 .inputs = args_.student.head.size(0),
                                 .outputs = args_.d_hidden.size(1),
                                 .reference_rows = scratch_.most_rows});
    }
    void head_gradient(int64_t begin, int64_t count) const {
        products_.run(context_, {.form = ProductForm::weight_gradient,
                                 .x = reinterpret_cast<const std::byte*>(gradient_),
                                 .weight = args_.student.hidden.slice(begin, count).data,
                                 .residual = args_.d_head.data,
                                 .out = args_.d_head.data,
                                 .rows = args_.student.head.size(0),
                                 .inputs = count,
                                 .outputs = args_.d_head.size(1),
                                 .out_type = DType::f32});
    }

    const Context& context_;
    Products& products_;
    const VocabularyLoss& args_;
    const Scratch& scratch_;
    float *logits_, *teacher_logits_, *thresholds_;
    bf16* gradient_;
};

}  // namespace

// At the 8B shape (V 131072, D 4096) with a teacher as wide, 8192 tokens: four products of 8.8 TFLOP. Ideal
// bytes of the rows: 6 V float32 a token (written, and read twice, by each model) and 3 V bf16, 29 GB; of the
// head's gradient 4.3 GB a block. Products alone take 50 ms at 700 TFLOP/s.
void run(const Context& context, Products& products, const VocabularyLoss& args) {
    const int64_t rows = args.targets.size(0), vocabulary = args.student.head.size(0);
    if (rows == 0) return;
    MP_ASSERT(vocabulary > 0 && vocabulary <= INT_MAX / 4 && rows <= INT_MAX);
    const Scratch scratch(args);
    MP_ASSERT(scratch.bytes() <= context.scratch_capacity);
    const LossBlocks blocks(context, products, args, scratch);
    for (int64_t begin = 0; begin < rows; begin += scratch.block_rows)
        blocks.run(begin, std::min(scratch.block_rows, rows - begin));
}

int64_t scratch_bytes(const VocabularyLoss& args) {
    return args.student.head.size(0) > 0 ? Scratch(args).bytes() : 0;
}

}  // namespace minipuzzle::cuda
