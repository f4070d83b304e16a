// The gated group RMS norm of the Mamba-2 mixer, gate before norm, and its gradient.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/scratch.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {
namespace {

template <class T>
struct GatedRow {
    AlignedVector<T> sigmoid;  // of z
    AlignedVector<T> gated;    // q = y * silu(z)
    AlignedVector<T> change;   // d_out * weight, backward only

    GatedRow(Carver& carver, int64_t width)
        : sigmoid(carver.take<T>(width), width),
          gated(carver.take<T>(width), width),
          change(carver.take<T>(width), width) {}

    // Fills sigmoid and gated for one group of one token; returns rsqrt(mean(q^2) + eps).
    T gate(const T* y, const T* z, double eps) {
        const int64_t width = gated.size();
        sigmoid = T(1) / (T(1) + (-ConstVector<T>(z, width)).exp());
        gated = ConstVector<T>(y, width) * ConstVector<T>(z, width) * sigmoid;
        const T mean = dot(gated.data(), gated.data(), width) / static_cast<T>(width);
        return T(1) / std::sqrt(mean + static_cast<T>(eps));
    }
};

// Of a whole row where the result is quantised, then all of its values; `inner` is 0 where it is not.
struct ForwardSizes {
    int64_t width, inner;
};
template <class T>
struct ForwardSpace {
    GatedRow<T> row;
    T* values;
    ForwardSpace(Carver& carver, const ForwardSizes& sizes)
        : row(carver, sizes.width), values(carver.take<T>(sizes.inner)) {}
};

template <class T>
struct BackwardSpace {
    GatedRow<T> row;
    TokenSum<T> d_weight;
    BackwardSpace(Carver& carver, int64_t width) : row(carver, width), d_weight(carver, width) {}
};

// One group of one token. With xhat = q r and g = weight * d_out:
// dq = r (g - xhat mean(g xhat)); dy = dq silu(z); dz = dq y sigmoid(z) (1 + z (1 - sigmoid(z))).
// d_out is read in full before dy, which may be the same memory, is written.
template <class T>
void gated_backward(BackwardSpace<T>& space, const T* y, const T* z, const T* weight, const T* d_out,
                    double eps, T* d_y, T* d_z) {
    GatedRow<T>& row = space.row;
    const int64_t width = row.gated.size();
    const T r = row.gate(y, z, eps);
    Vector<T>(space.d_weight.span(), width) += ConstVector<T>(d_out, width) * row.gated * r;
    space.d_weight.next();
    row.change = ConstVector<T>(d_out, width) * ConstVector<T>(weight, width);
    const T mean = dot(row.change.data(), row.gated.data(), width) * r / static_cast<T>(width);
    row.change = r * (row.change - row.gated * (r * mean));
    for (int64_t i = 0; i < width; ++i) {
        const T s = row.sigmoid[i];
        const T dq = row.change[i];
        d_z[i] = dq * y[i] * s * (T(1) + z[i] * (T(1) - s));
        d_y[i] = dq * z[i] * s;
    }
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const GatedNormForward& args) {
    validate(args);
    const int64_t inner = args.shape.inner(), projection = args.shape.projection();
    const int64_t time = args.y.size(1), blocks = div_up(time, kRowBlock);
    const int64_t width = div_exact(inner, args.shape.groups);
    const T *y = args.y.as<T>(), *zxbcdt = args.zxbcdt.as<T>(), *weight = args.weight.as<T>();
    const bool quantised = is_quantised(args.out);
    const ForwardSizes sizes{width, quantised ? inner : 0};
    pool_.parallel_for(args.y.size(0) * blocks, [&](int64_t task, int worker) {
        auto space = carve<ForwardSpace<T>>(pool_, worker, sizes);
        GatedRow<T>& row = space.row;
        const int64_t first = task / blocks * time, begin = task % blocks * kRowBlock;
        const int64_t end = std::min(begin + kRowBlock, time);
        for (int64_t r = first + begin; r < first + end; ++r) {
            T* out = quantised ? space.values : args.out.as<T>() + r * inner;
            for (int64_t c = 0; c < inner; c += width) {
                const T scale = row.gate(y + r * inner + c, zxbcdt + r * projection + c, args.eps);
                Vector<T>(out + c, width) = ConstVector<T>(weight + c, width) * (row.gated * scale);
            }
            if (quantised)
                args.out_scale.as<T>()[r] = quantise_row(out, inner, codes_of(args.out) + r * inner);
        }
    });
}

template <class T>
void CpuBackend<T>::run(const GatedNormBackward& args) {
    validate(args);
    const int64_t inner = args.shape.inner(), projection = args.shape.projection();
    const int64_t batch = args.y.size(0), time = args.y.size(1), groups = args.shape.groups;
    const int64_t width = div_exact(inner, groups);
    const T *y = args.y.as<T>(), *zxbcdt = args.zxbcdt.as<T>(), *weight = args.weight.as<T>();
    const T* d_out = args.d_out.as<T>();
    T *d_y = args.d_y.as<T>(), *d_zxbcdt = args.d_zxbcdt.as<T>();
    double* partial =
        Carver(pool_.shared_scratch(batch * inner * int64_t{sizeof(double)})).take<double>(batch * inner);
    pool_.parallel_for(batch * groups, [&](int64_t task, int worker) {
        auto space = carve<BackwardSpace<T>>(pool_, worker, width);
        space.d_weight.reset();
        const int64_t b = task / groups, c = task % groups * width;
        for (int64_t r = b * time; r < (b + 1) * time; ++r) {
            const int64_t at = r * inner + c, at_z = r * projection + c;
            gated_backward(space, y + at, zxbcdt + at_z, weight + c, d_out + at, args.eps, d_y + at,
                           d_zxbcdt + at_z);
        }
        std::copy_n(space.d_weight.total(), width, partial + b * inner + c);
    });
    add_partials(partial, batch, inner, args.d_weight.as<T>());
}

template void CpuBackend<float>::run(const GatedNormForward&);
template void CpuBackend<double>::run(const GatedNormForward&);
template void CpuBackend<float>::run(const GatedNormBackward&);
template void CpuBackend<double>::run(const GatedNormBackward&);

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
