// The deployment memory of a model at a workload: exact integers in bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nas/workload.h"
#include "runtime/architecture.h"
#include "runtime/artefact.h"
#include "runtime/student_plan.h"

namespace minipuzzle::nas {

struct Memory {
    int64_t weights = 0, kv = 0, ssm = 0, conv = 0, buffers = 0, workspace = 0;
    int64_t total() const { return weights + kv + ssm + conv + buffers + workspace; }
    bool operator==(const Memory&) const = default;
};
// Without `workspace` where it is 0.
Json to_json(const Memory& memory);
Memory read_memory(ObjectReader reader);

// weights: every tensor in its type. kv: batch * context * 2 * kv_heads * head_dim per attention layer; ssm:
// batch * heads * head_dim * state per Mamba layer; conv: batch * conv_channels * (kernel - 1). Source:
// nemotron_h's caches (reference sizes in the tests).
// workspace, with a prefill chunk: what the layers hold beside weights and caches while T = batch *
// min(chunk, context) tokens pass them, one layer at a time. The tensors are those that this program's own
// forward takes (runtime/layer_activations.cpp, against which the tests hold it), in bf16:
//   T * width, the residual stream, and the largest of
//   Mamba      T * (width + in_proj's outputs + conv channels + inner): normed, zxbcdt, the convolution's
//              output, the scan's output, which the gated norm overwrites
//   attention  T * (width + 2 * heads * head_dim + 2 * kv_heads * head_dim): normed, q, k, v, output
//   FFN        T * (width + FFN width): normed, hidden, which squared ReLU overwrites
//   head       batch * width, and batch * vocab float32 logits: of each sequence's last token
// Scratch of libraries and kernels is not in it; that, and all else, is `buffers`.
// Error usage where a size passes 64 bits.
Memory memory_of(const Architecture& architecture, const Workload& workload);
// The student's memory: of memory_of(student_architecture(teacher, plan)), each tensor in the dtype of the
// teacher's tensor that it is cut from.
Memory memory_of(const Architecture& teacher, const StudentPlan& plan, const Workload& workload);

// In sixteenths of a byte, so that only whole parts of the memory are rounded up, never single layers.
struct MemoryUnits {
    int64_t weights = 0, kv = 0, ssm = 0, conv = 0;
    int64_t workspace = 0;  // residual stream included
    // Layers one after another: all parts add up, but of the workspace the larger one counts.
    MemoryUnits& operator+=(const MemoryUnits& other);
    // Every part rounded up to bytes.
    Memory memory(int64_t buffers) const;
};
// A model's memory layer by layer; `outer` is what lies outside the layers.
struct LayerMemory {
    MemoryUnits outer;
    std::vector<MemoryUnits> layers;
};
LayerMemory layer_memory(const Architecture& architecture, const Workload& workload);

// The weights of one part.
struct WeightPartMemory {
    WeightPart part = WeightPart::embeddings;
    std::string type;  // "bf16"; "bf16 + f32" where a file mixes
    int64_t parameters = 0, units = 0;
    double bytes() const { return static_cast<double>(units) / static_cast<double>(kUnitsPerByte); }  // exact
};
// Those parts that the model has; their units add up to Memory::weights.
std::vector<WeightPartMemory> weight_parts(const Architecture& architecture, const Workload& workload);

}  // namespace minipuzzle::nas
