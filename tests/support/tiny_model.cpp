#include "tests/support/tiny_model.h"

#include <cmath>
#include <limits>

namespace minipuzzle::test {
namespace {

// SplitMix64's output function: a well mixed 64-bit hash.
uint64_t mix(uint64_t value) {
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

// softplus(dt_bias) is log-uniform in [0.001, 0.1].
double dt_bias(double u) {
    const double step = 0.001 * std::pow(100.0, u);
    return std::log(std::expm1(step));
}

}  // namespace

double uniform(uint64_t seed, const std::string& name, uint64_t index) {
    uint64_t state = mix(seed);
    for (char c : name) state = mix(state ^ static_cast<unsigned char>(c));
    return static_cast<double>(mix(state ^ mix(index)) >> 11) * 0x1p-53;
}

Architecture tiny_architecture(const std::string& layers) {
    Architecture architecture;
    architecture.vocab = 64;
    architecture.width = 16;
    architecture.dt_max = std::numeric_limits<double>::infinity();
    for (char c : layers) {
        if (c == 'M')
            architecture.layers.emplace_back(
                Mamba{.heads = 4, .head_dim = 8, .state = 8, .groups = 2, .conv_kernel = 4});
        else if (c == '*')
            architecture.layers.emplace_back(Attention{.heads = 4, .kv_heads = 2, .head_dim = 8});
        else
            architecture.layers.emplace_back(Ffn{32});
    }
    return architecture;
}

Json tiny_config(const Architecture& architecture) {
    Json config = {{"architectures", {"NemotronHForCausalLM"}},
                   {"model_type", "nemotron_h"},
                   {"vocab_size", architecture.vocab},
                   {"hidden_size", architecture.width},
                   {"num_hidden_layers", 1},
                   {"hybrid_override_pattern", "M"},
                   {"layer_norm_epsilon", architecture.norm_eps},
                   {"time_step_limit", {architecture.dt_min, architecture.dt_max}},
                   {"tie_word_embeddings", architecture.tied_embeddings},
                   {"use_conv_bias", architecture.conv_bias},
                   {"eos_token_id", 2}};
    update_config(config, architecture);
    return config;
}

std::vector<float> tiny_values(const TensorSlot& slot, uint64_t seed) {
    int64_t count = 1;
    for (int64_t extent : slot.shape) count *= extent;
    std::vector<float> values(static_cast<std::size_t>(count));
    const auto ends = [&](const char* end) { return slot.name.ends_with(end); };
    // A uniform value in [-1, 1] has variance 1/3.
    const double scale = std::sqrt(3.0 / static_cast<double>(slot.shape.back()));
    for (std::size_t i = 0; i < values.size(); ++i) {
        const double u = uniform(seed, slot.name, i);
        double value = (2 * u - 1) * scale;
        if (ends("norm.weight") || ends("norm_f.weight") || ends(".D")) value = 0.8 + 0.4 * u;
        if (ends(".A_log")) value = std::log(1 + 15 * u);
        if (ends(".dt_bias")) value = dt_bias(u);
        if (ends("conv1d.bias")) value = 0.2 * (u - 0.5);
        values[i] = static_cast<float>(value);
    }
    return values;
}

void write_tiny_model(const std::filesystem::path& folder, const Architecture& architecture,
                      const TinyModel& options) {
    OutgoingCheckpoint outgoing;
    outgoing.config = tiny_config(architecture);
    outgoing.shard_bytes = options.shard_bytes;
    for (const TensorSlot& slot : tensor_slots(architecture)) {
        const bool keeps_float = slot.name.ends_with(".A_log") || slot.name.ends_with(".D");
        const DType dtype = keeps_float ? DType::f32 : options.dtype;
        const std::vector<std::byte> bytes = to_dtype(tiny_values(slot, options.seed), dtype);
        const bool head = slot.name == "lm_head.weight";
        outgoing.tensors.push_back({.name = (head ? options.head_prefix : options.prefix) + slot.name,
                                    .dtype = dtype,
                                    .shape = slot.shape,
                                    .bytes = [bytes] { return bytes; },
                                    .size = std::ssize(bytes)});
    }
    write_checkpoint(folder, outgoing);
}

}  // namespace minipuzzle::test
