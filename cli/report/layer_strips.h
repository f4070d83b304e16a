// Which layers each candidate keeps: a row per candidate, a cell per layer of the teacher.
#pragma once

#include <string>
#include <vector>

#include "nas/search.h"

namespace minipuzzle::report {

inline constexpr std::size_t kMostStrips = 30;

// The candidates that are drawn, at most kMostStrips: the best, the other finalists, then the measured ones
// from good to bad, then the rest by prediction.
std::vector<const nas::Candidate*> drawn_candidates(const nas::SearchResult& search);

// A table: name, strip, counts, memory, prediction, the chosen measurement; the teacher stands in the first
// row.
std::string layer_strips(const nas::SearchResult& search);

}  // namespace minipuzzle::report
