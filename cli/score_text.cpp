#include "cli/score_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/report/importance_chart.h"
#include "cli/score_analysis.h"
#include "cli/table.h"
#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

constexpr std::size_t kListedPairs = 8, kListedRanks = 5, kLeastShown = 8, kListedTies = 12;
constexpr int kShortestBar = 8, kLongestBar = 60;

const LayerScore& layer_at(const ScoreTable& scores, int64_t layer) {
    return scores.layers[narrow<std::size_t>(layer)];
}

std::string interval_cell(const std::optional<Interval>& interval, int decimals = 4) {
    return interval ? fmt::format("{:.{}f} .. {:.{}f}", (*interval)[0], decimals, (*interval)[1], decimals)
                    : "-";
}

// "12 (mamba)".
std::string layer_words(const ScoreTable& scores, int64_t layer) {
    return fmt::format("{} ({})", layer, name(layer_at(scores, layer).type));
}

bool same_samples(const ScoreTable& scores) {
    return std::all_of(scores.layers.begin(), scores.layers.end(), [&](const LayerScore& layer) {
        return layer.samples == scores.layers.front().samples;
    });
}

std::string base_line(const ScoreTable& scores) {
    if (!scores.base_loss) return "";
    return fmt::format("base loss {:.6f}, next-token accuracy {}\n", *scores.base_loss,
                       cell(scores.base_accuracy));
}

std::string calibration_line(const ScoreTable& scores) {
    if (!scores.calibration) return "";
    std::string text =
        fmt::format("{} sequences of {} tokens, {} tokens in all", scores.calibration->sequences,
                    scores.calibration->seq_len, scores.calibration->tokens);
    if (!scores.layers.empty() && same_samples(scores) &&
        scores.layers.front().samples != scores.calibration->sequences)
        text += fmt::format(", {} of them for each layer", scores.layers.front().samples);
    return text + "\n";
}

// The longest bar that stays whole stands for this; what is larger is cut.
double full_bar(const ScoreTable& scores, Objective metric) {
    std::vector<double> values;
    for (const LayerScore& layer : scores.layers)
        if (const auto v = value(layer, metric)) values.push_back(*v);
    return report::clip_level(values).value_or(0);
}

// The columns before the bars.
std::vector<std::string> layer_header(bool samples) {
    std::vector<std::string> header = {"layer", "type",       "loss_delta", "95 % interval",
                                       "kl",    "hidden_mse", "cosine"};
    if (samples) header.emplace_back("samples");
    return header;
}

std::vector<std::string> layer_cells(const LayerScore& layer, bool samples) {
    std::vector<std::string> cells = {std::to_string(layer.layer),
                                      std::string(name(layer.type)),
                                      cell(layer.loss_delta),
                                      interval_cell(layer.loss_delta_ci),
                                      cell(layer.kl),
                                      cell(layer.hidden_mse),
                                      cell(layer.cosine)};
    if (samples) cells.push_back(std::to_string(layer.samples));
    return cells;
}

// The bars take what the columns before them leave of the line.
std::string layer_rows(const ScoreTable& scores, const std::vector<int64_t>& shown,
                       const Terminal& terminal) {
    const Objective metric = shown_metric(scores);
    const double full = full_bar(scores, metric);
    const bool samples = !same_samples(scores);
    Table narrow_table(layer_header(samples));
    for (const int64_t layer : shown) narrow_table.add(layer_cells(layer_at(scores, layer), samples));
    const int room = terminal.columns - static_cast<int>(narrow_table.width()) - 2;
    const int width = std::clamp(room, kShortestBar, kLongestBar);

    std::vector<std::string> header = layer_header(samples);
    header.push_back(metric == Objective::loss_delta ? "" : std::string(name(metric)));
    Table table(header);
    for (const int64_t layer : shown) {
        std::vector<std::string> cells = layer_cells(layer_at(scores, layer), samples);
        const auto v = value(layer_at(scores, layer), metric);
        cells.push_back(v && full > 0 ? bar(*v / full, width, terminal.unicode) : "");
        table.add(std::move(cells));
    }
    return table.text();
}

std::string types_text(const ScoreTable& scores) {
    const Objective metric = shown_metric(scores);
    Table table({"by type", "layers", "least", "layer", "median", "most", "layer"});
    for (const TypeSummary& each : type_summaries(scores, metric))
        table.add({std::string(name(each.type)), std::to_string(each.count), cell(each.least),
                   std::to_string(each.least_layer), cell(each.median), cell(each.most),
                   std::to_string(each.most_layer)});
    return fmt::format("\n{} of the layers\n{}", name(metric), table.text());
}

