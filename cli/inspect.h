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
#include "runtime/student_plan.h"

namespace minipuzzle::cli {

// One thing looked at: `json` in full, `essence` what two of a kind are compared by, `text` for people.
struct Inspected {
    std::string kind;  // "model", "minipuzzle.scores/1", ...
    Json json, essence;
    std::string text;
    // Of a scores.json, a search.json, a plan.yaml.
    std::shared_ptr<const ScoreTable> scores = nullptr;
    std::shared_ptr<const nas::SearchResult> search = nullptr;
    std::shared_ptr<const StudentPlan> plan = nullptr;
};

// A model folder, config.json or published architecture, at a workload.
Inspected inspect_model(const std::string& folder_or_config, const WorkloadOptions& workload, bool full_hash);
Inspected inspect_architecture(const std::string& name, const WorkloadOptions& workload);
// scores.json, search.json, eval.json, summary.json, plan.yaml, recipe.yaml, run.jsonl. Error bad_input for
// anything else. `view` says which layers of scores are listed.
Inspected inspect_artefact(const std::filesystem::path& path, const LayerView& view = {});
// The predictions for one plan file, or for every row of a .jsonl, with their terms.
CommandResult inspect_predictions(const InspectCommand& command);
// What differs between two of a kind: of two scores of one pattern layer by layer, of two searches of one
// teacher student by student, of all else value by value. Of a search and a plan: where the plan stands in
// it.
CommandResult inspect_difference(const Inspected& a, const Inspected& b, const LayerView& view = {});

}  // namespace minipuzzle::cli
