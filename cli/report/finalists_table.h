// The students that are worth a closer look, with every figure that is known of them.
#pragma once

#include <string>
#include <vector>

#include "nas/search.h"

namespace minipuzzle::report {

// The finalists that the search names, the best first; where it names none the first ten of
// drawn_candidates.
std::vector<const nas::Candidate*> finalists_of(const nas::SearchResult& search);

std::string finalists_table(const nas::SearchResult& search);

}  // namespace minipuzzle::report
