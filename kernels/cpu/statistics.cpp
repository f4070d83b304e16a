#include <array>
#include <cmath>

#include "kernels/cpu/blocks.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

// Units that one task sums over a sequence.
constexpr int64_t kUnits = 128;

// Adds one token's r or r^2 of every unit to `sums`; r of one channel is its absolute value.
template <class T>
void add_token(const T* x, int64_t units, int64_t channels, bool squared, double* sums) {
    if (channels == 1 && !squared) {
        for (int64_t n = 0; n < units; ++n) sums[n] += std::abs(x[n]);
        return;
    }
    for (int64_t n = 0; n < units; ++n) {
        double square = 0;
        for (int64_t c = 0; c < channels; ++c) {
            const double value = x[n * channels + c];
            square += value * value;
        }
        sums[n] += squared ? square : std::sqrt(square);
    }
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const ActivationSums& args) {
    validate(args);
    const int64_t length = args.x.size(1), columns = args.x.columns(), units = args.out.columns();
    const Blocks unit_blocks{units, kUnits};
    pool_.parallel_for(args.x.size(0) * unit_blocks.count(), [&](int64_t task, int) {
        const int64_t sequence = task / unit_blocks.count();
        const Block block = unit_blocks[task % unit_blocks.count()];
        const T* x = args.x.as<T>() + sequence * length * columns + args.first + block.begin * args.channels;
        std::array<double, kUnits> sums{};
        for (int64_t t = 0; t < length; ++t)
            add_token(x + t * columns, block.count, args.channels, args.squared, sums.data());
        T* out = args.out.as<T>() + sequence * units + block.begin;
        for (int64_t n = 0; n < block.count; ++n) out[n] = static_cast<T>(sums[n]);
    });
}

template <class T>
void CpuBackend<T>::run(const AccumulatePowers& args) {
    validate(args);
    const int64_t batch = args.x.size(0), units = args.x.columns();
    const T* x = args.x.as<T>();
    double* total = args.total.as<double>();
    for_blocks(pool_, units, kElementBlock, [&](Block block) {
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t n = block.begin; n < block.end(); ++n) {
                const double value = args.scale * static_cast<double>(x[b * units + n]);
                total[n] += args.power == 2 ? value * value : args.power == 1 ? value : std::sqrt(value);
            }
    });
}

#define MINIPUZZLE_INSTANTIATE(T)                                 \
    template void CpuBackend<T>::run(const ActivationSums& args); \
    template void CpuBackend<T>::run(const AccumulatePowers& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
