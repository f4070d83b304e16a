#include "nas/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "kernels/check.h"

namespace minipuzzle::nas {

namespace {

struct ElementTypeInfo {
    std::string_view name;
    int64_t units;  // sixteenths of a byte per element
};
constexpr ElementTypeInfo kElementTypes[] = {{"fp32", 64}, {"bf16", 32}, {"fp8", 16},
                                             {"fp4", 8},   {"nvfp4", 9}, {"int4", 8}};

constexpr std::string_view kWeightPartNames[] = {"embeddings", "head",      "norms", "ssm_parameters",
                                                 "mamba",      "attention", "ffn"};

// The parts that may have a type of their own, by their JSON keys.
struct OwnType {
    WeightPart part;
    std::optional<ElementType> Workload::*type;
};
constexpr OwnType kOwnTypes[] = {{WeightPart::embeddings, &Workload::embeddings},
                                 {WeightPart::head, &Workload::head},
                                 {WeightPart::norms, &Workload::norms},
                                 {WeightPart::ssm_parameters, &Workload::ssm_parameters}};

// The element type that all tensors but A_log and D share; nullopt where they mix or it has no name here.
std::optional<ElementType> common_type(const WeightDtypes& dtypes) {
    std::optional<DType> common;
    for (const auto& [tensor, dtype] : dtypes) {
        if (tensor.ends_with(".A_log") || tensor.ends_with(".D")) continue;
        if (common && *common != dtype) return std::nullopt;
        common = dtype;
    }
    if (common == DType::bf16) return ElementType::bf16;
    if (common == DType::f32) return ElementType::fp32;
    return std::nullopt;
}

bool has_int4(const Workload& workload) {
    if (!workload.weights_as_in_file && workload.weights == ElementType::int4) return true;
    return std::any_of(std::begin(kOwnTypes), std::end(kOwnTypes),
                       [&](const OwnType& own) { return workload.*own.type == ElementType::int4; });
}

}  // namespace

ElementType parse_element_type(const std::string& text) {
    std::string known;
    for (std::size_t i = 0; i < std::size(kElementTypes); ++i) {
        if (kElementTypes[i].name == text) return static_cast<ElementType>(i);
        known += fmt::format("{}{}", known.empty() ? "" : ", ", kElementTypes[i].name);
    }
    fail_usage(fmt::format("element type {}: expected one of {}", text, known));
}

std::string_view name(ElementType type) { return kElementTypes[static_cast<std::size_t>(type)].name; }

int64_t units_of(ElementType type) { return kElementTypes[static_cast<std::size_t>(type)].units; }

int64_t bytes_of(ElementType type, int64_t elements) {
    MP_ASSERT(type != ElementType::int4);
    int64_t units = 0;
    MP_ASSERT(!__builtin_mul_overflow(units_of(type), elements, &units));
    return div_up(units, kUnitsPerByte);
}

WeightDtypes dtypes_in_file(const Checkpoint& checkpoint) {
    WeightDtypes dtypes;
    for (const TensorSlot& slot : tensor_slots(checkpoint.architecture()))
        dtypes[slot.name] = checkpoint.tensor(slot.name).dtype;
    return dtypes;
}

std::string_view name(WeightPart part) { return kWeightPartNames[static_cast<std::size_t>(part)]; }

WeightPart part_of(const Architecture& architecture, const TensorSlot& slot) {
    const std::string_view tensor = slot.name;
    if (tensor == "embeddings.weight") return WeightPart::embeddings;
    if (tensor == "lm_head.weight") return WeightPart::head;
    if (tensor == "norm_f.weight" || tensor.ends_with(".norm.weight")) return WeightPart::norms;
    for (const std::string_view own : {".A_log", ".D", ".dt_bias", ".conv1d.weight", ".conv1d.bias"})
        if (tensor.ends_with(own)) return WeightPart::ssm_parameters;
    MP_ASSERT(slot.layer >= 0);
    switch (minipuzzle::type_of(architecture.layers[static_cast<std::size_t>(slot.layer)])) {
        case LayerType::mamba:
            return WeightPart::mamba;
        case LayerType::attention:
            return WeightPart::attention;
        case LayerType::ffn:
            return WeightPart::ffn;
    }
    MP_ASSERT(false);
}

std::optional<ElementType> Workload::type_of(WeightPart part) const {
    for (const OwnType& own : kOwnTypes)
        if (own.part == part) return this->*own.type;
    return std::nullopt;
}

Json to_json(const Workload& workload) {
    std::string_view weights = name(workload.weights);
    if (workload.weights_as_in_file) {
        const std::optional<ElementType> common = common_type(workload.weight_dtypes);
        weights = common ? name(*common) : "file";
    }
    Json json = {{"context", workload.context}, {"batch", workload.batch},   {"weights", weights},
                 {"kv", name(workload.kv)},     {"ssm", name(workload.ssm)}, {"conv", name(workload.conv)},
                 {"buffers", workload.buffers}};
    for (const OwnType& own : kOwnTypes)
        if (const auto type = workload.*own.type) json[std::string(name(own.part))] = name(*type);
    if (has_int4(workload)) json["int4_group"] = workload.int4_group;
    if (workload.prefill_chunk > 0) json["prefill_chunk"] = workload.prefill_chunk;
    return json;
}

Workload read_workload(ObjectReader reader) {
    const auto element_type = [&](const std::string& key, bool of_weights) {
        const std::string text = reader.text(key);
        for (std::size_t i = 0; i < std::size(kElementTypes); ++i) {
            const ElementType type = static_cast<ElementType>(i);
            if (kElementTypes[i].name == text && (of_weights || type != ElementType::int4)) return type;
        }
        reader.fail(fmt::format("{}: found \"{}\", expected an element type such as bf16", key, text));
    };
    Workload workload;
    workload.context = reader.integer("context");
    workload.batch = reader.integer("batch");
    workload.weights_as_in_file = reader.text("weights") == "file";
    if (!workload.weights_as_in_file) workload.weights = element_type("weights", true);
    workload.kv = element_type("kv", false);
    workload.ssm = element_type("ssm", false);
    workload.conv = element_type("conv", false);
    workload.buffers = reader.integer("buffers");
    for (const OwnType& own : kOwnTypes)
        if (const std::string key(name(own.part)); reader.optional(key))
            workload.*own.type = element_type(key, true);
    workload.int4_group = reader.integer("int4_group", workload.int4_group);
    if (workload.int4_group < 1) reader.fail("int4_group: expected at least 1");
    workload.prefill_chunk = reader.integer("prefill_chunk", 0);
    reader.finish();
    return workload;
}

}  // namespace minipuzzle::nas
