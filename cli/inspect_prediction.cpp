// inspect PLAN --scores S: what the predictor says, term by term, and the additive one beside it.
#include <fmt/format.h>

#include "cli/inspect.h"
#include "cli/model_loading.h"
#include "cli/table.h"
#include "kernels/check.h"
#include "nas/surrogate.h"

namespace minipuzzle::cli {
namespace {

Json optional_json(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

// The teacher that the scores speak of, or the one named.
ModelOrArch teacher_of(const InspectCommand& command, const ScoreTable& scores) {
    if (!command.model.empty() || !command.arch.empty()) return model_or_arch(command.model, command.arch);
    if (scores.model.path.empty()) fail_usage(command.scores + " names no model: give --model or --arch");
    for (const std::string& name : architecture_names())
        if (name == scores.model.path) return model_or_arch("", name);
    return model_or_arch(scores.model.path, "");
}

std::vector<StudentPlan> plans_of(const InspectCommand& command) {
    if (command.targets.size() + !command.plans.empty() != 1)
        fail_usage("with --scores name one plan.yaml, or --plans FILE.jsonl");
    return command.plans.empty() ? std::vector{read_plan(command.targets[0])} : read_plan_rows(command.plans);
}

struct Prediction {
    const Architecture& teacher;
    const ScoreTable& scores;
    const nas::Surrogate& surrogate;
    const nas::Workload& workload;

    Json json(const StudentPlan& plan) const {
        const nas::Predicted predicted = nas::predict(surrogate, teacher, plan);
        const Architecture student = student_architecture(teacher, plan);
        Json layers = Json::array();
        for (int64_t layer : plan.drop)
            layers.push_back(
                {{"layer", layer},
                 {"type", std::string(1, letter(type_of(teacher.layers[narrow<std::size_t>(layer)])))},
                 {"value", optional_json(surrogate.cost[narrow<std::size_t>(layer)])}});
        return {{"drop", plan.drop},
                {"ffn_width", student.ffn_width()},
                {"objective", name(surrogate.objective)},
                {"value", predicted.value},
                {"additive", nas::predict_additive(surrogate, teacher, plan).value},
                {"loss", optional_json(predicted.loss)},
                {"terms",
                 {{"base", optional_json(predicted.base)},
                  {"layers", optional_json(predicted.layers)},
                  {"pairs", optional_json(predicted.pairs)},
                  {"correction", optional_json(predicted.correction)},
                  {"width_term", optional_json(predicted.width_term)}}},
                {"dropped", layers},
                {"params", parameters(student)},
                {"memory", nas::to_json(nas::memory_of(teacher, plan, workload))}};
    }
};

std::optional<double> number(const Json& json) {
    return json.is_number() ? std::optional(json.get<double>()) : std::nullopt;
}

std::string one_plan_text(const Json& prediction) {
    Table terms({"term", "value"});
    const Json& parts = prediction["terms"];
    terms.add({"base", cell(number(parts["base"]), 6)});
    for (const Json& layer : prediction["dropped"])
        terms.add(
            {fmt::format("layer {} ({})", layer["layer"].get<int64_t>(), layer["type"].get<std::string>()),
             cell(number(layer["value"]), 6)});
    if (const auto pairs = number(parts["pairs"])) terms.add({"pairs", cell(pairs, 6)});
    if (const auto correction = number(parts["correction"])) terms.add({"correction", cell(correction, 6)});
    terms.add({fmt::format("FFN width {}", prediction["ffn_width"].get<int64_t>()),
               cell(number(parts["width_term"]), 6)});
    terms.add({"sum", cell(number(prediction["value"]), 6)});
    if (parts["pairs"].is_number() || parts["correction"].is_number())
        terms.add({parts["pairs"].is_number() ? "sum without pairs and correction" : "sum without correction",
                   cell(number(prediction["additive"]), 6)});
    const int64_t total = prediction["memory"]["total"].get<int64_t>();
    return fmt::format("objective {}\n{}{} parameters, {} bytes ({})\n",
                       prediction["objective"].get<std::string>(), terms.text(),
                       prediction["params"].get<int64_t>(), total, format_bytes(total));
}

std::string many_plans_text(const Json& predictions) {
    Table table({"drop", "ffn_width", "base", "layers", "pairs", "correction", "width_term", "value",
                 "additive", "params", "bytes"});
    for (const Json& row : predictions)
        table.add({row["drop"].dump(), row["ffn_width"].dump(), cell(number(row["terms"]["base"])),
                   cell(number(row["terms"]["layers"])), cell(number(row["terms"]["pairs"])),
                   cell(number(row["terms"]["correction"])), cell(number(row["terms"]["width_term"])),
                   cell(number(row["value"])), cell(number(row["additive"])), row["params"].dump(),
                   row["memory"]["total"].dump()});
    return table.text();
}

}  // namespace

CommandResult inspect_predictions(const InspectCommand& command) {
    const auto plans = plans_of(command);
    const ScoreTable scores = read_scores(command.scores);
    const ModelOrArch teacher = teacher_of(command, scores);
    check_scores(scores, teacher.architecture, command.scores);
    nas::Surrogate surrogate = nas::make_surrogate(scores, default_objective(scores));
    if (!command.type_corrections.empty())
        surrogate.type_corrections = type_corrections_of(command.type_corrections, surrogate.objective);
    const nas::Workload workload =
        workload_of(command.workload, teacher.checkpoint ? &*teacher.checkpoint : nullptr);
    const Prediction predictor{teacher.architecture, scores, surrogate, workload};
    Json rows = Json::array();
    for (std::size_t i = 0; i < plans.size(); ++i) {
        const std::string where =
            command.plans.empty() ? command.targets[0] : fmt::format("{}:{}", command.plans, i + 1);
        check_plan(plans[i], teacher.architecture, where);
        rows.push_back(predictor.json(plans[i]));
    }
    if (command.plans.empty()) return {.json = rows[0], .text = one_plan_text(rows[0])};
    return {.json = {{"predictions", rows}}, .text = many_plans_text(rows)};
}

}  // namespace minipuzzle::cli
