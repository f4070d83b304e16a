// Tiny hybrid models and corpora for the distillation tests.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/architecture.h"
#include "runtime/artefact.h"
#include "runtime/token_source.h"
#include "tests/support/temp_dir.h"

namespace minipuzzle::test {

constexpr int64_t kVocab = 13;

// A nemotron_h config of a few hundred parameters a layer.
inline Json tiny_config(const std::string& pattern, bool tied = false) {
    return Json{{"architectures", {"NemotronHForCausalLM"}},
                {"model_type", "nemotron_h"},
                {"vocab_size", kVocab},
                {"hidden_size", 8},
                {"num_hidden_layers", pattern.size()},
                {"hybrid_override_pattern", pattern},
                {"intermediate_size", 10},
                {"num_attention_heads", 2},
                {"num_key_value_heads", 1},
                {"head_dim", 4},
                {"mamba_num_heads", 4},
                {"mamba_head_dim", 3},
                {"ssm_state_size", 5},
                {"n_groups", 2},
                {"conv_kernel", 4},
                {"mamba_hidden_act", "silu"},
                {"mlp_hidden_act", "relu2"},
                {"use_conv_bias", true},
                {"tie_word_embeddings", tied},
                {"layer_norm_epsilon", 1e-5},
                {"time_step_limit", {0.0, 100.0}},
                {"torch_dtype", "bfloat16"},
                {"initializer_range", 0.02}};
}

inline Architecture tiny_architecture(const std::string& pattern, bool tied = false) {
    return parse_architecture(tiny_config(pattern, tied), "tiny config");
}

// Documents of 2 to 13 tokens in which every token follows from the one before, so that there is something
// to learn; `salt` makes other documents.
inline std::string tiny_rows(int64_t documents, int64_t salt = 0) {
    std::string text;
    for (int64_t i = 0; i < documents; ++i) {
        std::vector<int64_t> tokens{(i + salt) % kVocab};
        for (int64_t t = 0; t < 1 + (5 * i + salt) % 12; ++t)
            tokens.push_back((3 * tokens.back() + 1) % kVocab);
        text += Json{{"tokens", tokens}}.dump() + "\n";
    }
    return text;
}

struct TinyCorpus {
    TempDir folder;
    Corpus corpus;

    explicit TinyCorpus(int64_t documents = 20, int64_t salt = 0)
        : corpus({folder.write("rows.jsonl", tiny_rows(documents, salt)).string()},
                 {.tokenizer = nullptr, .vocab = kVocab, .eos = -1}, true) {}
};

}  // namespace minipuzzle::test
