#include "nas/rise_process.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/check.h"
#include "nas/interactions.h"

namespace minipuzzle::nas {

namespace {

constexpr double kSlope = 0.3;   // standard deviation of b, as a share of it
constexpr double kWidth = 0.3;   // of the coefficients of a common FFN width
constexpr double kLayers = 0.5;  // of those of single layers, where the units differ
constexpr double kLeast = 0.05;  // of the median cost: a layer that costs nothing still has to do with others

// The shared coefficients, in this order: the slope, near and far pairs by two types, the width's three,
// layers by type (their costs, then their number).
constexpr Eigen::Index kTypePairs = 6;
constexpr Eigen::Index kNear = 1, kFar = kNear + kTypePairs, kOfWidth = kFar + kTypePairs,
                       kOfCost = kOfWidth + 3, kOfCount = kOfCost + 3, kFeatures = kOfCount + 3;

Eigen::Index type_pair(LayerType a, LayerType b) {
    const auto [low, high] = std::minmax({static_cast<Eigen::Index>(a), static_cast<Eigen::Index>(b)});
    return low * 3 - low * (low - 1) / 2 + (high - low);
}

double median_above_zero(const Eigen::VectorXd& values) {
    std::vector<double> above;
    for (const double value : values)
        if (value > 0) above.push_back(value);
    if (above.empty()) return 1;
    std::nth_element(above.begin(), above.begin() + static_cast<std::ptrdiff_t>(above.size() / 2),
                     above.end());
    return above[above.size() / 2];
}

// What both have: the products of the shares of every layer.
Removal common(const Removal& a, const Removal& b) {
    Removal both;
    for (auto i = a.begin(), j = b.begin(); i != a.end() && j != b.end();) {
        if (i->layer == j->layer) both.push_back({i->layer, i->share * j->share});
        const int64_t layer = std::min(i->layer, j->layer);
        if (i->layer == layer) ++i;
        if (j->layer == layer) ++j;
    }
    return both;
}

// The sizes that are tried, one kind after the other.
using Size = double RiseProcess::Sizes::*;
struct SizeChoices {
    Size size;
    std::vector<double> values;
};
const std::vector<SizeChoices>& size_choices() {
    static const std::vector<SizeChoices> choices = {{&RiseProcess::Sizes::whole, {0.1, 0.3, 1}},
                                                     {&RiseProcess::Sizes::near, {0.1, 0.3, 1}},
                                                     {&RiseProcess::Sizes::far, {0.03, 0.1, 0.3, 1}},
                                                     {&RiseProcess::Sizes::pair, {0.1, 0.3, 1}},
                                                     {&RiseProcess::Sizes::triple, {0, 0.15, 0.5}}};
    return choices;
}

}  // namespace

// What the covariance of two lists of points is made of; sizes scale the parts.
struct RiseProcess::Products {
    Eigen::MatrixXd features_a, features_b;  // a row a point
    Eigen::MatrixXd pairs, triples;          // sums over what two points have in common
};

RiseProcess::RiseProcess(const Architecture& teacher, const Surrogate& surrogate, bool same_units)
    : teacher_(teacher),
      surrogate_(surrogate),
      same_units_(same_units),
      layers_(static_cast<int64_t>(teacher.layers.size())),
      known_(layers_) {
    const auto at = [&](int64_t i) { return surrogate_.cost[static_cast<std::size_t>(i)].value_or(0.0); };
    const auto is_ffn = [&](int64_t i) {
        return type_of(teacher_.layers[static_cast<std::size_t>(i)]) == LayerType::ffn;
    };
    cost_.resize(layers_);
    for (int64_t i = 0; i < layers_; ++i) cost_(i) = at(i);
    const double median = median_above_zero(cost_);
    size_ = cost_.cwiseMax(kLeast * median);
    near_ = far_ = Eigen::MatrixXd::Zero(layers_, layers_);
    for (int64_t i = 0; i < layers_; ++i)
        for (int64_t j = 0; j < layers_; ++j)
            if (i != j) {
                far_(i, j) = std::sqrt(size_(i) * size_(j));
                near_(i, j) = far_(i, j) / std::abs(static_cast<double>(i - j));
            }
    pair2_ = near_.cwiseAbs2();
    triple_ = near_.unaryExpr([](double w) { return std::cbrt(w * w); });
    // Of all that may go at all: a layer that carries the model counts like the median.
    cost_share_ = cost_.unaryExpr([&](double c) { return std::clamp(c, 0.0, 10 * median); });
    cost_share_ /= std::max(cost_share_.sum(), median);
    ffn_share_ = Eigen::VectorXd::Zero(layers_);
    const double ffns = static_cast<double>(teacher_.count(LayerType::ffn));
    for (int64_t i = 0; i < layers_; ++i)
        if (is_ffn(i)) ffn_share_(i) = 1 / ffns;

    known_.single = cost_;
    if (!surrogate_.interactions) return;
    const Interactions& terms = *surrogate_.interactions;
    for (int64_t j = 0; j < layers_; ++j)
        for (int64_t i = 0; i < j; ++i)
            known_.pair(i, j) = known_.pair(j, i) = terms.pair(i, j) + terms.fitted_pair(i, j);
    if (!terms.fitted()) return;
    for (int64_t k = 0; k < layers_; ++k)
        for (int64_t j = 0; j < k; ++j)
            for (int64_t i = 0; i < j; ++i) known_.add_triple(i, j, k, terms.triple(i, j, k));
}

double RiseProcess::prior_mean(const ProcessPoint& point) const {
    return known_.at(point.removal) + point.width_term.value_or(0.0);
}

double RiseProcess::noise(double rise) const {
    const double miss = higher_order_miss(rise);
    return miss * miss;
}

Eigen::VectorXd RiseProcess::features(const ProcessPoint& point) const {
    Eigen::VectorXd row = Eigen::VectorXd::Zero(kFeatures);
    const Removal& removal = point.removal;
    const double width = point.width_term.value_or(0.0);
    row(kOfWidth) = width;
    const double mean_size = size_.cwiseMin(10 * median_above_zero(cost_)).mean();
    for (std::size_t k = 0; k < removal.size(); ++k) {
        const auto [j, share] = removal[k];
        const LayerType type = type_of(teacher_.layers[static_cast<std::size_t>(j)]);
        row(0) += cost_(j) * share;
        row(kOfWidth + 1) += width * ffn_share_(j) * share;
        row(kOfWidth + 2) += width * cost_share_(j) * share;
        row(kOfCost + static_cast<Eigen::Index>(type)) += cost_(j) * share;
        row(kOfCount + static_cast<Eigen::Index>(type)) += mean_size * share;
        for (std::size_t n = 0; n < k; ++n) {
            const auto [i, other] = removal[n];
            const Eigen::Index types = type_pair(type, type_of(teacher_.layers[static_cast<std::size_t>(i)]));
            row(kNear + types) += near_(i, j) * share * other;
            row(kFar + types) += far_(i, j) * share * other;
        }
    }
    return row;
}

Eigen::VectorXd RiseProcess::scales(const Sizes& sizes) const {
    Eigen::VectorXd scale(kFeatures);
    scale(0) = kSlope * sizes.whole;
    scale.segment(kNear, kTypePairs).setConstant(sizes.near * sizes.whole);
    scale.segment(kFar, kTypePairs).setConstant(sizes.far * sizes.whole);
    scale.segment(kOfWidth, 3).setConstant(kWidth);
    scale.segment(kOfCost, kFeatures - kOfCost).setConstant(same_units_ ? 0.0 : kLayers);
    return scale;
}

RiseProcess::Products RiseProcess::products(const std::vector<ProcessPoint>& a,
                                            const std::vector<ProcessPoint>& b) const {
    const Eigen::Index rows = static_cast<Eigen::Index>(a.size()),
                       columns = static_cast<Eigen::Index>(b.size());
    const bool same = &a == &b;
    Products result{Eigen::MatrixXd(rows, kFeatures), Eigen::MatrixXd(columns, kFeatures),
                    Eigen::MatrixXd(rows, columns), Eigen::MatrixXd(rows, columns)};
    for (Eigen::Index n = 0; n < rows; ++n)
        result.features_a.row(n) = features(a[static_cast<std::size_t>(n)]).transpose();
    for (Eigen::Index m = 0; m < columns; ++m)
        result.features_b.row(m) = features(b[static_cast<std::size_t>(m)]).transpose();
    for (Eigen::Index n = 0; n < rows; ++n)
        for (Eigen::Index m = 0; m < (same ? n + 1 : columns); ++m) {
            const Removal both =
                common(a[static_cast<std::size_t>(n)].removal, b[static_cast<std::size_t>(m)].removal);
            double pairs = 0, triples = 0;
            for (std::size_t k = 1; k < both.size(); ++k)
                for (std::size_t j = 0; j < k; ++j) {
                    const double shares = both[k].share * both[j].share;
                    pairs += pair2_(both[j].layer, both[k].layer) * shares;
                    double third = 0;
                    for (std::size_t i = 0; i < j; ++i)
                        third += both[i].share * triple_(both[i].layer, both[j].layer) *
                                 triple_(both[i].layer, both[k].layer);
                    triples += third * triple_(both[j].layer, both[k].layer) * shares;
                }
            result.pairs(n, m) = pairs;
            result.triples(n, m) = triples;
            if (same) {
                result.pairs(m, n) = pairs;
                result.triples(m, n) = triples;
            }
        }
    return result;
}

Eigen::MatrixXd RiseProcess::prior_covariance(const Products& products, const Sizes& sizes) const {
    const Eigen::VectorXd variance = scales(sizes).cwiseAbs2();
    const double whole = sizes.whole * sizes.whole;
    return slope_ * slope_ *
           (products.features_a * variance.asDiagonal() * products.features_b.transpose() +
            whole * sizes.pair * sizes.pair * products.pairs +
            whole * sizes.triple * sizes.triple * products.triples);
}

double RiseProcess::likelihood(const Products& products, const Sizes& sizes, Eigen::MatrixXd* factor) const {
    Eigen::MatrixXd covariance = prior_covariance(products, sizes);
    covariance.diagonal() += noise_;
    const Eigen::LLT<Eigen::MatrixXd, Eigen::Lower> cholesky(covariance);
    MP_ASSERT(cholesky.info() == Eigen::Success);
    *factor = cholesky.matrixL();
    const Eigen::VectorXd white = factor->triangularView<Eigen::Lower>().solve(residual_);
    return -0.5 * white.squaredNorm() - factor->diagonal().array().log().sum();
}

void RiseProcess::fit(const std::vector<ProcessPoint>& points, const std::vector<double>& rises) {
    MP_ASSERT(!points.empty() && points.size() == rises.size());
    points_ = points;
    const Eigen::Index count = static_cast<Eigen::Index>(points.size());
    Eigen::VectorXd prior(count), measured(count);
    std::vector<double> ratios;
    for (Eigen::Index n = 0; n < count; ++n) {
        measured(n) = rises[static_cast<std::size_t>(n)];
        prior(n) = prior_mean(points[static_cast<std::size_t>(n)]);
        if (prior(n) > 0 && measured(n) > 0) ratios.push_back(measured(n) / prior(n));
    }
    if (!same_units_ && !ratios.empty()) {
        std::sort(ratios.begin(), ratios.end());
        slope_ = ratios[ratios.size() / 2];
    }
    residual_ = measured - slope_ * prior;
    noise_ = measured.unaryExpr([&](double rise) { return noise(rise); });

    const Products all = products(points_, points_);
    double best = likelihood(all, sizes_, &factor_);
    // One kind of size after the other, twice over: a step of the grid in one kind may open one in another.
    for (int pass = 0; pass < 2; ++pass)
        for (const SizeChoices& choices : size_choices()) {
            if (choices.size == &Sizes::whole && !surrogate_.interactions) continue;
            for (const double value : choices.values) {
                Sizes tried = sizes_;
                tried.*choices.size = value;
                Eigen::MatrixXd factor;
                const double found = likelihood(all, tried, &factor);
                if (found <= best) continue;
                best = found;
                sizes_ = tried;
                factor_ = std::move(factor);
            }
        }
    const Eigen::VectorXd white = factor_.triangularView<Eigen::Lower>().solve(residual_);
    weights_ = factor_.transpose().triangularView<Eigen::Upper>().solve(white);
}

double RiseProcess::mean(const ProcessPoint& point) const {
    double sum = slope_ * prior_mean(point);
    if (points_.empty()) return sum;
    const std::vector<ProcessPoint> asked = {point};
    return sum + (prior_covariance(products(asked, points_), sizes_) * weights_)(0);
}

LossPolynomial RiseProcess::polynomial(std::optional<double> width_term) const {
    const double width = width_term.value_or(0.0);
    LossPolynomial result = known_;
    result.constant += width;
    // Prior covariances with the measured ones times weights: the most probable coefficients.
    Eigen::VectorXd shared = Eigen::VectorXd::Zero(kFeatures);
    Eigen::MatrixXd own = Eigen::MatrixXd::Zero(layers_, layers_);
    std::vector<double> triples(static_cast<std::size_t>(layers_ * (layers_ - 1) * (layers_ - 2) / 6));
    const double whole = sizes_.whole * sizes_.whole * slope_;
    for (std::size_t n = 0; n < points_.size(); ++n) {
        const double weight = weights_(static_cast<Eigen::Index>(n));
        const Removal& removal = points_[n].removal;
        shared += weight * features(points_[n]);
        for (std::size_t k = 1; k < removal.size(); ++k)
            for (std::size_t j = 0; j < k; ++j) {
                const double shares = weight * removal[k].share * removal[j].share;
                own(removal[j].layer, removal[k].layer) += shares;
                if (sizes_.triple == 0) continue;
                const int64_t c = removal[k].layer, b = removal[j].layer;
                double* const row = triples.data() + c * (c - 1) * (c - 2) / 6 + b * (b - 1) / 2;
                for (std::size_t i = 0; i < j; ++i) row[removal[i].layer] += shares * removal[i].share;
            }
    }
    shared = slope_ * scales(sizes_).cwiseAbs2().cwiseProduct(shared);
    const double mean_size = size_.cwiseMin(10 * median_above_zero(cost_)).mean();
    result.constant += width * shared(kOfWidth);
    for (int64_t i = 0; i < layers_; ++i) {
        const Eigen::Index type =
            static_cast<Eigen::Index>(type_of(teacher_.layers[static_cast<std::size_t>(i)]));
        result.single(i) +=
            cost_(i) * (shared(0) + shared(kOfCost + type)) + mean_size * shared(kOfCount + type) +
            width * (ffn_share_(i) * shared(kOfWidth + 1) + cost_share_(i) * shared(kOfWidth + 2));
        for (int64_t j = i + 1; j < layers_; ++j) {
            const Eigen::Index types = type_pair(type_of(teacher_.layers[static_cast<std::size_t>(i)]),
                                                 type_of(teacher_.layers[static_cast<std::size_t>(j)]));
            result.pair(i, j) += near_(i, j) * shared(kNear + types) + far_(i, j) * shared(kFar + types) +
                                 whole * sizes_.pair * sizes_.pair * pair2_(i, j) * own(i, j);
            result.pair(j, i) = result.pair(i, j);
        }
    }
    const double third = whole * sizes_.triple * sizes_.triple;
    std::size_t index = 0;
    for (int64_t c = 0; c < layers_ && third > 0; ++c)
        for (int64_t b = 0; b < c; ++b)
            for (int64_t a = 0; a < b; ++a, ++index)
                if (triples[index] != 0)
                    result.add_triple(a, b, c,
                                      third * triple_(a, b) * triple_(a, c) * triple_(b, c) * triples[index]);
    // So far in units of the scores.
    result.constant *= slope_;
    result.single *= slope_;
    result.pair *= slope_;
    for (double& value : result.triple) value *= slope_;
    return result;
}

Eigen::MatrixXd RiseProcess::covariance(const std::vector<ProcessPoint>& points) const {
    const Eigen::MatrixXd prior = prior_covariance(products(points, points), sizes_);
    if (points_.empty()) return prior;
    const Eigen::MatrixXd with_measured = prior_covariance(products(points_, points), sizes_);
    const Eigen::MatrixXd white = factor_.triangularView<Eigen::Lower>().solve(with_measured);
    return prior - white.transpose() * white;
}

}  // namespace minipuzzle::nas
