// Students that a polynomial of the loss says are good: descent over single layers, within the limits.
#pragma once

#include <vector>

#include "nas/free_space.h"
#include "nas/loss_polynomial.h"

namespace minipuzzle::nas {

class Proposals {
  public:
    // Keeps references.
    Proposals(const FreeSpace& space, const Surrogate& surrogate, const Architecture& teacher);

    // What a student takes out of each layer.
    Removal removal(const FreeSpace::Place& place) const;
    // Takes the change of one or two layers that lowers the polynomial most, of those within the limits, for
    // as long as there is one. `start` is within the limits.
    FreeSpace::Place descend(const LossPolynomial& polynomial, FreeSpace::Place start) const;
    // The students one or two changes away from `from`, within the limits, that the polynomial likes best,
    // each one with what it has room for put back; at most `count`.
    std::vector<FreeSpace::Place> around(const LossPolynomial& polynomial, const FreeSpace::Place& from,
                                         std::size_t count) const;

  private:
    class Walk;
    const FreeSpace& space_;
    std::vector<std::vector<double>> shares_;  // of a layer, by its choice
};

}  // namespace minipuzzle::nas
