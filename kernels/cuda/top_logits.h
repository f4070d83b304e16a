// The k-th largest logit of every row.
#pragma once

#include "kernels/cuda/device.h"

namespace minipuzzle::cuda {

// Pointers stand at the first row.
struct TopLogits {
    const float* logits;  // [rows, vocabulary]
    int64_t vocabulary;
    const int32_t* targets;  // negative: the row is masked and left out
    int64_t top_k;           // in [1, vocabulary]
    float* thresholds;       // [rows], out
};

// Each row's top_k-th largest logit, of equal ones too, into `thresholds`. Ideal bytes: 4 V a row (0.5 MiB at
// the 8B shape's V 131072); read three times here, from the L2 cache if it still holds them. No arithmetic to
// speak of.
void find_top_logits(const Context&, const TopLogits&, int64_t rows);

}  // namespace minipuzzle::cuda
