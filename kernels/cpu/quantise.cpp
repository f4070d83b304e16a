#include "kernels/cpu/quantise.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/blocks.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

constexpr int64_t kRows = 16;

// The largest magnitude; NaN where there is one.
template <class T>
T largest_magnitude(const T* values, int64_t width) {
    T largest = 0, poison = 0;
    for (int64_t i = 0; i < width; ++i) {
        const T magnitude = std::abs(values[i]);
        largest = magnitude > largest ? magnitude : largest;
        poison += values[i] * 0;  // infinities become NaN as well, as they do in their row's codes
    }
    return largest + poison;
}

}  // namespace

template <class T>
T quantise_row(const T* values, int64_t width, uint8_t* codes) {
    const T largest = largest_magnitude(values, width);
    T scale = 1;
    if (largest != 0)  // the smallest scale is still one whose reciprocal is a number
        scale = largest < T{0x1p-126f} * T{kLargestE4m3} ? T{0x1p-126f} : largest / T{kLargestE4m3};
    const T inverse = 1 / scale;
    for (int64_t i = 0; i < width; ++i) codes[i] = to_e4m3(values[i] * inverse);
    return scale;
}

template <class T>
void CpuBackend<T>::run(const QuantizeRows& args) {
    validate(args);
    const int64_t width = args.x.columns();
    const T* x = args.x.as<T>();
    uint8_t* out = codes_of(args.out);
    T* scale = args.scale.as<T>();
    for_blocks(pool_, args.x.rows(), kRows, [=](Block rows) {
        for (int64_t r = rows.begin; r < rows.end(); ++r)
            scale[r] = quantise_row(x + r * width, width, out + r * width);
    });
}

#define MINIPUZZLE_INSTANTIATE(T)                                      \
    template T quantise_row(const T* values, int64_t, uint8_t* codes); \
    template void CpuBackend<T>::run(const QuantizeRows& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
