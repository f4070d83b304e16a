#include "kernels/cpu/blocks.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/quantise.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

constexpr int64_t kRows = 64;

template <class T>
T inverse_rms(const T* x, int64_t n, double eps) {
    const T mean_square = dot_lanes(x, x, n) / static_cast<T>(n);
    return 1 / std::sqrt(mean_square + static_cast<T>(eps));
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const RmsNormForward& args) {
    validate(args);
    const int64_t width = args.x.columns();
    const T* weight = args.weight.as<T>();
    const bool quantised = is_quantised(args.out);
    const Blocks blocks{args.x.rows(), kRows};
    pool_.parallel_for(blocks.count(), [&](int64_t task, int worker) {
        T* values = quantised ? reinterpret_cast<T*>(pool_.scratch(worker, width * sizeof(T))) : nullptr;
        const Block rows = blocks[task];
        for (int64_t r = rows.begin; r < rows.end(); ++r) {
            const T* x = args.x.as<T>() + r * width;
            T* out = quantised ? values : args.out.as<T>() + r * width;
            const T scale = inverse_rms(x, width, args.eps);
            for (int64_t i = 0; i < width; ++i) out[i] = weight[i] * (x[i] * scale);
            if (quantised)
                args.out_scale.as<T>()[r] = quantise_row(values, width, codes_of(args.out) + r * width);
        }
    });
}

// With r = rsqrt(mean(x^2) + eps) and g = weight * d_out: d_x += r * (g - x * r^2 * mean(g * x));
// d_weight += sum over rows of d_out * x * r.
template <class T>
void CpuBackend<T>::run(const RmsNormBackward& args) {
    validate(args);
    const int64_t width = args.x.columns(), row_count = args.x.rows();
    const T *x = args.x.as<T>(), *d_out = args.d_out.as<T>(), *weight = args.weight.as<T>();
    T* scale = reinterpret_cast<T*>(pool_.shared_scratch(row_count * sizeof(T)));
    for_blocks(pool_, row_count, kRows, [&](Block rows) {
        for (int64_t r = rows.begin; r < rows.end(); ++r) {
            const T *x_row = x + r * width, *d_row = d_out + r * width;
            T* d_x = args.d_x.as<T>() + r * width;
            const T s = scale[r] = inverse_rms(x_row, width, args.eps);
            const T inner = sum_lanes<T>(width, [&](int64_t i, auto lanes) -> Lanes<T> {
                return lanes.load(weight + i) * lanes.load(d_row + i) * lanes.load(x_row + i);
            });
            const T back = inner / static_cast<T>(width) * s * s;
            for (int64_t i = 0; i < width; ++i) d_x[i] += s * (weight[i] * d_row[i] - x_row[i] * back);
        }
    });
    if (!args.d_weight) return;
    constexpr int64_t kColumns = 64;
    for_blocks(pool_, width, kColumns, [&](Block columns) {
        T* d_weight = args.d_weight.as<T>() + columns.begin;
        for (int64_t r = 0; r < row_count; ++r) {
            const int64_t at = r * width + columns.begin;
            for (int64_t i = 0; i < columns.count; ++i) d_weight[i] += d_out[at + i] * (x[at + i] * scale[r]);
        }
    });
}

#define MINIPUZZLE_INSTANTIATE(T)                                 \
    template void CpuBackend<T>::run(const RmsNormForward& args); \
    template void CpuBackend<T>::run(const RmsNormBackward& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
