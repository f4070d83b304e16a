#include "cli/score_analysis.h"

#include <algorithm>
#include <numeric>

#include "kernels/check.h"
#include "runtime/rank_correlation.h"

namespace minipuzzle::cli {
namespace {

constexpr std::size_t kListedPairs = 20, kListedRanks = 20;

// A metric as a cost: where agreement is better the larger, 1 - agreement.
struct Metric {
    const char* name;
    std::optional<double> LayerScore::*member;
    bool agreement = false;

    std::optional<double> cost(const LayerScore& layer) const {
        const std::optional<double>& value = layer.*member;
        return value && agreement ? std::optional(1 - *value) : value;
    }
};
constexpr Metric kMetrics[] = {
    {"loss_delta", &LayerScore::loss_delta}, {"kl", &LayerScore::kl},
    {"hidden_mse", &LayerScore::hidden_mse}, {"logit_nmse", &LayerScore::logit_nmse},
    {"1-cosine", &LayerScore::cosine, true}, {"1-top1", &LayerScore::top1_agreement, true}};

const LayerScore& layer_at(const ScoreTable& scores, int64_t layer) {
    return scores.layers[narrow<std::size_t>(layer)];
}

MetricAgreement agreement_of(const std::vector<const Metric*>& metrics,
                             const std::vector<const LayerScore*>& layers, std::optional<LayerType> type) {
    MetricAgreement agreement{.type = type, .layers = 0, .metrics = {}, .spearman = {}};
    std::vector<std::vector<double>> costs(metrics.size());
    for (const LayerScore* layer : layers) {
        if (type && layer->type != *type) continue;
        ++agreement.layers;
        for (std::size_t m = 0; m < metrics.size(); ++m) costs[m].push_back(*metrics[m]->cost(*layer));
    }
    for (std::size_t a = 0; a < metrics.size(); ++a) {
        agreement.metrics.emplace_back(metrics[a]->name);
        std::vector<std::optional<double>>& row = agreement.spearman.emplace_back();
        for (std::size_t b = 0; b < metrics.size(); ++b) row.push_back(spearman(costs[a], costs[b]));
    }
    return agreement;
}

Json json_of(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json agreements_json(const ScoreTable& scores) {
    Json json = Json::array();
    for (const MetricAgreement& each : metric_agreements(scores)) {
        Json rows = Json::array();
        for (const auto& row : each.spearman) {
            Json& cells = rows.emplace_back(Json::array());
            for (const auto& cell : row) cells.push_back(json_of(cell));
        }
        json.push_back({{"type", each.type ? Json(name(*each.type)) : Json(nullptr)},
                        {"layers", each.layers},
                        {"metrics", each.metrics},
                        {"spearman", std::move(rows)}});
    }
    return json;
}

Json types_json(const ScoreTable& scores, Objective metric) {
    Json json = Json::array();
    for (const TypeSummary& each : type_summaries(scores, metric))
        json.push_back({{"type", name(each.type)},
                        {"count", each.count},
                        {"least", each.least},
                        {"least_layer", each.least_layer},
                        {"median", each.median},
                        {"most", each.most},
                        {"most_layer", each.most_layer}});
    return json;
}

Json removals_json(const ScoreTable& scores) {
    Json json = Json::array();
    const std::vector<std::optional<double>> sums = additive_sums(scores);
    for (std::size_t i = 0; i < sums.size(); ++i) {
        const RemovalStep& step = scores.iterative->steps[i];
        json.push_back({{"step", i + 1},
                        {"layer", step.removed},
                        {"type", name(layer_at(scores, step.removed).type)},
                        {"loss_delta", step.loss_delta},
                        {"additive", json_of(sums[i])}});
    }
    return json;
}

Json pairs_json(const PairScores& pairs) {
    const StrongestPairs strongest = strongest_pairs(pairs, kListedPairs);
    const auto list = [](const std::vector<PairScore>& some) {
        Json json = Json::array();
        for (const PairScore& pair : some)
            json.push_back({{"layers", {pair.first, pair.second}}, {"interaction", pair.interaction}});
        return json;
    };
    return {{"positive", list(strongest.positive)}, {"negative", list(strongest.negative)}};
}

}  // namespace

Objective shown_metric(const ScoreTable& scores) {
    for (const Objective objective : {Objective::loss_delta, Objective::kl, Objective::hidden_mse,
                                      Objective::logit_nmse, Objective::one_minus_cosine})
        if (std::any_of(scores.layers.begin(), scores.layers.end(),
                        [&](const LayerScore& layer) { return value(layer, objective).has_value(); }))
            return objective;
    return Objective::loss_delta;
}

std::vector<MetricAgreement> metric_agreements(const ScoreTable& scores) {
    std::vector<const Metric*> metrics;
    for (const Metric& metric : kMetrics)
        if (std::any_of(scores.layers.begin(), scores.layers.end(),
                        [&](const LayerScore& layer) { return metric.cost(layer).has_value(); }))
            metrics.push_back(&metric);
    if (metrics.size() < 2) return {};
    std::vector<const LayerScore*> layers;
    for (const LayerScore& layer : scores.layers)
        if (std::all_of(metrics.begin(), metrics.end(),
                        [&](const Metric* metric) { return metric->cost(layer).has_value(); }))
            layers.push_back(&layer);
    std::vector<MetricAgreement> agreements = {agreement_of(metrics, layers, std::nullopt)};
    for (const LayerType type : kLayerTypes)
        if (MetricAgreement inside = agreement_of(metrics, layers, type); inside.layers >= kFewestToRank)
            agreements.push_back(std::move(inside));
    return agreements;
}

std::vector<TypeSummary> type_summaries(const ScoreTable& scores, Objective metric) {
    const std::vector<int64_t> order = ranking(scores, metric);
    std::vector<TypeSummary> summaries;
    for (const LayerType type : kLayerTypes) {
        std::vector<int64_t> layers;
        for (const int64_t layer : order)
            if (layer_at(scores, layer).type == type && value(layer_at(scores, layer), metric))
                layers.push_back(layer);
        if (layers.empty()) continue;
        const auto at = [&](std::size_t i) { return *value(layer_at(scores, layers[i]), metric); };
        const std::size_t last = layers.size() - 1;
        summaries.push_back({.type = type,
                             .count = static_cast<int64_t>(layers.size()),
                             .least_layer = layers.front(),
                             .most_layer = layers.back(),
                             .least = at(0),
                             .median = (at(last / 2) + at((last + 1) / 2)) / 2,
                             .most = at(last)});
    }
    return summaries;
}

std::vector<int64_t> ranking(const ScoreTable& scores, Objective metric) {
    std::vector<int64_t> order(scores.layers.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        const auto left = value(layer_at(scores, a), metric), right = value(layer_at(scores, b), metric);
        return left && right ? *left < *right : left.has_value() && !right.has_value();
    });
    return order;
}

std::vector<std::optional<double>> additive_sums(const ScoreTable& scores) {
    std::vector<std::optional<double>> sums;
    if (!scores.iterative) return sums;
    std::optional<double> sum = 0.0;
    for (const RemovalStep& step : scores.iterative->steps) {
        const std::optional<double>& alone = layer_at(scores, step.removed).loss_delta;
        sum = sum && alone ? std::optional(*sum + *alone) : std::nullopt;
        sums.push_back(sum);
    }
    return sums;
}

StrongestPairs strongest_pairs(const PairScores& pairs, std::size_t most) {
    std::vector<PairScore> order = pairs.pairs;
    std::stable_sort(order.begin(), order.end(),
                     [](const PairScore& a, const PairScore& b) { return a.interaction > b.interaction; });
    StrongestPairs strongest;
    for (auto pair = order.begin(); pair != order.end() && pair->interaction > 0; ++pair)
        if (strongest.positive.size() < most) strongest.positive.push_back(*pair);
    for (auto pair = order.rbegin(); pair != order.rend() && pair->interaction < 0; ++pair)
        if (strongest.negative.size() < most) strongest.negative.push_back(*pair);
    return strongest;
}

std::vector<int64_t> least_certain_ranks(const RankStability& stability, std::size_t most) {
    std::vector<int64_t> order(stability.ranks.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    const auto width = [&](int64_t layer) {
        const auto& [low, high] = stability.ranks[narrow<std::size_t>(layer)];
        return high - low;
    };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return width(a) > width(b); });
    if (order.size() > most) order.resize(most);
    return order;
}

Json analysis_json(const ScoreTable& scores, const std::vector<int64_t>& shown) {
    const Objective metric = shown_metric(scores);
    Json json = {{"metric", name(metric)},
                 {"shown", shown},
                 {"types", types_json(scores, metric)},
                 {"agreement", agreements_json(scores)}};
    if (scores.stability) json["least_certain_ranks"] = least_certain_ranks(*scores.stability, kListedRanks);
    if (scores.iterative) json["removals"] = removals_json(scores);
    if (scores.pairs) json["strongest_pairs"] = pairs_json(*scores.pairs);
    return json;
}

}  // namespace minipuzzle::cli
