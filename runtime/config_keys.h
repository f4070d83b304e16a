// The keys of a Hugging Face nemotron_h config.json: spellings, defaults, limits. For the files that read and
// rewrite it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "runtime/architecture.h"
#include "runtime/artefact.h"

namespace minipuzzle {

// A key by its spellings; unused places are null.
using Spellings = std::array<const char*, 3>;

// A size with what the class in transformers takes where the file is silent (0: the file must say) and what
// we accept at most, so that no product of sizes overflows.
struct SizeKey {
    Spellings spellings;
    int64_t fallback = 0;
    int64_t most = 0;
};

inline constexpr int64_t kMostHeads = int64_t{1} << 16;
inline constexpr int64_t kMostWidth = int64_t{1} << 20;
inline constexpr int64_t kMostChannels = int64_t{1} << 24;  // heads * head_dim, groups * state, FFN width
inline constexpr int64_t kMostLayers = 4096;

inline constexpr SizeKey kVocab{{"vocab_size"}, 0, kMostChannels};
inline constexpr SizeKey kWidth{{"hidden_size"}, 0, kMostWidth};
inline constexpr SizeKey kFfnWidth{{"intermediate_size"}, 21504, kMostChannels};
inline constexpr SizeKey kHeads{{"num_attention_heads"}, 32, kMostHeads};
inline constexpr SizeKey kKvHeads{{"num_key_value_heads"}, 8, kMostHeads};
inline constexpr SizeKey kHeadDim{{"head_dim", "attention_head_dim"}, 128, kMostHeads};
inline constexpr SizeKey kMambaHeads{{"mamba_num_heads"}, 128, kMostHeads};
inline constexpr SizeKey kMambaHeadDim{{"mamba_head_dim"}, 64, kMostHeads};
inline constexpr SizeKey kState{{"ssm_state_size", "mamba_d_state"}, 128, kMostHeads};
inline constexpr SizeKey kGroups{{"n_groups", "mamba_n_groups"}, 8, kMostHeads};
inline constexpr SizeKey kConvKernel{{"conv_kernel", "mamba_d_conv"}, 4, 64};

// The block names of layers_block_type: those of the models on the Hub, and transformers' later ones.
inline constexpr std::array<const char*, 3> kBlockNames{"mamba", "attention", "mlp"};
inline constexpr std::array<const char*, 3> kLaterBlockNames{"linear_attention", "full_attention", "mlp"};

// The layer type that a block name of either generation means.
inline std::optional<LayerType> block_type(const std::string& block) {
    for (LayerType type : kLayerTypes) {
        const auto i = static_cast<std::size_t>(type);
        if (block == kBlockNames[i] || block == kLaterBlockNames[i]) return type;
    }
    return std::nullopt;
}

// Where a wrapper (a vision-language model) keeps the language model's keys; "" where they stand at the top.
inline std::string nested_config_key(const Json& config) {
    for (const char* key : {"text_config", "llm_config"})
        if (config.is_object() && !config.contains("hidden_size") && config.contains(key) &&
            config[key].is_object())
            return key;
    return "";
}

}  // namespace minipuzzle
