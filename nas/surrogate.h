// The predictors of a student's loss. The additive one: base + the scores of the dropped layers + the width
// term. The one with interactions adds what layers mean for each other, where the scores tell.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "nas/interactions.h"
#include "nas/search.h"
#include "nas/type_corrections.h"

namespace minipuzzle::nas {

struct Surrogate {
    Objective objective = Objective::loss_delta;
    std::optional<double> base;                       // the base loss; null for objectives that start at 0
    std::vector<std::optional<double>> cost;          // per teacher layer; null: never dropped
    std::map<int64_t, double> width_terms;            // ffn width -> cost, from ffn_width_curve
    std::optional<Interactions> interactions;         // with objective loss_delta and pairs in the scores
    std::optional<TypeCorrections> type_corrections;  // with any other objective, where they are asked for
};
// Fits the interactions, too: deterministic, from the table alone.
Surrogate make_surrogate(const ScoreTable& scores, Objective objective);

// The layers of one type in the order in which they are dropped: cheapest first, the higher index first
// among equals, null scores left out.
std::vector<int64_t> drop_order(const Surrogate& surrogate, const Architecture& teacher, LayerType type);

// The width term of one FFN width below the teacher's; null where the curve does not have it.
std::optional<double> width_term(const Surrogate& surrogate, const Architecture& teacher, int64_t ffn_width);

// The cost of narrowing FFN layer `layer` alone to `width`, all others left as they are: the curve's term, of
// all FFN layers narrowed to it, shared among the scored FFN layers in proportion to their costs (those below
// 0 count as 0; alike where none is above it). Null where the curve does not have the width or the layer has
// no score.
std::optional<double> layer_width_term(const Surrogate& surrogate, const Architecture& teacher, int64_t layer,
                                       int64_t width);

// Puts the terms together: the one place that adds them.
Predicted combine(const Surrogate& surrogate, double layers, std::optional<double> width);

// The same with what corrections add to the sum: `value` and, where it is there, `loss` contain it.
Predicted corrected(Predicted predicted, double correction);

// The additive prediction for any plan. Error bad_input where it drops a layer without a score.
Predicted predict_additive(const Surrogate& surrogate, const Architecture& teacher, const StudentPlan& plan);

// Whether the predictor asked for counts pairs of layers. Error usage where it should and the scores have
// none.
bool uses_pairs(const Surrogate& surrogate, Predictor predictor);

// The prediction that a search minimises: the additive one, corrected by type where
// corrections are given, else with the measured pairs where uses_pairs(). What
// larger removals add is left out: no exact solver reaches it. Errors alike.
Predicted predict_with(Predictor predictor, const Surrogate& surrogate, const Architecture& teacher,
                       const StudentPlan& plan);

// The prediction for any plan, with interactions or corrections where they are known, else the additive one.
// Errors alike.
Predicted predict(const Surrogate& surrogate, const Architecture& teacher, const StudentPlan& plan);

}  // namespace minipuzzle::nas
