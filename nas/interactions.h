// What layers mean for each other: second- and third-order terms of the loss of a model without a set of
// layers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/score_table.h"

namespace minipuzzle::nas {

// How far sums over subsets of three layers and fewer miss a measured rise, in nats: the orders above them,
// which grow faster than the rise itself, and the measurement.
double higher_order_miss(double rise);

// The rise of the loss with a set S of layers off, as a sum over subsets of S (its Moebius expansion), cut
// after the third order:
//   rise(S) = sum a_i + sum p_ij + sum t_ijk,   a: loss_delta, p: PairScore::interaction.
// The t are the most probable ones (Gaussian process regression, Rasmussen & Williams 2006, section 2.2)
// given the larger sets that were measured, those of `iterative` and of `random_sets`. Before those are seen
//   t_ijk = g h_ijk + s_ijk (c_types + e_ijk)
//     h = 2 (p_ij p_ik / a_i + p_ij p_jk / a_j + p_ik p_jk / a_k), of a removal whose cost grows with the
//         square of what others added to it,
//     s = |p_ij p_ik p_jk|^(1/3): three layers have to do with each other as much as their pairs do,
//     c: one a combination of layer types, e: one a triple; g, c and e independent and normal.
// A pair that was not measured counts as 0 with nothing larger measured; else its p is found with the t,
// before as large as the measured ones are in the mean.
class Interactions {
  public:
    // What the table knows. Without pairs there are no terms at all.
    explicit Interactions(const ScoreTable& scores);

    bool known() const { return layers_ > 0; }
    bool fitted() const { return fitted_ > 0; }
    std::size_t fitted_sets() const { return fitted_; }  // measured sets that the t come from

    // Sums over the pairs and the triples of `drop` (ascending), in nats.
    double pairs(const std::vector<int64_t>& drop) const;
    double correction(const std::vector<int64_t>& drop) const;
    // One pair's term of pairs(), i < j; 0 where it was not measured.
    double pair(int64_t i, int64_t j) const { return pair_[pair_index(i, j)].value_or(0.0); }
    // The terms of correction(): of a pair that was not measured, and of i < j < k.
    double fitted_pair(int64_t i, int64_t j) const { return fitted() ? fitted_pair_[pair_index(i, j)] : 0.0; }
    double triple(int64_t i, int64_t j, int64_t k) const {
        return fitted() ? triple_[triple_index(i, j, k)] : 0.0;
    }

  private:
    struct MeasuredSet;
    struct Prior;
    std::vector<MeasuredSet> measured_sets(const ScoreTable& scores) const;
    Prior prior(const ScoreTable& scores) const;
    void fit(const std::vector<MeasuredSet>& sets, const Prior& prior);

    std::size_t pair_index(int64_t i, int64_t j) const { return static_cast<std::size_t>(i * layers_ + j); }
    // Of i < j < k: how many triples come before it when ordered by k, then j, then i.
    static std::size_t triple_index(int64_t i, int64_t j, int64_t k) {
        return static_cast<std::size_t>(k * (k - 1) * (k - 2) / 6 + j * (j - 1) / 2 + i);
    }

    int64_t layers_ = 0;
    std::vector<double> cost_;                 // a; null scores are 0
    std::vector<std::optional<double>> pair_;  // p as measured, by pair_index, i < j
    std::vector<double> fitted_pair_;          // p that was not measured
    std::vector<double> triple_;               // t by triple_index; empty: nothing larger was measured
    std::size_t fitted_ = 0;
};

}  // namespace minipuzzle::nas
