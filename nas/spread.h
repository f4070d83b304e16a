// Which points of a set to take so that they cover it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace minipuzzle::nas {

// What a student gives up, as shares of the teacher's bytes: Mamba, attention, FFN layers, FFN width.
using Composition = std::array<double, 4>;

// Farthest-point sampling (Gonzalez 1985): starts at index 0, then takes the point with the largest
// weight * distance to those taken, the lower index among equals, until `count` are taken. Ascending
// indexes.
std::vector<std::size_t> farthest_points(const std::vector<Composition>& points,
                                         const std::vector<double>& weights, std::size_t count);

// Ridge regression of `targets` on 1, the coordinates, their squares and products, each point weighted alike.
class QuadraticFit {
  public:
    QuadraticFit(const std::vector<Composition>& points, const std::vector<double>& targets);
    double at(const Composition& point) const;

  private:
    Composition centre_{}, scale_{};
    std::vector<double> coefficients_;
    std::vector<double> features(const Composition& point) const;
};

}  // namespace minipuzzle::nas
