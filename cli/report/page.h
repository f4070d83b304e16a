// The report: one self-contained page (DESIGN.md, section 3).
#pragma once

#include <string>

#include "cli/report/inputs.h"

namespace minipuzzle::report {

// HTML under 1 MB that loads nothing and runs no script; sections appear for what the inputs hold.
std::string report_page(const ReportInputs& inputs);

}  // namespace minipuzzle::report
