// config.json to Architecture.
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "kernels/check.h"
#include "runtime/config_keys.h"

namespace minipuzzle {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Reads keys by any of their spellings; null counts as absent.
class ConfigReader {
  public:
    ConfigReader(const Json& config, std::string where) : config_(config), where_(std::move(where)) {}

    [[noreturn]] void fail(const std::string& what) const { fail_input(where_ + ": " + what); }

    struct Found {
        const char* key = nullptr;
        const Json* value = nullptr;
        explicit operator bool() const { return value != nullptr; }
    };
    Found find(const Spellings& spellings) const {
        Found first;
        for (const char* key : spellings) {
            if (!key) continue;
            const auto entry = config_.find(key);
            if (entry == config_.end() || entry->is_null()) continue;
            if (first && *first.value != *entry)
                fail(fmt::format("{} is {} but {} is {}, expected the same value under both names", first.key,
                                 first.value->dump(), key, entry->dump()));
            if (!first) first = {key, &*entry};
        }
        return first;
    }
    bool has_null(const char* key) const {
        const auto entry = config_.find(key);
        return entry != config_.end() && entry->is_null();
    }
    int64_t size(const SizeKey& key) const {
        const Found found = find(key.spellings);
        if (found) return size_value(*found.value, found.key, key.most);
        if (key.fallback == 0) fail(fmt::format("the key \"{}\" is missing", key.spellings[0]));
        return key.fallback;
    }
    int64_t size_value(const Json& value, const std::string& name, int64_t most) const {
        if (!value.is_number_integer() || value < 1 || value > most)
            fail(fmt::format("{} is {}, expected a whole number from 1 to {}", name, kind_of(value), most));
        return value.get<int64_t>();
    }
    bool flag(const char* key, bool fallback) const {
        const Found found = find({key});
        if (!found) return fallback;
        if (!found.value->is_boolean())
            fail(fmt::format("{} is {}, expected true or false", key, kind_of(*found.value)));
        return found.value->get<bool>();
    }
    void expect_text(const char* key, const char* only) const {
        const Found found = find({key});
        if (found && *found.value != only)
            fail(fmt::format("{} is {}, but only \"{}\" is supported", key, kind_of(*found.value), only));
    }
    // A number in any of the spellings a limit comes in: 0.1, Infinity, "Infinity", {"__float__":
    // "Infinity"}.
    double limit(const Json& value, const std::string& name) const {
        if (value.is_number()) return value.get<double>();
        const Json* text = &value;
        if (value.is_object() && value.size() == 1 && value.contains("__float__")) text = &value["__float__"];
        if (*text == "Infinity" || *text == "inf") return kInfinity;
        if (*text == "-Infinity" || *text == "-inf") return -kInfinity;
        fail(fmt::format("{} is {}, expected a number or Infinity", name, kind_of(value)));
    }

