#include "runtime/architecture.h"

#include <cmath>
#include <functional>
#include <limits>

#include "kernels/check.h"
#include "runtime/artefact.h"
#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/support/errors.h"

using namespace minipuzzle;
using namespace minipuzzle::test;
using Catch::Matchers::Contains;

namespace {

Json small_config() {
    return parse_config_text(R"({
        "model_type": "nemotron_h", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 5,
        "hybrid_override_pattern": "M-*M-", "intermediate_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 16,
        "n_groups": 2, "conv_kernel": 4, "time_step_limit": [0.0, Infinity], "time_step_min": 0.001})",
                             "config.json");
}

// What parse_architecture says about a config with one change.
std::string error_with(const std::string& key, const Json& value) {
    Json config = small_config();
    config[key] = value;
    return bad_input([&] { parse_architecture(config, "config.json"); });
}

Architecture without(Architecture architecture, int64_t layer) {
    architecture.layers.erase(architecture.layers.begin() + layer);
    return architecture;
}

}  // namespace

TEST_CASE("the published architectures have their published sizes") {
    const std::vector<std::pair<std::string, int64_t>> expected = {
        {"nemotron-h-4b", 4489223040},       {"nemotron-h-8b", 8100852736},
        {"nemotron-h-47b", 46791554816},     {"nemotron-h-56b", 56324350464},
        {"nemotron-nano-9b-v2", 8888227328}, {"nemotron-nano-12b-v2", 12310001152}};
    for (const auto& [name, count] : expected) {
        INFO(name);
        CHECK(parameters(named_architecture(name)) == count);
    }
    std::vector<std::string> names;
    for (const auto& [name, count] : expected) names.push_back(name);
    std::sort(names.begin(), names.end());
    CHECK(architecture_names() == names);
    CHECK_THROWS_WITH(named_architecture("nemotron-h-9b"), Contains("nemotron-h-8b"));
}

TEST_CASE("config.json becomes an architecture") {
    const Architecture a = parse_architecture(small_config(), "config.json");
    CHECK(a.pattern() == "M-*M-");
    CHECK(a.vocab == 64);
    CHECK(a.width == 16);
    CHECK(a.ffn_width() == 32);
    CHECK(a.dt_min == 0.0);
    CHECK(std::isinf(a.dt_max));
    CHECK(a.conv_bias);
    CHECK_FALSE(a.tied_embeddings);
    CHECK(std::get<Mamba>(a.layers[0]) == Mamba{4, 8, 16, 2, 4});
    CHECK(std::get<Attention>(a.layers[2]) == Attention{4, 2, 8});
    // Counted by hand: norm, in_proj, conv and its bias, dt_bias + A_log + D, gate norm, out_proj.
    CHECK(parameters(a, a.layers[0]) == 16 + (32 + 96 + 4) * 16 + 96 * 4 + 96 + 3 * 4 + 32 + 16 * 32);
    CHECK(parameters(a, a.layers[2]) == 16 + (4 + 2 + 2 + 4) * 8 * 16);
    CHECK(parameters(a, a.layers[1]) == 16 + 2 * 32 * 16);
    CHECK(outer_parameters(a) == 2 * 64 * 16 + 16);
}
