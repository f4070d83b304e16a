// Which FFN neurons matter: the Minitron statistic.
#pragma once

#include "runtime/run_control.h"
#include "runtime/score_table.h"
#include "runtime/token_source.h"
#include "runtime/weight_source.h"

namespace minipuzzle::importance {

// For every FFN layer and neuron i: score_i = sqrt(sum over sequences of (mean over tokens of relu(x
// W_up)_i^2)^2), i.e. mean over the sequence, L2 over the batch (Minitron, arXiv 2407.14679; aggregation of
// its best row). The order is by falling score, ties keep the lower index. Batches are visited in order; sums
// in double.
WidthScores rank_neurons(Backend& backend, const Architecture& architecture, WeightSource weights,
                         const Corpus& corpus, const std::vector<Window>& windows, const RunControl& control);

// The curve's widths where the user names none: nine of them, from the whole width to three quarters in steps
// of a thirty-second, as MiniPuzzle's grid (arXiv 2504.03624, section 3). Widest first.
std::vector<int64_t> default_width_grid(int64_t ffn_width);

}  // namespace minipuzzle::importance
