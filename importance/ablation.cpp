#include "importance/ablation.h"

#include <fmt/format.h>

#include <algorithm>

#include "importance/confidence.h"
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
    return text;
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

}  // namespace

ScoreOutcome score(Backend& backend, const Architecture& architecture, WeightSource weights,
                   const ModelIdentity& identity, const Corpus& corpus, const ScoreOptions& options) {
    const std::vector<Window> windows =
        choose_windows(corpus, options.seq_len, options.samples, options.seed);
    const std::vector<int64_t> widths =
        options.width ? narrower_widths(architecture, options.widths) : std::vector<int64_t>{};
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
    return outcome;
}

}  // namespace minipuzzle::importance
