#include "nas/memory_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

#include "kernels/check.h"

namespace minipuzzle::nas {

namespace {

constexpr int64_t kActivationUnits = 2 * kUnitsPerByte;  // bf16
constexpr int64_t kLogitUnits = 4 * kUnitsPerByte;       // float32

[[noreturn]] void fail_too_large() {
    fail_usage(
        "the workload's memory passes 64 bits, expected less; lower --context, --batch or --prefill-chunk");
}

// Products and sums of sizes that a user may have typed too large.
int64_t checked_product(std::initializer_list<int64_t> factors) {
    int64_t product = 1;
    for (const int64_t factor : factors)
        if (__builtin_mul_overflow(product, factor, &product)) fail_too_large();
    return product;
}

int64_t checked_sum(int64_t a, int64_t b) {
    int64_t sum = 0;
    if (__builtin_add_overflow(a, b, &sum)) fail_too_large();
    return sum;
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

// Elements a token that a layer holds at once beside the residual stream; memory_of's comment has the list.
int64_t activations(const Architecture& architecture, const Layer& layer) {
    const int64_t normed = architecture.width;
    if (const auto* mamba = std::get_if<Mamba>(&layer))
        return normed + mamba->projection() + mamba->conv_channels() + mamba->inner();
    if (const auto* attention = std::get_if<Attention>(&layer))
        return normed + 2 * (attention->heads + attention->kv_heads) * attention->head_dim;
    return normed + std::get<Ffn>(layer).width;
}

void set_workspace(const Architecture& architecture, const Workload& workload, LayerMemory& memory) {
    if (workload.prefill_chunk == 0) return;
    const int64_t tokens =
        checked_product({workload.batch, std::min(workload.prefill_chunk, workload.context)});
    for (std::size_t i = 0; i < architecture.layers.size(); ++i)
        memory.layers[i].workspace =
            checked_product({kActivationUnits, tokens,
                             architecture.width + activations(architecture, architecture.layers[i])});
    const int64_t residual = checked_product({kActivationUnits, tokens, architecture.width});
    const int64_t head = checked_product(
        {workload.batch, kActivationUnits * architecture.width + kLogitUnits * architecture.vocab});
    memory.outer.workspace = checked_sum(residual, head);
}

// How a tensor is stored: a file's dtype, else an element type.
struct Stored {
    std::string type;
    int64_t units = 0;  // all of it
    int64_t elements = 0;
};

Stored stored(const Architecture& architecture, const TensorSlot& slot, const Workload& workload) {
    Stored as;
    as.elements = 1;
    for (const int64_t extent : slot.shape) as.elements = checked_product({as.elements, extent});
    const std::optional<ElementType> own = workload.type_of(part_of(architecture, slot));
    if (!own && workload.weights_as_in_file) {
        const auto dtype = workload.weight_dtypes.find(slot.name);
        MP_ASSERT(dtype != workload.weight_dtypes.end());
        as.type = info(dtype->second).name;
        as.units = checked_product({kUnitsPerByte * bytes_of(dtype->second), as.elements});
        return as;
    }
    const ElementType type = own.value_or(workload.weights);
    as.type = name(type);
    as.units = checked_product({units_of(type), as.elements});
    if (type == ElementType::int4 && as.elements > 0) {
        const int64_t row = slot.shape.back();
        as.units = checked_sum(as.units, checked_product({units_of(ElementType::bf16), as.elements / row,
                                                          div_up(row, workload.int4_group)}));
    }
    return as;
}

}  // namespace

Json to_json(const Memory& memory) {
    Json json = {{"weights", memory.weights},
                 {"kv", memory.kv},
                 {"ssm", memory.ssm},
                 {"conv", memory.conv},
                 {"buffers", memory.buffers}};
    if (memory.workspace > 0) json["workspace"] = memory.workspace;
    json["total"] = memory.total();
    return json;
}

Memory read_memory(ObjectReader reader) {
    Memory memory;
    memory.weights = reader.integer("weights");
    memory.kv = reader.integer("kv");
    memory.ssm = reader.integer("ssm");
    memory.conv = reader.integer("conv");
    memory.buffers = reader.integer("buffers");
    memory.workspace = reader.integer("workspace", 0);
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
    workspace = std::max(workspace, other.workspace);
    return *this;
}

Memory MemoryUnits::memory(int64_t buffers) const {
    return {.weights = div_up(weights, kUnitsPerByte),
            .kv = div_up(kv, kUnitsPerByte),
            .ssm = div_up(ssm, kUnitsPerByte),
            .conv = div_up(conv, kUnitsPerByte),
            .buffers = buffers,
            .workspace = div_up(workspace, kUnitsPerByte)};
}

LayerMemory layer_memory(const Architecture& architecture, const Workload& workload) {
    LayerMemory memory;
    for (const Layer& layer : architecture.layers) memory.layers.push_back(state_units(layer, workload));
    for (const TensorSlot& slot : tensor_slots(architecture)) {
        MemoryUnits& owner =
            slot.layer < 0 ? memory.outer : memory.layers[static_cast<std::size_t>(slot.layer)];
        owner.weights = checked_sum(owner.weights, stored(architecture, slot, workload).units);
    }
    set_workspace(architecture, workload, memory);
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

std::vector<WeightPartMemory> weight_parts(const Architecture& architecture, const Workload& workload) {
    std::vector<WeightPartMemory> parts;
    for (const WeightPart part : kWeightParts) {
        WeightPartMemory sum{.part = part, .type = ""};
        for (const TensorSlot& slot : tensor_slots(architecture)) {
            if (part_of(architecture, slot) != part) continue;
            const Stored as = stored(architecture, slot, workload);
            sum.parameters += as.elements;
            sum.units = checked_sum(sum.units, as.units);
            if (sum.type.find(as.type) == std::string::npos)
                sum.type += fmt::format("{}{}", sum.type.empty() ? "" : " + ", as.type);
        }
        if (sum.parameters > 0) parts.push_back(std::move(sum));
    }
    return parts;
}

}  // namespace minipuzzle::nas
