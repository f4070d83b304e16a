// Gradient norms and AdamW over all tensors of a model at once. Sums are taken piece by piece in an order
// that depends on nothing but a tensor's length; what clips the gradients stays on the device.
#include <cmath>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/tensor_table.cuh"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kThreads = 256;

__device__ bool is_aligned(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

// ---- gradient norms

constexpr int kNormPiece = 32768;  // elements

struct NormTable {
    PieceTable pieces;
    const float* gradients[kTableTensors];
};

__device__ double plus_squares(double sum, const Values<4>& values) {
    for (const float x : values.v) sum = fma(static_cast<double>(x), static_cast<double>(x), sum);
    return sum;
}

// Thread i sums the vectors of four i, i + kThreads, ... of the block's piece; the same bits where the
// tensor's address takes single loads.
__global__ void __launch_bounds__(kThreads)
    sum_piece_squares(const __grid_constant__ NormTable table, double* partials) {
    __shared__ double warps[kWarp];
    const Piece piece = find_piece(table.pieces, blockIdx.x, kNormPiece);
    const float* x = table.gradients[piece.tensor] + piece.begin;
    const int whole = piece.count / 4 * 4;
    double sum = 0;
    if (is_aligned(x)) {
#pragma unroll 4
        for (int i = threadIdx.x * 4; i < whole; i += kThreads * 4) sum = plus_squares(sum, load<4>(x + i));
    } else {
        for (int i = threadIdx.x * 4; i < whole; i += kThreads * 4)
            sum = plus_squares(sum, {{x[i], x[i + 1], x[i + 2], x[i + 3]}});
    }
    if (whole + static_cast<int>(threadIdx.x) < piece.count) {
        const double v = x[whole + threadIdx.x];
        sum = fma(v, v, sum);
    }
    sum = row_sum(sum, warps);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// squares[block] = the sum over the pieces of that tensor.
__global__ void __launch_bounds__(kThreads)
    add_piece_squares(const __grid_constant__ PieceTable table, const double* partials, double* squares) {
    __shared__ double warps[kWarp];
    const int tensor = blockIdx.x;
    const uint32_t begin = table.first[tensor];
    const uint32_t end = tensor + 1 < table.tensors ? table.first[tensor + 1] : table.pieces;
    double sum = 0;
    for (uint32_t i = begin + threadIdx.x; i < end; i += kThreads) sum += partials[i];
    sum = row_sum(sum, warps);
    if (threadIdx.x == 0) squares[tensor] = sum;
}

// Both launches for the tensors of one table; `squares` and `partials` are its first tensor's.
void launch_norms(const Context& context, const NormTable& table, double* partials, double* squares) {
    if (table.pieces.pieces > 0) {
        sum_piece_squares<<<table.pieces.pieces, kThreads, 0, context.stream>>>(table, partials);
        MP_CUDA_LAUNCHED();
    }
    add_piece_squares<<<table.pieces.tensors, kThreads, 0, context.stream>>>(table.pieces, partials, squares);
    MP_CUDA_LAUNCHED();
}

// ---- the factor that clips

// scale = min(1, clip / norm), or NaN where the norm is not finite.
__global__ void __launch_bounds__(kThreads)
    form_scale(const double* squares, int64_t count, double clip, float* scale) {
    __shared__ double warps[kWarp];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += squares[i];
    sum = row_sum(sum, warps);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(sum);
    *scale = static_cast<float>(!isfinite(sum) ? NAN : clip > 0 && norm > clip ? clip / norm : 1.0);
}

// ---- AdamW

constexpr int kPiece = 8192;  // elements
constexpr int kTogether = 2;  // vectors of a thread under way at once

// What a tensor's values are, as bits of `kind`.
enum Kind : uint8_t { kBf16Moments = 1, kBf16Copy = 2, kFloatCopy = 4, kDecays = 8 };

struct UpdateTable {
    PieceTable pieces;
    float* masters[kTableTensors];
    const float* gradients[kTableTensors];
    void* moments1[kTableTensors];
    void* moments2[kTableTensors];
    void* copies[kTableTensors];  // the parameter, where it is not the master itself
    uint8_t kinds[kTableTensors];
};

// As the CPU's, but for the clipping scale, which only the device knows.
struct Factors {
    float beta1, rest1, beta2, rest2, decayed, rate, unbias, eps;

    explicit Factors(const AdamW& args) {
        const double correction1 = 1 - std::pow(args.beta1, static_cast<double>(args.step));
        const double correction2 = 1 - std::pow(args.beta2, static_cast<double>(args.step));
        beta1 = static_cast<float>(args.beta1), rest1 = static_cast<float>(1 - args.beta1);
        beta2 = static_cast<float>(args.beta2), rest2 = static_cast<float>(1 - args.beta2);
        decayed = static_cast<float>(1 - args.learning_rate * args.weight_decay);
        rate = static_cast<float>(args.learning_rate / correction1);
        unbias = static_cast<float>(1 / std::sqrt(correction2));
        eps = static_cast<float>(args.eps);
    }
};
static_assert(sizeof(UpdateTable) + sizeof(Factors) + sizeof(void*) <= 32764);

// W neighbouring values in either type, each read once and written once.
template <int W>
__device__ Values<W> read(const float* from) {
    return load<W>(from);
}
template <int W>
__device__ Values<W> read(const bf16* from) {
    Values<W> values;
    unpack(load<W>(from), values.v);
    return values;
}
template <int W>
__device__ void write(float* to, const Values<W>& values) {
    store(to, values);
}
template <int W>
__device__ void write(bf16* to, const Values<W>& values) {
    store(to, pack(values.v), Reuse::once);
}

template <class Moment>
struct Trained {
    float* master;
    const float* gradient;
    Moment *moment1, *moment2;
    bf16* bf16_copy;    // either, or none
    float* float_copy;  // likewise
    float scale, keep;  // of the gradient; of the master
};

// Elements [begin, end), kTogether vectors of W a thread and turn.
template <int W, class Moment>
__device__ void update(const Trained<Moment>& t, const Factors& f, int begin, int end) {
    constexpr int kStep = kThreads * W;
    for (int first = begin + threadIdx.x * W; first < end; first += kStep * kTogether) {
        Values<W> g[kTogether], m1[kTogether], m2[kTogether], master[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
            const int i = first + k * kStep;
            if (i >= end) continue;
            g[k] = read<W>(t.gradient + i);
            m1[k] = read<W>(t.moment1 + i);
            m2[k] = read<W>(t.moment2 + i);
            master[k] = read<W>(t.master + i);
        }
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
            const int i = first + k * kStep;
            if (i >= end) continue;
#pragma unroll
            for (int j = 0; j < W; ++j) {
                const float gradient = g[k].v[j] * t.scale;
                const float a = f.beta1 * m1[k].v[j] + f.rest1 * gradient;
                const float b = f.beta2 * m2[k].v[j] + f.rest2 * gradient * gradient;
                m1[k].v[j] = a;
                m2[k].v[j] = b;
                master[k].v[j] = t.keep * master[k].v[j] - f.rate * a / (sqrtf(b) * f.unbias + f.eps);
            }
            write<W>(t.moment1 + i, m1[k]);
            write<W>(t.moment2 + i, m2[k]);
            write<W>(t.master + i, master[k]);
            if (t.bf16_copy) write<W>(t.bf16_copy + i, master[k]);
            if (t.float_copy) write<W>(t.float_copy + i, master[k]);
        }
    }
}

template <class Moment>
__device__ void update_piece(const UpdateTable& table, const Factors& f, const Piece& piece, float scale) {
    const int tensor = piece.tensor;
    const uint8_t kind = table.kinds[tensor];
    const Trained<Moment> t{
        .master = table.masters[tensor] + piece.begin,
        .gradient = table.gradients[tensor] + piece.begin,
        .moment1 = static_cast<Moment*>(table.moments1[tensor]) + piece.begin,
        .moment2 = static_cast<Moment*>(table.moments2[tensor]) + piece.begin,
        .bf16_copy = kind & kBf16Copy ? static_cast<bf16*>(table.copies[tensor]) + piece.begin : nullptr,
        .float_copy = kind & kFloatCopy ? static_cast<float*>(table.copies[tensor]) + piece.begin : nullptr,
        .scale = scale,
        .keep = kind & kDecays ? f.decayed : 1.0f};
    const bool vectors = is_aligned(t.master) && is_aligned(t.gradient) && is_aligned(t.moment1) &&
                         is_aligned(t.moment2) && is_aligned(t.bf16_copy) && is_aligned(t.float_copy);
    const int whole = vectors ? piece.count / 4 * 4 : 0;
    update<4>(t, f, 0, whole);
    update<1>(t, f, whole, piece.count);
}

__global__ void __launch_bounds__(kThreads, 4)
    update_tensors(const __grid_constant__ UpdateTable table, const __grid_constant__ Factors factors,
                   const float* scale) {
    const float s = *scale;
    if (isnan(s)) return;
    const Piece piece = find_piece(table.pieces, blockIdx.x, kPiece);
    if (table.kinds[piece.tensor] & kBf16Moments)
        update_piece<bf16>(table, factors, piece, s);
    else
        update_piece<float>(table, factors, piece, s);
}

void add(UpdateTable& table, const TrainedTensor& t) {
    const int i = table.pieces.add(t.gradient.elements(), kPiece);
    table.masters[i] = (t.master ? t.master : t.parameter).as<float>();
    table.gradients[i] = t.gradient.as<float>();
    table.moments1[i] = t.moment1.data;
    table.moments2[i] = t.moment2.data;
    table.copies[i] = t.master ? t.parameter.data : nullptr;
    int kind = t.decays ? kDecays : 0;
    if (t.moment1.dtype == DType::bf16) kind |= kBf16Moments;
    if (t.master) kind |= t.parameter.dtype == DType::bf16 ? kBf16Copy : kFloatCopy;
    table.kinds[i] = static_cast<uint8_t>(kind);
}

void launch_updates(const Context& context, const UpdateTable& table, const Factors& factors,
                    const float* scale) {
    if (table.pieces.pieces == 0) return;
    update_tensors<<<table.pieces.pieces, kThreads, 0, context.stream>>>(table, factors, scale);
    MP_CUDA_LAUNCHED();
}

}  // namespace

