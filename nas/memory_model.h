// The deployment memory of a model at a workload: exact integers in bytes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "runtime/architecture.h"
#include "runtime/artefact.h"
#include "runtime/checkpoint.h"
#include "runtime/student_plan.h"

namespace minipuzzle::nas {

// An element type of a deployed tensor. fp4: exactly 4 bits; nvfp4: 4.5 (a scale byte per 16 elements).
enum class ElementType { fp32, bf16, fp8, fp4, nvfp4 };
// Error usage lists the known ones.
ElementType parse_element_type(const std::string& text);
std::string_view name(ElementType type);
// Bytes of `elements` elements, rounded up to whole bytes.
int64_t bytes_of(ElementType type, int64_t elements);

// Stored dtypes by canonical tensor name: what "weights as in the file" means.
using WeightDtypes = std::map<std::string, DType>;
WeightDtypes dtypes_in_file(const Checkpoint& checkpoint);

struct Workload {
    int64_t context = 8192, batch = 1;
    ElementType weights = ElementType::bf16, kv = ElementType::bf16, ssm = ElementType::fp32,
                conv = ElementType::bf16;
    int64_t buffers = 0;
    // True: `weights` is not used, every tensor has its dtype in `weight_dtypes`, by the names of the
    // architecture that memory_of is given (the teacher's, when it is given a plan).
    bool weights_as_in_file = false;
    WeightDtypes weight_dtypes = {};
};
// `weights` reads "file" only where the file mixes dtypes; A_log and D, float32 in most bf16 files, do not
// count as a mix (their bytes do count).
Json to_json(const Workload& workload);
// The inverse, strict. The dtypes of a file are not in the JSON: "file" comes back without them.
Workload read_workload(ObjectReader reader);

struct Memory {
    int64_t weights = 0, kv = 0, ssm = 0, conv = 0, buffers = 0;
    int64_t total() const { return weights + kv + ssm + conv + buffers; }
    bool operator==(const Memory&) const = default;
};
Json to_json(const Memory& memory);
Memory read_memory(ObjectReader reader);

// kv: batch * context * 2 * kv_heads * head_dim per attention layer; ssm: batch * heads * head_dim * state
// per Mamba layer; conv: batch * conv_channels * (kernel - 1). Source: nemotron_h's caches (reference sizes
// in the tests). Error usage where a size passes 64 bits.
Memory memory_of(const Architecture& architecture, const Workload& workload);
// The student's memory: of memory_of(student_architecture(teacher, plan)), each tensor in the dtype of the
// teacher's tensor that it is cut from.
Memory memory_of(const Architecture& teacher, const StudentPlan& plan, const Workload& workload);

// Units of MemoryUnits in a byte.
inline constexpr int64_t kUnitsPerByte = 16;

// Sixteenths of a byte: the unit in which 4.5-bit elements add up exactly, so that only whole parts of the
// memory are rounded up, never single layers.
struct MemoryUnits {
    int64_t weights = 0, kv = 0, ssm = 0, conv = 0;
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

}  // namespace minipuzzle::nas
