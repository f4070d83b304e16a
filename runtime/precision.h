// Precision: the number format in which a model's projections are computed.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/tensor.h"
#include "runtime/architecture.h"

namespace minipuzzle {

// bf16: everything in the backend's compute type (float32 on the CPU).
// fp8:  the projections of the inner layers in E4M3, weights and activations alike, each row with a scale of
//       its own (ops.h, QuantizeRows). Everything else, the residual stream among it, as with bf16.
enum class Precision { bf16, fp8 };
std::string_view name(Precision precision);

// Whether a layer's projections are quantised: all but those of a model's first two and last two layers, the
// first and last four products (Nemotron-H, arXiv 2504.03624, section 2.3).
bool is_quantized(const Architecture& architecture, Precision precision, int64_t layer);
// Of a tensor: whether it holds E4M3 and has scales.
inline bool is_quantized(const Tensor& tensor) { return tensor.dtype == DType::f8_e4m3; }

}  // namespace minipuzzle
