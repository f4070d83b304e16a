// Why each layer of the teacher stays or goes in a student.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "nas/search.h"

namespace minipuzzle::nas {

// Where a type is cut: the dearest layer that goes and the cheapest that stays, by the objective. Pinned
// layers and layers without a score do not count.
struct Cut {
    LayerType type = LayerType::mamba;
    int64_t kept = 0, dropped = 0;
    std::optional<int64_t> last_dropped, first_kept;  // layers of the teacher
};

struct LayerVerdict {
    int64_t layer = 0;
    LayerType type = LayerType::mamba;
    bool dropped = false;
    std::optional<double> loss;  // of the objective, with this layer alone off
    int64_t bytes = 0;           // weights, caches and states at the workload, at the student's width
    std::optional<double> loss_per_mib;
    std::optional<int64_t> rank;  // 0: first to go of its type
    // What the layer costs more than the cheapest kept one (it goes) or the dearest dropped one (it stays) of
    // its type, other than itself: below 0 and above 0 where loss alone explains it. Null where there is
    // none.
    std::optional<double> against_cut;
    std::string why;
};

struct Explanation {
    Objective objective = Objective::loss_delta;
    std::vector<LayerVerdict> layers;
    std::vector<Cut> cuts;  // one a type that the teacher has
};

// For any student of the teacher, also one that a common order of layers does not give: a layer that goes
// though a kept one of its type costs less says which. `options` name the workload and the pinned layers.
Explanation explain(const Architecture& teacher, const ScoreTable& scores, Objective objective,
                    const SearchOptions& options, const StudentPlan& plan);

}  // namespace minipuzzle::nas
