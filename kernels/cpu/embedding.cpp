#include <cstring>

#include "kernels/cpu/blocks.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

template <class T>
void CpuBackend<T>::run(const EmbeddingForward& args) {
    validate(args);
    const int64_t width = args.weight.columns(), vocabulary = args.weight.size(0);
    const int32_t* tokens = args.tokens.as<int32_t>();
    const T* weight = args.weight.as<T>();
    T* out = args.out.as<T>();
    for_blocks(pool_, args.tokens.elements(), kRowBlock, [&](Block rows) {
        for (int64_t r = rows.begin; r < rows.end(); ++r) {
            MP_ASSERT(tokens[r] >= 0 && tokens[r] < vocabulary);
            std::memcpy(out + r * width, weight + tokens[r] * width, width * sizeof(T));
        }
    });
}

template <class T>
void CpuBackend<T>::run(const EmbeddingBackward& args) {
    validate(args);
    const int64_t width = args.d_weight.columns(), vocabulary = args.d_weight.size(0);
    const int64_t rows = args.tokens.elements();
    const int32_t* tokens = args.tokens.as<int32_t>();
    const T* d_out = args.d_out.as<T>();
    T* d_weight = args.d_weight.as<T>();
    // Tasks own columns, so that repeated tokens add up in order without locks.
    constexpr int64_t kColumns = 64;
    for_blocks(pool_, width, kColumns, [&](Block columns) {
        for (int64_t r = 0; r < rows; ++r) {
            MP_ASSERT(tokens[r] >= 0 && tokens[r] < vocabulary);
            T* to = d_weight + tokens[r] * width + columns.begin;
            const T* from = d_out + r * width + columns.begin;
            for (int64_t i = 0; i < columns.count; ++i) to[i] += from[i];
        }
    });
}

#define MINIPUZZLE_INSTANTIATE(T)                                   \
    template void CpuBackend<T>::run(const EmbeddingForward& args); \
    template void CpuBackend<T>::run(const EmbeddingBackward& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
