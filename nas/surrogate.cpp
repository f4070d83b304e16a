#include "nas/surrogate.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace minipuzzle::nas {

Surrogate make_surrogate(const ScoreTable& scores, Objective objective) {
    Surrogate surrogate;
    surrogate.objective = objective;
    if (objective == Objective::loss_delta) surrogate.base = scores.base_loss;
    for (const LayerScore& layer : scores.layers) surrogate.cost.push_back(value(layer, objective));
    for (const WidthPoint& point : scores.ffn_width_curve) {
        if (objective == Objective::loss_delta) surrogate.width_terms[point.ffn_width] = point.loss_delta;
        if (objective == Objective::kl && point.kl) surrogate.width_terms[point.ffn_width] = *point.kl;
    }
    if (objective == Objective::loss_delta && scores.pairs && !scores.pairs->pairs.empty())
        surrogate.interactions.emplace(scores);
    return surrogate;
}

std::vector<int64_t> drop_order(const Surrogate& surrogate, const Architecture& teacher, LayerType type) {
    std::vector<int64_t> order;
    for (int64_t layer = 0; layer < static_cast<int64_t>(teacher.layers.size()); ++layer) {
        const std::size_t i = static_cast<std::size_t>(layer);
        if (type_of(teacher.layers[i]) == type && surrogate.cost[i]) order.push_back(layer);
    }
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        const double cost_a = *surrogate.cost[static_cast<std::size_t>(a)];
        const double cost_b = *surrogate.cost[static_cast<std::size_t>(b)];
        return cost_a != cost_b ? cost_a < cost_b : a > b;
    });
    return order;
}

std::optional<double> width_term(const Surrogate& surrogate, const Architecture& teacher, int64_t ffn_width) {
    if (ffn_width == teacher.ffn_width()) return 0.0;
    const auto found = surrogate.width_terms.find(ffn_width);
    return found == surrogate.width_terms.end() ? std::nullopt : std::optional(found->second);
}

std::optional<double> layer_width_term(const Surrogate& surrogate, const Architecture& teacher, int64_t layer,
                                       int64_t width) {
    const auto own = [&](int64_t l) { return surrogate.cost[static_cast<std::size_t>(l)]; };
    const auto* ffn = std::get_if<Ffn>(&teacher.layers[static_cast<std::size_t>(layer)]);
    MP_ASSERT(ffn != nullptr);
    if (width == ffn->width) return 0.0;
    const auto term = surrogate.width_terms.find(width);
    if (term == surrogate.width_terms.end() || !own(layer)) return std::nullopt;
    double sum = 0, scored = 0;
    for (const int64_t l : drop_order(surrogate, teacher, LayerType::ffn)) {
        sum += std::max(0.0, *own(l));
        ++scored;
    }
    return term->second * (sum > 0 ? std::max(0.0, *own(layer)) / sum : 1 / scored);
}

Predicted combine(const Surrogate& surrogate, double layers, std::optional<double> width) {
    Predicted predicted;
    predicted.base = surrogate.base;
    predicted.layers = layers;
    predicted.width_term = width;
    predicted.value = surrogate.base.value_or(0.0) + layers + width.value_or(0.0);
    if (surrogate.objective == Objective::loss_delta && surrogate.base) predicted.loss = predicted.value;
    return predicted;
}

namespace {

// The terms of FFNs that are narrowed one by one; null where one is not known.
std::optional<double> own_width_terms(const Surrogate& surrogate, const Architecture& teacher,
                                      const StudentPlan& plan) {
    double sum = 0;
    for (const auto& [layer, width] : plan.ffn_widths) {
        const std::optional<double> term = layer_width_term(surrogate, teacher, layer, width);
        if (!term) return std::nullopt;
        sum += *term;
    }
    return sum;
}

}  // namespace

Predicted predict_additive(const Surrogate& surrogate, const Architecture& teacher, const StudentPlan& plan) {
    double layers = 0;
    // By type and in drop order: the additions of the search, so that both give the same bits.
    for (const LayerType type : kLayerTypes) {
        double dropped = 0;
        for (const int64_t layer : drop_order(surrogate, teacher, type))
            if (plan.drops(layer)) dropped += *surrogate.cost[static_cast<std::size_t>(layer)];
        layers += dropped;
    }
    for (const int64_t layer : plan.drop)
        if (!surrogate.cost[static_cast<std::size_t>(layer)])
            fail_input(
                fmt::format("layer {} is dropped but its {} is null in the scores: nothing can be "
                            "predicted; keep it or score it",
                            layer, name(surrogate.objective)));
    if (!plan.ffn_widths.empty())
        return combine(surrogate, layers, own_width_terms(surrogate, teacher, plan));
    const bool has_ffn = student_architecture(teacher, plan).count(LayerType::ffn) > 0;
    if (!plan.ffn_width || !has_ffn) return combine(surrogate, layers, 0.0);
    return combine(surrogate, layers, width_term(surrogate, teacher, *plan.ffn_width));
}

std::string_view name(Predictor predictor) {
    if (predictor == Predictor::automatic) return "auto";
    return predictor == Predictor::additive ? "additive" : "pairs";
}

bool uses_pairs(const Surrogate& surrogate, Predictor predictor) {
    const bool known = surrogate.interactions.has_value();
    if (predictor == Predictor::pairs && !known)
        fail_usage(
            "--predictor pairs: the scores hold no pairs of layers for this objective; score with --pairs "
            "and "
            "use the objective loss_delta, or take --predictor additive");
    return known && predictor != Predictor::additive;
}

namespace {

// What the corrections of all types add, by type and in drop order as in Space, so that both give the same
// bits.
double type_correction(const Surrogate& surrogate, const Architecture& teacher, const StudentPlan& plan) {
    double correction = 0;
    for (const LayerType type : kLayerTypes) {
        double sum = 0;
        int64_t dropped = 0;
        for (const int64_t layer : drop_order(surrogate, teacher, type)) {
            if (!plan.drops(layer)) continue;
            sum += *surrogate.cost[static_cast<std::size_t>(layer)];
            ++dropped;
        }
        correction += surrogate.type_corrections->cost(type, sum, dropped, teacher.count(type)) - sum;
    }
    return correction;
}

}  // namespace

Predicted corrected(Predicted predicted, double correction) {
    predicted.correction = correction;
    predicted.value += correction;
    if (predicted.loss) predicted.loss = predicted.value;
    return predicted;
}

Predicted predict_with(Predictor predictor, const Surrogate& surrogate, const Architecture& teacher,
                       const StudentPlan& plan) {
    Predicted predicted = predict_additive(surrogate, teacher, plan);
    if (surrogate.type_corrections)
        return corrected(std::move(predicted), type_correction(surrogate, teacher, plan));
    if (!uses_pairs(surrogate, predictor)) return predicted;
    predicted.pairs = surrogate.interactions->pairs(plan.drop);
    predicted.value += *predicted.pairs;
    if (predicted.loss) predicted.loss = predicted.value;
    return predicted;
}

Predicted predict(const Surrogate& surrogate, const Architecture& teacher, const StudentPlan& plan) {
    if (surrogate.type_corrections)
        return corrected(predict_additive(surrogate, teacher, plan),
                         type_correction(surrogate, teacher, plan));
    Predicted predicted = predict_with(Predictor::automatic, surrogate, teacher, plan);
    if (!surrogate.interactions || !surrogate.interactions->fitted()) return predicted;
    predicted.correction = surrogate.interactions->correction(plan.drop);
    predicted.value += *predicted.correction;
    if (predicted.loss) predicted.loss = predicted.value;
    return predicted;
}

}  // namespace minipuzzle::nas
