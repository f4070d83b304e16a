#include "importance/confidence.h"

#include <cmath>
#include <map>
#include <numbers>
#include <numeric>

#include "kernels/check.h"

namespace minipuzzle::importance {

namespace {

double student_t_density(double t, double degrees) {
    const double scale = std::lgamma((degrees + 1) / 2) - std::lgamma(degrees / 2);
    return std::exp(scale - (degrees + 1) / 2 * std::log1p(t * t / degrees)) /
           std::sqrt(degrees * std::numbers::pi);
}

// P(0 < T < t) by Simpson's rule; the density is smooth, so 2000 steps leave about 1e-12.
double probability_up_to(double t, double degrees) {
    constexpr int kSteps = 2000;
    const double h = t / kSteps, highest = student_t_density(0, degrees);
    const auto density = [&](double at) {
        return highest * std::exp(-(degrees + 1) / 2 * std::log1p(at * at / degrees));
    };
    double sum = highest + density(t);
    for (int i = 1; i < kSteps; ++i) sum += density(i * h) * (i % 2 ? 4 : 2);
    return sum * h / 3;
}

}  // namespace

double student_t_quantile(double q, int64_t degrees) {
    MP_ASSERT(q > 0 && q < 1 && degrees >= 1);
    if (q < 0.5) return -student_t_quantile(1 - q, degrees);
    // Newton's method: the distribution function is concave above zero, so the steps from the left never
    // overshoot.
    const double n = static_cast<double>(degrees);
    double t = 0;
    for (int i = 0; i < 200; ++i) {
        const double step = (q - 0.5 - probability_up_to(t, n)) / student_t_density(t, n);
        t += step;
        if (std::abs(step) <= 1e-12 * t) break;
    }
    return t;
}

double DocumentSums::mean() const {
    return std::accumulate(values.begin(), values.end(), 0.0) /
           std::accumulate(tokens.begin(), tokens.end(), 0.0);
}

DocumentSums document_sums(const std::vector<double>& values, const std::vector<int64_t>& tokens,
                           const std::vector<int64_t>& documents) {
    MP_ASSERT(values.size() <= tokens.size() && values.size() <= documents.size());
    DocumentSums sums;
    std::map<int64_t, std::size_t> place_of;
    for (std::size_t i = 0; i < values.size(); ++i) {
        const auto [place, added] = place_of.emplace(documents[i], sums.values.size());
        if (added) {
            sums.values.push_back(0);
            sums.tokens.push_back(0);
        }
        sums.values[place->second] += static_cast<double>(tokens[i]) * values[i];
        sums.tokens[place->second] += static_cast<double>(tokens[i]);
    }
    return sums;
}

double standard_error(const DocumentSums& sums) {
    const double n = static_cast<double>(sums.documents());
    MP_ASSERT(n >= 2);
    const double mean = sums.mean();
    double tokens = 0, squares = 0;
    for (std::size_t i = 0; i < sums.values.size(); ++i) {
        const double residual = sums.values[i] - mean * sums.tokens[i];
        tokens += sums.tokens[i];
        squares += residual * residual;
    }
    return std::sqrt(squares / (n - 1) / n) / (tokens / n);
}

std::optional<Interval> paired_interval(const std::vector<double>& differences,
                                        const std::vector<int64_t>& tokens,
                                        const std::vector<int64_t>& documents) {
    const DocumentSums sums = document_sums(differences, tokens, documents);
    if (sums.documents() < kFewestDocuments) return std::nullopt;
    const double half = student_t_quantile(0.975, sums.documents() - 1) * standard_error(sums);
    return Interval{sums.mean() - half, sums.mean() + half};
}

std::optional<Interval> confidence_sequence(const DocumentSums& sums, double alpha, int64_t tuned_for) {
    MP_ASSERT(alpha > 0 && alpha < 1 && tuned_for >= 1);
    if (sums.documents() < kFewestDocuments) return std::nullopt;
    const double n = static_cast<double>(sums.documents());
    const double twice_log = -2 * std::log(alpha);
    const double g = (twice_log + std::log1p(twice_log)) / static_cast<double>(tuned_for);
    const double spread = 1 + n * g;
    const double k_less_one = std::expm1((0.5 * std::log(spread) - std::log(alpha)) * 2 / n);
    const double slack = 1 - (1 + k_less_one) / spread;
    if (slack <= 0) return std::nullopt;
    const double half = std::sqrt((n - 1) * k_less_one / slack) * standard_error(sums);
    return Interval{sums.mean() - half, sums.mean() + half};
}

}  // namespace minipuzzle::importance
