#include "nas/type_corrections.h"

#include <fmt/format.h>

#include <Eigen/Dense>
#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

namespace minipuzzle::nas {

namespace {

constexpr std::size_t kTypeCount = 3, kCoefficients = 2 * kTypeCount;  // each type's w, then each one's w g
constexpr std::size_t kFewestSets = 30;                                // five for each coefficient

// How far a type is used up: 0 with its first layer, 1 with its last.
double used_up(int64_t dropped, int64_t layers) {
    return dropped > 1 && layers > 1 ? static_cast<double>(dropped - 1) / static_cast<double>(layers - 1) : 0;
}

struct Measurements {
    Eigen::MatrixXd terms;  // [set, coefficient], over the set's rise
    std::size_t rows = 0;
};

bool usable(const RandomSet& set, const ScoreTable& measured) {
    return set.loss_delta > 0 && std::all_of(set.drop.begin(), set.drop.end(), [&](int64_t layer) {
               return measured.layers[static_cast<std::size_t>(layer)].loss_delta.value_or(0.0) <=
                      kCarriesModel;
           });
}

// Each usable set's terms, so that the fit is of a column of ones: errors relative to what was measured.
Measurements measurements(const ScoreTable& measured, Objective objective, const std::string& where) {
    Measurements result;
    if (!measured.random_sets) return result;
    std::array<int64_t, kTypeCount> layers{};
    for (const LayerScore& layer : measured.layers) ++layers[static_cast<std::size_t>(layer.type)];
    result.terms.resize(static_cast<Eigen::Index>(measured.random_sets->sets.size()), kCoefficients);
    for (const RandomSet& set : measured.random_sets->sets) {
        if (!usable(set, measured)) continue;
        std::array<double, kTypeCount> sum{};
        std::array<int64_t, kTypeCount> dropped{};
        for (const int64_t index : set.drop) {
            const LayerScore& layer = measured.layers[static_cast<std::size_t>(index)];
            const auto score = value(layer, objective);
            if (!score)
                fail_input(
                    fmt::format("{}: layer {} has no {}, which the search goes by; expected a score "
                                "for every layer that the random sets drop",
                                where, index, name(objective)));
            sum[static_cast<std::size_t>(layer.type)] += *score;
            ++dropped[static_cast<std::size_t>(layer.type)];
        }
        for (std::size_t t = 0; t < kTypeCount; ++t) {
            const auto row = static_cast<Eigen::Index>(result.rows), column = static_cast<Eigen::Index>(t);
            result.terms(row, column) = sum[t] / set.loss_delta;
            result.terms(row, column + Eigen::Index{kTypeCount}) =
                result.terms(row, column) * used_up(dropped[t], layers[t]);
        }
        ++result.rows;
    }
    result.terms.conservativeResize(static_cast<Eigen::Index>(result.rows), Eigen::NoChange);
    return result;
}

// The least squares solution of terms * x = 1 with x >= 0: the best of those with a fixed set of zeros.
Eigen::VectorXd fit_not_negative(const Eigen::MatrixXd& terms) {
    const Eigen::VectorXd ones = Eigen::VectorXd::Ones(terms.rows());
    Eigen::VectorXd best = Eigen::VectorXd::Zero(kCoefficients);
    double least = std::numeric_limits<double>::infinity();
    for (unsigned kept = 1; kept < 1U << kCoefficients; ++kept) {
        std::vector<Eigen::Index> columns;
        for (std::size_t c = 0; c < kCoefficients; ++c)
            if (kept >> c & 1U) columns.push_back(static_cast<Eigen::Index>(c));
        Eigen::MatrixXd part(terms.rows(), static_cast<Eigen::Index>(columns.size()));
        for (std::size_t i = 0; i < columns.size(); ++i)
            part.col(static_cast<Eigen::Index>(i)) = terms.col(columns[i]);
        const Eigen::VectorXd found = part.colPivHouseholderQr().solve(ones);
        const double error = (part * found - ones).squaredNorm();
        if (found.minCoeff() < 0 || !(error < least)) continue;
        least = error;
        best.setZero();
        for (std::size_t i = 0; i < columns.size(); ++i)
            best(columns[i]) = found(static_cast<Eigen::Index>(i));
    }
    return best;
}

}  // namespace

double TypeCorrections::cost(LayerType type, double sum, int64_t dropped, int64_t layers) const {
    const Type& of = types[static_cast<std::size_t>(type)];
    return sum * of.weight * (1 + of.growth * used_up(dropped, layers));
}

TypeCorrections fit_type_corrections(const ScoreTable& measured, Objective objective,
                                     const std::string& where) {
    if (objective == Objective::loss_delta)
        fail_usage(
            "--type-corrections correct sums of another metric than the loss, found objective loss_delta; "
            "score this model with --random-sets instead");
    const Measurements sets = measurements(measured, objective, where);
    if (sets.rows < kFewestSets)
        fail_input(
            fmt::format("{}: found {} usable random sets, expected at least {}; score with "
                        "--random-sets",
                        where, sets.rows, kFewestSets));
    const Eigen::VectorXd fitted = fit_not_negative(sets.terms);
    TypeCorrections corrections;
    corrections.objective = objective;
    corrections.sets = sets.rows;
    corrections.origin = measured.model.path;
    for (const LayerType type : kLayerTypes) {
        const auto t = static_cast<Eigen::Index>(type);
        if (fitted(t) <= 0)
            fail_input(
                fmt::format("{}: the random sets say nothing of what a {} layer costs; expected sets "
                            "that drop layers of every type",
                            where, name(type)));
        corrections.types[static_cast<std::size_t>(type)] = {
            .weight = fitted(t) / fitted(static_cast<Eigen::Index>(LayerType::mamba)),
            .growth = fitted(t + Eigen::Index{kTypeCount}) / fitted(t)};
    }
    return corrections;
}

}  // namespace minipuzzle::nas
