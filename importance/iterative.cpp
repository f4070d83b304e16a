#include "importance/iterative.h"

#include <fmt/format.h>

#include <algorithm>

namespace minipuzzle::importance {

namespace {

// `gone` with each other layer in turn, ascending.
std::vector<LayerSet> with_one_more(const LayerSet& gone, int64_t layers) {
    std::vector<LayerSet> sets;
    for (int64_t l = 0; l < layers; ++l) {
        if (std::binary_search(gone.begin(), gone.end(), l)) continue;
        LayerSet off = gone;
        off.insert(std::lower_bound(off.begin(), off.end(), l), l);
        sets.push_back(std::move(off));
    }
    std::sort(sets.begin(), sets.end());
    return sets;
}

std::string stage_of(int64_t step) { return fmt::format("iterative/{}", step + 1); }

// Which layer goes: least rise, per byte where bytes are given.
int64_t least(const std::vector<std::optional<double>>& rises, const std::vector<int64_t>& layer_bytes) {
    int64_t found = -1;
    double least = 0;
    for (int64_t l = 0; l < static_cast<int64_t>(rises.size()); ++l) {
        if (!rises[l]) continue;
        const double cost = layer_bytes.empty() ? *rises[l] : *rises[l] / static_cast<double>(layer_bytes[l]);
        if (found < 0 || cost <= least) {
            found = l;
            least = cost;
        }
    }
    return found;
}

}  // namespace

std::vector<LayerSet> expected_removals(int64_t step, int64_t layers) {
    return step == 0 ? std::vector<LayerSet>{} : with_one_more(evenly_spread(step, layers), layers);
}

void announce_removal(ScoreRun& run, int64_t steps) {
    const int64_t layers = std::ssize(run.architecture().layers);
    for (int64_t step = 1; step < steps; ++step)
        run.announce(stage_of(step), plans_of(expected_removals(step, layers)), std::ssize(run.windows()));
}

IterativeScores remove_iteratively(AblationLosses& losses, int64_t steps,
                                   const std::vector<int64_t>& layer_bytes, SweepWork& work) {
    const int64_t layers = losses.layers(), windows = losses.windows();
    MP_ASSERT(steps < layers);
    MP_ASSERT(layer_bytes.empty() || static_cast<int64_t>(layer_bytes.size()) == layers);
    IterativeScores scores{.sequences = windows, .steps = {}};
    LayerSet gone;
    for (int64_t step = 0; step < steps; ++step) {
        losses.measure(stage_of(step), with_one_more(gone, layers), windows, work);
        RemovalStep removal;
        removal.layers.resize(layers);
        LayerSet next;
        for (int64_t l = 0; l < layers; ++l) {
            if (std::binary_search(gone.begin(), gone.end(), l)) continue;
            LayerSet off = gone;
            off.insert(std::lower_bound(off.begin(), off.end(), l), l);
            removal.layers[l] = losses.paired_mean(losses.differences(off, gone, windows)).mean;
        }
        removal.removed = least(removal.layers, layer_bytes);
        if (!layer_bytes.empty()) removal.bytes = layer_bytes[removal.removed];
        gone.insert(std::lower_bound(gone.begin(), gone.end(), removal.removed), removal.removed);
        const PairedMean rise = losses.paired_mean(losses.differences(gone, {}, windows));
        removal.loss_delta = rise.mean;
        removal.loss_delta_ci = rise.interval;
        scores.steps.push_back(std::move(removal));
    }
    return scores;
}

}  // namespace minipuzzle::importance
