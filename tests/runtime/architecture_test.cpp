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

TEST_CASE("both key generations say the same") {
    const Architecture expected = parse_architecture(small_config(), "config.json");
    const auto with_list = [](std::initializer_list<const char*> blocks, bool keep_pattern) {
        Json config = small_config();
        if (keep_pattern)
            config["hybrid_override_pattern"] = "MMMMM";  // the list wins
        else
            config.erase("hybrid_override_pattern");
        config["layers_block_type"] = blocks;
        return parse_architecture(config, "config.json");
    };
    CHECK(with_list({"mamba", "mlp", "attention", "mamba", "mlp"}, false) == expected);
    CHECK(with_list({"linear_attention", "mlp", "full_attention", "linear_attention", "mlp"}, false) ==
          expected);
    CHECK(with_list({"mamba", "mlp", "attention", "mamba", "mlp"}, true) == expected);
}

TEST_CASE("aliases and defaults of config.json") {
    const Architecture expected = parse_architecture(small_config(), "config.json");
    Json config = small_config();
    const auto rename = [&](const char* from, const char* to) {
        config[to] = config[from];
        config.erase(from);
    };
    rename("head_dim", "attention_head_dim");
    rename("n_groups", "mamba_n_groups");
    rename("conv_kernel", "mamba_d_conv");
    rename("time_step_limit", "mamba_dt_limit");
    config["rms_norm_eps"] = 1e-5;
    config["norm_eps"] = 1e-5;
    config["residual_in_fp32"] = true;
    config["expand"] = 7;  // says nothing about shapes
    config.erase("num_hidden_layers");
    CHECK(parse_architecture(config, "config.json") == expected);

    config = small_config();
    config["num_key_value_heads"] = nullptr;
    CHECK(std::get<Attention>(parse_architecture(config, "c").layers[2]).kv_heads == 4);
    config.erase("head_dim");
    CHECK(std::get<Attention>(parse_architecture(config, "c").layers[2]).head_dim == 128);
}

TEST_CASE("time_step_limit in every spelling, and never time_step_min") {
    const double infinity = std::numeric_limits<double>::infinity();
    const auto limit = [](const std::string& text) {
        Json config = small_config();
        config.erase("time_step_limit");
        if (!text.empty()) config["time_step_limit"] = parse_config_text(text, "limit");
        const Architecture a = parse_architecture(config, "config.json");
        return std::pair(a.dt_min, a.dt_max);
    };
    CHECK(limit("") == std::pair(0.0, infinity));
    CHECK(limit("null") == std::pair(0.0, infinity));
    CHECK(limit("[0.0, Infinity]") == std::pair(0.0, infinity));
    CHECK(limit(R"([0.0, "Infinity"])") == std::pair(0.0, infinity));
    CHECK(limit(R"([0.0, {"__float__": "Infinity"}])") == std::pair(0.0, infinity));
    CHECK(limit("[0.0, 1e30]") == std::pair(0.0, 1e30));
    CHECK(limit("[0.001, 0.1]") == std::pair(0.001, 0.1));
    for (const char* bad : {"[0.1, 0.1]", "[0.2, 0.1]", "[NaN, 1]", "[0, NaN]", "[0]", "3", "[-1, 1]",
                            "[0, \"much\"]", "[0, {\"__float__\": \"Infinity\", \"x\": 1}]"})
        CHECK_THAT(bad_input([&] { limit(bad); }), Contains("time_step_limit"));
}

TEST_CASE("FFN widths may differ from layer to layer") {
    Json config = small_config();
    config["intermediate_size"] = {24, 32};
    const Architecture a = parse_architecture(config, "config.json");
    CHECK(std::get<Ffn>(a.layers[1]).width == 24);
    CHECK(std::get<Ffn>(a.layers[4]).width == 32);
    CHECK(a.ffn_width() == 0);
    CHECK_THAT(error_with("intermediate_size", {24}), Contains("1 entries") && Contains("2 FFN layers"));
    CHECK_THAT(error_with("intermediate_size", {24, 0}), Contains("intermediate_size[1]"));
}

