// Distillation: the losses over the tokens seen, raw and smoothed, with the learning rate below.
#pragma once

#include <string>

#include "distill/run_log.h"

namespace minipuzzle::report {

// The running mean that the bold line shows: exponential, with a memory of a fiftieth of the run (at least
// one step), without the start's bias.
std::vector<double> smoothed(const std::vector<double>& values);

// Error-free for any log that has a step; "" for one without.
std::string loss_curve(const distill::RunLog& log);

}  // namespace minipuzzle::report
