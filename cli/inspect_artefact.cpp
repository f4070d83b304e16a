// inspect of our own files.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/inspect.h"
#include "cli/model_loading.h"
#include "cli/recipe.h"
#include "cli/score_analysis.h"
#include "cli/table.h"
#include "distill/run_log.h"
#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kShownCandidates = 10, kShownFrontier = 20, kShownSteps = 12;

// At most `most` of n indexes, evenly spread, first and last among them, and `also` (-1: none).
std::vector<std::size_t> spread(std::size_t n, std::size_t most, int64_t also) {
    std::vector<std::size_t> chosen;
    for (std::size_t i = 0; i < std::min(n, most); ++i)
        chosen.push_back(n <= most ? i : i * (n - 1) / (most - 1));
    if (also >= 0) chosen.push_back(static_cast<std::size_t>(also));
    std::sort(chosen.begin(), chosen.end());
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
    return chosen;
}

std::string frontier_table(const std::vector<nas::FrontierPoint>& frontier) {
    const int64_t knee = knee_of(frontier);
    Table table({"bytes", "", "value", "dropped", "ffn_width", ""});
    for (std::size_t i : spread(frontier.size(), kShownFrontier, knee)) {
        const nas::FrontierPoint& point = frontier[i];
        table.add({std::to_string(point.total), format_bytes(point.total), cell(point.value, 6),
                   std::to_string(point.drop.size()), std::to_string(point.ffn_width),
                   static_cast<int64_t>(i) == knee ? "<- knee" : ""});
    }
    std::string text = fmt::format("frontier, {} points over all budgets", frontier.size());
    if (frontier.size() > kShownFrontier) text += fmt::format(", {} of them shown", kShownFrontier);
    return text + "\n" + table.text();
}

std::string candidate_table(const nas::SearchResult& result) {
    std::vector<const nas::Candidate*> shown;
    for (const nas::Candidate& candidate : result.candidates)
        if (shown.size() < kShownCandidates || candidate.id == result.best) shown.push_back(&candidate);
    Table table({"id", "Mamba", "FFN", "attention", "ffn_width", "params", "bytes", "predicted",
                 "measured loss", "kl", ""});
    for (const nas::Candidate* each : shown)
        table.add({each->id, std::to_string(each->mamba), std::to_string(each->ffn),
                   std::to_string(each->attention), std::to_string(each->ffn_width),
                   std::to_string(each->params), std::to_string(each->memory.total()),
                   cell(each->predicted.value, 6), each->measured ? cell(each->measured->loss, 6) : "-",
                   each->measured ? cell(each->measured->kl, 6) : "-",
                   each->id == result.best ? "<- best" : ""});
    return fmt::format("candidates, {} of {} in order of prediction\n{}", shown.size(),
                       result.candidates.size(), table.text());
}

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
    const nas::SearchResult result = nas::read_search(path);
    return {.kind = "",
            .json = read_json(path),
            .essence = search_essence(result),
            .text = search_summary(result)};
}

Inspected inspect_plan(const fs::path& path) {
    const StudentPlan plan = read_plan(path);
    Json json = read_yaml(path);
    std::string text = fmt::format("drops {} layers: {}\n", plan.drop.size(), fmt::join(plan.drop, ", "));
    if (plan.ffn_width) text += fmt::format("FFN width {}\n", *plan.ffn_width);
    for (const auto& [layer, width] : plan.ffn_widths)
        text += fmt::format("layer {}: FFN width {}\n", layer, width);
    if (!plan.width_scores.empty()) text += fmt::format("neuron orders in {}\n", plan.width_scores);
    if (!plan.notes.empty()) text += plan.notes + "\n";
    return {.kind = "", .json = json, .essence = json, .text = text};
}

Inspected inspect_run_log(const fs::path& path) {
    const distill::RunLog log = distill::read_run_log(path);
    Json essence = {
        {"device", log.header.device}, {"options", log.header.options}, {"steps", log.steps.size()}};
    Table table({"step", "tokens", "loss", "kl", "ce", "feature", "lr", "grad_norm", "tokens/s"});
    for (std::size_t i : spread(log.steps.size(), kShownSteps, -1)) {
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
        if (key != "students") text += fmt::format("{:<20} {}\n", key, value.dump());
    if (json.contains("students")) {
        Table table({"drop", "ffn_width", "loss", "loss_delta", "kl", "accuracy", "top1"});
        for (const Json& row : json["students"])
            table.add({row["drop"].dump(), row["ffn_width"].dump(), cell(row["loss"], 6),
                       cell(row["loss_delta"], 6), cell(row["kl"], 6), cell(row["next_token_accuracy"]),
                       cell(row["top1_agreement"])});
        text += table.text();
    }
    return {.kind = "", .json = std::move(json), .essence = std::move(essence), .text = text};
}

Inspected inspect_recipe(const fs::path& path) {
    read_recipe(path);  // checks it
    Json json = read_yaml(path);
    return {.kind = "", .json = json, .essence = json, .text = pretty(json) + "\n"};
}

}  // namespace

int64_t knee_of(const std::vector<nas::FrontierPoint>& frontier) {
    if (frontier.size() < 3) return -1;
    const nas::FrontierPoint &first = frontier.front(), &last = frontier.back();
    const double width = static_cast<double>(last.total - first.total), height = first.value - last.value;
    int64_t knee = -1;
    double farthest = 0;
    for (std::size_t i = 1; i + 1 < frontier.size(); ++i) {
        const double x = static_cast<double>(frontier[i].total - first.total) / width;
        const double y = (frontier[i].value - last.value) / height;
        const double below = 1 - x - y;  // distance to x + y = 1, up to a constant factor
        if (below > farthest) {
            farthest = below;
            knee = static_cast<int64_t>(i);
        }
    }
    return knee;
}

std::string search_summary(const nas::SearchResult& result) {
    const nas::Candidate& best = nas::find_candidate(result, "");
    std::string text = fmt::format(
        "{}; objective {}; {} compositions considered\nworkload: {}\nteacher {} parameters, {} bytes\n",
        result.status == "measured" ? "chosen by measured " + result.select_by : "predicted only",
        name(result.objective), result.compositions, describe(result.workload), result.teacher_params,
        result.teacher_memory.total());
    text += fmt::format("best {}: {} parameters, {} bytes ({}), {}\ndrops {}\n\n", best.id, best.params,
                        best.memory.total(), format_bytes(best.memory.total()), best.pattern,
                        fmt::join(best.plan.drop, ", "));
    for (std::size_t i = 0; i < result.constraints.size(); ++i) {
        const nas::Constraint& at = result.constraints[i];
        text += fmt::format("context {}, batch {}: {} of at most {} bytes ({}); the teacher takes {}\n",
                            at.context, at.batch, best.fit_totals[i], at.bytes,
                            format_bytes(best.fit_totals[i]), at.total);
    }
    if (!result.constraints.empty()) text += "\n";
    return text + candidate_table(result) + "\n" + frontier_table(result.frontier);
}

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
