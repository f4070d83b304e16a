// What measured students say of others: Gaussian process regression over sets of layers.
#pragma once

#include <Eigen/Dense>
#include <cstdint>
#include <optional>
#include <vector>

#include "nas/loss_polynomial.h"
#include "nas/surrogate.h"
#include "runtime/architecture.h"

namespace minipuzzle::nas {

// A student as the process sees it.
struct ProcessPoint {
    Removal removal;
    std::optional<double> width_term;  // of the common FFN width, as predicted; null: none is known
};

// The rise of a student's measured cost over the teacher's. Before any student is measured it is
//   r(x) = b (sum a_i x_i + width + measured pairs and corrections) + g(x) + noise,
// with a the scores, b normal around the ratio of the two units (1 where the scores are of the measured kind,
// else the median of the measured ratios), and g a polynomial with independent normal coefficients
// (Rasmussen & Williams 2006, sections 2.7 and 5.4.1), whose sizes follow from the scores:
//   of two layers   w_ij = sqrt(a_i a_j) / |i - j|, times a coefficient that all pairs of two types share and
//                   one of the pair's own; and sqrt(a_i a_j) times one that the types share at any distance,
//   of three        (w_ij w_ik w_jk)^(1/3) times one of the triple's own,
//   of a common FFN width   its term times 1, the share of FFNs gone and the share of all cost gone,
//   where the units differ also of one layer   a_i and the mean a times coefficients that a type shares.
// How large each kind is, is taken from a small grid by the marginal likelihood of what was measured.
class RiseProcess {
  public:
    // Keeps references.
    RiseProcess(const Architecture& teacher, const Surrogate& surrogate, bool same_units);

    struct Sizes {
        double near = 0.3, far = 0.1, pair = 0.3, triple = 0.15;
        // All of it, where pairs are known and what is left is less.
        double whole = 1;
    };

    // Refits on all measured students. Deterministic.
    void fit(const std::vector<ProcessPoint>& points, const std::vector<double>& rises);

    double mean(const ProcessPoint& point) const;
    // The mean for students of one common FFN width, as a polynomial.
    LossPolynomial polynomial(std::optional<double> width_term) const;
    // Of the rises of `points`, given the measured ones.
    Eigen::MatrixXd covariance(const std::vector<ProcessPoint>& points) const;
    // Variance of a measurement around a rise.
    double noise(double rise) const;
    const Sizes& sizes() const { return sizes_; }

  private:
    struct Products;
    Eigen::VectorXd features(const ProcessPoint& point) const;  // of the shared coefficients
    Eigen::VectorXd scales(const Sizes& sizes) const;           // their standard deviations
    double prior_mean(const ProcessPoint& point) const;         // with b = 1
    Products products(const std::vector<ProcessPoint>& a, const std::vector<ProcessPoint>& b) const;
    Eigen::MatrixXd prior_covariance(const Products& products, const Sizes& sizes) const;
    // The factor of the measured points' covariance; the log marginal likelihood, up to a constant.
    double likelihood(const Products& products, const Sizes& sizes, Eigen::MatrixXd* factor) const;

    const Architecture& teacher_;
    const Surrogate& surrogate_;
    bool same_units_;
    int64_t layers_;
    Eigen::VectorXd cost_;                    // a as it is scored; null scores are 0
    Eigen::VectorXd size_;                    // a as a size: not below a small share of the median
    Eigen::MatrixXd near_, far_;              // w and sqrt(a_i a_j); 0 on the diagonal
    Eigen::MatrixXd pair2_, triple_;          // w^2 and w^(2/3)
    Eigen::VectorXd ffn_share_, cost_share_;  // of a layer in all FFNs, in all cost
    LossPolynomial known_;                    // of b = 1
    double slope_ = 1;                        // b before anything is measured
    Sizes sizes_;
    std::vector<ProcessPoint> points_;
    Eigen::VectorXd residual_, noise_;  // rises less their mean; variances
    Eigen::VectorXd weights_;           // K^-1 (rises - mean)
    Eigen::MatrixXd factor_;            // lower Cholesky factor of K
};

}  // namespace minipuzzle::nas