std::string agreement_text(const MetricAgreement& agreement) {
    std::vector<std::string> header = {""};
    header.insert(header.end(), agreement.metrics.begin(), agreement.metrics.end());
    Table table(header);
    for (std::size_t row = 0; row < agreement.metrics.size(); ++row) {
        std::vector<std::string> cells = {agreement.metrics[row]};
        for (std::size_t column = 0; column < agreement.metrics.size(); ++column)
            cells.push_back(column > row ? "" : cell(agreement.spearman[row][column], 3));
        table.add(std::move(cells));
    }
    return fmt::format("\nagreement of the metrics: Spearman over {} {}\n{}", agreement.layers,
                       agreement.type ? fmt::format("{} layers", name(*agreement.type)) : "layers",
                       table.text());
}

std::string width_text(const ScoreTable& scores) {
    if (scores.ffn_width_curve.empty()) return "";
    Table curve({"ffn_width", "loss_delta", "kl"});
    for (const WidthPoint& point : scores.ffn_width_curve)
        curve.add({std::to_string(point.ffn_width), cell(point.loss_delta), cell(point.kl)});
    return "\n" + curve.text();
}

std::string stability_line(const RankStability& stability) {
    const std::string halves =
        stability.split_half ? fmt::format("{:.3f}", *stability.split_half) : "unknown";
    return wrapped(fmt::format(
        "split-half rank correlation {}; resampled rankings {:.3f} ({} resamples of {} documents)", halves,
        stability.rank_correlation, stability.resamples, stability.documents));
}

std::string widest_ranks(const ScoreTable& scores) {
    std::vector<std::string> words;
    for (const int64_t layer : least_certain_ranks(*scores.stability, kListedRanks)) {
        const auto& [low, high] = scores.stability->ranks[narrow<std::size_t>(layer)];
        words.push_back(fmt::format("{} {}..{}", layer_words(scores, layer), low, high));
    }
    return wrapped(fmt::format("widest rank intervals (95 %, 0: least): {}", fmt::join(words, ", ")));
}

