#include "distill/losses.h"

#include <fmt/format.h>

#include <cmath>

namespace minipuzzle::distill {

LossWeights settle(const LossWeights& asked, bool has_teacher) {
    for (double weight : {asked.kl, asked.ce, asked.feature, asked.reverse_kl})
        if (!(weight >= 0) || !std::isfinite(weight))
            fail_usage(fmt::format("loss weight {}: expected a finite number >= 0", weight));
    if (!(asked.temperature > 0) || !std::isfinite(asked.temperature))
        fail_usage(fmt::format("temperature {}: expected a number > 0", asked.temperature));
    if (asked.top_k < 0) fail_usage(fmt::format("top-k {}: expected a number >= 0", asked.top_k));
    if (asked.top_k > 0 && asked.reverse_kl > 0)
        fail_usage(
            "--reverse-kl needs the teacher's whole distribution and --top-k cuts it: leave one of them out");
    LossWeights settled = asked;
    if (!has_teacher) {
        settled.kl = settled.feature = settled.reverse_kl = 0;
        settled.top_k = 0;
        if (settled.ce == 0) settled.ce = 1;
    }
    if (settled.kl + settled.ce + settled.feature + settled.reverse_kl == 0)
        fail_usage(
            "every loss weight is 0: give at least one of kl, reverse-kl, ce and feature a weight above 0");
    return settled;
}

std::string_view name(FeatureKind kind) { return kind == FeatureKind::cosine ? "cosine" : "mse"; }

FeatureKind parse_feature_kind(const std::string& text) {
    for (FeatureKind kind : {FeatureKind::cosine, FeatureKind::mse})
        if (text == name(kind)) return kind;
    fail_usage(fmt::format("feature loss '{}': expected cosine or mse", text));
}

LossSums& LossSums::operator+=(const LossSums& other) {
    kl += other.kl;
    ce += other.ce;
    feature += other.feature;
    reverse_kl += other.reverse_kl;
    return *this;
}

bool LossSums::finite() const { return std::isfinite(kl + ce + feature + reverse_kl); }

LossMeans means(const LossSums& sums, const LossWeights& weights, int64_t targets) {
    LossMeans means;
    const auto term = [&](double weight, double sum, std::optional<double>& mean) {
        if (weight == 0) return;
        mean = sum / static_cast<double>(targets);
        means.loss += weight * *mean;
    };
    term(weights.kl, sums.kl, means.kl);
    term(weights.ce, sums.ce, means.ce);
    term(weights.feature, sums.feature, means.feature);
    term(weights.reverse_kl, sums.reverse_kl, means.reverse_kl);
    return means;
}

}  // namespace minipuzzle::distill
