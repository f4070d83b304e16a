// What a search lists: candidates and the frontier, as search.json has them.
#pragma once

#include <vector>

#include "nas/funnel.h"
#include "nas/solver.h"

namespace minipuzzle::nas {

// What describing a student takes; everything outlives it.
struct SearchContext {
    const Architecture& teacher;
    const ScoreTable& scores;
    const SearchOptions& options;
    const Surrogate& surrogate;
    const Space& space;
    const Solution& solution;
};

// The students given and the measured ones, best predicted first: the best `limit`, but none of the measured
// ones is left out. Ids are "c001" and so on, in that order.
struct ListedCandidates {
    std::vector<Candidate> candidates;
    std::vector<std::string> funnel_ids;  // of the funnel's students, in its order
};
ListedCandidates list_candidates(const SearchContext& context, const std::vector<Student>& students,
                                 const FunnelResult& funnel, std::size_t limit);

std::vector<FrontierPoint> frontier_of(const SearchContext& context);

}  // namespace minipuzzle::nas
