// Distillation: the losses over the tokens seen, raw and smoothed, with the learning rate below.
#pragma once

#include <string>
#include <vector>

#include "distill/run_log.h"

namespace minipuzzle::report {

// What the bold line shows: the mean over a fiftieth of the run before and after each step, evenly many
// where the curve begins, so that a steep fall is not drawn late.
std::vector<double> smoothed(const std::vector<double>& values);

// Error-free for any log that has a step; "" for one without.
std::string loss_curve(const distill::RunLog& log);

}  // namespace minipuzzle::report
