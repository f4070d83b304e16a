// What narrower FFN layers cost: the model measured with every FFN cut to a width.
#pragma once

#include <string>
#include <vector>

#include "runtime/score_table.h"

namespace minipuzzle::report {

// "" for an empty curve.
std::string width_curve(const std::vector<WidthPoint>& curve);

}  // namespace minipuzzle::report
