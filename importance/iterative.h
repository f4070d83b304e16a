// Iterative removal: importance given what is gone already.
#pragma once

#include "importance/ablation_losses.h"
#include "runtime/score_table.h"

namespace minipuzzle::importance {

// About which sets of layers step `step` (from 0) asks for: which are gone by then is not known, layers
// evenly spread cost about the same. None in the first step, whose single layers are measured before.
std::vector<LayerSet> expected_removals(int64_t step, int64_t layers);
// Tells the run's progress how much work `steps` steps will be.
void announce_removal(ScoreRun& run, int64_t steps);

// Takes away the layer whose loss rises least, `steps` times, every time measuring all that are left in the
// model without those gone (as Nemotron Nano 2, arXiv 2508.14444, takes layers away one by one; by loss
// here). With `layer_bytes` (one a layer, else empty) the rise counts per byte. Of equals the later layer
// goes. Adds to `work`. Throws Interrupted.
IterativeScores remove_iteratively(AblationLosses& losses, int64_t steps,
                                   const std::vector<int64_t>& layer_bytes, SweepWork& work);

}  // namespace minipuzzle::importance
