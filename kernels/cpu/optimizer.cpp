#include "kernels/cpu/blocks.h"
#include "kernels/cpu/lanes.h"
#include "kernels/random.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

// Sum of squares in double: blocks in parallel, then the blocks in order.
template <class T>
double squared_norm(ThreadPool& pool, const Tensor& tensor) {
    const Blocks blocks{tensor.elements(), kElementBlock};
    const T* x = tensor.as<T>();
    double* sums = reinterpret_cast<double*>(pool.shared_scratch(blocks.count() * sizeof(double)));
    pool.parallel_for(blocks.count(), [&](int64_t task, int) {
        const Block block = blocks[task];
        Lanes<double> sum = Lanes<double>::Zero();
        for_lanes<T>(block.count, [&](int64_t i, auto lanes) {
            sum += lanes.load(x + block.begin + i).template cast<double>().square();
        });
        sums[task] = sum.sum();
    });
    double total = 0;
    for (int64_t block = 0; block < blocks.count(); ++block) total += sums[block];
    return total;
}

// A moment as it lies in memory: of type T, or rounded to bf16.
template <class T>
struct PlainMoments {
    T* values;
    T load(int64_t i) const { return values[i]; }
    void store(int64_t i, T value) const { values[i] = value; }
};
template <class T>
struct Bf16Moments {
    uint16_t* values;
    T load(int64_t i) const { return static_cast<T>(bf16_to_float(values[i])); }
    void store(int64_t i, T value) const { values[i] = float_to_bf16(static_cast<float>(value)); }
};

// The factors of one update in T.
template <class T>
struct AdamWFactors {
    AdamWFactors(const AdamW& args, double norm, bool decays) {
        const double correction1 = 1 - std::pow(args.beta1, static_cast<double>(args.step));
        const double correction2 = 1 - std::pow(args.beta2, static_cast<double>(args.step));
        scale = static_cast<T>(args.clip > 0 && norm > args.clip ? args.clip / norm : 1.0);
        beta1 = static_cast<T>(args.beta1), rest1 = static_cast<T>(1 - args.beta1);
        beta2 = static_cast<T>(args.beta2), rest2 = static_cast<T>(1 - args.beta2);
        keep = static_cast<T>(decays ? 1 - args.learning_rate * args.weight_decay : 1.0);
        rate = static_cast<T>(args.learning_rate / correction1);
        unbias = static_cast<T>(1 / std::sqrt(correction2));
        eps = static_cast<T>(args.eps);
    }
    T scale, beta1, rest1, beta2, rest2, keep, rate, unbias, eps;
};

template <class T, class Moments>
void update(ThreadPool& pool, const TrainedTensor& tensor, const AdamWFactors<T>& f, Moments moment1,
            Moments moment2) {
    T* master = (tensor.master ? tensor.master : tensor.parameter).template as<T>();
    const T* gradient = tensor.gradient.as<T>();
    for_blocks(pool, tensor.gradient.elements(), kElementBlock, [=](Block block) {
        for (int64_t i = block.begin; i < block.end(); ++i) {
            const T g = gradient[i] * f.scale;
            const T m1 = f.beta1 * moment1.load(i) + f.rest1 * g;
            const T m2 = f.beta2 * moment2.load(i) + f.rest2 * g * g;
            moment1.store(i, m1);
            moment2.store(i, m2);
            master[i] = f.keep * master[i] - f.rate * m1 / (std::sqrt(m2) * f.unbias + f.eps);
        }
    });
    if (!tensor.master) return;
    if (tensor.parameter.dtype == DType::bf16) {
        uint16_t* rounded = reinterpret_cast<uint16_t*>(tensor.parameter.data);
        for_blocks(pool, tensor.gradient.elements(), kElementBlock, [=](Block block) {
            for (int64_t i = block.begin; i < block.end(); ++i)
                rounded[i] = float_to_bf16(static_cast<float>(master[i]));
        });
    } else {
        std::copy_n(master, tensor.gradient.elements(), tensor.parameter.as<T>());
    }
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const SquaredNorm& args) {
    validate(args);
    *args.out = squared_norm<T>(pool_, args.x);
}

template <class T>
void CpuBackend<T>::run(const GradientNorms& args) {
    validate(args);
    double* squares = args.squares.as<double>();
    for (const Tensor& gradient : args.gradients) *squares++ = squared_norm<T>(pool_, gradient);
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
    double sum = 0;
    for (std::size_t i = 0; i < args.tensors.size(); ++i) sum += args.squares.as<double>()[i];
    if (!std::isfinite(sum)) return;
    for (const TrainedTensor& tensor : args.tensors) {
        const AdamWFactors<T> factors(args, std::sqrt(sum), tensor.decays);
        if (tensor.moment1.dtype == DType::bf16)
            update(pool_, tensor, factors, Bf16Moments<T>{reinterpret_cast<uint16_t*>(tensor.moment1.data)},
                   Bf16Moments<T>{reinterpret_cast<uint16_t*>(tensor.moment2.data)});
        else
            update(pool_, tensor, factors, PlainMoments<T>{tensor.moment1.as<T>()},
                   PlainMoments<T>{tensor.moment2.as<T>()});
    }
}

#define MINIPUZZLE_INSTANTIATE(T)                                \
    template void CpuBackend<T>::run(const SquaredNorm& args);   \
    template void CpuBackend<T>::run(const RandomNormal& args);  \
    template void CpuBackend<T>::run(const GradientNorms& args); \
    template void CpuBackend<T>::run(const AdamW& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
