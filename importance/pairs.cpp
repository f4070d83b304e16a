#include "importance/pairs.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>

namespace minipuzzle::importance {

namespace {

constexpr const char* kStage = "pairs";

int64_t candidates_of(const PairOptions& options, int64_t layers) {
    return options.candidates.value_or(div_up(layers, 3));
}

int64_t window_of(const PairOptions& options, int64_t layers) {
    return options.all ? layers - 1 : options.window;
}

// Ascending.
std::vector<LayerSet> pairs_of(const PairOptions& options, int64_t layers,
                               const std::vector<int64_t>& candidates) {
    std::set<LayerSet> pairs;
    for (int64_t i = 0; i < layers; ++i)
        for (int64_t j = i + 1; j < layers && j - i <= window_of(options, layers); ++j) pairs.insert({i, j});
    for (std::size_t i = 0; i < candidates.size(); ++i)
        for (std::size_t j = i + 1; j < candidates.size(); ++j) pairs.insert({candidates[i], candidates[j]});
    return {pairs.begin(), pairs.end()};
}

}  // namespace

void check_pairs(const PairOptions& options, const Architecture& architecture, int64_t windows) {
    const int64_t layers = static_cast<int64_t>(architecture.layers.size());
    // With both layers of a pair off something must be left.
    if (layers < 3)
        fail_usage(fmt::format("--pairs: found a model of {} layers, expected at least 3", layers));
    if (options.window < 1 || options.window >= layers)
        fail_usage(
            fmt::format("--pairs {}: expected 1 to {} layers apart, or all", options.window, layers - 1));
    if (options.candidates.value_or(0) > layers)
        fail_usage(fmt::format("--pair-candidates {}: expected at most the model's {} layers",
                               *options.candidates, layers));
    if (options.samples > windows)
        fail_usage(fmt::format("--pair-samples {}: expected at most the run's {} sequences", options.samples,
                               windows));
}

std::vector<int64_t> likeliest(const Architecture& architecture, const std::vector<double>& rises,
                               int64_t count) {
    const int64_t layers = static_cast<int64_t>(architecture.layers.size());
    std::vector<int64_t> order(layers);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return rises[a] < rises[b]; });
    std::set<int64_t> chosen(order.begin(), order.begin() + count);
    std::map<LayerType, int64_t> left;
    for (const Layer& layer : architecture.layers) ++left[type_of(layer)];
    for (auto& [type, of_type] : left) of_type = div_up(count * of_type, layers);
    for (const int64_t l : order)
        if (left[type_of(architecture.layers[l])]-- > 0) chosen.insert(l);
    return {chosen.begin(), chosen.end()};
}

std::vector<LayerSet> expected_pairs(const PairOptions& options, int64_t layers) {
    // Which layers are likeliest is not known yet: as many, evenly spread.
    return pairs_of(options, layers, evenly_spread(candidates_of(options, layers), layers));
}

int64_t pair_windows(const PairOptions& options, int64_t windows) {
    return options.samples > 0 ? options.samples : windows;
}

void announce_pairs(ScoreRun& run, const PairOptions& options) {
    run.announce(kStage, plans_of(expected_pairs(options, std::ssize(run.architecture().layers))),
                 pair_windows(options, std::ssize(run.windows())));
}

PairScores measure_pairs(AblationLosses& losses, const PairOptions& options, SweepWork& work) {
    const int64_t layers = losses.layers(), windows = pair_windows(options, losses.windows());
    std::vector<std::vector<double>> alone;
    std::vector<double> rises;
    for (int64_t l = 0; l < layers; ++l) {
        alone.push_back(losses.differences({l}, {}, windows));
        rises.push_back(losses.paired_mean(alone.back()).mean);
    }
    const std::vector<int64_t> candidates =
        likeliest(losses.architecture(), rises, candidates_of(options, layers));
    const std::vector<LayerSet> pairs = pairs_of(options, layers, candidates);
    losses.measure(kStage, pairs, windows, work);
    PairScores scores{.window = window_of(options, layers), .sequences = windows, .pairs = {}};
    for (const LayerSet& pair : pairs) {
        std::vector<double> differences = losses.differences(pair, {}, windows);
        const double rise = losses.paired_mean(differences).mean;
        for (int64_t w = 0; w < windows; ++w) differences[w] -= alone[pair[0]][w] + alone[pair[1]][w];
        const PairedMean interaction = losses.paired_mean(differences);
        scores.pairs.push_back({.first = pair[0],
                                .second = pair[1],
                                .loss_delta = rise,
                                .interaction = interaction.mean,
                                .interaction_ci = interaction.interval});
    }
    return scores;
}

}  // namespace minipuzzle::importance
