// What the page may claim: sentences made from the artefacts themselves.
#pragma once

#include <string>
#include <vector>

#include "cli/report/inputs.h"

namespace minipuzzle::report {

// Markup, one sentence or two each.
std::vector<std::string> claims(const ReportInputs& inputs);

}  // namespace minipuzzle::report
