// What two layers mean for each other: losses with both off.
#pragma once

#include <optional>
#include <vector>

#include "importance/ablation_losses.h"
#include "runtime/score_table.h"

namespace minipuzzle::importance {

struct PairOptions {
    int64_t window = 4;  // every pair at most so many layers apart
    bool all = false;    // every pair there is
    // Besides, every pair among the layers likeliest to be dropped: the so many of least loss_delta, and of
    // each type its share of them. nullopt: a third of the layers.
    std::optional<int64_t> candidates;
    int64_t samples = 0;  // the first so many windows of the run; 0: all
};

// Error usage where the options do not fit the model or the run's windows.
void check_pairs(const PairOptions& options, const Architecture& architecture, int64_t windows);

// The layers likeliest to be dropped, ascending: see PairOptions. `rises`: loss_delta per layer.
std::vector<int64_t> likeliest(const Architecture& architecture, const std::vector<double>& rises,
                               int64_t count);

// How many pairs there will be and about which, as far as that is known before single layers are measured.
std::vector<LayerSet> expected_pairs(const PairOptions& options, int64_t layers);
// The windows that pairs are measured on, of so many.
int64_t pair_windows(const PairOptions& options, int64_t windows);
// Tells the run's progress how much work the pairs will be.
void announce_pairs(ScoreRun& run, const PairOptions& options);

// interaction(i, j) = mean over sequences of loss(i, j) - loss(i) - loss(j) + loss(full), token-weighted, its
// interval paired per sequence. Adds to `work`. Throws Interrupted.
PairScores measure_pairs(AblationLosses& losses, const PairOptions& options, SweepWork& work);

}  // namespace minipuzzle::importance
