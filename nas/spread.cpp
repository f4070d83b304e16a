#include "nas/spread.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"

namespace minipuzzle::nas {

namespace {

// In units of the coordinates' scale; the intercept is not penalised. 1 keeps the fit at a plane's order of
// detail when it has as few points as coefficients.
constexpr double kRidge = 1.0;

double distance(const Composition& a, const Composition& b) {
    double sum = 0;
    for (std::size_t k = 0; k < a.size(); ++k) sum += (a[k] - b[k]) * (a[k] - b[k]);
    return std::sqrt(sum);
}

}  // namespace

std::vector<std::size_t> farthest_points(const std::vector<Composition>& points,
                                         const std::vector<double>& weights, std::size_t count) {
    MP_ASSERT(points.size() == weights.size());
    count = std::min(count, points.size());
    std::vector<std::size_t> taken;
    std::vector<bool> is_taken(points.size(), false);
    std::vector<double> nearest(points.size(), std::numeric_limits<double>::infinity());
    std::size_t next = 0;
    while (taken.size() < count) {
        taken.push_back(next);
        is_taken[next] = true;
        for (std::size_t i = 0; i < points.size(); ++i)
            nearest[i] = std::min(nearest[i], distance(points[i], points[taken.back()]));
        double farthest = -1;
        for (std::size_t i = 0; i < points.size(); ++i)
            if (!is_taken[i] && weights[i] * nearest[i] > farthest) {
                farthest = weights[i] * nearest[i];
                next = i;
            }
    }
    std::sort(taken.begin(), taken.end());
    return taken;
}

QuadraticFit::QuadraticFit(const std::vector<Composition>& points, const std::vector<double>& targets) {
    MP_ASSERT(!points.empty() && points.size() == targets.size());
    for (std::size_t k = 0; k < centre_.size(); ++k) {
        for (const Composition& point : points) centre_[k] += point[k] / static_cast<double>(points.size());
        for (const Composition& point : points)
            scale_[k] = std::max(scale_[k], std::abs(point[k] - centre_[k]));
        if (scale_[k] == 0) scale_[k] = 1;
    }
    const Eigen::Index columns = static_cast<Eigen::Index>(features(points[0]).size());
    Eigen::MatrixXd normal = Eigen::MatrixXd::Zero(columns, columns);
    Eigen::VectorXd right = Eigen::VectorXd::Zero(columns);
    for (std::size_t i = 0; i < points.size(); ++i) {
        const std::vector<double> row = features(points[i]);
        const Eigen::Map<const Eigen::VectorXd> x(row.data(), columns);
        normal += x * x.transpose();
        right += x * targets[i];
    }
    for (Eigen::Index k = 1; k < columns; ++k) normal(k, k) += kRidge;
    const Eigen::VectorXd solution = normal.ldlt().solve(right);
    coefficients_.assign(solution.data(), solution.data() + columns);
}

std::vector<double> QuadraticFit::features(const Composition& point) const {
    Composition x;
    for (std::size_t k = 0; k < x.size(); ++k) x[k] = (point[k] - centre_[k]) / scale_[k];
    std::vector<double> row = {1.0};
    row.insert(row.end(), x.begin(), x.end());
    for (std::size_t i = 0; i < x.size(); ++i)
        for (std::size_t j = i; j < x.size(); ++j) row.push_back(x[i] * x[j]);
    return row;
}

double QuadraticFit::at(const Composition& point) const {
    const std::vector<double> row = features(point);
    double sum = 0;
    for (std::size_t k = 0; k < row.size(); ++k) sum += row[k] * coefficients_[k];
    return sum;
}

}  // namespace minipuzzle::nas
