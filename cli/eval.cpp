// minipuzzle eval
#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/opened_model.h"
#include "cli/phases.h"
#include "cli/table.h"
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

// One row of the --plans result: what the sweep measured of one student.
Json student_json(const StudentPlan& plan, const SequenceMetrics& metrics, double base_loss,
                  const std::vector<int64_t>& tokens) {
    Json widths;
    if (plan.ffn_width) widths = *plan.ffn_width;
    for (const auto& [layer, width] : plan.ffn_widths) widths[std::to_string(layer)] = width;
    const double loss = mean(metrics.loss, tokens);
    return {{"drop", plan.drop},
            {"ffn_width", widths},
            {"loss", loss},
            {"loss_delta", loss - base_loss},
            {"kl", mean(metrics.kl, tokens)},
            {"next_token_accuracy", mean(metrics.accuracy, tokens)},
            {"top1_agreement", mean(metrics.top1_agreement, tokens)}};
}

CommandResult plans_result(Json json, const std::vector<StudentPlan>& plans, const SweepResult& result,
                           bool per_sequence) {
    const double base_loss = mean(result.base.loss, result.tokens);
    json["base"] = {{"loss", base_loss}, {"next_token_accuracy", mean(result.base.accuracy, result.tokens)}};
    int64_t tokens = 0;
    for (int64_t each : result.tokens) tokens += each;
    json["tokens"] = tokens;
    json["sequences"] = result.tokens.size();
    if (per_sequence) json["sequence_tokens"] = result.tokens;
    json["students"] = Json::array();
    Table table({"drop", "ffn_width", "loss", "loss_delta", "kl", "accuracy", "top1"});
    for (std::size_t i = 0; i < plans.size(); ++i) {
        Json student = student_json(plans[i], result.variants[i], base_loss, result.tokens);
        table.add({student["drop"].dump(), student["ffn_width"].is_null() ? "-" : student["ffn_width"].dump(),
                   cell(student["loss"], 6), cell(student["loss_delta"], 6), cell(student["kl"], 6),
                   cell(student["next_token_accuracy"]), cell(student["top1_agreement"])});
        if (per_sequence) student["per_sequence"] = result.variants[i].loss;
        json["students"].push_back(std::move(student));
    }
    return {std::move(json), fmt::format("base loss {:.6f}  ({} tokens, {} windows)\n{}", base_loss, tokens,
                                         result.tokens.size(), table.text())};
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
    table.flag("per-sequence", per_sequence,
               "with --plans: also every window's loss, for paired comparisons");
    table.text("width-scores", "FILE", width_scores, "neuron orders for --plans rows with a width");
    table.texts("data", "FILE...", data, "rows to measure on");
    windows.add_to(table);
    table.text("out", "FILE.json", out, "also write the result here");
    return table;
}

CommandResult EvalCommand::run(const Context& context) {
    require_option(*this, "model", !model.empty() || !weights.arch.empty());
    require_option(*this, "data", !data.empty());
    if (!plans.empty() && !reference.empty())
        fail_usage(
            "--plans and --reference exclude each other: with --plans the full model is the reference");
    if (per_sequence && plans.empty()) fail_usage("--per-sequence needs --plans");
    if (!out.empty()) check_output_file(out);

    Phases phases(context.console);
    phases.begin("context");
    const auto backend = open_backend(context);
    phases.begin("load");
    const OpenedModel loaded(*backend, model, weights, context);
    const Corpus corpus = loaded.reader().for_measuring(data);
    const auto chosen = choose_windows(corpus, windows.seq_len, windows.samples, context.seed());

    phases.begin("compute");
    CommandResult result;
    if (!plans.empty()) {
        const auto students = read_plan_rows(plans);
        std::optional<WidthScores> widths;
        if (!width_scores.empty()) widths = read_width_scores(width_scores);
        for (std::size_t i = 0; i < students.size(); ++i)
            check_plan(students[i], loaded.architecture(), fmt::format("{}:{}", plans, i + 1));
        result = plans_result(header(context, loaded.identity(), weights.number_format()), students,
                              sweep(*backend, loaded.architecture(), loaded.weights(), students,
                                    widths ? &*widths : nullptr, corpus, chosen, context.control),
                              per_sequence);
    } else {
        std::optional<OpenedModel> against;
        std::optional<EvaluatedModel> reference_model;
        if (!reference.empty()) {
            WeightOptions of_reference;
            of_reference.weight_memory = weights.weight_memory;
            against.emplace(*backend, reference, of_reference, context);
            reference_model.emplace(EvaluatedModel{against->architecture(), against->weights()});
        }
        result = evaluation_result(
            header(context, loaded.identity(), weights.number_format()),
            evaluate(*backend, {loaded.architecture(), loaded.weights()},
                     reference_model ? &*reference_model : nullptr, corpus, chosen, context.control));
    }
    phases.finish();
    if (!out.empty()) write_file_atomically(out, pretty(result.json));
    return result;
}

}  // namespace minipuzzle::cli
