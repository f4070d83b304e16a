// Predicted against measured: how far the prediction can be trusted, candidate by candidate.
#pragma once

#include <string>

#include "nas/search.h"

namespace minipuzzle::report {

// "" with fewer than two measured candidates. With the identity line where both are on one axis; beside it
// Spearman's correlation over all, inside equal numbers of dropped layers, and of each round's students as
// they were foretold before they were measured.
std::string prediction_scatter(const nas::SearchResult& search);

}  // namespace minipuzzle::report
