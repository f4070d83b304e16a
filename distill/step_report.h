// StepReport: what a step leaves on the device for the host, in one block that a single copy brings over.
#pragma once

#include <vector>

#include "distill/step_shape.h"
#include "runtime/arena.h"

namespace minipuzzle::distill {

class StepReport {
  public:
    // `parameters`: how many gradients there are.
    StepReport(Backend& backend, DeviceArena& arena, const StepShape& shape, int64_t parameters);

    // Of every gradient, [parameters] f64.
    const Tensor& squares() const { return squares_; }
    // Per-token terms of the step's rows [first, first + rows) as [rows * T]; empty where not in the loss.
    Tensor kl(int64_t first, int64_t rows) const { return part(kl_, first, rows); }
    Tensor ce(int64_t first, int64_t rows) const { return part(ce_, first, rows); }
    Tensor reverse_kl(int64_t first, int64_t rows) const { return part(reverse_kl_, first, rows); }
    Tensor feature(std::size_t pair, int64_t first, int64_t rows) const {
        return part(features_[pair], first, rows);
    }

    // The one wait of a step: everything given to the device is done when it returns.
    void fetch();
    // Of what was fetched: sums over the first `rows` rows in double, tokens in their order.
    LossSums sums(int64_t rows) const;
    // The norm of all gradients.
    double gradient_norm() const;

  private:
    Tensor part(const Tensor& values, int64_t first, int64_t rows) const;
    double host_sum(const Tensor& values, int64_t rows) const;
    const std::byte* on_host(const Tensor& tensor) const;

    Backend& backend_;
    int64_t seq_len_;
    Tensor block_, squares_, kl_, ce_, reverse_kl_;  // all but squares: [batch * T] precise
    std::vector<Tensor> features_;                   // of each pair
    std::vector<std::byte> host_;
    bool measuring_;
};

}  // namespace minipuzzle::distill
