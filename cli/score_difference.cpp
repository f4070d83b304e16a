// inspect A B of two scores.json.
#include <fmt/format.h>

#include "cli/score_analysis.h"
#include "cli/score_text.h"
#include "cli/table.h"
#include "kernels/check.h"
#include "runtime/rank_correlation.h"

namespace minipuzzle::cli {
namespace {

// One layer in both tables; ranks among all layers, 0 the least.
struct Change {
    const LayerScore *a = nullptr, *b = nullptr;
    std::optional<double> value_a, value_b;
    int64_t rank_a = 0, rank_b = 0;

    std::optional<double> change() const {
        return value_a && value_b ? std::optional(*value_b - *value_a) : std::nullopt;
    }
};

// The metric that both tables are compared by: the first that both have for some layer.
Objective common_metric(const ScoreTable& a, const ScoreTable& b) {
    const Objective first = shown_metric(a), second = shown_metric(b);
    return first > second ? first : second;
}

std::vector<Change> changes(const ScoreTable& a, const ScoreTable& b, Objective metric) {
    std::vector<Change> all(a.layers.size());
    for (std::size_t i = 0; i < all.size(); ++i)
        all[i] = {.a = &a.layers[i],
                  .b = &b.layers[i],
                  .value_a = value(a.layers[i], metric),
                  .value_b = value(b.layers[i], metric)};
    const std::vector<int64_t> order_a = ranking(a, metric), order_b = ranking(b, metric);
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
        all[narrow<std::size_t>(order_a[rank])].rank_a = static_cast<int64_t>(rank);
        all[narrow<std::size_t>(order_b[rank])].rank_b = static_cast<int64_t>(rank);
    }
    return all;
}

// Over the layers that both have, of one type or all; nullopt where that is too few.
std::optional<double> agreement(const std::vector<Change>& all, std::optional<LayerType> type) {
    std::vector<double> a, b;
    for (const Change& each : all)
        if (each.change() && (!type || each.a->type == *type)) {
            a.push_back(*each.value_a);
            b.push_back(*each.value_b);
        }
    if (type && static_cast<int64_t>(a.size()) < kFewestToRank) return std::nullopt;
    return spearman(a, b);
}

Json json_of(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

std::string signed_cell(const std::optional<double>& value) {
    return value ? fmt::format("{:+.4f}", *value) : "-";
}

}  // namespace

Json score_difference_json(const ScoreTable& a, const ScoreTable& b, const LayerView& view) {
    const Objective metric = common_metric(a, b);
    const std::vector<Change> all = changes(a, b, metric);
    Json layers = Json::array();
    for (const int64_t layer : shown_layers(a, view)) {
        const Change& each = all[narrow<std::size_t>(layer)];
        layers.push_back({{"layer", layer},
                          {"type", std::string(1, letter(each.a->type))},
                          {"a", json_of(each.value_a)},
                          {"b", json_of(each.value_b)},
                          {"change", json_of(each.change())},
                          {"rank_a", each.rank_a},
                          {"rank_b", each.rank_b}});
    }
    Json correlations = {{"all", json_of(agreement(all, std::nullopt))}};
    for (const LayerType type : kLayerTypes)
        correlations[std::string(name(type))] = json_of(agreement(all, type));
    return {{"metric", name(metric)}, {"layers", layers}, {"spearman", correlations}};
}

std::string score_difference_text(const ScoreTable& a, const ScoreTable& b, const LayerView& view) {
    const Objective metric = common_metric(a, b);
    const std::vector<Change> all = changes(a, b, metric);
    Table table({"layer", "type", "a", "b", "b - a", "rank a", "rank b", "moved", "intervals"});
    for (const int64_t layer : shown_layers(a, view)) {
        const Change& each = all[narrow<std::size_t>(layer)];
        const auto &ci_a = each.a->loss_delta_ci, &ci_b = each.b->loss_delta_ci;
        const bool apart = metric == Objective::loss_delta && ci_a && ci_b &&
                           ((*ci_a)[1] < (*ci_b)[0] || (*ci_b)[1] < (*ci_a)[0]);
        table.add({std::to_string(layer), std::string(name(each.a->type)), cell(each.value_a),
                   cell(each.value_b), signed_cell(each.change()), std::to_string(each.rank_a),
                   std::to_string(each.rank_b),
                   each.rank_a == each.rank_b ? "" : fmt::format("{:+}", each.rank_b - each.rank_a),
                   apart ? "apart" : ""});
    }
    std::string text =
        fmt::format("{} of two scores, ranks among {} layers (0: least)\n", name(metric), all.size());
    text +=
        table.text() + fmt::format("\nSpearman {} over all layers", cell(agreement(all, std::nullopt), 3));
    for (const LayerType type : kLayerTypes)
        if (const auto inside = agreement(all, type))
            text += fmt::format(", {} {}", name(type), cell(inside, 3));
    if (a.base_loss && b.base_loss)
        text += fmt::format("\nbase loss {:.6f} and {:.6f}, {:+.6f}", *a.base_loss, *b.base_loss,
                            *b.base_loss - *a.base_loss);
    return text + "\n";
}

}  // namespace minipuzzle::cli
