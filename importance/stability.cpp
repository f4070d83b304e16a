#include "importance/stability.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "importance/confidence.h"
#include "importance/feed_order.h"
#include "kernels/check.h"
#include "kernels/random.h"
#include "runtime/rank_correlation.h"

namespace minipuzzle::importance {

namespace {

// Per layer the sums of its documents; documents are in order of first appearance, so those of a layer with
// fewer windows are the first ones.
using LayerSums = std::vector<DocumentSums>;

std::vector<double> weighted_means(const LayerSums& layers, const std::vector<double>& weights) {
    std::vector<double> means;
    for (const DocumentSums& sums : layers) {
        double values = 0, tokens = 0;
        for (std::size_t i = 0; i < sums.values.size(); ++i) {
            values += weights[i] * sums.values[i];
            tokens += weights[i] * sums.tokens[i];
        }
        means.push_back(values / tokens);
    }
    return means;
}

// 0 for the least; equal values by index.
std::vector<int64_t> places(const std::vector<double>& values) {
    std::vector<int64_t> order(values.size()), place(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) order[i] = static_cast<int64_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] < values[b]; });
    for (std::size_t i = 0; i < values.size(); ++i) place[order[i]] = static_cast<int64_t>(i);
    return place;
}

// The 95 % interval that a layer's ranks in the resamples leave: 2.5 % of them on either side.
std::array<int64_t, 2> middle(std::vector<int64_t> ranks) {
    std::sort(ranks.begin(), ranks.end());
    const std::size_t outside = ranks.size() / 40;
    return {ranks[outside], ranks[ranks.size() - 1 - outside]};
}

std::optional<double> split_half(const LayerSums& layers, const std::vector<int64_t>& documents,
                                 uint64_t seed) {
    std::map<int64_t, int64_t> place;
    for (const int64_t document : seeded_documents(documents, seed))
        place.emplace(document, static_cast<int64_t>(place.size()));
    std::vector<double> halves[2];  // weights of 0 and 1, documents in order of first appearance
    std::set<int64_t> seen;
    for (const int64_t document : documents) {
        if (!seen.insert(document).second) continue;
        const int64_t half = place.at(document) % 2;
        halves[half].push_back(1);
        halves[1 - half].push_back(0);
    }
    const std::vector<double> even = weighted_means(layers, halves[0]);
    const std::vector<double> odd = weighted_means(layers, halves[1]);
    // A layer of few documents may have none in a half.
    for (std::size_t l = 0; l < layers.size(); ++l)
        if (std::isnan(even[l]) || std::isnan(odd[l])) return std::nullopt;
    return spearman(even, odd);
}

}  // namespace

std::optional<RankStability> rank_stability(const std::vector<std::vector<double>>& differences,
                                            const std::vector<int64_t>& tokens,
                                            const std::vector<int64_t>& documents, uint64_t seed,
                                            int64_t resamples) {
    MP_ASSERT(resamples >= 1);
    LayerSums layers;
    std::size_t most = 0;
    std::vector<double> means;
    for (const std::vector<double>& layer : differences) {
        layers.push_back(document_sums(layer, tokens, documents));
        if (layers.back().documents() < kFewestDocuments) return std::nullopt;
        most = std::max(most, layers.back().values.size());
        means.push_back(layers.back().mean());
    }
    RankStability stability{.resamples = resamples, .documents = static_cast<int64_t>(most)};
    const CounterRandom random(seed, "bootstrap over documents");
    std::vector<std::vector<int64_t>> ranks(layers.size());
    std::vector<double> weights(most);
    for (int64_t r = 0; r < resamples; ++r) {
        for (std::size_t i = 0; i < most; ++i)
            weights[i] = -std::log(random.uniform(r * static_cast<int64_t>(most) + static_cast<int64_t>(i)));
        const std::vector<double> resampled = weighted_means(layers, weights);
        const std::optional<double> correlation = spearman(resampled, means);
        if (!correlation) return std::nullopt;
        stability.rank_correlation += *correlation / static_cast<double>(resamples);
        const std::vector<int64_t> place = places(resampled);
        for (std::size_t l = 0; l < layers.size(); ++l) ranks[l].push_back(place[l]);
    }
    for (std::vector<int64_t>& layer : ranks) stability.ranks.push_back(middle(std::move(layer)));
    stability.split_half = split_half(layers, documents, seed);
    return stability;
}

}  // namespace minipuzzle::importance
