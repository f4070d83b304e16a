// inspect of a model: its architecture, parameters and deployment memory.
#include <fmt/format.h>

#include <filesystem>

#include "cli/inspect.h"
#include "cli/model_loading.h"
#include "cli/table.h"
#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

std::string sizes_of(const Layer& layer) {
    if (const auto* mamba = std::get_if<Mamba>(&layer))
        return fmt::format("{} heads x {}, state {}, {} groups, conv {}", mamba->heads, mamba->head_dim,
                           mamba->state, mamba->groups, mamba->conv_kernel);
    if (const auto* attention = std::get_if<Attention>(&layer))
        return fmt::format("{} query / {} key-value heads x {}", attention->heads, attention->kv_heads,
                           attention->head_dim);
    return fmt::format("width {}", std::get<Ffn>(layer).width);
}

// Layers of equal type and sizes, a row each.
std::string layer_table(const Architecture& architecture) {
    std::vector<std::pair<Layer, int64_t>> kinds;
    for (const Layer& layer : architecture.layers) {
        bool known = false;
        for (auto& [kind, count] : kinds)
            if (kind == layer) known = ++count != 0;
        if (!known) kinds.push_back({layer, 1});
    }
    Table table({"layers", "type", "sizes", "parameters each"});
    for (const auto& [layer, count] : kinds)
        table.add({std::to_string(count), std::string(name(type_of(layer))), sizes_of(layer),
                   std::to_string(parameters(architecture, layer))});
    return table.text();
}

std::string memory_table(const nas::Memory& memory) {
    Table table({"memory", "bytes", ""});
    const std::pair<const char*, int64_t> parts[] = {
        {"weights", memory.weights}, {"kv cache", memory.kv},     {"ssm state", memory.ssm},
        {"conv state", memory.conv}, {"buffers", memory.buffers}, {"workspace", memory.workspace},
        {"total", memory.total()}};
    for (const auto& [part, bytes] : parts) table.add({part, std::to_string(bytes), format_bytes(bytes)});
    return table.text();
}

// "4096", "4096.5": exact, however small the elements.
std::string bytes_cell(const nas::WeightPartMemory& part) { return fmt::format("{}", part.bytes()); }

std::string weights_table(const std::vector<nas::WeightPartMemory>& parts) {
    Table table({"weights", "type", "parameters", "bytes", ""});
    for (const nas::WeightPartMemory& part : parts)
        table.add({std::string(nas::name(part.part)), part.type, std::to_string(part.parameters),
                   bytes_cell(part), format_bytes(part.units / nas::kUnitsPerByte)});
    return table.text();
}

Json weights_json(const std::vector<nas::WeightPartMemory>& parts) {
    Json json = Json::array();
    for (const nas::WeightPartMemory& part : parts)
        json.push_back({{"part", nas::name(part.part)},
                        {"type", part.type},
                        {"parameters", part.parameters},
                        {"bytes", part.bytes()}});
    return json;
}

Inspected inspected(const std::string& label, const Architecture& architecture, const Checkpoint* checkpoint,
                    const nas::Workload& workload) {
    const nas::Memory memory = nas::memory_of(architecture, workload);
    const std::vector<nas::WeightPartMemory> weights = nas::weight_parts(architecture, workload);
    Json json = {{"model", label},
                 {"pattern", architecture.pattern()},
                 {"params", parameters(architecture)},
                 {"vocab", architecture.vocab},
                 {"width", architecture.width},
                 {"layers", Json::object()},
                 {"ffn_width", architecture.ffn_width()},
                 {"tied_embeddings", architecture.tied_embeddings},
                 {"arch_hash", arch_hash(architecture)},
                 {"weights_hash", checkpoint ? Json(checkpoint->weights_hash(false)) : Json()},
                 {"workload", nas::to_json(workload)},
                 {"memory", nas::to_json(memory)},
                 {"weights", weights_json(weights)}};
    for (LayerType type : kLayerTypes) json["layers"][std::string(name(type))] = architecture.count(type);
    std::string text = fmt::format(
        "{}\npattern     {}\nparameters  {} ({})\nvocabulary  {}, width {}{}\narch_hash   {}\n", label,
        architecture.pattern(), parameters(architecture), format_count(parameters(architecture)),
        architecture.vocab, architecture.width,
        architecture.tied_embeddings ? ", LM head tied to the embeddings" : "", arch_hash(architecture));
    if (checkpoint) text += fmt::format("weights     {}\n", json["weights_hash"].get<std::string>());
    text += "\n" + layer_table(architecture) + "\n" + describe(workload) + "\n" + memory_table(memory) +
            "\n" + weights_table(weights);
    Json essence = json;
    essence.erase("model");
    return {.kind = "model", .json = std::move(json), .essence = std::move(essence), .text = text};
}

}  // namespace

Inspected inspect_architecture(const std::string& name, const WorkloadOptions& options) {
    return inspected(name, named_architecture(name), nullptr, workload_of(options, nullptr));
}

Inspected inspect_model(const std::string& target, const WorkloadOptions& options, bool full_hash) {
    if (!fs::is_directory(target)) {
        const Json config = parse_config_text(read_file(target), target);
        return inspected(target, parse_architecture(config, target), nullptr, workload_of(options, nullptr));
    }
    const Checkpoint checkpoint(target);
    Inspected result =
        inspected(target, checkpoint.architecture(), &checkpoint, workload_of(options, &checkpoint));
    if (full_hash) {
        const std::string hash = checkpoint.weights_hash(true);
        result.json["weights_hash"] = result.essence["weights_hash"] = hash;
    }
    return result;
}

}  // namespace minipuzzle::cli
