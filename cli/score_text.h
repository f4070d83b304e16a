// Scores for people, as text.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/terminal.h"
#include "runtime/score_table.h"

namespace minipuzzle::cli {

// Which layers inspect lists, in which order.
struct LayerView {
    bool by_score = false;          // ascending; by depth otherwise
    std::optional<LayerType> type;  // this type alone
};
std::vector<int64_t> shown_layers(const ScoreTable& scores, const LayerView& view);

// Everything: a row and a bar a layer, then what follows from the rows and what the optional parts hold.
std::string scores_text(const ScoreTable& scores, const LayerView& view, const Terminal& terminal);
// What matters at the end of a run: the base, each type's range, the least important layers, what
// the optional parts say.
std::string scores_summary(const ScoreTable& scores);

// Two tables of one pattern: both values of every layer, their difference, both ranks.
std::string score_difference_text(const ScoreTable& a, const ScoreTable& b, const LayerView& view);
// The same as JSON: {"layers": [...], "spearman": {"all": ..., "mamba": ...}}.
Json score_difference_json(const ScoreTable& a, const ScoreTable& b, const LayerView& view);

}  // namespace minipuzzle::cli
