// Evaluation on tokens: loss, perplexity, accuracy; against a reference model KL and agreement. eval.json.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "runtime/hybrid_model.h"
#include "runtime/run_control.h"
#include "runtime/token_source.h"

namespace minipuzzle {

struct SourceLoss {
    double loss = 0;
    int64_t tokens = 0;
};

struct Evaluation {
    double loss = 0, next_token_accuracy = 0;
    int64_t tokens = 0, sequences = 0;
    std::map<std::string, SourceLoss> per_source;
    std::optional<double> kl, top1_agreement;  // with a reference
    std::vector<double> per_sequence_loss;
    double perplexity() const;
};

struct EvaluatedModel {
    const Architecture& architecture;
    WeightSource weights;
};

// `reference` may be null; it must share the vocabulary (Error bad_input).
Evaluation evaluate(Backend& backend, const EvaluatedModel& model, const EvaluatedModel* reference,
                    const Corpus& corpus, const std::vector<Window>& windows, const RunControl& control);

// Greedy continuation by full recomputation: `count` ids after the prompt (ties: lowest index).
std::vector<int32_t> greedy_continuation(Backend& backend, const EvaluatedModel& model,
                                         const std::vector<int32_t>& prompt, int64_t count);
// Logits of every position of one sequence, [T, V], for tests against reference arrays.
std::vector<float> logits_of(Backend& backend, const EvaluatedModel& model,
                             const std::vector<int32_t>& tokens);

}  // namespace minipuzzle
