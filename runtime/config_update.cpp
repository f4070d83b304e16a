// Architecture back into the config.json it came from.
#include <fmt/format.h>

#include "kernels/check.h"
#include "runtime/config_keys.h"

namespace minipuzzle {
namespace {

// The size every layer of a kind shares: config.json has one key for all of them.
template <class Kind>
const Kind* common_layer(const Architecture& architecture) {
    const Kind* common = nullptr;
    for (const Layer& layer : architecture.layers) {
        const Kind* one = std::get_if<Kind>(&layer);
        if (!one) continue;
        if (common && !(*common == *one))
            fail_input(fmt::format("layers of type {} have different sizes, which config.json cannot express",
                                   name(type_of(layer))));
        common = one;
    }
    return common;
}

// Under every spelling the file uses; a key it leaves to the default is added only where the default is
// wrong.
void write_size(Json& config, const SizeKey& key, int64_t value) {
    bool present = false;
    for (const char* spelling : key.spellings) {
        if (!spelling || !config.contains(spelling)) continue;
        present = true;
        if (config[spelling] != value) config[spelling] = value;
    }
    if (!present && value != key.fallback) config[key.spellings[0]] = value;
}

bool is_block_list(const Json& value, std::size_t layers) {
    if (!value.is_array() || value.size() != layers) return false;
    for (const Json& block : value)
        if (!block.is_string() || !block_type(block.get<std::string>())) return false;
    return true;
}

bool uses_later_names(const Json& blocks) {
    for (const Json& block : blocks)
        if (block == kLaterBlockNames[0] || block == kLaterBlockNames[1]) return true;
    return false;
}

Json block_list(const Architecture& architecture, bool later_names) {
    const auto& names = later_names ? kLaterBlockNames : kBlockNames;
    Json blocks = Json::array();
    for (const Layer& layer : architecture.layers) blocks.push_back(names[layer.index()]);
    return blocks;
}

// Every list of the file that has a block name for each layer: layers_block_type, and copies such as
// layer_types that would otherwise stay behind at the teacher's length.
void write_layer_types(Json& config, const Architecture& architecture, std::size_t old_layers) {
    for (auto& [key, value] : config.items()) {
        if (key == "hybrid_override_pattern" && value.is_string()) value = architecture.pattern();
        if (is_block_list(value, old_layers)) value = block_list(architecture, uses_later_names(value));
        if (key == "num_hidden_layers") value = architecture.layers.size();
    }
}

void write_ffn_widths(Json& config, const Architecture& architecture) {
    const char* key = kFfnWidth.spellings[0];
    if (architecture.count(LayerType::ffn) == 0) {
        // A list with no entries is no size; keep one of the teacher's.
        if (config.contains(key) && config[key].is_array()) config[key] = Json(config[key].at(0));
        return;
    }
    if (const int64_t common = architecture.ffn_width()) {
        if (config.contains(key) && config[key].is_array())
            config[key] = common;
        else
            write_size(config, kFfnWidth, common);
        return;
    }
    Json widths = Json::array();
    for (const Layer& layer : architecture.layers)
        if (const Ffn* ffn = std::get_if<Ffn>(&layer)) widths.push_back(ffn->width);
    config[key] = widths;
}

}  // namespace

void update_config(Json& config, const Architecture& architecture) {
    if (const std::string key = nested_config_key(config); !key.empty())
        return update_config(config[key], architecture);
    const Mamba* mamba = common_layer<Mamba>(architecture);
    const Attention* attention = common_layer<Attention>(architecture);
    const std::size_t old_layers = parse_architecture(config, "config.json").layers.size();
    write_layer_types(config, architecture, old_layers);
    write_ffn_widths(config, architecture);
    if (mamba) {
        write_size(config, kMambaHeads, mamba->heads);
        write_size(config, kMambaHeadDim, mamba->head_dim);
        write_size(config, kState, mamba->state);
        write_size(config, kGroups, mamba->groups);
        write_size(config, kConvKernel, mamba->conv_kernel);
    }
    if (attention) {
        write_size(config, kHeads, attention->heads);
        const bool null_means_it = config.contains("num_key_value_heads") &&
                                   config["num_key_value_heads"].is_null() &&
                                   attention->kv_heads == attention->heads;
        if (!null_means_it) write_size(config, kKvHeads, attention->kv_heads);
        write_size(config, kHeadDim, attention->head_dim);
    }
}

}  // namespace minipuzzle
