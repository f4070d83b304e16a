// Where NaN or infinity came from.
#pragma once

#include <string>

#include "distill/optimizer.h"
#include "distill/step.h"

namespace minipuzzle::distill {

// The first tensor that holds NaN or infinity, in the order in which a step computes: the weights, the
// streams of the last micro-batch, then the gradients from the last parameter back to the first.
// "weight layers.3.mixer.A_log", "output of layer 3", "gradient of norm_f.weight"; "the loss itself" where
// all of them are finite (logits that overflow).
std::string first_fault(Backend& backend, const Optimizer& optimizer, const TrainStep& step);

}  // namespace minipuzzle::distill
