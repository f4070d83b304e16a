#include "nas/memory_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

namespace minipuzzle::nas {

namespace {

struct ElementTypeInfo {
    std::string_view name;
    int64_t units;  // sixteenths of a byte per element
};
constexpr ElementTypeInfo kElementTypes[] = {
    {"fp32", 64}, {"bf16", 32}, {"fp8", 16}, {"fp4", 8}, {"nvfp4", 9}};

int64_t units_of(ElementType type) { return kElementTypes[static_cast<std::size_t>(type)].units; }

// A product of sizes that a user may have typed too large.
int64_t checked_product(std::initializer_list<int64_t> factors) {
    int64_t product = 1;
    for (const int64_t factor : factors)
        if (__builtin_mul_overflow(product, factor, &product))
            fail_usage("the workload's memory passes 64 bits, expected less; lower --context or --batch");
    return product;
}

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

MemoryUnits state_units(const Layer& layer, const Workload& workload) {
    MemoryUnits units;
    if (const auto* attention = std::get_if<Attention>(&layer))
        units.kv = checked_product({units_of(workload.kv), 2, attention->kv_heads, attention->head_dim,
                                    workload.batch, workload.context});
    if (const auto* mamba = std::get_if<Mamba>(&layer)) {
        units.ssm = checked_product(
            {units_of(workload.ssm), mamba->heads, mamba->head_dim, mamba->state, workload.batch});
        units.conv = checked_product(
            {units_of(workload.conv), mamba->conv_channels(), mamba->conv_kernel - 1, workload.batch});
    }
    return units;
}

void add_weights_in_file(const Architecture& architecture, const WeightDtypes& dtypes, LayerMemory& memory) {
    for (const TensorSlot& slot : tensor_slots(architecture)) {
        const auto dtype = dtypes.find(slot.name);
        MP_ASSERT(dtype != dtypes.end());
        int64_t units = kUnitsPerByte * bytes_of(dtype->second);
        for (const int64_t extent : slot.shape) units = checked_product({units, extent});
        MemoryUnits& owner =
            slot.layer < 0 ? memory.outer : memory.layers[static_cast<std::size_t>(slot.layer)];
        owner.weights += units;
    }
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

int64_t bytes_of(ElementType type, int64_t elements) {
    return div_up(checked_product({units_of(type), elements}), kUnitsPerByte);
}

WeightDtypes dtypes_in_file(const Checkpoint& checkpoint) {
    WeightDtypes dtypes;
    for (const TensorSlot& slot : tensor_slots(checkpoint.architecture()))
        dtypes[slot.name] = checkpoint.tensor(slot.name).dtype;
    return dtypes;
}

Json to_json(const Workload& workload) {
    std::string_view weights = name(workload.weights);
    if (workload.weights_as_in_file) {
        const std::optional<ElementType> common = common_type(workload.weight_dtypes);
        weights = common ? name(*common) : "file";
    }
    return {{"context", workload.context}, {"batch", workload.batch},   {"weights", weights},
            {"kv", name(workload.kv)},     {"ssm", name(workload.ssm)}, {"conv", name(workload.conv)},
            {"buffers", workload.buffers}};
}

Workload read_workload(ObjectReader reader) {
    const auto element_type = [&](const char* key) {
        const std::string text = reader.text(key);
        for (std::size_t i = 0; i < std::size(kElementTypes); ++i)
            if (kElementTypes[i].name == text) return static_cast<ElementType>(i);
        reader.fail(fmt::format("{}: found \"{}\", expected an element type such as bf16", key, text));
    };
    Workload workload;
    workload.context = reader.integer("context");
    workload.batch = reader.integer("batch");
    workload.weights_as_in_file = reader.text("weights") == "file";
    if (!workload.weights_as_in_file) workload.weights = element_type("weights");
    workload.kv = element_type("kv");
    workload.ssm = element_type("ssm");
    workload.conv = element_type("conv");
    workload.buffers = reader.integer("buffers");
    reader.finish();
    return workload;
}

Json to_json(const Memory& memory) {
    return {{"weights", memory.weights}, {"kv", memory.kv},           {"ssm", memory.ssm},
            {"conv", memory.conv},       {"buffers", memory.buffers}, {"total", memory.total()}};
}

Memory read_memory(ObjectReader reader) {
    Memory memory;
    memory.weights = reader.integer("weights");
    memory.kv = reader.integer("kv");
    memory.ssm = reader.integer("ssm");
    memory.conv = reader.integer("conv");
    memory.buffers = reader.integer("buffers");
    if (const int64_t total = reader.integer("total"); total != memory.total())
        reader.fail(fmt::format("total: found {}, expected {}, the sum of its parts", total, memory.total()));
    reader.finish();
    return memory;
}

MemoryUnits& MemoryUnits::operator+=(const MemoryUnits& other) {
    weights += other.weights;
    kv += other.kv;
    ssm += other.ssm;
    conv += other.conv;
    return *this;
}

Memory MemoryUnits::memory(int64_t buffers) const {
    return {.weights = div_up(weights, kUnitsPerByte),
            .kv = div_up(kv, kUnitsPerByte),
            .ssm = div_up(ssm, kUnitsPerByte),
            .conv = div_up(conv, kUnitsPerByte),
            .buffers = buffers};
}

LayerMemory layer_memory(const Architecture& architecture, const Workload& workload) {
    LayerMemory memory;
    for (const Layer& layer : architecture.layers) memory.layers.push_back(state_units(layer, workload));
    if (workload.weights_as_in_file) {
        add_weights_in_file(architecture, workload.weight_dtypes, memory);
        return memory;
    }
    const int64_t units = units_of(workload.weights);
    memory.outer.weights = checked_product({units, outer_parameters(architecture)});
    for (std::size_t i = 0; i < architecture.layers.size(); ++i)
        memory.layers[i].weights = checked_product({units, parameters(architecture, architecture.layers[i])});
    return memory;
}

Memory memory_of(const Architecture& architecture, const Workload& workload) {
    return memory_of(architecture, StudentPlan{}, workload);
}

Memory memory_of(const Architecture& teacher, const StudentPlan& plan, const Workload& workload) {
    // The teacher with the plan's sizes but all its layers keeps the teacher's tensor names, by which the
    // file's dtypes are known.
    StudentPlan sizes = plan;
    sizes.drop.clear();
    const LayerMemory full = layer_memory(student_architecture(teacher, sizes), workload);
    MemoryUnits sum = full.outer;
    for (const int64_t layer : plan.kept(teacher)) sum += full.layers[static_cast<std::size_t>(layer)];
    return sum.memory(workload.buffers);
}

}  // namespace minipuzzle::nas
