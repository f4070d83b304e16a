#include "cli/recipe.h"

#include <fmt/format.h>

#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

constexpr const char* kFormat = "minipuzzle.recipe/1";

// A file or a list of files.
std::vector<std::string> paths(ObjectReader& reader, const std::string& key) {
    const Json& value = reader.required(key);
    if (value.is_string()) return {value.get<std::string>()};
    std::vector<std::string> result;
    for (const Json& item : value.is_array() ? value : Json::array()) {
        if (!item.is_string()) reader.fail(key + ": expected file names");
        result.push_back(item.get<std::string>());
    }
    if (result.empty()) reader.fail(key + ": expected a file name or a list of them");
    return result;
}

Json section(ObjectReader& reader, const std::string& key) {
    const Json* value = reader.optional(key);
    return value ? *value : Json::object();
}

Json path_json(const std::vector<std::string>& files) {
    return files.size() == 1 ? Json(files[0]) : Json(files);
}

}  // namespace

ScoreCommand score_step(const Recipe& recipe, const std::string& where) {
    ScoreCommand command;
    command.options().apply(recipe.score, where + ": score", {"model", "data", "out", "resume"});
    return command;
}

SearchCommand search_step(const Recipe& recipe, const std::string& where) {
    SearchCommand command;
    command.options().apply(recipe.search, where + ": search", {"model", "arch", "scores", "data", "out"});
    if (!command.mem_budget && !command.max_params)
        fail_input(where + ": search: found no budget, expected mem-budget or max-params");
    if (command.students.mamba_heads)
        fail_input(where +
                   ": search: found mamba-heads, which only a search without data takes; run measures its "
                   "candidates, so remove it");
    return command;
}

DistillCommand distill_step(const Recipe& recipe, const std::string& where) {
    DistillCommand command;
    command.options().apply(recipe.distill, where + ": distill",
                            {"teacher", "student", "plan", "init", "data", "out", "resume", "dry-run"});
    return command;
}

EvalCommand eval_step(const Recipe& recipe, const std::string& where) {
    EvalCommand command;
    command.options().apply(recipe.eval, where + ": eval",
                            {"model", "reference", "plans", "width-scores", "data", "out"});
    return command;
}

Recipe read_recipe(const std::filesystem::path& path) {
    const Json json = read_yaml(path);
    ObjectReader reader(json, path.string() + ": ");
    if (reader.text("format") != kFormat)
        reader.fail(fmt::format("format: found \"{}\", expected \"{}\"", reader.text("format"), kFormat));
    Recipe recipe;
    recipe.model = reader.text("model");
    recipe.out = reader.text("out");
    ObjectReader data = reader.object("data");
    recipe.data = {.calib = paths(data, "calib"),
                   .select = paths(data, "select"),
                   .train = paths(data, "train"),
                   .test = paths(data, "test")};
    data.finish();
    if (reader.has("seed")) {
        const int64_t seed = reader.integer("seed");
        if (seed < 0) reader.fail("seed: expected a number of at least 0");
        recipe.seed = static_cast<uint64_t>(seed);
    }
    recipe.score = section(reader, "score");
    recipe.search = section(reader, "search");
    recipe.distill = section(reader, "distill");
    recipe.eval = section(reader, "eval");
    recipe.notes = reader.text("notes", "");
    reader.finish();

    score_step(recipe, path.string());
    search_step(recipe, path.string());
    distill_step(recipe, path.string());
    eval_step(recipe, path.string());
    return recipe;
}

std::string recipe_text(const Recipe& recipe) {
    // JSON's flow style is YAML too: a line a key.
    std::string text = fmt::format("format: {}\n", kFormat);
    const auto line = [&text](const char* key, const Json& value) {
        text += fmt::format("{}: {}\n", key, value.dump());
    };
    line("model", recipe.model);
    line("out", recipe.out);
    text += "data:\n";
    line("  calib", path_json(recipe.data.calib));
    line("  select", path_json(recipe.data.select));
    line("  train", path_json(recipe.data.train));
    line("  test", path_json(recipe.data.test));
    if (recipe.seed) line("seed", *recipe.seed);
    line("score", recipe.score);
    line("search", recipe.search);
    line("distill", recipe.distill);
    line("eval", recipe.eval);
    if (!recipe.notes.empty()) line("notes", recipe.notes);
    return text;
}

}  // namespace minipuzzle::cli
