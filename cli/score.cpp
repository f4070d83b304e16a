// minipuzzle score
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "cli/commands.h"
#include "cli/conditional.h"
#include "cli/cut.h"
#include "cli/inspect.h"
#include "cli/opened_model.h"
#include "cli/phases.h"
#include "cli/score_dry_run.h"
#include "importance/ablation.h"
#include "importance/score_state.h"
#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

// The files that one `score` writes: scores.json, scores.csv, scores.width.safetensors, and its state.
struct ScoreFiles {
    fs::path json, csv, width, state;

    explicit ScoreFiles(const fs::path& out)
        : json(out),
          csv(fs::path(out).replace_extension(".csv")),
          width(fs::path(out).replace_extension(".width.safetensors")),
          state(out.string() + ".state") {}

    // Siblings are ours where the JSON they belong to is.
    void check() const {
        if (json.extension() != ".json") fail_usage("--out: " + json.string() + " does not end in .json");
        check_output_file(json);
        if (fs::exists(json)) return;
        for (const fs::path& sibling : {csv, width})
            if (fs::exists(sibling))
                fail_input(sibling.string() + " exists and is not ours: choose another --out or remove it");
    }
};

// What `work` returns. Where it fails on its input, the state it began is taken away again; what an
// interrupted run saved stays.
template <class Work>
auto without_leftover(const fs::path& state, Work work) {
    const bool was_there = fs::exists(state);
    try {
        return work();
    } catch (const Error&) {
        if (!was_there) importance::ScoreState::remove(state);
        throw;
    }
}

std::string summary(const importance::ScoreOutcome& outcome) {
    const ScoreTable& scores = outcome.table;
    std::string text = scores_summary(scores);
    text += "\n" + sharing_line("layers", {outcome.multiply_adds, outcome.separate_multiply_adds});
    if (scores.pairs) text += sharing_line("pairs", outcome.pairs);
    if (scores.iterative) text += sharing_line("iterative", outcome.iterative);
    if (scores.random_sets) text += sharing_line("random sets", outcome.random_sets);
    return text;
}

// Per-layer bytes of the budget's workload, said aloud; empty without a budget.
std::vector<int64_t> weighed_layers(const ScoreCommand& command, const OpenedModel& model,
                                    const Context& context) {
    if (!command.mem_budget || command.conditional.iterative == 0) return {};
    const nas::Workload workload = workload_of(command.workload, model.checkpoint());
    const int64_t total = nas::memory_of(model.architecture(), workload).total();
    context.console.note(describe_budget("budget", *command.mem_budget, AmountOf::bytes, total));
    context.console.note("workload: " + describe(workload));
    return layer_bytes(model.architecture(), workload);
}

// What the better half of a layer's units holds of their score: mean and range over the layers of a type.
std::string held_by_half(const std::string& units, const std::vector<double>& shares) {
    if (shares.empty()) return "";
    const auto [least, most] = std::minmax_element(shares.begin(), shares.end());
    const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
    return fmt::format("{}{:.0f} % ({:.0f} .. {:.0f})", units, 100 * all / static_cast<double>(shares.size()),
                       100 * *least, 100 * *most);
}

// The first half of every list, rounded up, over all of the score.
double half_share(const std::vector<std::vector<int32_t>>& lists, const std::vector<float>& score) {
    double half = 0, all = 0;
    for (const std::vector<int32_t>& list : lists)
        for (std::size_t i = 0; i < list.size(); ++i) {
            all += score[list[i]];
            if (2 * i < list.size()) half += score[list[i]];
        }
    return all > 0 ? half / all : 0.5;
}

std::string width_line(const WidthScores& width) {
    std::vector<double> neurons, heads, kv_heads;
    for (const auto& [layer, order] : width.ffn_order)
        neurons.push_back(half_share({order}, width.ffn_score.at(layer)));
    for (const auto& [layer, groups] : width.mamba_head_order)
        heads.push_back(half_share(groups, width.mamba_head_score.at(layer)));
    for (const auto& [layer, order] : width.kv_head_order)
        kv_heads.push_back(half_share({order}, width.kv_head_score.at(layer)));
    return "the better half of a layer holds, of the score of its" + held_by_half(" FFN neurons ", neurons) +
           held_by_half(", Mamba heads ", heads) + held_by_half(", KV heads ", kv_heads) + "\n";
}

}  // namespace

