#include "runtime/precision.h"

namespace minipuzzle {

std::string_view name(Precision precision) { return precision == Precision::fp8 ? "fp8" : "bf16"; }

bool is_quantized(const Architecture& architecture, Precision precision, int64_t layer) {
    constexpr int64_t kKeptAtEachEnd = 2;
    return precision == Precision::fp8 && layer >= kKeptAtEachEnd &&
           layer < std::ssize(architecture.layers) - kKeptAtEachEnd;
}

}  // namespace minipuzzle
