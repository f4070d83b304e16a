#include "importance/confidence.h"

#include <cmath>
#include <numbers>

#include "kernels/check.h"

namespace minipuzzle::importance {

namespace {

constexpr int64_t kFewestSequences = 8;

double student_t_density(double t, double degrees) {
    const double scale = std::lgamma((degrees + 1) / 2) - std::lgamma(degrees / 2);
    return std::exp(scale - (degrees + 1) / 2 * std::log1p(t * t / degrees)) /
           std::sqrt(degrees * std::numbers::pi);
}

// P(0 < T < t) by Simpson's rule; the density is smooth, so 2000 steps leave about 1e-12.
double probability_up_to(double t, double degrees) {
    constexpr int kSteps = 2000;
    const double h = t / kSteps;
    double sum = student_t_density(0, degrees) + student_t_density(t, degrees);
    for (int i = 1; i < kSteps; ++i) sum += student_t_density(i * h, degrees) * (i % 2 ? 4 : 2);
    return sum * h / 3;
}

}  // namespace

double student_t_quantile(double q, int64_t degrees) {
    MP_ASSERT(q > 0 && q < 1 && degrees >= 1);
    if (q < 0.5) return -student_t_quantile(1 - q, degrees);
    double low = 0, high = 1;
    while (probability_up_to(high, static_cast<double>(degrees)) < q - 0.5) high *= 2;
    for (int i = 0; i < 60; ++i) {
        const double middle = (low + high) / 2;
        (probability_up_to(middle, static_cast<double>(degrees)) < q - 0.5 ? low : high) = middle;
    }
    return (low + high) / 2;
}

std::optional<std::array<double, 2>> paired_interval(const std::vector<double>& differences,
                                                     const std::vector<int64_t>& tokens) {
    MP_ASSERT(differences.size() == tokens.size());
    const int64_t n = static_cast<int64_t>(differences.size());
    if (n < kFewestSequences) return std::nullopt;
    double all_tokens = 0, sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        all_tokens += static_cast<double>(tokens[i]);
        sum += static_cast<double>(tokens[i]) * differences[i];
    }
    const double mean = sum / all_tokens, mean_tokens = all_tokens / static_cast<double>(n);
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double residual = static_cast<double>(tokens[i]) / mean_tokens * (differences[i] - mean);
        squares += residual * residual;
    }
    const double error = std::sqrt(squares / static_cast<double>(n - 1) / static_cast<double>(n));
    const double half = student_t_quantile(0.975, n - 1) * error;
    return std::array<double, 2>{mean - half, mean + half};
}

}  // namespace minipuzzle::importance
