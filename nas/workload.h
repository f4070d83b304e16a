// The workload that a model is deployed for: what it holds, and in which element types.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/dtype.h"
#include "runtime/artefact.h"
#include "runtime/checkpoint.h"

namespace minipuzzle::nas {

// An element type of a deployed tensor. fp4: exactly 4 bits; nvfp4: 4.5 (a scale byte per 16 elements);
// int4 (weights only): 4 bits and a bf16 scale per group of Workload::int4_group elements along a row, the
// input dimension (of conv1d the taps of a channel, of a vector all of it); a row's last, partial group has a
// whole scale.
enum class ElementType { fp32, bf16, fp8, fp4, nvfp4, int4 };
// Error usage lists the known ones.
ElementType parse_element_type(const std::string& text);
std::string_view name(ElementType type);
// Bytes of `elements` elements, rounded up to whole bytes; not of int4, whose rows matter.
int64_t bytes_of(ElementType type, int64_t elements);

// Sixteenths of a byte: the unit in which 4.5-bit elements add up exactly.
inline constexpr int64_t kUnitsPerByte = 16;
// Units of one element, without int4's scales.
int64_t units_of(ElementType type);

// Stored dtypes by canonical tensor name: what "weights as in the file" means.
using WeightDtypes = std::map<std::string, DType>;
WeightDtypes dtypes_in_file(const Checkpoint& checkpoint);

// What a weight is to those who choose its element type. The projections of the three mixers always have
// Workload::weights; the others may have a type of their own:
//   embeddings      the embedding matrix; tied to the LM head it is one tensor, counted once, and its type
//                   is the embeddings'
//   head            lm_head where it is not tied
//   norms           the weights of the layers' norms, of Mamba's gated norms and of the last norm
//   ssm_parameters  A_log, D, dt_bias, and conv1d's weight and bias
enum class WeightPart { embeddings, head, norms, ssm_parameters, mamba, attention, ffn };
inline constexpr WeightPart kWeightParts[] = {
    WeightPart::embeddings, WeightPart::head,      WeightPart::norms, WeightPart::ssm_parameters,
    WeightPart::mamba,      WeightPart::attention, WeightPart::ffn};
std::string_view name(WeightPart part);
WeightPart part_of(const Architecture& architecture, const TensorSlot& slot);

struct Workload {
    int64_t context = 8192, batch = 1;
    ElementType weights = ElementType::bf16, kv = ElementType::bf16, ssm = ElementType::fp32,
                conv = ElementType::bf16;
    int64_t buffers = 0;
    // Tokens of each sequence that go through the layers at once in prefill; 0: its memory is not counted.
    int64_t prefill_chunk = 0;
    int64_t int4_group = 128;
    // Types of parts that are not stored as `weights` says (nor as the file does).
    std::optional<ElementType> embeddings = {}, head = {}, norms = {}, ssm_parameters = {};
    // True: `weights` is not used, every tensor has its dtype in `weight_dtypes`, by the names of the
    // architecture that memory_of is given (the teacher's, when it is given a plan).
    bool weights_as_in_file = false;
    WeightDtypes weight_dtypes = {};

    // The type of a part's own; nullopt: as all weights.
    std::optional<ElementType> type_of(WeightPart part) const;
};
// `weights` reads "file" only where the file mixes dtypes; A_log and D, float32 in most bf16 files, do not
// count as a mix (their bytes do count). What is as in a plain Workload is left out: int4_group where nothing
// is int4, prefill_chunk 0, parts without a type of their own.
Json to_json(const Workload& workload);
// The inverse, strict. The dtypes of a file are not in the JSON: "file" comes back without them.
Workload read_workload(ObjectReader reader);

}  // namespace minipuzzle::nas
