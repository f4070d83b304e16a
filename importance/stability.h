// How far a ranking of layers would move with other text of the same kind.
#pragma once

#include <optional>
#include <vector>

#include "runtime/score_table.h"

namespace minipuzzle::importance {

// `differences`: per layer, one loss difference per window, of the first so many windows; layers may have
// different numbers of them. Ranks are by their token-weighted mean.
//
// The bootstrap is the Bayesian one (Rubin 1981): each resample weighs every document by an exponential
// deviate, the same for all layers. It agrees with drawing documents with replacement to first order, and
// never leaves a layer of few documents without any. The halves are the documents at even and at odd places
// of their seeded order. nullopt under kFewestDocuments of any layer, or where all means are equal.
std::optional<RankStability> rank_stability(const std::vector<std::vector<double>>& differences,
                                            const std::vector<int64_t>& tokens,
                                            const std::vector<int64_t>& documents, uint64_t seed,
                                            int64_t resamples = 1000);

}  // namespace minipuzzle::importance
