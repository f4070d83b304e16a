// AdamW over all parameters of a model, with float32 state (in the backend's compute type).
#pragma once

#include <vector>

#include "runtime/weights.h"

namespace minipuzzle::distill {

struct TrainedParameter {
    ParameterInfo info;
    Tensor parameter, gradient, moment1, moment2;
};

struct AdamWSettings {
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
    double clip = 1.0;  // largest global gradient norm; 0: no clipping
};

class Optimizer {
  public:
    // Allocates gradients and moments (zeroed). `parameters` must outlive the optimizer.
    Optimizer(Backend& backend, const Architecture& architecture, Weights& parameters,
              const AdamWSettings& settings);
    ~Optimizer();
    Optimizer(const Optimizer&) = delete;
    Optimizer& operator=(const Optimizer&) = delete;

    Weights& gradients() { return gradients_.weights(); }
    const std::vector<TrainedParameter>& parameters() const { return parameters_; }
    // Of gradients and both moments.
    int64_t bytes() const { return gradients_.bytes() + moment1_.bytes() + moment2_.bytes(); }

    void zero_gradients();
    // sqrt of the sum of squares over all gradients, in double, parameters in their order.
    double gradient_norm();
    // One AdamW step (counted from 1) after gradient_norm(), gradients scaled so that their norm is at most
    // `clip`.
    void update(int64_t step, double learning_rate);

  private:
    Backend& backend_;
    AdamWSettings settings_;
    WeightMemory gradients_, moment1_, moment2_;
    std::vector<TrainedParameter> parameters_;
    Tensor squares_;  // of each gradient
};

}  // namespace minipuzzle::distill