TEST_CASE("layers that are not supported are named with their place") {
    CHECK_THAT(
        error_with("hybrid_override_pattern", "M-EM-"),
        Contains("\"E\" at position 2") && Contains("mixture-of-experts layers are not supported yet"));
    CHECK_THAT(error_with("hybrid_override_pattern", "M-M|-"),
               Contains("\"|\" at position 3") && Contains("Megatron"));
    CHECK_THAT(error_with("hybrid_override_pattern", "M-xM-"), Contains("\"x\" at position 2"));
    CHECK_THAT(error_with("layers_block_type", {"mamba", "moe"}), Contains("\"moe\" at entry 1"));
    CHECK_THAT(error_with("layers_block_type", {"mamba", 3}), Contains("entry 1"));
    CHECK_THAT(error_with("hybrid_override_pattern", ""), Contains("is empty"));
    CHECK_THAT(error_with("num_hidden_layers", 6), Contains("the number 6") && Contains("has 5 layers"));
    CHECK_THAT(error_with("hybrid_override_pattern", std::string(5000, 'M')), Contains("at most 4096"));
}

TEST_CASE("sizes and switches that cannot be are refused") {
    const std::vector<std::pair<std::string, Json>> bad = {{"hidden_size", 0},
                                                           {"hidden_size", -16},
                                                           {"hidden_size", 16.5},
                                                           {"hidden_size", "16"},
                                                           {"hidden_size", nullptr},
                                                           {"vocab_size", 9223372036854775807},
                                                           {"mamba_num_heads", 5},
                                                           {"num_key_value_heads", 3},
                                                           {"mamba_head_dim", 65536},
                                                           {"conv_kernel", 1},
                                                           {"attention_head_dim", 16},
                                                           {"layer_norm_epsilon", 0},
                                                           {"layer_norm_epsilon", "tiny"},
                                                           {"use_bias", true},
                                                           {"mlp_bias", true},
                                                           {"attention_bias", true},
                                                           {"mamba_proj_bias", true},
                                                           {"tie_word_embeddings", "no"},
                                                           {"mlp_hidden_act", "silu"},
                                                           {"mamba_hidden_act", "gelu"},
                                                           {"model_type", "llama"}};
    for (const auto& [key, value] : bad) {
        INFO(key << " = " << value);
        Json config = small_config();
        config["mamba_num_heads"] = 512;  // so that a large head alone is too much
        if (key == "mamba_num_heads") config["mamba_num_heads"] = 4;
        config[key] = value;
        const std::string what = bad_input([&] { parse_architecture(config, "config.json"); });
        CHECK_THAT(what, Catch::Matchers::StartsWith("config.json: "));
    }
    CHECK_THAT(bad_input([] { parse_architecture(Json::array(), "config.json"); }),
               Contains("expected an object"));
}

TEST_CASE("the identity of an architecture") {
    const Architecture a = parse_architecture(small_config(), "config.json");
    CHECK(arch_hash(a) == arch_hash(parse_architecture(small_config(), "elsewhere")));
    Architecture other = a;
    std::get<Ffn>(other.layers[4]).width = 31;
    CHECK(arch_hash(other) != arch_hash(a));
    CHECK(arch_hash(without(a, 4)) != arch_hash(a));
    // Once published, a hash must stay what it is: this one is of the canonical form written out by hand.
    Architecture tiny;
    tiny.vocab = 3;
    tiny.width = 2;
    tiny.layers = {Ffn{4}};
    CHECK(arch_hash(tiny) ==
          sha256(std::string(
              R"({"conv_bias":true,"dt_max":"0","dt_min":"0","layers":[{"type":"ffn","width":4}],)"
              R"("norm_eps":"1e-05","tied_embeddings":false,"vocab":3,"width":2})")));
}

TEST_CASE("update_config leaves an unchanged configuration as it was") {
    for (const char* model : {"mini-20", "mini-52"}) {
        const std::string text =
            read_file(std::string(MINIPUZZLE_SOURCE_DIR "/../shared/models/") + model + "/config.json");
        const Json config = parse_config_text(text, "config.json");
        Json updated = config;
        update_config(updated, parse_architecture(config, "config.json"));
        CHECK(updated == config);
        CHECK(parse_config_text(config_text(updated), "again") == config);
    }
}

TEST_CASE("update_config rewrites every key that counts layers") {
    Json config = small_config();
    config["layers_block_type"] = {"mamba", "mlp", "attention", "mamba", "mlp"};
    config["layer_types"] = {"linear_attention", "mlp", "full_attention", "linear_attention", "mlp"};
    config["architectures"] = {"NemotronHForCausalLM"};
    const Architecture student = without(parse_architecture(config, "config.json"), 2);
    update_config(config, student);
    CHECK(config["hybrid_override_pattern"] == "M-M-");
    CHECK(config["layers_block_type"] == Json({"mamba", "mlp", "mamba", "mlp"}));
    CHECK(config["layer_types"] == Json({"linear_attention", "mlp", "linear_attention", "mlp"}));
    CHECK(config["num_hidden_layers"] == 4);
    CHECK(config["architectures"] == Json({"NemotronHForCausalLM"}));
    CHECK(parse_architecture(config, "config.json") == student);
}

