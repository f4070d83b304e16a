// Feature losses: a term per token from sums over its row, and the gradient of their sum.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/row_sums.cuh"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kLongRowThreads = 512;

struct Rows {
    const bf16 *student, *teacher;
    const int32_t* targets;  // none: no row is masked
    float* value;            // optional
    bf16* d_student;         // optional
    int64_t count, width;
    float scale;
    Reuse reuse;  // of d_student

    __device__ bool is_masked(int64_t row) const { return targets && targets[row] < 0; }
};

// A row's term and its gradient student * s + teacher * t.
struct Term {
    float value, student, teacher;
};

// What is summed over a row, and the term they make. Cosine: s.t, |s|^2, |t|^2; its gradient is
// s (s.t) / (|s|^3 |t|) - t / (|s| |t|).
struct Cosine {
    static constexpr int kSums = 3;
    __device__ static void add(Sums<3>& sums, float s, float t) {
        sums.values[0] = fmaf(s, t, sums.values[0]);
        sums.values[1] = fmaf(s, s, sums.values[1]);
        sums.values[2] = fmaf(t, t, sums.values[2]);
    }
    __device__ static Term term(const Sums<3>& sums) {
        const float student = sums.values[1], teacher = sums.values[2];
        if (student == 0 || teacher == 0) return {1, 0, 0};
        const float norms = sqrtf(student) * sqrtf(teacher), cosine = sums.values[0] / norms;
        return {1 - cosine, cosine / student, -1 / norms};
    }
};

// Normalised squared error: |s - t|^2, |t|^2.
struct SquaredError {
    static constexpr int kSums = 2;
    __device__ static void add(Sums<2>& sums, float s, float t) {
        sums.values[0] = fmaf(s - t, s - t, sums.values[0]);
        sums.values[1] = fmaf(t, t, sums.values[1]);
    }
    __device__ static Term term(const Sums<2>& sums) {
        const float teacher = sums.values[1];
        if (teacher == 0) return {0, 0, 0};
        return {sums.values[0] / teacher, 2 / teacher, -2 / teacher};
    }
};

// blockDim.y rows per block, each held in the registers of blockDim.x threads; a masked row is not read.
// Thread x holds vectors x, x + blockDim.x, ...
template <class Kind, int kHeld, bool kOneWarp>
__global__ void __launch_bounds__(kOneWarp ? RowLayout::kBlockThreads : RowLayout::kMostThreads,
                                  RowLayout::blocks_wanted(kHeld, kOneWarp)) compare_held(const Rows rows) {
    __shared__ Sums<Kind::kSums> partials[2][kOneWarp ? 1 : kWarp];
    int turn = 0;
    const int64_t step = int64_t{gridDim.x} * blockDim.y;
    for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < rows.count; first += step) {
        const int64_t row = first + threadIdx.y;
        const bool masked = row >= rows.count || rows.is_masked(row);
        const int vectors = masked ? 0 : static_cast<int>(rows.width / 8);
        const bf16 *student = rows.student + row * rows.width, *teacher = rows.teacher + row * rows.width;
        bf16* d_student = rows.d_student + row * rows.width;
        Packed<8> s[kHeld] = {}, t[kHeld] = {}, d[kHeld] = {};
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const int i = threadIdx.x + h * blockDim.x;
            if (i >= vectors) continue;
            s[h] = load<8>(student + i * 8);
            t[h] = load<8>(teacher + i * 8);
            if (rows.d_student) d[h] = load<8>(d_student + i * 8);
        }
        Sums<Kind::kSums> sums;
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            float a[8], b[8];
            unpack(s[h], a);
            unpack(t[h], b);
