#include "importance/ablation.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "importance/confidence.h"
#include "importance/feed_order.h"
#include "importance/iterative.h"
#include "importance/random_sets.h"
#include "importance/score_run.h"
#include "importance/stability.h"
#include "importance/width.h"

namespace minipuzzle::importance {

namespace {

// Everything the figures depend on, for telling whether a state may be continued.
std::string identity_of(const Backend& backend, const ModelIdentity& model, const Corpus& corpus,
                        const ScoreOptions& options, const std::vector<int64_t>& widths) {
    std::string text = fmt::format("{} {} {} {} {} {} {}", version(), backend.name(), model.arch_hash,
                                   model.weights_hash, options.seq_len, options.samples, options.seed);
    for (const DataFile& file : corpus.files()) text += " " + file.hash;
    if (options.width) text += " width " + name(options.width_aggregation);
    for (int64_t width : widths) text += fmt::format(" w{}", width);
    if (options.pairs)
        text += fmt::format(" pairs {} {} {} {}", options.pairs->window, options.pairs->all,
                            options.pairs->candidates.value_or(-1), options.pairs->samples);
    if (options.iterative > 0)
        text += fmt::format(" iterative {} {}", options.iterative, fmt::join(options.layer_bytes, ","));
    if (options.random_sets > 0) text += fmt::format(" random-sets {}", options.random_sets);
    if (options.narrow) text += fmt::format(" {}", name(options.narrow->precision));
    if (const auto& certain = options.until_certain)
        text += fmt::format(" until certain {} {} {} {}", certain->confidence, certain->tie,
                            certain->round_windows, certain->cut);
    return text;
}

void check_conditional(const Architecture& architecture, const ScoreOptions& options, int64_t windows) {
    const int64_t layers = static_cast<int64_t>(architecture.layers.size());
    if (options.pairs) check_pairs(*options.pairs, architecture, windows);
    if (options.iterative >= layers)
        fail_usage(
            fmt::format("--iterative {}: expected at most {}, so that one of the model's layers is left",
                        options.iterative, layers - 1));
}

// Loss of each window that the layer was measured on, less the base's.
std::vector<double> loss_differences(const SequenceMetrics& off, const SweepResult& sweep) {
    std::vector<double> differences(off.loss.size());
    for (std::size_t i = 0; i < differences.size(); ++i) differences[i] = off.loss[i] - sweep.base.loss[i];
    return differences;
}

// `documents` of each window; the layer may have been measured on the first windows only.
LayerScore layer_score(const Architecture& architecture, int64_t layer, const SweepResult& sweep,
                       const std::vector<int64_t>& documents) {
    const SequenceMetrics& off = sweep.variants[layer];
    const std::vector<double> differences = loss_differences(off, sweep);
    const std::vector<int64_t> tokens(sweep.tokens.begin(), sweep.tokens.begin() + off.loss.size());
    LayerScore score;
    score.layer = layer;
    score.type = type_of(architecture.layers[layer]);
    score.loss_delta = mean(differences, tokens);
    score.loss_delta_ci = paired_interval(differences, tokens, documents);
    score.kl = mean(off.kl, tokens);
    score.hidden_mse = mean(off.hidden_mse, tokens);
    double nmse = 0;  // defined per sequence, then the plain mean
    for (double value : off.logit_nmse) nmse += value;
    score.logit_nmse = nmse / static_cast<double>(off.logit_nmse.size());
    score.cosine = mean(off.cosine, tokens);
    score.top1_agreement = mean(off.top1_agreement, tokens);
    score.samples = static_cast<int64_t>(tokens.size());
    return score;
}

// The table of a leave-one-out sweep, its model left out.
ScoreTable table_of(const Architecture& architecture, const SweepResult& result, const ScoreRun& run,
                    int64_t seq_len) {
    const std::vector<int64_t> documents = run.documents();
    ScoreTable table;
    table.calibration = CalibrationInfo{.sources = run.corpus().files(),
                                        .sequences = static_cast<int64_t>(result.tokens.size()),
                                        .seq_len = seq_len,
                                        .tokens = 0};
    for (int64_t tokens : result.tokens) table.calibration->tokens += tokens;
    table.base_loss = mean(result.base.loss, result.tokens);
    table.base_accuracy = mean(result.base.accuracy, result.tokens);
    table.per_sequence["base"] = result.base.loss;
    for (int64_t l = 0; l < static_cast<int64_t>(architecture.layers.size()); ++l) {
        table.layers.push_back(layer_score(architecture, l, result, documents));
        table.per_sequence[std::to_string(l)] = result.variants[l].loss;
    }
    return table;
}

std::vector<Window> windows_of(const Corpus& corpus, const ScoreOptions& options) {
    std::vector<Window> windows = choose_windows(corpus, options.seq_len, options.samples, options.seed);
    if (!options.until_certain) return windows;
    if (options.width || options.pairs || options.iterative > 0 || options.random_sets > 0)
        fail_usage(
            "--until-certain goes without --width, --pairs, --iterative and --random-sets, which want every "
            "sequence: measure them in a run of their own");
    check_documents(windows);
    return by_document(windows, options.seed);
}

std::vector<int64_t> widths_of(const Architecture& architecture, const ScoreOptions& options) {
    return options.width ? narrower_widths(architecture, options.widths) : std::vector<int64_t>{};
}

// What all scores have in common once the layers are swept.
void add_table(const Architecture& architecture, const SweepResult& result, const ScoreRun& run,
               const ScoreOptions& options, ScoreOutcome& outcome) {
    outcome.table = table_of(architecture, result, run, options.seq_len);
    const std::vector<int64_t> documents = run.documents();
    outcome.documents = count_documents({documents.begin(), documents.begin() + result.tokens.size()});
    std::vector<std::vector<double>> differences;
    for (const LayerScore& layer : outcome.table.layers)
        differences.push_back(loss_differences(result.variants[layer.layer], result));
    outcome.table.stability = rank_stability(differences, result.tokens, documents, options.seed);
}

ScoreOutcome score_until_certain(ScoreRun& run, const ModelIdentity& identity, const ScoreOptions& options) {
    CertainSweep swept = sweep_until_certain(run, *options.until_certain, [&](const SweepResult& so_far) {
        ScoreTable table = table_of(run.architecture(), so_far, run, options.seq_len);
        table.model = identity;
        return table;
    });
    ScoreOutcome outcome;
    add_table(run.architecture(), swept.layers, run, options, outcome);
    outcome.table.model = identity;
    outcome.table.certainty = std::move(swept.certainty);
    outcome.multiply_adds = swept.layers.multiply_adds;
    outcome.separate_multiply_adds = swept.layers.separate_multiply_adds;
    return outcome;
}

// Every sweep that is known of before the first one begins.
void announce_all(ScoreRun& run, const std::vector<StudentPlan>& plans, const std::vector<int64_t>& widths,
                  const ScoreOptions& options) {
    const int64_t windows = std::ssize(run.windows());
    run.announce(plans, windows);
    if (!widths.empty()) run.announce(width_plans(widths), windows);
    if (options.pairs) announce_pairs(run, *options.pairs);
    announce_removal(run, options.iterative);
    announce_random_sets(run, options.random_sets, options.seed);
    if (options.narrow) run.announce(plans, checked_windows(run));
}

// Every sequence to every layer, and whatever else was asked for.
ScoreOutcome score_all(Backend& backend, ScoreRun& run, const ScoreOptions& options,
                       const std::vector<int64_t>& widths, const std::filesystem::path& statistics_path) {
    const std::vector<StudentPlan> plans = leave_one_out(run.architecture());
    announce_all(run, plans, widths, options);
    std::optional<WidthStatistics> statistics;
    if (options.width)
        statistics.emplace(backend, run.architecture(), options.width_aggregation, statistics_path);
    const SweepResult result =
        run.sweep("layers", plans, nullptr, run.all_windows(), statistics ? &*statistics : nullptr);

    ScoreOutcome outcome;
    add_table(run.architecture(), result, run, options, outcome);
    ScoreTable& table = outcome.table;
    if (statistics) {
        outcome.width = statistics->scores();
        table.ffn_width_curve = width_curve(run, outcome.width, widths);
    }
    AblationLosses losses(run, result);
    if (options.pairs) table.pairs = measure_pairs(losses, *options.pairs, outcome.pairs);
    if (options.iterative > 0)
        table.iterative =
            remove_iteratively(losses, options.iterative, options.layer_bytes, outcome.iterative);
    if (options.random_sets > 0)
        table.random_sets =
            measure_random_sets(losses, options.random_sets, options.seed, outcome.random_sets);
    const SweepSchedule schedule = make_schedule(run.architecture(), plans);
    for (const Window& window : run.windows()) {
        outcome.multiply_adds +=
            shared_multiply_adds(run.architecture(), schedule, window.length, window.length);
        outcome.separate_multiply_adds +=
            separate_multiply_adds(run.architecture(), plans, window.length, window.length);
    }
    return outcome;
}

}  // namespace

ScoreOutcome score(Backend& backend, const Architecture& architecture, WeightSource weights,
                   const ModelIdentity& identity, const Corpus& corpus, const ScoreOptions& options) {
    const std::vector<Window> windows = windows_of(corpus, options);
    const std::vector<int64_t> widths = widths_of(architecture, options);
    check_conditional(architecture, options, std::ssize(windows));
    ScoreState state(options.state, identity_of(backend, identity, corpus, options, widths), options.resume);
    ScoreRun run(backend, architecture, weights, corpus, windows, state, options.control);
    ScoreOutcome outcome = options.until_certain
                               ? score_until_certain(run, identity, options)
                               : score_all(backend, run, options, widths, state.width_path());
    outcome.table.model = identity;
    // Last: the weights change.
    if (options.narrow) outcome.table.precision = check_precision(run, *options.narrow, outcome.table);
    return outcome;
}

ScorePlan plan_score(Backend& backend, const Architecture& architecture, WeightSource weights,
                     const Corpus& corpus, const ScoreOptions& options, int64_t device_bytes,
                     int64_t host_bytes) {
    const std::vector<Window> windows = windows_of(corpus, options);
    check_conditional(architecture, options, std::ssize(windows));
    const std::vector<StudentPlan> plans = leave_one_out(architecture);
    ScoreState nowhere("", "", false);
    const RunControl silent;
    ScoreRun run(backend, architecture, weights, corpus, windows, nowhere, silent);
    announce_all(run, plans, widths_of(architecture, options), options);
    ScorePlan plan{.windows = std::ssize(windows), .multiply_adds = run.announced().total()};
    for (const Window& window : windows) plan.tokens += window.length;

    VariantSweep sweep(backend, architecture, weights, plans, nullptr);
    std::optional<WidthStatistics> statistics;
    if (options.width) statistics.emplace(backend, architecture, options.width_aggregation, "");
    sweep.observe(statistics ? &*statistics : nullptr);
    sweep.limit_memory(device_bytes, host_bytes);
    const std::vector<WindowBatch> batches = batch_windows(corpus, windows, sweep.batch_tokens(windows));
    const WindowBatch& largest = *std::max_element(
        batches.begin(), batches.end(),
        [](const WindowBatch& a, const WindowBatch& b) { return a.batch * a.length < b.batch * b.length; });
    plan.batches = std::ssize(batches);
    plan.memory = sweep.plan(largest.batch, largest.length);
    return plan;
}

}  // namespace minipuzzle::importance
