// minipuzzle eval
#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/opened_model.h"
#include "cli/phases.h"
#include "cli/table.h"
#include "cli/task_results.h"
#include "kernels/check.h"
#include "runtime/evaluate.h"
#include "runtime/files.h"
#include "runtime/variant_sweep.h"

namespace minipuzzle::cli {
namespace {

constexpr const char* kFormat = "minipuzzle.eval/1";

Json header(const Context& context, const ModelIdentity& identity, Precision precision) {
    Json json = artefact_header(kFormat, context.provenance());
    if (precision != Precision::bf16) json["precision"] = name(precision);
    json["model"] = {
        {"path", identity.path}, {"arch_hash", identity.arch_hash}, {"weights_hash", identity.weights_hash}};
    return json;
}

Json optional_json(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

CommandResult evaluation_result(Json json, const Evaluation& evaluation) {
    json["loss"] = evaluation.loss;
    json["perplexity"] = evaluation.perplexity();
    json["tokens"] = evaluation.tokens;
    json["sequences"] = evaluation.sequences;
    json["next_token_accuracy"] = evaluation.next_token_accuracy;
    json["per_source"] = Json::object();
    for (const auto& [source, loss] : evaluation.per_source)
        json["per_source"][source] = {{"loss", loss.loss}, {"tokens", loss.tokens}};
    json["kl"] = optional_json(evaluation.kl);
    json["top1_agreement"] = optional_json(evaluation.top1_agreement);

    std::string text =
        fmt::format("loss {:.6f}  perplexity {:.4f}  next-token accuracy {:.4f}  ({} tokens, {} windows)\n",
                    evaluation.loss, evaluation.perplexity(), evaluation.next_token_accuracy,
                    evaluation.tokens, evaluation.sequences);
    if (evaluation.kl)
        text += fmt::format("against the reference: kl {:.6f}  top-1 agreement {:.4f}\n", *evaluation.kl,
                            evaluation.top1_agreement.value_or(0));
    if (!evaluation.per_source.empty()) {
        Table table({"source", "loss", "tokens"});
        for (const auto& [source, loss] : evaluation.per_source)
            table.add({source, cell(loss.loss, 6), std::to_string(loss.tokens)});
        text += table.text();
    }
    return {std::move(json), text};
}

Json widths_json(const StudentPlan& plan) {
    Json widths;
    if (plan.ffn_width) widths = *plan.ffn_width;
    for (const auto& [layer, width] : plan.ffn_widths) widths[std::to_string(layer)] = width;
    return widths;
}

// What the sweep over the data says of the full model and of each student.
void add_sweep(const SweepResult& result, bool per_sequence, Json& json) {
    const double base_loss = mean(result.base.loss, result.tokens);
    json["base"] = {{"loss", base_loss}, {"next_token_accuracy", mean(result.base.accuracy, result.tokens)}};
    int64_t tokens = 0;
    for (int64_t each : result.tokens) tokens += each;
    json["tokens"] = tokens;
    json["sequences"] = result.tokens.size();
    if (per_sequence) json["sequence_tokens"] = result.tokens;
    for (std::size_t i = 0; i < result.variants.size(); ++i) {
        const SequenceMetrics& metrics = result.variants[i];
        const double loss = mean(metrics.loss, result.tokens);
        json["students"][i].update({{"loss", loss},
                                    {"loss_delta", loss - base_loss},
                                    {"kl", mean(metrics.kl, result.tokens)},
                                    {"next_token_accuracy", mean(metrics.accuracy, result.tokens)},
                                    {"top1_agreement", mean(metrics.top1_agreement, result.tokens)}});
        if (per_sequence) json["students"][i]["per_sequence"] = metrics.loss;
    }
}

std::string students_text(const Json& json) {
    std::string text;
    if (json.contains("base"))
        text += fmt::format("base loss {:.6f}  ({} tokens, {} windows)\n", json["base"]["loss"].get<double>(),
                            json["tokens"].get<int64_t>(), json["sequences"].get<int64_t>());
    if (json.contains("tasks"))
        text += fmt::format(
            "base tasks {:.4f}, {:.4f} per token  ({} rows)\n", json["tasks"]["accuracy"].get<double>(),
            json["tasks"]["accuracy_per_token"].get<double>(), json["tasks"]["rows"].get<int64_t>());
    return text + students_table(json["students"]);
}

// The model, opened, and what it is measured on.
struct Measuring {
    Backend& backend;
    const OpenedModel& model;
    std::optional<Corpus> corpus;
    std::vector<Window> windows;
    std::optional<TaskSet> tasks;

    TaskResults run_tasks(const std::vector<StudentPlan>& plans, const WidthScores* widths,
                          const RunControl& control) const {
        return minipuzzle::run_tasks(backend, model.architecture(), model.weights(), plans, widths, *tasks,
                                     control);
    }
};

CommandResult measure_students(const Measuring& on, const EvalCommand& command, const Context& context,
                               Json json) {
    const Architecture& architecture = on.model.architecture();
    const std::vector<StudentPlan> students = read_plan_rows(command.plans);
    std::optional<WidthScores> scores;
    if (!command.width_scores.empty()) scores = read_width_scores(command.width_scores);
    const WidthScores* const widths = scores ? &*scores : nullptr;
    Json rows = Json::array();
    for (std::size_t i = 0; i < students.size(); ++i) {
        check_plan(students[i], architecture, fmt::format("{}:{}", command.plans, i + 1));
        if (!can_sweep(architecture, students[i]))
            fail_usage(
                fmt::format("{}:{}: found mamba_heads_per_group {}, but --plans narrows FFNs only; prune the "
                            "student and eval its folder",
                            command.plans, i + 1, *students[i].mamba_heads_per_group));
        rows.push_back({{"drop", students[i].drop}, {"ffn_width", widths_json(students[i])}});
    }
    json["students"] = std::move(rows);
    if (on.corpus)
        add_sweep(sweep(on.backend, architecture, on.model.weights(), students, widths, *on.corpus,
                        on.windows, context.control),
                  command.per_sequence, json);
    if (on.tasks) {
        const TaskResults results = on.run_tasks(students, widths, context.control);
        json["tasks"] = to_json(*on.tasks, results.base);
        for (std::size_t i = 0; i < students.size(); ++i)
            json["students"][i]["tasks"] = to_json(results.variants[i]);
    }
    Json ordered_rows = std::move(json["students"]);  // they stand last
    json.erase("students");
    json["students"] = std::move(ordered_rows);
    const std::string text = students_text(json);
    return {std::move(json), text};
}

CommandResult measure_model(const Measuring& on, const EvalCommand& command, const Context& context,
                            Json json) {
    CommandResult result{.json = std::move(json), .text = ""};
    if (on.corpus) {
        std::optional<OpenedModel> against;
        std::optional<EvaluatedModel> reference;
        if (!command.reference.empty()) {
            WeightOptions weights;
            weights.weight_memory = command.weights.weight_memory;
            against.emplace(on.backend, command.reference, weights, context);
            reference.emplace(EvaluatedModel{against->architecture(), against->weights()});
        }
        result = evaluation_result(
            std::move(result.json),
            evaluate(on.backend, {on.model.architecture(), on.model.weights()},
                     reference ? &*reference : nullptr, *on.corpus, on.windows, context.control));
    }
    if (on.tasks) {
        result.json["tasks"] = to_json(*on.tasks, on.run_tasks({}, nullptr, context.control).base);
        result.text += tasks_text(result.json["tasks"]);
    }
    return result;
}

void check_options(const EvalCommand& command) {
    require_option(command, "model", !command.model.empty() || !command.weights.arch.empty());
    if (command.data.empty() && command.tasks.empty())
        fail_usage("eval needs --data or --tasks; see minipuzzle eval --help");
    if (!command.plans.empty() && !command.reference.empty())
        fail_usage(
            "--plans and --reference exclude each other: with --plans the full model is the reference");
    if (command.per_sequence && (command.plans.empty() || command.data.empty()))
        fail_usage("--per-sequence needs --plans and --data");
    if (!command.reference.empty() && command.data.empty())
        fail_usage("--reference goes with --data: tasks are scored without one");
    if (!command.out.empty()) check_output_file(command.out);
}

}  // namespace

OptionTable EvalCommand::options() {
    OptionTable table;
    table.text("model", "FOLDER", model, "the model to measure");
    weights.add_to(table);
    table.text("reference", "FOLDER", reference, "also measure KL and top-1 agreement against this model");
    table.text(
        "plans", "FILE.jsonl", plans,
        "measure these students of the model, a {\"drop\": [...], \"ffn_width\": N} a row, in one sweep");
    table.text("width-scores", "FILE", width_scores, "neuron orders for --plans rows with a width");
    table.texts("data", "FILE...", data, "rows to measure on");
    table.flag("per-sequence", per_sequence,
               "with --plans: also every window's loss, for paired comparisons");
    table.text("tasks", "FILE.jsonl", tasks,
               "and, or instead: multiple choice, a {\"context\", \"choices\", \"answer\", \"task\"} a row");
    windows.add_to(table);
    table.text("out", "FILE.json", out, "also write the result here");
    return table;
}

CommandResult EvalCommand::run(const Context& context) {
    check_options(*this);
    Phases phases(context.console);
    phases.begin("context");
    const auto backend = open_backend(context);
    phases.begin("load");
    const OpenedModel loaded(*backend, model, weights, context);
    const DataReader reader = loaded.reader();
    Measuring on{.backend = *backend, .model = loaded};
    if (!tasks.empty()) on.tasks = reader.tasks(tasks);
    if (!data.empty()) {
        on.corpus = reader.for_measuring(data);
        on.windows = choose_windows(*on.corpus, windows.seq_len, windows.samples, context.seed());
    }
    phases.begin("compute");
    Json json = header(context, loaded.identity(), weights.number_format());
    const CommandResult result = plans.empty() ? measure_model(on, *this, context, std::move(json))
                                               : measure_students(on, *this, context, std::move(json));
    phases.finish();
    if (!out.empty()) write_file_atomically(out, pretty(result.json));
    return result;
}

}  // namespace minipuzzle::cli