TEST_CASE("update_config writes sizes under the names the file uses") {
    Json config = small_config();
    config["attention_head_dim"] = config["head_dim"];
    config["mamba_n_groups"] = config["n_groups"];
    config.erase("n_groups");
    Architecture student = parse_architecture(config, "config.json");
    for (Layer& layer : student.layers) {
        if (Mamba* mamba = std::get_if<Mamba>(&layer)) mamba->heads = 3, mamba->groups = 1;
        if (Attention* attention = std::get_if<Attention>(&layer)) attention->head_dim = 4;
    }
    std::get<Ffn>(student.layers[1]).width = 8;
    update_config(config, student);
    CHECK(config["head_dim"] == 4);
    CHECK(config["attention_head_dim"] == 4);
    CHECK(config["mamba_n_groups"] == 1);
    CHECK_FALSE(config.contains("n_groups"));
    CHECK(config["mamba_num_heads"] == 3);
    CHECK(config["intermediate_size"] == Json({8, 32}));
    CHECK(parse_architecture(config, "config.json") == student);

    // From the list back to a number, and on to no FFN layer at all.
    std::get<Ffn>(student.layers[4]).width = 8;
    update_config(config, student);
    CHECK(config["intermediate_size"] == 8);
    update_config(config, without(without(student, 4), 1));
    CHECK(config["intermediate_size"] == 8);
    CHECK(parse_architecture(config, "config.json").pattern() == "M*M");

    std::get<Mamba>(student.layers[0]).heads = 2;
    CHECK_THAT(bad_input([&] { update_config(config, student); }), Contains("mamba"));
}

TEST_CASE("a wrapper's configuration is read and rewritten inside") {
    for (const char* key : {"text_config", "llm_config"}) {
        Json config = {{"model_type", "some_vlm"}, {key, small_config()}, {"vision_config", {{"depth", 3}}}};
        Architecture a = parse_architecture(config, "config.json");
        CHECK(a == parse_architecture(small_config(), "config.json"));
        update_config(config, without(a, 0));
        CHECK(config[key]["hybrid_override_pattern"] == "-*M-");
        CHECK(config["model_type"] == "some_vlm");
        CHECK_FALSE(config.contains("hybrid_override_pattern"));
        config[key]["use_bias"] = true;
        CHECK_THAT(bad_input([&] { parse_architecture(config, "config.json"); }), Contains(key));
    }
}

TEST_CASE("configuration text keeps Python's bare numbers") {
    const std::string text =
        "{\n"
        "  \"a\": Infinity,\n"
        "  \"b\": -Infinity,\n"
        "  \"c\": NaN,\n"
        "  \"d\": \"Infinity, NaN \\\" -Infinity\",\n"
        "  \"e\": {\n"
        "    \"__float__\": \"Infinity\"\n"
        "  },\n"
        "  \"f\": [\n"
        "    1e-05,\n"
        "    -Infinity,\n"
        "    0.1\n"
        "  ],\n"
        "  \"g\": \"caf\xc3\xa9\"\n"
        "}\n";
    const Json config = parse_config_text(text, "config.json");
    CHECK(std::isinf(config["a"].get<double>()));
    CHECK(std::isnan(config["c"].get<double>()));
    CHECK(config["d"] == "Infinity, NaN \" -Infinity");
    CHECK(config_text(config) == text);
}

TEST_CASE("configuration text that is not JSON is refused") {
    for (const char* bad :
         {"", "{", "{\"a\": 1} x", "{\"a\": 1, \"a\": 2}", "{\"a\": {\"b\": 1, \"b\": 1}}",
          "{\"a\": \"\xff\"}", "{\"a\": Infinityx}", "{\"a\": xInfinity}", "{\"a\": --Infinity}",
          "{\"a\": infinity}", "{\"a\": 1e999}", "{Infinity: 1}", "{\"a\": \"unclosed}", "{\"a\": \"\\"}) {
        INFO(bad);
        CHECK_THAT(bad_input([&] { parse_config_text(bad, "config.json"); }), Contains("config.json"));
    }
    CHECK_THAT(bad_input([] { parse_config_text(std::string(100000, '['), "config.json"); }),
               Contains("nested"));
}
