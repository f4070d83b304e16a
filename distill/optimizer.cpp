#include "distill/optimizer.h"

#include <cmath>

namespace minipuzzle::distill {

Optimizer::Optimizer(Backend& backend, const Architecture& architecture, Weights& parameters,
                     const AdamWSettings& settings)
    : backend_(backend),
      settings_(settings),
      gradients_(backend, architecture, true),
      moment1_(backend, architecture, true),
      moment2_(backend, architecture, true) {
    for_each_parameter(architecture, parameters, [&](const ParameterInfo& info, Tensor& tensor) {
        parameters_.push_back(
            {.info = info, .parameter = tensor, .gradient = {}, .moment1 = {}, .moment2 = {}});
    });
    const auto collect = [&](WeightMemory& memory, Tensor TrainedParameter::*member) {
        std::size_t next = 0;
        for_each_parameter(architecture, memory.weights(), [&](const ParameterInfo&, Tensor& tensor) {
            parameters_[next++].*member = tensor;
        });
    };
    collect(gradients_, &TrainedParameter::gradient);
    collect(moment1_, &TrainedParameter::moment1);
    collect(moment2_, &TrainedParameter::moment2);
}

void Optimizer::zero_gradients() {
    for (const TrainedParameter& parameter : parameters_) backend_.zero(parameter.gradient);
}

double Optimizer::gradient_norm() {
    double sum = 0;
    for (const TrainedParameter& parameter : parameters_) {
        double squares = 0;
        backend_.run(SquaredNorm{.x = parameter.gradient, .out = &squares});
        sum += squares;
    }
    return std::sqrt(sum);
}

void Optimizer::update(int64_t step, double learning_rate, double norm) {
    const double scale = settings_.clip > 0 && norm > settings_.clip ? settings_.clip / norm : 1.0;
    for (const TrainedParameter& parameter : parameters_)
        backend_.run(AdamW{.parameter = parameter.parameter,
                           .gradient = parameter.gradient,
                           .moment1 = parameter.moment1,
                           .moment2 = parameter.moment2,
                           .learning_rate = learning_rate,
                           .beta1 = settings_.beta1,
                           .beta2 = settings_.beta2,
                           .eps = settings_.eps,
                           .weight_decay = parameter.info.decays ? settings_.weight_decay : 0.0,
                           .gradient_scale = scale,
                           .step = step});
}

}  // namespace minipuzzle::distill
