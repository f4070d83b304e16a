#include "nas/interactions.h"

#include <Eigen/Dense>
#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "kernels/check.h"

namespace minipuzzle::nas {

namespace {

// The prior, in the units of the header's formula. Chosen once on a coarse grid, on one model of 52 layers:
// by the likelihood of its measured sets and by how well other students of it were predicted.
constexpr double kTriple = 0.3;   // standard deviation of e
constexpr double kTypes = 0.09;   // of c
constexpr double kGrowth = 0.05;  // mean and standard deviation of g
constexpr double kLeast = 0.003;  // nats: a in h is not less, so that a layer of no cost stays harmless

// Steps of removal measure sets by the hundred that differ in one layer; so many, evenly, tell the same.
constexpr std::size_t kMostRemovalSets = 400;

constexpr std::size_t kTypeTriples = 27;  // by (type of i, j, k), sorted; ten of them are in use
constexpr std::size_t kShared = kTypeTriples + 1;
using Shared = std::array<double, kShared>;  // c of each combination of types, then g

std::size_t type_triple(LayerType a, LayerType b, LayerType c) {
    std::array<std::size_t, 3> types{static_cast<std::size_t>(a), static_cast<std::size_t>(b),
                                     static_cast<std::size_t>(c)};
    std::sort(types.begin(), types.end());
    return (types[0] * 3 + types[1]) * 3 + types[2];
}

template <class Visit>
void for_each_pair(const std::vector<int64_t>& set, Visit visit) {
    for (std::size_t j = 1; j < set.size(); ++j)
        for (std::size_t i = 0; i < j; ++i) visit(set[i], set[j]);
}

// By k, then j, then i: the order of triple_index.
template <class Visit>
void for_each_triple(const std::vector<int64_t>& set, Visit visit) {
    for (std::size_t k = 2; k < set.size(); ++k)
        for (std::size_t j = 1; j < k; ++j)
            for (std::size_t i = 0; i < j; ++i) visit(set[i], set[j], set[k]);
}

std::vector<int64_t> with(std::vector<int64_t> set, int64_t layer) {
    set.insert(std::lower_bound(set.begin(), set.end(), layer), layer);
    return set;
}

}  // namespace

double higher_order_miss(double rise) { return 0.05 * std::pow(std::abs(rise), 1.5) + 0.001; }

struct Interactions::MeasuredSet {
    std::vector<int64_t> drop;  // ascending, three layers or more
    double rise = 0;
};

// Variances of p (0 where measured) and e, by index; and the weights of what triples share.
struct Interactions::Prior {
    std::vector<double> pair, triple;
    std::vector<double> size, growth;  // s and h, by triple_index
    std::vector<std::size_t> types;    // by triple_index
};

Interactions::Interactions(const ScoreTable& scores) {
    if (!scores.pairs || scores.pairs->pairs.empty()) return;
    layers_ = static_cast<int64_t>(scores.layers.size());
    for (const LayerScore& layer : scores.layers) cost_.push_back(layer.loss_delta.value_or(0.0));
    pair_.resize(static_cast<std::size_t>(layers_ * layers_));
    fitted_pair_.resize(pair_.size());
    for (const PairScore& pair : scores.pairs->pairs)
        pair_[pair_index(pair.first, pair.second)] = pair.interaction;
    const std::vector<MeasuredSet> sets = measured_sets(scores);
    if (!sets.empty()) fit(sets, prior(scores));
}

double Interactions::pairs(const std::vector<int64_t>& drop) const {
    if (!known()) return 0;
    double sum = 0;
    for_each_pair(drop, [&](int64_t i, int64_t j) { sum += pair_[pair_index(i, j)].value_or(0.0); });
    return sum;
}

double Interactions::correction(const std::vector<int64_t>& drop) const {
    if (!fitted()) return 0;
    double sum = 0;
    for_each_pair(drop, [&](int64_t i, int64_t j) { sum += fitted_pair_[pair_index(i, j)]; });
    for_each_triple(drop, [&](int64_t i, int64_t j, int64_t k) { sum += triple_[triple_index(i, j, k)]; });
    return sum;
}

std::vector<Interactions::MeasuredSet> Interactions::measured_sets(const ScoreTable& scores) const {
    const auto usable = [&](const std::vector<int64_t>& drop) {
        return drop.size() >= 3 && std::all_of(drop.begin(), drop.end(), [&](int64_t layer) {
                   return cost_[static_cast<std::size_t>(layer)] <= kCarriesModel;
               });
    };
    std::vector<MeasuredSet> removals, sets;
    if (scores.iterative) {
        std::vector<int64_t> gone;
        double rise = 0;
        for (const RemovalStep& step : scores.iterative->steps) {
            for (int64_t layer = 0; layer < layers_; ++layer) {
                const auto& more = step.layers[static_cast<std::size_t>(layer)];
                if (!more) continue;
                MeasuredSet set{with(gone, layer), rise + *more};
                if (usable(set.drop)) removals.push_back(std::move(set));
            }
            gone = with(std::move(gone), step.removed);
            rise = step.loss_delta;
        }
    }
    const std::size_t stride = (removals.size() + kMostRemovalSets - 1) / kMostRemovalSets;
    for (std::size_t i = 0; i < removals.size(); i += stride) sets.push_back(std::move(removals[i]));
    if (scores.random_sets)
        for (const RandomSet& set : scores.random_sets->sets)
            if (usable(set.drop)) sets.push_back({set.drop, set.loss_delta});
    return sets;
}

Interactions::Prior Interactions::prior(const ScoreTable& scores) const {
    const auto carries = [&](int64_t layer) {
        return cost_[static_cast<std::size_t>(layer)] > kCarriesModel;
    };
    double sum = 0, count = 0;
    for (const PairScore& pair : scores.pairs->pairs)
        if (!carries(pair.first) && !carries(pair.second)) {
            sum += std::abs(pair.interaction);
            ++count;
        }
    const double usual = count > 0 ? sum / count : 0.0;
    Prior prior;
    prior.pair.resize(pair_.size());
    for (int64_t j = 0; j < layers_; ++j)
        for (int64_t i = 0; i < j; ++i)
            if (!pair_[pair_index(i, j)]) prior.pair[pair_index(i, j)] = usual * usual;
    std::vector<int64_t> all;
    for (int64_t layer = 0; layer < layers_; ++layer) all.push_back(layer);
    const auto type = [&](int64_t layer) { return scores.layers[static_cast<std::size_t>(layer)].type; };
    const auto inverse = [&](int64_t layer) {
        return 1 / std::max(cost_[static_cast<std::size_t>(layer)], kLeast);
    };
    for_each_triple(all, [&](int64_t i, int64_t j, int64_t k) {
        const auto &ij = pair_[pair_index(i, j)], &ik = pair_[pair_index(i, k)],
                   &jk = pair_[pair_index(j, k)];
        const double size = std::cbrt(std::abs(ij.value_or(usual) * ik.value_or(usual) * jk.value_or(usual)));
        const double p = ij.value_or(0.0), q = ik.value_or(0.0), r = jk.value_or(0.0);
        prior.size.push_back(size);
        prior.triple.push_back(kTriple * kTriple * size * size);
        prior.growth.push_back(2 * (p * q * inverse(i) + p * r * inverse(j) + q * r * inverse(k)));
        prior.types.push_back(type_triple(type(i), type(j), type(k)));
    });
    return prior;
}

void Interactions::fit(const std::vector<MeasuredSet>& sets, const Prior& prior) {
    const Eigen::Index rows = static_cast<Eigen::Index>(sets.size());
    // What the shared coefficients weigh in each set, in units of their standard deviations.
    std::vector<Shared> shared(sets.size(), Shared{});
    Eigen::VectorXd residual(rows);
    for (std::size_t n = 0; n < sets.size(); ++n) {
        for_each_triple(sets[n].drop, [&](int64_t i, int64_t j, int64_t k) {
            const std::size_t t = triple_index(i, j, k);
            shared[n][prior.types[t]] += kTypes * prior.size[t];
            shared[n][kTypeTriples] += kGrowth * prior.growth[t];
        });
        double known = pairs(sets[n].drop) + shared[n][kTypeTriples];
        for (const int64_t layer : sets[n].drop) known += cost_[static_cast<std::size_t>(layer)];
        residual(static_cast<Eigen::Index>(n)) = sets[n].rise - known;
    }
    Eigen::MatrixXd covariance(rows, rows);  // of the residuals, the lower half
    std::vector<int64_t> common;
    for (std::size_t n = 0; n < sets.size(); ++n)
        for (std::size_t m = 0; m <= n; ++m) {
            common.clear();
            std::set_intersection(sets[n].drop.begin(), sets[n].drop.end(), sets[m].drop.begin(),
                                  sets[m].drop.end(), std::back_inserter(common));
            double sum = 0;
            for_each_pair(common, [&](int64_t i, int64_t j) { sum += prior.pair[pair_index(i, j)]; });
            for_each_triple(
                common, [&](int64_t i, int64_t j, int64_t k) { sum += prior.triple[triple_index(i, j, k)]; });
            for (std::size_t c = 0; c < kShared; ++c) sum += shared[n][c] * shared[m][c];
            if (n == m) sum += std::pow(higher_order_miss(sets[n].rise), 2);
            covariance(static_cast<Eigen::Index>(n), static_cast<Eigen::Index>(m)) = sum;
        }
    const Eigen::LLT<Eigen::MatrixXd, Eigen::Lower> factor(covariance);
    MP_ASSERT(factor.info() == Eigen::Success);
    const Eigen::VectorXd weights = factor.solve(residual);

    // The coefficients' most probable values: prior covariance with the residuals times `weights`.
    Shared coefficient{};
    std::vector<double> own(prior.triple.size());
    for (std::size_t n = 0; n < sets.size(); ++n) {
        const double weight = weights(static_cast<Eigen::Index>(n));
        for (std::size_t c = 0; c < kShared; ++c) coefficient[c] += shared[n][c] * weight;
        for_each_pair(sets[n].drop, [&](int64_t i, int64_t j) {
            fitted_pair_[pair_index(i, j)] += prior.pair[pair_index(i, j)] * weight;
        });
        for_each_triple(sets[n].drop, [&](int64_t i, int64_t j, int64_t k) {
            const std::size_t t = triple_index(i, j, k);
            own[t] += prior.triple[t] * weight;
        });
    }
    triple_.resize(own.size());
    for (std::size_t t = 0; t < own.size(); ++t)
        triple_[t] = own[t] + kTypes * prior.size[t] * coefficient[prior.types[t]] +
                     kGrowth * prior.growth[t] * (1 + coefficient[kTypeTriples]);
    fitted_ = sets.size();
}

}  // namespace minipuzzle::nas
