// Ranks and their correlation.
#pragma once

#include <optional>
#include <vector>

namespace minipuzzle {

// 1 for the least value; equal values share their mean rank.
std::vector<double> ranks(const std::vector<double>& values);

// Spearman's rank correlation, ties sharing their mean rank; nullopt under two values or without spread.
std::optional<double> spearman(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace minipuzzle
