// Memory against quality: what every budget could reach, the candidates, the best, the teacher.
#pragma once

#include <string>

#include "nas/search.h"

namespace minipuzzle::report {

// Two views side by side: all of the range that matters, and the candidates close up; in both the best
// predicted and the best measured at every budget. The chosen measurement shares the axis only where it is
// the objective's own (loss for loss_delta, KL for kl); otherwise the close-up shows it alone.
std::string frontier_chart(const nas::SearchResult& search);

}  // namespace minipuzzle::report
