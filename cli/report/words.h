// How the page speaks of layers, objectives and candidates: one wording for every figure.
#pragma once

#include <optional>
#include <string>

#include "cli/report/svg.h"
#include "nas/search.h"
#include "runtime/score_table.h"

namespace minipuzzle::report {

// "Mamba", "FFN", "attention"; and the css class that carries the type's colour.
const char* type_word(LayerType type);
const char* type_class(LayerType type);
// "M 12", "F 13", "A 18": a layer where there is little room, lettered as counts_text does.
std::string short_layer(LayerType type, int64_t layer);
// The layer types of a pattern, by letter; a letter we do not know is Error bad_input.
LayerType type_of_letter(char letter);

// What the objective measures, for an axis: "loss increase without the layer (nats per token)".
std::string objective_axis(Objective objective);
// ", logarithmic beyond 0.01": what an axis' title says of a scale that is not linear from end to end.
std::string scale_words(const Scale& scale);
// What a student's predicted value is: "predicted loss (nats per token)", "sum of hidden-state errors ...".
std::string predicted_axis(Objective objective);

// Whether what `select_by` measures may stand on the objective's own axis: loss for loss_delta, kl for kl.
bool comparable(const nas::SearchResult& search);
// What predicted losses are raised by to stand beside measurements: the teacher's own loss on the search's
// text less that on the scores' text; 0 where the objective has no base or the teacher was not measured.
double prediction_shift(const nas::SearchResult& search);
// The measured figure that chose the best candidate, and whether larger is better.
struct Selection {
    std::string words;  // "lowest measured loss"
    bool larger_is_better = false;
};
Selection selection_of(const nas::SearchResult& search);
// The chosen measurement in a word, for a column: "loss", "KL", "accuracy", "agreement".
std::string selection_word(const std::string& select_by);
// The same for an axis: "loss (nats per token)".
std::string measured_axis(const std::string& select_by);
double selected_value(const nas::Measured& measured, const std::string& select_by);

// The candidate named by `best`; null where the list does not hold it.
const nas::Candidate* best_of(const nas::SearchResult& search);
// "M 27 · F 24 · A 4" in the teacher's or a student's pattern.
std::string counts_text(int64_t mamba, int64_t ffn, int64_t attention);

}  // namespace minipuzzle::report
