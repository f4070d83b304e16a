// The rise of a loss as a polynomial of third order in what is taken out of the layers.
#pragma once

#include <Eigen/Dense>
#include <cstdint>
#include <vector>

namespace minipuzzle::nas {

// How much of a layer is gone: 1 is dropped; an FFN that is narrowed alone counts as the share of its cost
// that the narrowing is predicted to have.
struct Removed {
    int64_t layer = 0;
    double share = 1;
    bool operator==(const Removed&) const = default;
};
// Ascending layers, shares above 0.
using Removal = std::vector<Removed>;

// constant + sum single_i x_i + sum pair_ij x_i x_j + sum triple_ijk x_i x_j x_k over i < j < k, linear in
// every x_i on its own.
struct LossPolynomial {
    explicit LossPolynomial(int64_t layers);

    double constant = 0;
    Eigen::VectorXd single;
    Eigen::MatrixXd pair;        // symmetric, 0 on the diagonal
    std::vector<double> triple;  // [layers, layers, layers], symmetric, 0 where two are equal; or empty

    int64_t layers() const { return single.size(); }
    double at(const Removal& removal) const;
    // Adds to the coefficients of i, j and k in any order, all different.
    void add_triple(int64_t i, int64_t j, int64_t k, double value);
};

// A point of a polynomial, with the derivatives that say what any change of one or two layers does.
class PolynomialPoint {
  public:
    PolynomialPoint(const LossPolynomial& polynomial, const Removal& removal);

    double share(int64_t layer) const { return x_(layer); }
    // The polynomial's change where the share of one layer, or of two different ones, changes by so much.
    double change(int64_t layer, double by) const { return by * first_(layer); }
    double change(int64_t i, double by_i, int64_t j, double by_j) const {
        return by_i * first_(i) + by_j * first_(j) + by_i * by_j * second_(i, j);
    }
    // O(layers^2).
    void move(int64_t layer, double by);

  private:
    void refresh();

    const LossPolynomial& polynomial_;
    Eigen::VectorXd x_, first_;
    Eigen::MatrixXd second_;
};

}  // namespace minipuzzle::nas
