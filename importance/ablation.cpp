#include "importance/ablation.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "importance/confidence.h"
#include "importance/iterative.h"
#include "importance/score_run.h"
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
    if (options.narrow) text += fmt::format(" {}", name(options.narrow->precision));
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

LayerScore layer_score(const Architecture& architecture, int64_t layer, const SweepResult& sweep) {
    const SequenceMetrics& off = sweep.variants[layer];
    std::vector<double> differences(sweep.tokens.size());
    for (std::size_t i = 0; i < differences.size(); ++i) differences[i] = off.loss[i] - sweep.base.loss[i];
    LayerScore score;
    score.layer = layer;
    score.type = type_of(architecture.layers[layer]);
    score.loss_delta = mean(differences, sweep.tokens);
    score.loss_delta_ci = paired_interval(differences, sweep.tokens);
    score.kl = mean(off.kl, sweep.tokens);
    score.hidden_mse = mean(off.hidden_mse, sweep.tokens);
    double nmse = 0;  // defined per sequence, then the plain mean
    for (double value : off.logit_nmse) nmse += value;
    score.logit_nmse = nmse / static_cast<double>(off.logit_nmse.size());
    score.cosine = mean(off.cosine, sweep.tokens);
    score.top1_agreement = mean(off.top1_agreement, sweep.tokens);
    score.samples = static_cast<int64_t>(sweep.tokens.size());
    return score;
}

// Of pairs and removal, as far as it is known.
double conditional_multiply_adds(const Architecture& architecture, const std::vector<Window>& windows,
                                 const ScoreOptions& options) {
    const int64_t layers = std::ssize(architecture.layers), all = std::ssize(windows);
    double sum = 0;
    const auto add = [&](const std::vector<LayerSet>& sets, int64_t first) {
        if (sets.empty()) return;
        const SweepSchedule schedule = make_schedule(architecture, plans_of(sets));
        for (int64_t w = 0; w < first; ++w)
            sum += shared_multiply_adds(architecture, schedule, windows[w].length, windows[w].length);
    };
    if (options.pairs) add(expected_pairs(*options.pairs, layers), pair_windows(*options.pairs, all));
    for (int64_t step = 1; step < options.iterative; ++step) add(expected_removals(step, layers), all);
    return sum;
}

}  // namespace

ScoreOutcome score(Backend& backend, const Architecture& architecture, WeightSource weights,
                   const ModelIdentity& identity, const Corpus& corpus, const ScoreOptions& options) {
    const std::vector<Window> windows =
        choose_windows(corpus, options.seq_len, options.samples, options.seed);
    const std::vector<int64_t> widths =
        options.width ? narrower_widths(architecture, options.widths) : std::vector<int64_t>{};
    check_conditional(architecture, options, static_cast<int64_t>(windows.size()));
    ScoreOutcome outcome;
    const std::vector<StudentPlan> plans = leave_one_out(architecture);
    const SweepSchedule schedule = make_schedule(architecture, plans);
    for (const Window& window : windows) {
        outcome.multiply_adds += shared_multiply_adds(architecture, schedule, window.length, window.length);
        outcome.separate_multiply_adds +=
            separate_multiply_adds(architecture, plans, window.length, window.length);
    }
    ScoreState state(options.state, identity_of(backend, identity, corpus, options, widths), options.resume);
    ScoreRun run(backend, architecture, weights, corpus, windows, state, options.control);
    run.announce(plans, static_cast<int64_t>(windows.size()));
    if (!widths.empty()) run.announce(width_plans(widths), static_cast<int64_t>(windows.size()));
    if (options.pairs) announce_pairs(run, *options.pairs);
    announce_removal(run, options.iterative);
    if (options.narrow) run.announce(leave_one_out(architecture), checked_windows(run));
    std::optional<WidthStatistics> statistics;
    if (options.width)
        statistics.emplace(backend, architecture, options.width_aggregation, state.width_path());
    const SweepResult result =
        run.sweep("layers", plans, nullptr, run.all_windows(), statistics ? &*statistics : nullptr);

    ScoreTable& table = outcome.table;
    table.calibration = CalibrationInfo{.sources = corpus.files(),
                                        .sequences = static_cast<int64_t>(windows.size()),
                                        .seq_len = options.seq_len,
                                        .tokens = 0};
    for (int64_t tokens : result.tokens) table.calibration->tokens += tokens;
    table.model = identity;
    table.base_loss = mean(result.base.loss, result.tokens);
    table.base_accuracy = mean(result.base.accuracy, result.tokens);
    table.per_sequence["base"] = result.base.loss;
    for (int64_t l = 0; l < static_cast<int64_t>(architecture.layers.size()); ++l) {
        table.layers.push_back(layer_score(architecture, l, result));
        table.per_sequence[std::to_string(l)] = result.variants[l].loss;
    }
    if (statistics) {
        outcome.width = statistics->scores();
        table.ffn_width_curve = width_curve(run, outcome.width, widths);
    }
    AblationLosses losses(run, result);
    if (options.pairs) table.pairs = measure_pairs(losses, *options.pairs, outcome.pairs);
    if (options.iterative > 0)
        table.iterative =
            remove_iteratively(losses, options.iterative, options.layer_bytes, outcome.iterative);
    // Last: the weights change.
    if (options.narrow) table.precision = check_precision(run, *options.narrow, table);
    return outcome;
}

ScorePlan plan_score(Backend& backend, const Architecture& architecture, WeightSource weights,
                     const Corpus& corpus, const ScoreOptions& options, int64_t device_bytes,
                     int64_t host_bytes) {
    const std::vector<Window> windows =
        choose_windows(corpus, options.seq_len, options.samples, options.seed);
    check_conditional(architecture, options, std::ssize(windows));
    std::vector<StudentPlan> plans = leave_one_out(architecture);
    if (options.width)
        for (int64_t width : narrower_widths(architecture, options.widths))
            plans.push_back({.drop = {}, .ffn_width = width});
    const SweepSchedule schedule = make_schedule(architecture, plans);
    ScorePlan plan{.windows = std::ssize(windows)};
    for (const Window& window : windows) {
        plan.tokens += window.length;
        plan.multiply_adds += shared_multiply_adds(architecture, schedule, window.length, window.length);
    }
    plan.multiply_adds += conditional_multiply_adds(architecture, windows, options);
    VariantSweep sweep(backend, architecture, weights, plans, nullptr);
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