  private:
    const Json& config_;
    std::string where_;
};

void check_supported(const ConfigReader& reader) {
    reader.expect_text("model_type", "nemotron_h");
    reader.expect_text("mlp_hidden_act", "relu2");
    reader.expect_text("mamba_hidden_act", "silu");
    for (const char* bias : {"use_bias", "mlp_bias", "attention_bias", "mamba_proj_bias"})
        if (reader.flag(bias, false))
            reader.fail(fmt::format("{} is true, but linear biases are not supported", bias));
    if (reader.find({"block_configs"}))
        reader.fail("block_configs (sizes that differ from layer to layer) is not supported");
}

std::string unsupported_layer(const std::string& found, const std::string& place) {
    if (found == "E" || found == "moe")
        return fmt::format("\"{}\" at {}: mixture-of-experts layers are not supported yet", found, place);
    if (found == "|" || found == "/")
        return fmt::format(
            "\"{}\" at {}: a separator of Megatron's own patterns does not belong in config.json", found,
            place);
    return fmt::format("\"{}\" at {} is no layer type we know", found, place);
}

std::vector<LayerType> types_of_pattern(const ConfigReader& reader, const Json& pattern) {
    constexpr const char* kKey = "hybrid_override_pattern";
    if (!pattern.is_string())
        reader.fail(fmt::format("{} is {}, expected a string of M, * and -", kKey, kind_of(pattern)));
    std::vector<LayerType> types;
    const std::string text = pattern.get<std::string>();
    for (char c : text) {
        const std::size_t place = types.size();
        for (LayerType type : kLayerTypes)
            if (c == letter(type)) types.push_back(type);
        if (types.size() == place)
            reader.fail(fmt::format("{}: {}; supported are M (Mamba), * (attention) and - (FFN)", kKey,
                                    unsupported_layer(std::string(1, c), fmt::format("position {}", place))));
    }
    return types;
}

std::vector<LayerType> types_of_list(const ConfigReader& reader, const Json& list) {
    constexpr const char* kKey = "layers_block_type";
    if (!list.is_array())
        reader.fail(fmt::format("{} is {}, expected an array of block names", kKey, kind_of(list)));
    std::vector<LayerType> types;
    for (const Json& block : list) {
        const std::string found = block.is_string() ? block.get<std::string>() : block.dump();
        const std::optional<LayerType> type = block_type(found);
        if (!type)
            reader.fail(
                fmt::format("{}: {}; supported are mamba, attention and mlp (or linear_attention and "
                            "full_attention)",
                            kKey, unsupported_layer(found, fmt::format("entry {}", types.size()))));
        types.push_back(*type);
    }
    return types;
}

// The list wins where both are given, as in transformers.
std::vector<LayerType> layer_types(const ConfigReader& reader) {
    const ConfigReader::Found list = reader.find({"layers_block_type"});
    const ConfigReader::Found pattern = reader.find({"hybrid_override_pattern"});
    if (!list && !pattern) reader.fail("hybrid_override_pattern or layers_block_type is missing");
    const std::vector<LayerType> types =
        list ? types_of_list(reader, *list.value) : types_of_pattern(reader, *pattern.value);
    const char* key = list ? list.key : pattern.key;
    if (types.empty()) reader.fail(fmt::format("{} is empty, expected at least one layer", key));
    if (std::ssize(types) > kMostLayers)
        reader.fail(fmt::format("{} has {} layers, expected at most {}", key, types.size(), kMostLayers));
    const ConfigReader::Found count = reader.find({"num_hidden_layers"});
    if (count && *count.value != types.size())
        reader.fail(fmt::format("num_hidden_layers is {}, but {} has {} layers", kind_of(*count.value), key,
                                types.size()));
    return types;
}

Mamba read_mamba(const ConfigReader& reader) {
    const Mamba mamba{.heads = reader.size(kMambaHeads),
                      .head_dim = reader.size(kMambaHeadDim),
                      .state = reader.size(kState),
                      .groups = reader.size(kGroups),
                      .conv_kernel = reader.size(kConvKernel)};
    if (mamba.heads % mamba.groups != 0)
        reader.fail(fmt::format("mamba_num_heads is {}, expected a multiple of n_groups {}", mamba.heads,
                                mamba.groups));
    if (mamba.conv_kernel < 2) reader.fail("conv_kernel is 1, expected at least 2");
    if (mamba.inner() > kMostChannels || mamba.groups * mamba.state > kMostChannels)
        reader.fail(fmt::format("a Mamba layer of {} heads of {} and {} groups of {} states is too large",
                                mamba.heads, mamba.head_dim, mamba.groups, mamba.state));
    return mamba;
}

Attention read_attention(const ConfigReader& reader) {
    Attention attention{.heads = reader.size(kHeads), .kv_heads = 0, .head_dim = reader.size(kHeadDim)};
    // transformers: a key/value count that is null means one for every head; one that is not there means 8.
    attention.kv_heads = reader.has_null(kKvHeads.spellings[0]) ? attention.heads : reader.size(kKvHeads);
    if (attention.heads % attention.kv_heads != 0)
        reader.fail(fmt::format("num_attention_heads is {}, expected a multiple of num_key_value_heads {}",
                                attention.heads, attention.kv_heads));
    if (attention.heads * attention.head_dim > kMostChannels)
        reader.fail(
            fmt::format("{} attention heads of {} are too large", attention.heads, attention.head_dim));
    return attention;
}

// One width for every FFN layer, in their order: intermediate_size is a number, or a list with an entry for
// each.
std::vector<int64_t> read_ffn_widths(const ConfigReader& reader, std::size_t ffn_layers) {
    const ConfigReader::Found found = reader.find(kFfnWidth.spellings);
    if (!found || !found.value->is_array()) return std::vector<int64_t>(ffn_layers, reader.size(kFfnWidth));
    if (found.value->size() != ffn_layers)
        reader.fail(
            fmt::format("intermediate_size has {} entries, expected one for each of the {} FFN layers",
                        found.value->size(), ffn_layers));
    std::vector<int64_t> widths;
    for (const Json& width : *found.value)
        widths.push_back(
            reader.size_value(width, fmt::format("intermediate_size[{}]", widths.size()), kFfnWidth.most));
    return widths;
}

void read_time_step_limit(const ConfigReader& reader, Architecture& architecture) {
    architecture.dt_min = 0.0;
    architecture.dt_max = kInfinity;
    const ConfigReader::Found found = reader.find({"time_step_limit", "mamba_dt_limit"});
    if (!found) return;
    if (!found.value->is_array() || found.value->size() != 2)
        reader.fail(fmt::format("{} is {}, expected a pair [low, high]", found.key, kind_of(*found.value)));
    architecture.dt_min = reader.limit((*found.value)[0], fmt::format("{}[0]", found.key));
    architecture.dt_max = reader.limit((*found.value)[1], fmt::format("{}[1]", found.key));
    if (!(architecture.dt_min >= 0 && architecture.dt_min < architecture.dt_max))
        reader.fail(fmt::format("{} is [{}, {}], expected 0 <= low < high", found.key, architecture.dt_min,
                                architecture.dt_max));
}

double read_norm_eps(const ConfigReader& reader) {
    const ConfigReader::Found found = reader.find({"layer_norm_epsilon", "rms_norm_eps", "norm_eps"});
    if (!found) return Architecture{}.norm_eps;
    const double eps = found.value->is_number() ? found.value->get<double>() : 0.0;
    if (!(eps > 0 && eps < 1))
        reader.fail(
            fmt::format("{} is {}, expected a small positive number", found.key, kind_of(*found.value)));
    return eps;
}

}  // namespace

