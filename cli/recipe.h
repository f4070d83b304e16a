// recipe.yaml (minipuzzle.recipe/1): one run of the whole pipeline.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"

namespace minipuzzle::cli {

// Rows for each purpose; no document may stand in two of them. Paths are relative to where the program runs.
struct RecipeData {
    std::vector<std::string> calib, select, train, test;
};

struct Recipe {
    std::string model, out;
    RecipeData data;
    std::optional<uint64_t> seed;
    // The steps' options by the names that the commands have: {"seq-len": 256, ...}.
    Json score = Json::object(), search = Json::object(), distill = Json::object(), eval = Json::object();
    std::string notes;
};

// Error bad_input: unknown keys, sections whose options do not parse, no budget.
Recipe read_recipe(const std::filesystem::path& path);
std::string recipe_text(const Recipe& recipe);

// The commands with a section's options applied; model, data and outputs are the run's to fill in. `where`
// opens the messages.
ScoreCommand score_step(const Recipe& recipe, const std::string& where);
SearchCommand search_step(const Recipe& recipe, const std::string& where);
DistillCommand distill_step(const Recipe& recipe, const std::string& where);
EvalCommand eval_step(const Recipe& recipe, const std::string& where);

}  // namespace minipuzzle::cli
