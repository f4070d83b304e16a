// What scores say beyond their rows: shared by inspect's text and JSON and by the report's figures.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/score_table.h"

namespace minipuzzle::cli {

// The first metric that any layer has, loss_delta before all others; loss_delta where the table has none.
Objective shown_metric(const ScoreTable& scores);

// Spearman's rank correlation between the metrics of the layers that have all of `metrics`: a metric that no
// layer has is not among them. Every metric is taken as a cost, larger is worse.
struct MetricAgreement {
    std::optional<LayerType> type;  // none: over all layers
    int64_t layers = 0;
    std::vector<std::string> metrics;                          // "loss_delta", "kl", "1-cosine", ...
    std::vector<std::vector<std::optional<double>>> spearman;  // square; null where a metric has no spread
};
// Over all layers first, then inside each type of at least kFewestToRank layers. Empty under two metrics.
inline constexpr int64_t kFewestToRank = 4;
std::vector<MetricAgreement> metric_agreements(const ScoreTable& scores);

// The layers of a type by one metric.
struct TypeSummary {
    LayerType type = LayerType::mamba;
    int64_t count = 0;  // that have a value
    int64_t least_layer = 0, most_layer = 0;
    double least = 0, median = 0, most = 0;
};
std::vector<TypeSummary> type_summaries(const ScoreTable& scores, Objective metric);

// Layers by ascending metric, equal ones by depth; those without a value last.
std::vector<int64_t> ranking(const ScoreTable& scores, Objective metric);

// Per step of the iterative removal, the loss_delta that the layers gone by then add up to when each is
// switched off alone; null from the first layer without a loss_delta on.
std::vector<std::optional<double>> additive_sums(const ScoreTable& scores);

// Measured pairs by interaction: the `most` largest above 0, largest first; the `most` least below 0, least
// first.
struct StrongestPairs {
    std::vector<PairScore> positive, negative;
};
StrongestPairs strongest_pairs(const PairScores& pairs, std::size_t most);

// The layers whose rank interval is widest, widest first, equal ones by depth.
std::vector<int64_t> least_certain_ranks(const RankStability& stability, std::size_t most);

// All of the above as one object, with the layers in the order shown: inspect's "analysis".
Json analysis_json(const ScoreTable& scores, const std::vector<int64_t>& shown);

}  // namespace minipuzzle::cli
