#include "kernels/cpu/blocks.h"
#include "kernels/cpu/lanes.h"
#include "kernels/random.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

template <class T>
void CpuBackend<T>::run(const SquaredNorm& args) {
    validate(args);
    const Blocks blocks{args.x.elements(), kElementBlock};
    const T* x = args.x.as<T>();
    double* sums = reinterpret_cast<double*>(pool_.shared_scratch(blocks.count() * sizeof(double)));
    pool_.parallel_for(blocks.count(), [&](int64_t task, int) {
        const Block block = blocks[task];
        Lanes<double> sum = Lanes<double>::Zero();
        for_lanes<T>(block.count, [&](int64_t i, auto lanes) {
            sum += lanes.load(x + block.begin + i).template cast<double>().square();
        });
        sums[task] = sum.sum();
    });
    double total = 0;
    for (int64_t block = 0; block < blocks.count(); ++block) total += sums[block];
    *args.out = total;
}

template <class T>
void CpuBackend<T>::run(const RandomNormal& args) {
    validate(args);
    T* out = args.out.as<T>();
    for_blocks(pool_, args.out.elements(), kElementBlock, [=](Block block) {
        for (int64_t i = block.begin; i < block.end(); ++i)
            out[i] = static_cast<T>(args.scale * counter_normal(args.key, i));
    });
}

template <class T>
void CpuBackend<T>::run(const AdamW& args) {
    validate(args);
    const double correction1 = 1 - std::pow(args.beta1, static_cast<double>(args.step));
    const double correction2 = 1 - std::pow(args.beta2, static_cast<double>(args.step));
    const T scale = static_cast<T>(args.gradient_scale), eps = static_cast<T>(args.eps);
    const T beta1 = static_cast<T>(args.beta1), rest1 = static_cast<T>(1 - args.beta1);
    const T beta2 = static_cast<T>(args.beta2), rest2 = static_cast<T>(1 - args.beta2);
    const T keep = static_cast<T>(1 - args.learning_rate * args.weight_decay);
    const T rate = static_cast<T>(args.learning_rate / correction1);
    const T unbias = static_cast<T>(1 / std::sqrt(correction2));
    T *parameter = args.parameter.as<T>(), *moment1 = args.moment1.as<T>(), *moment2 = args.moment2.as<T>();
    const T* gradient = args.gradient.as<T>();
    for_blocks(pool_, args.parameter.elements(), kElementBlock, [=](Block block) {
        for (int64_t i = block.begin; i < block.end(); ++i) {
            const T g = gradient[i] * scale;
            moment1[i] = beta1 * moment1[i] + rest1 * g;
            moment2[i] = beta2 * moment2[i] + rest2 * g * g;
            parameter[i] = keep * parameter[i] - rate * moment1[i] / (std::sqrt(moment2[i]) * unbias + eps);
        }
    });
}

#define MINIPUZZLE_INSTANTIATE(T)                               \
    template void CpuBackend<T>::run(const SquaredNorm& args);  \
    template void CpuBackend<T>::run(const RandomNormal& args); \
    template void CpuBackend<T>::run(const AdamW& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
