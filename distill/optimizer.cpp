#include "distill/optimizer.h"

#include <cmath>
#include <numeric>

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
    const auto count = static_cast<int64_t>(parameters_.size());
    squares_ = Tensor(backend.allocate(count * bytes_of(DType::f64)), DType::f64, {count}, backend.device());
}

Optimizer::~Optimizer() { backend_.free(squares_.data); }

void Optimizer::zero_gradients() {
    for (const TrainedParameter& parameter : parameters_) backend_.zero(parameter.gradient);
}

double Optimizer::gradient_norm() {
    std::vector<Tensor> gradients;
    for (const TrainedParameter& parameter : parameters_) gradients.push_back(parameter.gradient);
    backend_.run(GradientNorms{.gradients = gradients, .squares = squares_});
    std::vector<double> squares(parameters_.size());
    backend_.copy(reinterpret_cast<std::byte*>(squares.data()), squares_.data, squares_.bytes());
    return std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
}

void Optimizer::update(int64_t step, double learning_rate) {
    AdamW update{.tensors = {},
                 .squares = squares_,
                 .learning_rate = learning_rate,
                 .beta1 = settings_.beta1,
                 .beta2 = settings_.beta2,
                 .eps = settings_.eps,
                 .weight_decay = settings_.weight_decay,
                 .clip = settings_.clip,
                 .step = step};
    for (const TrainedParameter& parameter : parameters_)
        update.tensors.push_back({.parameter = parameter.parameter,
                                  .master = {},
                                  .gradient = parameter.gradient,
                                  .moment1 = parameter.moment1,
                                  .moment2 = parameter.moment2,
                                  .decays = parameter.info.decays});
    backend_.run(update);
}

}  // namespace minipuzzle::distill
