// AdamW over all parameters of a model. What is trained are precise values: a parameter that the backend
// holds in the precise type is its own master, any other is the rounded image of a float32 master. Gradients
// are precise, moments too or, on request, bf16.
#pragma once

#include <vector>

#include "runtime/weights.h"

namespace minipuzzle::distill {

struct TrainedParameter {
    ParameterInfo info;
    Tensor parameter;  // what the model computes with
    Tensor master;     // empty where the parameter is its own
    Tensor gradient, moment1, moment2;

    const Tensor& trained() const { return master ? master : parameter; }
};

struct AdamWSettings {
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
    double clip = 1.0;  // largest global gradient norm; 0: no clipping
    bool bf16_moments = false;
};

class Optimizer {
  public:
    // Allocates masters (uninitialised), gradients and moments (zeroed). `parameters` must outlive the
    // optimizer.
    Optimizer(Backend& backend, const Architecture& architecture, Weights& parameters,
              const AdamWSettings& settings);
    Optimizer(const Optimizer&) = delete;
    Optimizer& operator=(const Optimizer&) = delete;

    // Gives parameters and masters the source's values, the masters unrounded.
    void fill(const ParameterSource& source);

    Weights& gradients() { return gradients_.weights(); }
    const std::vector<TrainedParameter>& parameters() const { return parameters_; }
    int64_t count() const { return std::ssize(parameters_); }
    int64_t master_bytes() const { return masters_.bytes(); }
    int64_t gradient_bytes() const { return gradients_.bytes(); }
    int64_t moment_bytes() const { return moment1_.bytes() + moment2_.bytes(); }

    void zero_gradients() { gradients_.zero(); }
    // The sum of squares of every gradient, parameters in their order, into `squares` [count()] f64.
    void measure_norms(const Tensor& squares);
    // One AdamW update, the `number`-th (from 1), after measure_norms(): gradients scaled so that their norm
    // is at most `clip`; nothing changes where it is not finite.
    void update(const Tensor& squares, int64_t number, double learning_rate);

  private:
    Backend& backend_;
    AdamWSettings settings_;
    WeightMemory masters_, gradients_, moment1_, moment2_;
    std::vector<TrainedParameter> parameters_;
    std::vector<Tensor> gradient_list_;
    std::vector<TrainedTensor> trained_;
};

}  // namespace minipuzzle::distill
