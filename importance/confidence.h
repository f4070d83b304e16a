// Confidence intervals of paired per-sequence differences.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace minipuzzle::importance {

// The q-quantile of Student's t with `degrees` degrees of freedom, to about 1e-9; q in (0, 1).
double student_t_quantile(double q, int64_t degrees);

// 95 % interval of the token-weighted mean of `differences` (one per sequence, weights = tokens): Student t
// around the ratio estimator, its variance linearised (Cochran 1977, section 6.4); with equal lengths the
// plain paired interval. nullopt under 8 sequences.
std::optional<std::array<double, 2>> paired_interval(const std::vector<double>& differences,
                                                     const std::vector<int64_t>& tokens);

}  // namespace minipuzzle::importance
