#include "nas/loss_polynomial.h"

#include <algorithm>

#include "kernels/check.h"

namespace minipuzzle::nas {

namespace {

using Slice = Eigen::Map<const Eigen::MatrixXd>;

// triple[layer, :, :].
Slice slice_of(const LossPolynomial& polynomial, int64_t layer) {
    const int64_t n = polynomial.layers();
    return {polynomial.triple.data() + layer * n * n, n, n};
}

}  // namespace

LossPolynomial::LossPolynomial(int64_t layers)
    : single(Eigen::VectorXd::Zero(layers)), pair(Eigen::MatrixXd::Zero(layers, layers)) {}

double LossPolynomial::at(const Removal& removal) const {
    const std::size_t n = static_cast<std::size_t>(layers());
    double sum = constant;
    for (std::size_t k = 0; k < removal.size(); ++k) {
        const Removed& z = removal[k];
        double around = single(z.layer);
        for (std::size_t j = 0; j < k; ++j) {
            const Removed& y = removal[j];
            double both = pair(y.layer, z.layer);
            if (!triple.empty()) {
                const double* row =
                    triple.data() +
                    (static_cast<std::size_t>(z.layer) * n + static_cast<std::size_t>(y.layer)) * n;
                for (std::size_t i = 0; i < j; ++i) both += row[removal[i].layer] * removal[i].share;
            }
            around += both * y.share;
        }
        sum += around * z.share;
    }
    return sum;
}

void LossPolynomial::add_triple(int64_t i, int64_t j, int64_t k, double value) {
    const std::size_t n = static_cast<std::size_t>(layers());
    if (triple.empty()) triple.assign(n * n * n, 0.0);
    const auto add = [&](int64_t a, int64_t b, int64_t c) {
        triple[(static_cast<std::size_t>(a) * n + static_cast<std::size_t>(b)) * n +
               static_cast<std::size_t>(c)] += value;
    };
    add(i, j, k);
    add(i, k, j);
    add(j, i, k);
    add(j, k, i);
    add(k, i, j);
    add(k, j, i);
}

PolynomialPoint::PolynomialPoint(const LossPolynomial& polynomial, const Removal& removal)
    : polynomial_(polynomial), x_(Eigen::VectorXd::Zero(polynomial.layers())), second_(polynomial.pair) {
    for (const Removed& removed : removal) {
        x_(removed.layer) = removed.share;
        if (!polynomial_.triple.empty()) second_ += removed.share * slice_of(polynomial_, removed.layer);
    }
    refresh();
}

void PolynomialPoint::move(int64_t layer, double by) {
    x_(layer) += by;
    if (!polynomial_.triple.empty()) second_ += by * slice_of(polynomial_, layer);
    refresh();
}

// first = single + pair x + (triple x) x / 2, where second = pair + triple x.
void PolynomialPoint::refresh() { first_ = polynomial_.single + 0.5 * (polynomial_.pair + second_) * x_; }

}  // namespace minipuzzle::nas
