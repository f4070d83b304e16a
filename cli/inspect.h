// What inspect makes of each kind of thing it is shown.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "cli/command.h"
#include "cli/commands.h"
#include "cli/score_text.h"
#include "nas/search.h"
#include "runtime/score_table.h"

namespace minipuzzle::cli {

// One thing looked at: `json` in full, `essence` what two of a kind are compared by, `text` for people.
struct Inspected {
    std::string kind;  // "model", "minipuzzle.scores/1", ...
    Json json, essence;
    std::string text;
    std::shared_ptr<const ScoreTable> scores = nullptr;  // of a scores.json
};

// A model folder, config.json or published architecture, at a workload.
Inspected inspect_model(const std::string& folder_or_config, const WorkloadOptions& workload, bool full_hash);
Inspected inspect_architecture(const std::string& name, const WorkloadOptions& workload);
// scores.json, search.json, eval.json, summary.json, plan.yaml, recipe.yaml, run.jsonl. Error bad_input for
// anything else. `view` says which layers of scores are listed.
Inspected inspect_artefact(const std::filesystem::path& path, const LayerView& view = {});
// The predictions for one plan file, or for every row of a .jsonl, with their terms.
CommandResult inspect_predictions(const InspectCommand& command);
// What differs between two of a kind: of two scores of one pattern layer by layer, of all else value by
// value.
CommandResult inspect_difference(const Inspected& a, const Inspected& b, const LayerView& view = {});

// The search for people: the best student, the first candidates, the frontier with its knee.
std::string search_summary(const nas::SearchResult& result);
// The frontier's knee: the point farthest below the line through its ends, both axes scaled to 0..1. -1 where
// there are fewer than three points.
int64_t knee_of(const std::vector<nas::FrontierPoint>& frontier);

}  // namespace minipuzzle::cli
