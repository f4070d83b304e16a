#include "kernels/cpu/blocks.h"
#include "kernels/cpu/quantise.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

template <class T>
void CpuBackend<T>::run(const SquaredReluForward& args) {
    validate(args);
    const T* x = args.x.as<T>();
    const auto squared = [](T value) {
        const T positive = value < 0 ? 0 : value;  // keeps NaN
        return positive * positive;
    };
    if (is_quantised(args.out)) {
        const int64_t width = args.x.columns();
        pool_.parallel_for(args.x.rows(), [&](int64_t r, int worker) {
            T* values = reinterpret_cast<T*>(pool_.scratch(worker, width * sizeof(T)));
            for (int64_t i = 0; i < width; ++i) values[i] = squared(x[r * width + i]);
            args.out_scale.as<T>()[r] = quantise_row(values, width, codes_of(args.out) + r * width);
        });
        return;
    }
    T* out = args.out.as<T>();
    for_blocks(pool_, args.x.elements(), kElementBlock, [=](Block block) {
        for (int64_t i = block.begin; i < block.end(); ++i) out[i] = squared(x[i]);
    });
}

template <class T>
void CpuBackend<T>::run(const SquaredReluBackward& args) {
    validate(args);
    const T *x = args.x.as<T>(), *d_out = args.d_out.as<T>();
    T* d_x = args.d_x.as<T>();
    for_blocks(pool_, args.x.elements(), kElementBlock, [=](Block block) {
        for (int64_t i = block.begin; i < block.end(); ++i) {
            const T positive = x[i] < 0 ? 0 : x[i];
            d_x[i] = 2 * positive * d_out[i];
        }
    });
}

template <class T>
void CpuBackend<T>::run(const Add& args) {
    validate(args);
    const T *a = args.a.as<T>(), *b = args.b.as<T>();
    T* out = args.out.as<T>();
    for_blocks(pool_, args.a.elements(), kElementBlock, [=](Block block) {
        for (int64_t i = block.begin; i < block.end(); ++i) out[i] = a[i] + b[i];
    });
}

#define MINIPUZZLE_INSTANTIATE(T)                                      \
    template void CpuBackend<T>::run(const SquaredReluForward& args);  \
    template void CpuBackend<T>::run(const SquaredReluBackward& args); \
    template void CpuBackend<T>::run(const Add& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
