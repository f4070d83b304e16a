#include "importance/ablation.h"

#include <fmt/format.h>

#include <algorithm>

#include "importance/confidence.h"
#include "importance/feed_order.h"
#include "importance/score_run.h"
#include "importance/stability.h"
#include "importance/width.h"

namespace minipuzzle::importance {

namespace {

// The curve's widths, widest first, the teacher's own left out (it is the base itself).
std::vector<int64_t> narrower_widths(const Architecture& architecture, const ScoreOptions& options) {
    if (!options.width) return {};
    const int64_t full = architecture.ffn_width();
    if (full == 0)
        fail_usage("--width needs FFN layers of one common width; this model has " +
                   std::string(architecture.count(LayerType::ffn) ? "several widths" : "no FFN layer"));
    std::vector<int64_t> widths = options.widths.empty() ? default_width_grid(full) : options.widths;
    std::sort(widths.rbegin(), widths.rend());
    widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
    for (int64_t width : widths)
        if (width < 1 || width > full)
            fail_usage(fmt::format("--width {}: expected widths from 1 to the model's {}", width, full));
    if (!widths.empty() && widths.front() == full) widths.erase(widths.begin());
    return widths;
}

// Everything the figures depend on, for telling whether a state may be continued.
std::string identity_of(const Backend& backend, const ModelIdentity& model, const Corpus& corpus,
                        const ScoreOptions& options, const std::vector<int64_t>& widths) {
    std::string text = fmt::format("{} {} {} {} {} {} {}", version(), backend.name(), model.arch_hash,
                                   model.weights_hash, options.seq_len, options.samples, options.seed);
    for (const DataFile& file : corpus.files()) text += " " + file.hash;
    for (int64_t width : widths) text += fmt::format(" w{}", width);
    if (const auto& certain = options.until_certain)
        text += fmt::format(" until certain {} {} {} {}", certain->confidence, certain->tie,
                            certain->round_windows, certain->cut);
    return text;
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

std::vector<WidthPoint> width_curve(const Architecture& architecture, const std::vector<int64_t>& widths,
                                    const SweepResult& sweep) {
    if (widths.empty()) return {};
    std::vector<WidthPoint> curve{{.ffn_width = architecture.ffn_width(), .loss_delta = 0.0, .kl = 0.0}};
    const double base = mean(sweep.base.loss, sweep.tokens);
    for (std::size_t i = 0; i < widths.size(); ++i) {
        const SequenceMetrics& narrow = sweep.variants[architecture.layers.size() + i];
        curve.push_back({.ffn_width = widths[i],
                         .loss_delta = mean(narrow.loss, sweep.tokens) - base,
                         .kl = mean(narrow.kl, sweep.tokens)});
    }
    return curve;
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
    if (options.width)
        fail_usage("--until-certain goes without --width: measure the widths in a run of their own");
    check_documents(windows);
    return by_document(windows, options.seed);
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

}  // namespace

ScoreOutcome score(Backend& backend, const Architecture& architecture, WeightSource weights,
                   const ModelIdentity& identity, const Corpus& corpus, const ScoreOptions& options) {
    const std::vector<Window> windows = windows_of(corpus, options);
    const std::vector<int64_t> widths = narrower_widths(architecture, options);
    ScoreOutcome outcome;
    std::vector<StudentPlan> plans = leave_one_out(architecture);
    const SweepSchedule schedule = make_schedule(architecture, plans);
    for (const Window& window : windows) {
        outcome.multiply_adds += shared_multiply_adds(architecture, schedule, window.length, window.length);
        outcome.separate_multiply_adds +=
            separate_multiply_adds(architecture, plans, window.length, window.length);
    }
    for (int64_t width : widths) plans.push_back({.drop = {}, .ffn_width = width});
    ScoreState state(options.state, identity_of(backend, identity, corpus, options, widths), options.resume);
    ScoreRun run(backend, architecture, weights, corpus, windows, state, options.control);
    if (options.until_certain) return score_until_certain(run, identity, options);
    run.announce(plans, static_cast<int64_t>(windows.size()));
    if (options.width)
        outcome.width = rank_neurons(backend, architecture, weights, corpus, windows, options.control);
    const SweepResult result = run.sweep("layers", plans, &outcome.width, run.all_windows());

    add_table(architecture, result, run, options, outcome);
    outcome.table.model = identity;
    outcome.table.ffn_width_curve = width_curve(architecture, widths, result);
    return outcome;
}

}  // namespace minipuzzle::importance