#pragma unroll
            for (int j = 0; j < 8; ++j) Kind::add(sums, a[j], b[j]);
        }
        sums = kOneWarp ? warp_sums(sums) : row_sums(sums, partials[turn ^= 1]);
        const Term term = masked ? Term{0, 0, 0} : Kind::term(sums);
        if (rows.value && threadIdx.x == 0 && row < rows.count) rows.value[row] = term.value;
        if (!rows.d_student) continue;
        const float by_student = rows.scale * term.student, by_teacher = rows.scale * term.teacher;
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const int i = threadIdx.x + h * blockDim.x;
            if (i >= vectors) continue;
            float a[8], b[8], sum[8];
            unpack(s[h], a);
            unpack(t[h], b);
            unpack(d[h], sum);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[j] += by_student * a[j] + by_teacher * b[j];
            store(d_student + i * 8, pack(sum), rows.reuse);
        }
    }
}

// A row per block, read twice: rows too long to be held, and widths or addresses that vectors do not fit.
template <class Kind>
__global__ void __launch_bounds__(kLongRowThreads) compare_long(const Rows rows) {
    __shared__ Sums<Kind::kSums> partials[2][kWarp];
    int turn = 0;
    for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
        const bool masked = rows.is_masked(row);
        const int64_t width = masked ? 0 : rows.width;
        const bf16 *student = rows.student + row * rows.width, *teacher = rows.teacher + row * rows.width;
        Sums<Kind::kSums> sums;
        for (int64_t i = threadIdx.x; i < width; i += blockDim.x)
            Kind::add(sums, __bfloat162float(student[i]), __bfloat162float(teacher[i]));
        sums = row_sums(sums, partials[turn ^= 1]);
        const Term term = masked ? Term{0, 0, 0} : Kind::term(sums);
        if (rows.value && threadIdx.x == 0) rows.value[row] = term.value;
        if (!rows.d_student) continue;
        const float by_student = rows.scale * term.student, by_teacher = rows.scale * term.teacher;
        bf16* d_student = rows.d_student + row * rows.width;
        for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
            const float s = __bfloat162float(student[i]), t = __bfloat162float(teacher[i]);
            d_student[i] =
                __float2bfloat16_rn(__bfloat162float(d_student[i]) + (by_student * s + by_teacher * t));
        }
    }
}

using Kernel = void (*)(Rows);

template <class Kind>
Kernel held_kernel(const RowLayout& layout) {
    constexpr Kernel kWarpKernels[] = {compare_held<Kind, 1, true>, compare_held<Kind, 2, true>,
                                       compare_held<Kind, 3, true>, compare_held<Kind, 4, true>};
    if (layout.one_warp()) return kWarpKernels[layout.held - 1];
    return layout.held == 2 ? Kernel(compare_held<Kind, 2, false>) : Kernel(compare_held<Kind, 4, false>);
}

template <class Kind>
void compare(const Context& context, const Rows& rows) {
    const RowLayout layout = row_layout(div_up(rows.width, 8));
    if (layout.fits() && vectors_fit(rows.student, rows.width) && vectors_fit(rows.teacher, rows.width) &&
        vectors_fit(rows.d_student, rows.width)) {
        const dim3 block(layout.threads, layout.together());
        held_kernel<Kind>(
            layout)<<<grid_size(div_up(rows.count, layout.together())), block, 0, context.stream>>>(rows);
    } else {
        compare_long<Kind><<<grid_size(rows.count), kLongRowThreads, 0, context.stream>>>(rows);
    }
    MP_CUDA_LAUNCHED();
}

}  // namespace

// 8B: student, teacher and d_student read, d_student written, 8 * D per token (32 KiB at D 4096), half of
// that without the gradient; 10 FLOPs per element. Sums in float32: a cosine near 1 leaves its term an
// absolute error of a few 2^-24.
void run(const Context& context, const FeatureLoss& args) {
    const Rows rows{.student = bf16_data(args.student),
                    .teacher = bf16_data(args.teacher),
                    .targets = args.targets.as<int32_t>(),
                    .value = args.value.as<float>(),
                    .d_student = bf16_data(args.d_student),
                    .count = args.student.rows(),
                    .width = args.student.columns(),
                    .scale = static_cast<float>(args.scale),
                    .reuse = reuse_of(args.d_student.bytes())};
    if (rows.count == 0) return;
    if (args.kind == FeatureKind::cosine)
        compare<Cosine>(context, rows);
    else
        compare<SquaredError>(context, rows);
}

}  // namespace minipuzzle::cuda
