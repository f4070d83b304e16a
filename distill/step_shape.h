// The sizes of a training step and what it minimises.
#pragma once

#include <vector>

#include "distill/feature_map.h"
#include "distill/losses.h"
#include "runtime/layer_activations.h"

namespace minipuzzle::distill {

struct StepShape {
    int64_t batch = 0;  // rows of a step
    int64_t rows = 0;   // of a micro-batch, at most
    int64_t seq_len = 0;
    LossWeights loss;
    std::vector<FeaturePair> pairs;    // empty without a feature term
    std::vector<Recompute> recompute;  // of each student layer; empty: full
    bool deterministic = true;         // attention's backward sums in one order

    int64_t tokens() const { return batch * seq_len; }
    Recompute recompute_of(int64_t layer) const {
        return recompute.empty() ? Recompute::full : recompute.at(static_cast<std::size_t>(layer));
    }
};

}  // namespace minipuzzle::distill
