// Architecture: what a hybrid model is. Every layer carries its own sizes, so heterogeneous models are
// ordinary data.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/ops.h"

namespace minipuzzle {

using Mamba = MambaShape;
struct Attention {
    int64_t heads = 0, kv_heads = 0, head_dim = 0;
    bool operator==(const Attention&) const = default;
};
struct Ffn {
    int64_t width = 0;
    bool operator==(const Ffn&) const = default;
};
using Layer = std::variant<Mamba, Attention, Ffn>;

enum class LayerType { mamba, attention, ffn };
inline constexpr LayerType kLayerTypes[] = {LayerType::mamba, LayerType::attention, LayerType::ffn};

// 'M', '*', '-' as in hybrid_override_pattern; "mamba", "attention", "ffn" as in our own files.
char letter(LayerType type);
std::string_view name(LayerType type);
inline LayerType type_of(const Layer& layer) {
    return layer.index() == 0 ? LayerType::mamba : layer.index() == 1 ? LayerType::attention : LayerType::ffn;
}

struct Architecture {
    int64_t vocab = 0, width = 0;
    std::vector<Layer> layers;
    double norm_eps = 1e-5;
    double dt_min =
        0.0;  // time_step_limit, the only run-time clamp of dt (nemotron_h's time_step_min is not one)
    double dt_max = 0.0;  // may be infinity
    bool tied_embeddings = false;
    bool conv_bias = true;

    bool operator==(const Architecture&) const = default;
    std::string pattern() const;
    int64_t count(LayerType type) const;
    // The common FFN width; 0 where there is no FFN layer or the widths differ.
    int64_t ffn_width() const;
};

// Parameters, exact. Layer: its norm and mixer.
int64_t parameters(const Architecture& architecture, const Layer& layer);
int64_t parameters(const Architecture& architecture);
// Parameters outside the layers: embeddings, LM head (0 when tied), final norm.
int64_t outer_parameters(const Architecture& architecture);

// "sha256:..." of the canonical form (sorted keys, our own names).
std::string arch_hash(const Architecture& architecture);

// Reads a Hugging Face nemotron_h config.json of either key generation (pattern string or layers_block_type
// list, head_dim or attention_head_dim, Infinity or {"__float__": ...}, intermediate_size number or list).
// `where` opens every message. Error bad_input: unknown layer letters, sizes that do not divide, biases we do
// not support.
Architecture parse_architecture(const nlohmann::ordered_json& config, const std::string& where);

// Rewrites those keys of `config` that describe the layers so that it describes `architecture`; every other
// key, the key generation and the order stay as they were.
void update_config(nlohmann::ordered_json& config, const Architecture& architecture);

// JSON as Python writes it: bare Infinity, -Infinity and NaN are accepted and become numbers that are not
// finite. Duplicate keys, trailing text and broken UTF-8 are errors.
nlohmann::ordered_json parse_config_text(const std::string& text, const std::string& where);
// The inverse, indented by two spaces: numbers that are not finite are written as bare tokens again, so that
// both spellings of a file, the bare token and {"__float__": "Infinity"}, come back as they were.
std::string config_text(const nlohmann::ordered_json& config);

// A published architecture by name (configs/architectures/NAME/config.json); Error usage lists the known
// ones.
Architecture named_architecture(const std::string& name);
std::vector<std::string> architecture_names();

}  // namespace minipuzzle
