// inspect of our own files.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/inspect.h"
#include "cli/model_loading.h"
#include "cli/recipe.h"
#include "cli/score_analysis.h"
#include "cli/search_text.h"
#include "cli/table.h"
#include "cli/task_results.h"
#include "distill/run_log.h"
#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kShownSteps = 12;

// A search's essence: what it chose and out of what.
Json search_essence(const nas::SearchResult& result) {
    const nas::Candidate& best = nas::find_candidate(result, "");
    return {{"status", result.status},
            {"objective", name(result.objective)},
            {"budget", result.budget_bytes},
            {"workload", nas::to_json(result.workload)},
            {"candidates", result.candidates.size()},
            {"compositions", result.compositions},
            {"frontier_points", result.frontier.size()},
            {"best",
             {{"pattern", best.pattern},
              {"drop", fmt::format("{}", fmt::join(best.plan.drop, ","))},
              {"ffn_width", best.ffn_width},
              {"params", best.params},
              {"memory", nas::to_json(best.memory)},
              {"predicted", best.predicted.value},
              {"measured_loss", best.measured ? Json(best.measured->loss) : Json()}}}};
}

Inspected inspect_scores(const fs::path& path, const LayerView& view) {
    auto scores = std::make_shared<const ScoreTable>(read_scores(path));
    Json json = read_json(path), essence = Json::object();
    for (const char* key : {"base", "layers", "ffn_width_curve", "model"})
        if (json.contains(key)) essence[key] = json[key];
    json["analysis"] = analysis_json(*scores, shown_layers(*scores, view));
    std::string text = scores_text(*scores, view, stdout_terminal());
    return {.kind = "",
            .json = std::move(json),
            .essence = std::move(essence),
            .text = std::move(text),
            .scores = std::move(scores)};
}

Inspected inspect_search(const fs::path& path) {
    auto result = std::make_shared<const nas::SearchResult>(nas::read_search(path));
    return {.kind = "",
            .json = read_json(path),
            .essence = search_essence(*result),
            .text = search_summary(*result),
            .search = result};
}

Inspected inspect_plan(const fs::path& path) {
    const StudentPlan plan = read_plan(path);
    Json json = read_yaml(path);
    std::string text = fmt::format("drops {} layers: {}\n", plan.drop.size(), fmt::join(plan.drop, ", "));
    if (plan.ffn_width) text += fmt::format("FFN width {}\n", *plan.ffn_width);
    for (const auto& [layer, width] : plan.ffn_widths)
        text += fmt::format("layer {}: FFN width {}\n", layer, width);
    if (plan.mamba_heads_per_group)
        text += fmt::format("Mamba heads a group {}\n", *plan.mamba_heads_per_group);
    if (!plan.width_scores.empty()) text += fmt::format("neuron and head orders in {}\n", plan.width_scores);
    if (!plan.notes.empty()) text += plan.notes + "\n";
    return {.kind = "",
            .json = json,
            .essence = json,
            .text = text,
            .plan = std::make_shared<const StudentPlan>(plan)};
}

Inspected inspect_run_log(const fs::path& path) {
    const distill::RunLog log = distill::read_run_log(path);
    Json essence = {
        {"device", log.header.device}, {"options", log.header.options}, {"steps", log.steps.size()}};
    Table table({"step", "tokens", "loss", "kl", "ce", "feature", "lr", "grad_norm", "tokens/s"});
    for (std::size_t i : spread_indexes(log.steps.size(), kShownSteps)) {
        const distill::RunStep& step = log.steps[i];
        table.add({std::to_string(step.step), std::to_string(step.tokens), cell(step.loss, 6), cell(step.kl),
                   cell(step.ce), cell(step.feature), fmt::format("{:.3g}", step.lr), cell(step.grad_norm, 3),
                   cell(step.tokens_per_second, 0)});
    }
    if (!log.steps.empty()) {
        essence["first_loss"] = log.steps.front().loss;
        essence["last_loss"] = log.steps.back().loss;
        essence["tokens"] = log.steps.back().tokens;
        essence["peak_bytes"] = log.steps.back().peak_bytes;
    }
    return {.kind = "minipuzzle.run/1",
            .json = essence,
            .essence = essence,
            .text = fmt::format("{} steps on {}\n{}", log.steps.size(), log.header.device, table.text())};
}

// eval.json and summary.json: their figures, a line each.
Inspected inspect_figures(const fs::path& path) {
    Json json = read_json(path), essence = json;
    for (const char* key : {"format", "version", "command", "seed"}) essence.erase(key);
    std::string text;
    for (const auto& [key, value] : essence.items())
        if (key != "students" && key != "tasks") text += fmt::format("{:<20} {}\n", key, value.dump());
    if (json.contains("tasks")) text += tasks_text(json["tasks"]);
    if (json.contains("students")) text += students_table(json["students"]);
    return {.kind = "", .json = std::move(json), .essence = std::move(essence), .text = text};
}

Inspected inspect_recipe(const fs::path& path) {
    read_recipe(path);  // checks it
    Json json = read_yaml(path);
    return {.kind = "", .json = json, .essence = json, .text = pretty(json) + "\n"};
}

}  // namespace

Inspected inspect_artefact(const fs::path& path, const LayerView& view) {
    const std::string extension = path.extension().string();
    if (extension == ".jsonl") return inspect_run_log(path);
    const Json json = extension == ".yaml" ? read_yaml(path) : read_json(path);
    const std::string format = json.is_object() && json.contains("format") && json["format"].is_string()
                                   ? json["format"].get<std::string>()
                                   : "";
    const std::pair<const char*, Inspected (*)(const fs::path&)> kinds[] = {
        {"minipuzzle.search/1", inspect_search},
        {"minipuzzle.plan/1", inspect_plan},
        {"minipuzzle.eval/1", inspect_figures},
        {"minipuzzle.summary/1", inspect_figures},
        {"minipuzzle.recipe/1", inspect_recipe}};
    if (format == "minipuzzle.scores/1") {
        Inspected result = inspect_scores(path, view);
        result.kind = format;
        return result;
    }
    for (const auto& [kind, inspect] : kinds) {
        if (format != kind) continue;
        Inspected result = inspect(path);
        result.kind = format;
        return result;
    }
    fail_input(fmt::format("{}: {}, expected a file of ours, a model folder or a config.json", path.string(),
                           format.empty() ? "found no \"format\"" : "found format " + format));
}

}  // namespace minipuzzle::cli
