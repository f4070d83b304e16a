#include "cli/report/words.h"

#include <fmt/format.h>

#include "cli/report/html.h"

namespace minipuzzle::report {

const char* type_word(LayerType type) {
    constexpr const char* kWords[] = {"Mamba", "attention", "FFN"};
    return kWords[static_cast<int>(type)];
}

const char* type_class(LayerType type) {
    constexpr const char* kClasses[] = {"mamba", "attention", "ffn"};
    return kClasses[static_cast<int>(type)];
}

std::string short_layer(LayerType type, int64_t layer) {
    constexpr char kLetters[] = {'M', 'A', 'F'};
    return fmt::format("{} {}", kLetters[static_cast<int>(type)], layer);
}

LayerType type_of_letter(char wanted) {
    switch (wanted) {
        case 'M':
            return LayerType::mamba;
        case '*':
            return LayerType::attention;
        case '-':
            return LayerType::ffn;
        default:
            fail_input(fmt::format("a pattern holds the layer letter '{}', expected M, * or -", wanted));
    }
}

std::string objective_axis(Objective objective) {
    switch (objective) {
        case Objective::loss_delta:
            return "loss increase without the layer (nats per token)";
        case Objective::kl:
            return "KL(full model \u2016 without the layer), nats per token";
        case Objective::hidden_mse:
            return "mean squared error of the final hidden state without the layer";
        case Objective::logit_nmse:
            return "normalised squared error of the logits without the layer";
        case Objective::one_minus_cosine:
            return "1 \u2212 cosine of the final hidden states with and without the layer";
    }
    return {};
}

std::string scale_words(const Scale& scale) {
    if (scale.kind != ScaleKind::symlog) return "";
    return fmt::format(", logarithmic beyond {}", value_text(scale.knee));
}

std::string predicted_axis(Objective objective) {
    switch (objective) {
        case Objective::loss_delta:
            return "loss (nats per token)";
        case Objective::kl:
            return "KL to the teacher (nats per token)";
        case Objective::hidden_mse:
            return "sum of hidden-state errors of what is dropped";
        case Objective::logit_nmse:
            return "sum of logit errors of what is dropped";
        case Objective::one_minus_cosine:
            return "sum of 1 \u2212 cosine of what is dropped";
    }
    return {};
}

bool comparable(const nas::SearchResult& search) {
    return (search.objective == Objective::loss_delta && search.select_by == "loss") ||
           (search.objective == Objective::kl && search.select_by == "kl");
}

double prediction_shift(const nas::SearchResult& search) {
    if (search.objective != Objective::loss_delta || !search.teacher_measured) return 0;
    for (const nas::Candidate& candidate : search.candidates)
        if (candidate.predicted.base) return search.teacher_measured->loss - *candidate.predicted.base;
    return 0;
}

std::string selection_word(const std::string& select_by) {
    if (select_by == "kl") return "KL";
    return select_by.empty() ? "loss" : select_by;
}

std::string measured_axis(const std::string& select_by) {
    if (select_by == "kl") return "KL to the teacher (nats per token)";
    if (select_by == "accuracy") return "next-token accuracy";
    if (select_by == "agreement") return "agreement with the teacher";
    if (select_by == "tasks") return "share of task rows answered rightly";
    return "loss (nats per token)";
}

Selection selection_of(const nas::SearchResult& search) {
    if (search.status != "measured") return {"lowest predicted value", false};
    if (search.select_by == "kl") return {"lowest measured KL to the teacher", false};
    if (search.select_by == "accuracy") return {"highest measured next-token accuracy", true};
    if (search.select_by == "agreement") return {"highest measured agreement with the teacher", true};
    if (search.select_by == "tasks") return {"highest accuracy on the tasks", true};
    return {"lowest measured loss", false};
}

double selected_value(const nas::Measured& measured, const std::string& select_by) {
    if (select_by == "kl") return measured.kl;
    if (select_by == "accuracy") return measured.next_token_accuracy;
    if (select_by == "agreement") return measured.top1_agreement;
    if (select_by == "tasks" && measured.tasks) return measured.tasks->accuracy;
    return measured.loss;
}

const nas::Candidate* best_of(const nas::SearchResult& search) {
    for (const nas::Candidate& candidate : search.candidates)
        if (candidate.id == search.best) return &candidate;
    return nullptr;
}

std::string counts_text(int64_t mamba, int64_t ffn, int64_t attention) {
    return fmt::format("{} M \u00b7 {} F \u00b7 {} A", mamba, ffn, attention);
}

}  // namespace minipuzzle::report