// The sum of every piece.
int64_t scratch_bytes(const GradientNorms& args) {
    int64_t pieces = 0;
    for (const Tensor& gradient : args.gradients) pieces += div_up(gradient.elements(), kNormPiece);
    return pieces * static_cast<int64_t>(sizeof(double));
}

// 4 bytes read and 2 FLOPs (in double) per parameter: 32 GB for 8.1 G of them.
void run(const Context& context, const GradientNorms& args) {
    MP_ASSERT(context.scratch_capacity >= scratch_bytes(args));
    double* partials = reinterpret_cast<double*>(context.scratch);
    double* squares = args.squares.as<double>();
    NormTable table{};
    const auto launch = [&] {
        if (table.pieces.tensors == 0) return;
        launch_norms(context, table, partials, squares);
        partials += table.pieces.pieces;
        squares += table.pieces.tensors;
        table.pieces.tensors = 0;
        table.pieces.pieces = 0;
    };
    for (const Tensor& gradient : args.gradients) {
        if (!table.pieces.has_room(gradient.elements(), kNormPiece)) launch();
        table.gradients[table.pieces.add(gradient.elements(), kNormPiece)] = gradient.as<float>();
    }
    launch();
}

// The clipping scale.
int64_t scratch_bytes(const AdamW&) { return sizeof(float); }

// Per parameter 16 bytes read and 14 written with moments in float32 and the parameter in bf16 (243 GB for
// 8.1 G), 12 and 10 with moments in bf16; 14 FLOPs, a square root and a division.
void run(const Context& context, const AdamW& args) {
    MP_ASSERT(context.scratch_capacity >= scratch_bytes(args));
    float* scale = reinterpret_cast<float*>(context.scratch);
    form_scale<<<1, kThreads, 0, context.stream>>>(args.squares.as<double>(), args.squares.elements(),
                                                   args.clip, scale);
    MP_CUDA_LAUNCHED();
    const Factors factors(args);
    UpdateTable table{};
    for (const TrainedTensor& t : args.tensors) {
        if (!table.pieces.has_room(t.gradient.elements(), kPiece)) {
            launch_updates(context, table, factors, scale);
            table.pieces.tensors = 0;
            table.pieces.pieces = 0;
        }
        add(table, t);
    }
    launch_updates(context, table, factors, scale);
}

}  // namespace minipuzzle::cuda
