// `score`: leave-one-layer-out as one pass over the layers.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "importance/pairs.h"
#include "importance/precision_check.h"
#include "importance/until_certain.h"
#include "importance/width.h"
#include "runtime/run_control.h"
#include "runtime/score_table.h"
#include "runtime/variant_sweep.h"

namespace minipuzzle::importance {

struct ScoreOptions {
    int64_t seq_len = 512;
    int64_t samples = 0;  // windows, in seeded order; 0: all, in corpus order
    uint64_t seed = 0;
    bool width = false;           // rank neurons and heads, and measure ffn_width_curve
    std::vector<int64_t> widths;  // of the curve; empty: default_width_grid()
    WidthAggregation width_aggregation;
    std::optional<PairOptions> pairs;
    int64_t iterative = 0;                      // steps of iterative removal
    int64_t random_sets = 0;                    // random sets of layers off
    std::vector<int64_t> layer_bytes;           // per layer, at the budget's workload; empty without a budget
    std::optional<UntilCertain> until_certain;  // then `samples` bounds the windows of any layer
    std::optional<NarrowSweep> narrow;          // where the weights given are narrower than the compute type
    std::filesystem::path state;                // where finished batches are kept, "" for nowhere
    bool resume = false;                        // continue from `state`
    RunControl control;
};

struct ScoreOutcome {
    ScoreTable table;   // provenance and model identity are the caller's to fill in
    WidthScores width;  // empty without ScoreOptions::width
    // Of the leave-one-out sweep alone: done, and what layers + 1 separate passes would have taken.
    double multiply_adds = 0, separate_multiply_adds = 0;
    SweepWork pairs, iterative, random_sets;
    int64_t documents = 0;  // that the windows came from
};

// Scores every layer of the model on the corpus. Error bad_input: a NaN loss (names the window), a state that
// belongs to other inputs, too few documents for until_certain; usage: until_certain with width, pairs or
// iterative. `weights` are given up for options.narrow's in the end.
ScoreOutcome score(Backend& backend, const Architecture& architecture, WeightSource weights,
                   const ModelIdentity& identity, const Corpus& corpus, const ScoreOptions& options);

// What score() would do.
struct ScorePlan {
    int64_t windows = 0, tokens = 0, batches = 0;
    SweepMemory memory;        // of the leave-one-out sweep's largest batch
    double multiply_adds = 0;  // of all stages, as far as they are known before the first; with
                               // until_certain the most it may come to
};

// The dry run: nothing is computed or written, `weights` need no memory behind them. `device_bytes` and
// `host_bytes`: what is free beside the weights. Errors as score()'s, and VariantSweep::plan's.
ScorePlan plan_score(Backend& backend, const Architecture& architecture, WeightSource weights,
                     const Corpus& corpus, const ScoreOptions& options, int64_t device_bytes,
                     int64_t host_bytes);

}  // namespace minipuzzle::importance
