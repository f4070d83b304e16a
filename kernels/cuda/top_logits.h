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

void find_top_logits(const Context&, const TopLogits&, int64_t rows);

}  // namespace minipuzzle::cuda
