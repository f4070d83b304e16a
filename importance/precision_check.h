// What a narrower number format of the sweep did to the scores.
#pragma once

#include "importance/score_run.h"
#include "runtime/score_table.h"

namespace minipuzzle::importance {

// Of a sweep whose weights are narrower than the backend's compute type.
struct NarrowSweep {
    Precision precision = Precision::bf16;
    // Called once, after the sweep is done with its weights: gives them up and returns the model's weights in
    // the compute type.
    std::function<WeightSource()> unquantized;
};

// How many windows the scores are measured on once more: the run's first sixteen, fewer where they would hold
// more than 16384 tokens, but one at least.
int64_t checked_windows(const ScoreRun& run);

// Scores the first windows() with unquantised weights (stage "precision") and compares: Spearman, root mean
// square and largest difference of loss_delta over layers, both means over the same windows. The table must
// hold the per-sequence losses.
PrecisionCheck check_precision(ScoreRun& run, const NarrowSweep& narrow, const ScoreTable& table);

}  // namespace minipuzzle::importance
