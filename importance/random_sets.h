// Random sets of layers off at once: what larger removals cost, for predicting students.
#pragma once

#include <cstdint>

#include "importance/ablation_losses.h"
#include "runtime/score_table.h"

namespace minipuzzle::importance {

// `count` different sets, ascending, a pure function of the arguments; fewer where there are not so many.
// Sizes run from 3 to half of `candidates` in turn; how many of each type is drawn first (any split alike),
// then which ones. Every second set is the cheapest of several draws, by the sum of `cost` (per layer): a
// search looks at students that are cheaper than most, and a predictor is to be right there. `candidates`:
// layers that may be off, ascending.
std::vector<LayerSet> draw_sets(const Architecture& architecture, const LayerSet& candidates,
                                const std::vector<double>& cost, int64_t count, uint64_t seed);

// Tells the run's progress how much work the sets will be.
void announce_random_sets(ScoreRun& run, int64_t count, uint64_t seed);

// Measures them over all windows; layers that carry the model (kCarriesModel) are never off. Adds to `work`.
// Throws Interrupted.
RandomSets measure_random_sets(AblationLosses& losses, int64_t count, uint64_t seed, SweepWork& work);

}  // namespace minipuzzle::importance
