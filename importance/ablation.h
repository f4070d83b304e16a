// `score`: leave-one-layer-out as one pass over the layers.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "importance/until_certain.h"
#include "runtime/run_control.h"
#include "runtime/score_table.h"
#include "runtime/variant_sweep.h"

namespace minipuzzle::importance {

struct ScoreOptions {
    int64_t seq_len = 512;
    int64_t samples = 0;  // windows, in seeded order; 0: all, in corpus order
    uint64_t seed = 0;
    bool width = false;  // rank FFN neurons and measure ffn_width_curve
    std::vector<int64_t>
        widths;  // grid of the curve; empty: eight steps of a sixteenth of the width (rounded to 8)
    std::optional<UntilCertain> until_certain;  // then `samples` bounds the windows of any layer
    std::filesystem::path state;                // where finished batches are kept, "" for nowhere
    bool resume = false;                        // continue from `state`
    RunControl control;
};

struct ScoreOutcome {
    ScoreTable table;   // provenance and model identity are the caller's to fill in
    WidthScores width;  // empty without ScoreOptions::width
    // Of the leave-one-out sweep alone: done, and what layers + 1 separate passes would have taken.
    double multiply_adds = 0, separate_multiply_adds = 0;
    int64_t documents = 0;  // that the windows came from
};

// Scores every layer of the model on the corpus. Error bad_input: a NaN loss (names the window), a state that
// belongs to other inputs, too few documents for until_certain; usage: until_certain with width.
ScoreOutcome score(Backend& backend, const Architecture& architecture, WeightSource weights,
                   const ModelIdentity& identity, const Corpus& corpus, const ScoreOptions& options);

}  // namespace minipuzzle::importance
