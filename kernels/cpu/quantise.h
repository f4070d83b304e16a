// Rows of values as E4M3 codes with one scale each.
#pragma once

#include "kernels/cpu/cpu_backend.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

// Codes of `width` values; returns their scale (QuantizeRows in ops.h). Defined in quantise.cpp.
template <class T>
T quantise_row(const T* values, int64_t width, uint8_t* codes);

inline uint8_t* codes_of(const Tensor& tensor) {
    MP_ASSERT(tensor.dtype == DType::f8_e4m3);
    return reinterpret_cast<uint8_t*>(tensor.data);
}
inline bool is_quantised(const Tensor& tensor) { return tensor.dtype == DType::f8_e4m3; }

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
