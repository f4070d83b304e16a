// What dropping many layers of a type costs beyond the sum of their scores, taken from a model that random
// sets were measured on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/score_table.h"

namespace minipuzzle::nas {

// A sum of scores misleads in two ways: the metric says more of one type's layers than of another's, and
// every further layer of a type costs more than the one before. So the cost of a type of which n of N layers
// with scores adding up to A are dropped is taken to be
//   A w (1 + g (n - 1) / (N - 1)),   w: the type's weight, g: its growth, both without a unit and >= 0.
// Having no unit they can be carried from one model to another: from a small one that could be measured to a
// large one whose scores alone are published.
struct TypeCorrections {
    struct Type {
        double weight = 1, growth = 0;
    };
    Objective objective = Objective::hidden_mse;
    std::array<Type, 3> types;  // by LayerType
    std::size_t sets = 0;       // measured sets that they come from
    std::string origin;         // the model these were measured on

    // The corrected cost of `dropped` of a type's `layers` layers, whose scores add up to `sum`.
    double cost(LayerType type, double sum, int64_t dropped, int64_t layers) const;
};

// Fits weights and growths to the random sets of `measured`: the least sum of squared relative errors of the
// rise of the loss, none of them negative (every choice of coefficients left at 0 is solved; Lawson & Hanson
// 1974, chapter 23, for the conditions). Weights are then taken relative to Mamba's. Sets that drop a layer
// which carries the model are left out, as in nas/interactions.h. Error usage for the objective loss_delta: a
// loss that can be measured needs no other model's. Error bad_input, naming `where`: too few sets, a type
// that they never drop or that costs nothing, a score that is missing.
TypeCorrections fit_type_corrections(const ScoreTable& measured, Objective objective,
                                     const std::string& where);

}  // namespace minipuzzle::nas
