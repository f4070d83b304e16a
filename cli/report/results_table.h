// Teacher, pruned and distilled student side by side on held-out text.
#pragma once

#include <string>

#include "cli/report/inputs.h"

namespace minipuzzle::report {

// The section with one row per evaluation; "" without any. Parameters and memory come from the search, for
// the models that it speaks of.
std::string results_section(const ReportInputs& inputs);

}  // namespace minipuzzle::report