OptionTable ScoreCommand::options() {
    OptionTable table;
    table.text("model", "FOLDER", model, "the model to score");
    weights.add_to(table);
    table.texts("data", "FILE...", data, "calibration rows");
    table.text("out", "FILE.json", out,
               "the scores; a .csv and, with --width, a .width.safetensors stand beside it");
    windows.add_to(table);
    table.optional_choices("width", width,
                           "rank FFN neurons, Mamba heads and KV heads, and measure the model at these FFN "
                           "widths [8 steps]");
    table.word("width-aggregation", {"mean,l2", "mean,mean", "l2,l2", "l2,mean"}, width_aggregation,
               "how that ranking's activations are summed over a sequence, and over sequences");
    conditional.add_to(table);
    table.flag("until-certain", until_certain,
               "measure a layer only until it is certain on which side of the cut it lies: the layers that "
               "search drops for --mem-budget");
    table.number("tie", tie, "differences under so many nats count as ties [0.002]");
    table.amount(
        "mem-budget", AmountOf::bytes, mem_budget,
        "the student's deployment memory at most: gives --until-certain its cut, and --iterative the "
        "bytes that it weighs layers by");
    workload.add_to(table);
    table.flag("full-hash", full_hash, "hash the weights' content, not only their headers and sizes");
    table.flag("resume", resume, "go on where an interrupted run stopped");
    table.flag("dry-run", dry_run, "say what would be done and what memory it takes");
    return table;
}

CommandResult ScoreCommand::run(const Context& context) {
    require_option(*this, "model", !model.empty() || !weights.arch.empty());
    require_option(*this, "data", !data.empty());
    const std::optional<importance::PairOptions> pairs = pair_options(conditional);
    const auto aggregation = importance::parse_width_aggregation(width_aggregation);
    if (!width && width_aggregation != importance::name(importance::WidthAggregation()))
        fail_usage("--width-aggregation: expected with --width only, which asks for the ranking");
    check_certainty_options(*this);
    const ScoreFiles files(out);
    files.check();
    const std::optional<importance::UntilCertain> certain = until_certain_options(*this, context);

    Phases phases(context.console);
    phases.begin("context");
    const auto backend = open_backend(context);
    importance::ScoreOptions options{.seq_len = windows.seq_len,
                                     .samples = windows.samples,
                                     .seed = context.seed(),
                                     .width = width.has_value(),
                                     .widths = width.value_or(std::vector<int64_t>{}),
                                     .width_aggregation = aggregation,
                                     .pairs = pairs,
                                     .iterative = conditional.iterative,
                                     .random_sets = conditional.random_sets,
                                     .until_certain = certain};
    if (weights.number_format() == Precision::fp8)
        options.narrow = importance::NarrowSweep{.precision = Precision::fp8, .unquantized = {}};
    if (dry_run) return score_dry_run(context, *backend, *this, options);
    phases.begin("load");
    OpenedModel loaded(*backend, model, weights, context);
    const Corpus corpus = loaded.reader().for_measuring(data);
    const ModelIdentity identity = loaded.identity(full_hash);
    options.layer_bytes = weighed_layers(*this, loaded, context);
    options.state = files.state;
    options.resume = resume;
    options.control = context.control;
    if (options.narrow) options.narrow->unquantized = [&] { return loaded.reload_unquantized(*backend); };
    phases.begin("compute");
    importance::ScoreOutcome outcome = without_leftover(files.state, [&] {
        return importance::score(*backend, loaded.architecture(), loaded.weights(), identity, corpus,
                                 options);
    });

    phases.finish();

    ScoreTable& scores = outcome.table;
    scores.provenance = context.provenance();
    scores.model = identity;
    if (width) {
        write_width_scores(files.width, outcome.width);
        scores.width_scores_file = files.width.filename().string();
        scores.width_scores_hash = sha256_of_file(files.width);
    }
    write_file_atomically(files.csv, scores_csv(scores));
    const std::string text = scores_json(scores);
    write_file_atomically(files.json, text);
    importance::ScoreState::remove(files.state);

    const std::string warning = ranking_warning(scores, outcome.documents);
    if (!warning.empty()) context.console.note(warning);
    Json json = Json::parse(text);
    return {.json = std::move(json),
            .text = summary(outcome) + (width ? width_line(outcome.width) : "") +
                    documents_line(scores, outcome.documents) + "wrote " + files.json.string() + "\n"};
}

}  // namespace minipuzzle::cli