Architecture parse_architecture(const Json& config, const std::string& where) {
    if (!config.is_object())
        fail_input(fmt::format("{}: found {}, expected an object", where, kind_of(config)));
    if (const std::string key = nested_config_key(config); !key.empty())
        return parse_architecture(config[key], where + ": " + key);
    const ConfigReader reader(config, where);
    check_supported(reader);
    Architecture architecture;
    architecture.vocab = reader.size(kVocab);
    architecture.width = reader.size(kWidth);
    architecture.norm_eps = read_norm_eps(reader);
    read_time_step_limit(reader, architecture);
    architecture.tied_embeddings = reader.flag("tie_word_embeddings", false);
    architecture.conv_bias = reader.flag("use_conv_bias", true);

    const std::vector<LayerType> types = layer_types(reader);
    const auto count = [&](LayerType type) { return std::count(types.begin(), types.end(), type); };
    const Mamba mamba = count(LayerType::mamba) ? read_mamba(reader) : Mamba{};
    const Attention attention = count(LayerType::attention) ? read_attention(reader) : Attention{};
    const auto ffn_layers = static_cast<std::size_t>(count(LayerType::ffn));
    const std::vector<int64_t> widths =
        ffn_layers ? read_ffn_widths(reader, ffn_layers) : std::vector<int64_t>{};
    std::size_t next_ffn = 0;
    for (LayerType type : types) {
        if (type == LayerType::mamba) architecture.layers.emplace_back(mamba);
        if (type == LayerType::attention) architecture.layers.emplace_back(attention);
        if (type == LayerType::ffn) architecture.layers.emplace_back(Ffn{widths[next_ffn++]});
    }
    return architecture;
}

}  // namespace minipuzzle