// "3 = 12, 7 = 9", the first few of them.
std::string pair_list(const std::vector<std::array<int64_t, 2>>& pairs, std::string_view sign) {
    if (pairs.empty()) return "none";
    std::vector<std::string> words;
    for (std::size_t i = 0; i < std::min(pairs.size(), kListedTies); ++i)
        words.push_back(fmt::format("{} {} {}", pairs[i][0], sign, pairs[i][1]));
    const std::size_t more = pairs.size() - words.size();
    return fmt::format("{}{}", fmt::join(words, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
}

std::string certainty_line(const Certainty& certainty) {
    return wrapped(
        fmt::format("until certain: {} ties under {} nats, {} pairs open at {:g} %; "
                    "layer work {:.2f} of the full run's",
                    certainty.ties.size(), certainty.tie, certainty.open.size(), 100 * certainty.confidence,
                    certainty.layer_work));
}

std::string certainty_lists(const Certainty& certainty) {
    return wrapped(fmt::format("cut: drops {}", fmt::join(certainty.drop, ", "))) +
           wrapped("ties, dropped = kept: " + pair_list(certainty.ties, "=")) +
           wrapped("open, dropped ? kept: " + pair_list(certainty.open, "?"));
}

std::string precision_line(const PrecisionCheck& check) {
    return wrapped(
        fmt::format("precision: {} sweep, {} head, against bf16 on {} sequences: Spearman {:.4f}, rms "
                    "error of loss_delta {:.5f} nats, largest {:.5f}",
                    check.sweep, check.head, check.sequences, check.rank_correlation, check.rms_error,
                    check.largest_error));
}

std::string removals_text(const ScoreTable& scores) {
    const std::vector<std::optional<double>> sums = additive_sums(scores);
    const auto& steps = scores.iterative->steps;
    const bool bytes = std::any_of(steps.begin(), steps.end(), [](const auto& step) { return step.bytes; });
    std::vector<std::string> header = {"step",          "layer", "type",          "loss_delta",
                                       "95 % interval", "rise",  "sum of singles"};
    if (bytes) header.emplace_back("bytes");
    Table table(header);
    double before = 0;
    for (std::size_t i = 0; i < steps.size(); ++i) {
        const RemovalStep& step = steps[i];
        std::vector<std::string> row = {std::to_string(i + 1),
                                        std::to_string(step.removed),
                                        std::string(name(layer_at(scores, step.removed).type)),
                                        cell(step.loss_delta),
                                        interval_cell(step.loss_delta_ci),
                                        cell(step.loss_delta - before),
                                        cell(sums[i])};
        if (bytes) row.push_back(step.bytes ? std::to_string(*step.bytes) : "-");
        table.add(std::move(row));
        before = step.loss_delta;
    }
    return fmt::format(
        "\niterative removal on {} sequences: each step drops what costs least in what is left\n{}",
        scores.iterative->sequences, table.text());
}

std::string pairs_line(const PairScores& pairs) {
    const auto count = [&](auto predicate) {
        return std::count_if(pairs.pairs.begin(), pairs.pairs.end(), [&](const PairScore& pair) {
            return pair.interaction_ci && predicate(*pair.interaction_ci);
        });
    };
    return fmt::format(
        "{} pairs on {} sequences, all up to {} layers apart; interval above 0: {}, below 0: {}\n",
        pairs.pairs.size(), pairs.sequences, pairs.window,
        count([](const Interval& ci) { return ci[0] > 0; }),
        count([](const Interval& ci) { return ci[1] < 0; }));
}

std::string pairs_text(const ScoreTable& scores) {
    const StrongestPairs strongest = strongest_pairs(*scores.pairs, kListedPairs);
    Table table({"layers", "", "types", "interaction", "95 % interval", "loss_delta"});
    for (const auto* list : {&strongest.positive, &strongest.negative})
        for (const PairScore& pair : *list)
            table.add({std::to_string(pair.first), std::to_string(pair.second),
                       fmt::format("{} + {}", name(layer_at(scores, pair.first).type),
                                   name(layer_at(scores, pair.second).type)),
                       cell(pair.interaction), interval_cell(pair.interaction_ci), cell(pair.loss_delta)});
    return "\npair interactions, the strongest of both signs (above 0: losing both costs more than their "
           "sum)\n" +
           pairs_line(*scores.pairs) + table.text();
}

}  // namespace

std::vector<int64_t> shown_layers(const ScoreTable& scores, const LayerView& view) {
    std::vector<int64_t> shown;
    for (const LayerScore& layer : scores.layers) shown.push_back(layer.layer);
    if (view.by_score) shown = ranking(scores, shown_metric(scores));
    if (view.type)
        std::erase_if(shown, [&](int64_t layer) { return layer_at(scores, layer).type != *view.type; });
    return shown;
}

std::string scores_text(const ScoreTable& scores, const LayerView& view, const Terminal& terminal) {
    const std::vector<int64_t> shown = shown_layers(scores, view);
    std::string text = fmt::format("scores of {}, {} layers\n", scores.model.path, scores.layers.size());
    text += calibration_line(scores) + base_line(scores) + "\n" + layer_rows(scores, shown, terminal) +
            types_text(scores) + width_text(scores);
    for (const MetricAgreement& agreement : metric_agreements(scores)) text += agreement_text(agreement);
    if (scores.stability) text += "\n" + stability_line(*scores.stability) + widest_ranks(scores);
    if (scores.certainty)
        text += "\n" + certainty_line(*scores.certainty) + certainty_lists(*scores.certainty);
    if (scores.precision) text += "\n" + precision_line(*scores.precision);
    if (scores.iterative) text += removals_text(scores);
    if (scores.pairs) text += pairs_text(scores);
    return text;
}

std::string scores_summary(const ScoreTable& scores) {
    const Objective metric = shown_metric(scores);
    std::vector<std::string> least;
    for (const int64_t layer : ranking(scores, metric))
        if (const auto v = value(layer_at(scores, layer), metric); v && least.size() < kLeastShown)
            least.push_back(fmt::format("{} {:.4f}", layer_words(scores, layer), *v));
    std::string text = base_line(scores) + calibration_line(scores) + types_text(scores) +
                       wrapped(fmt::format("least: {}", fmt::join(least, ", "))) + width_text(scores);
    std::string parts;
    if (scores.certainty) parts += certainty_line(*scores.certainty) + certainty_lists(*scores.certainty);
    if (scores.stability) parts += stability_line(*scores.stability) + widest_ranks(scores);
    if (scores.precision) parts += precision_line(*scores.precision);
    if (!parts.empty()) text += "\n" + parts;
    if (scores.iterative) text += removals_text(scores);
    if (scores.pairs) text += pairs_text(scores);
    return text;
}

}  // namespace minipuzzle::cli
