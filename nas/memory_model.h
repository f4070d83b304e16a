// The deployment memory of a model at a workload: exact integers in bytes.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/architecture.h"
#include "runtime/artefact.h"

namespace minipuzzle::nas {

// An element type of a deployed tensor. `weights` may be "file" until resolved against a checkpoint's dtypes.
enum class ElementType {
    fp32,
    bf16,
    fp8,
    fp4,
    nvfp4
};  // fp4: exactly 4 bits; nvfp4: 4.5 (a scale byte per 16)
ElementType parse_element_type(const std::string& text);
std::string_view name(ElementType type);
// Bytes of `elements` elements, rounded up to whole bytes.
int64_t bytes_of(ElementType type, int64_t elements);

struct Workload {
    int64_t context = 8192, batch = 1;
    ElementType weights = ElementType::bf16, kv = ElementType::bf16, ssm = ElementType::fp32,
                conv = ElementType::bf16;
    int64_t buffers = 0;
    // Weights "as in the file" hold mixed dtypes: the exact bytes per parameter kind are then given by the
    // caller. 0: weights is used. Otherwise weights bytes = file_bytes of the architecture computed with
    // these tensors' dtypes.
    bool weights_as_in_file = false;
};
Json to_json(const Workload& workload);

struct Memory {
    int64_t weights = 0, kv = 0, ssm = 0, conv = 0, buffers = 0;
    int64_t total() const { return weights + kv + ssm + conv + buffers; }
    bool operator==(const Memory&) const = default;
};
Json to_json(const Memory& memory);

// kv: batch * context * 2 * kv_heads * head_dim per attention layer; ssm: batch * heads * head_dim * state
// per Mamba layer; conv: batch * conv_channels * (kernel - 1). Source: nemotron_h's caches (reference sizes
// in the tests).
Memory memory_of(const Architecture& architecture, const Workload& workload);

}  // namespace minipuzzle::nas
