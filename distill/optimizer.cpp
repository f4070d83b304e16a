#include "distill/optimizer.h"

namespace minipuzzle::distill {
namespace {

TypeChoice always(DType type) {
    return [type](const Tensor&) { return type; };
}

TypeChoice only_of_rounded(DType precise) {
    return [precise](const Tensor& parameter) {
        return parameter.dtype == precise ? std::nullopt : std::optional(precise);
    };
}

}  // namespace

Optimizer::Optimizer(Backend& backend, const Architecture& architecture, Weights& parameters,
                     const AdamWSettings& settings)
    : backend_(backend),
      settings_(settings),
      masters_(backend, architecture, false, only_of_rounded(precise_type(backend.compute_type()))),
      gradients_(backend, architecture, true, always(precise_type(backend.compute_type()))),
      moment1_(backend, architecture, true,
               always(settings.bf16_moments ? DType::bf16 : precise_type(backend.compute_type()))),
      moment2_(backend, architecture, true,
               always(settings.bf16_moments ? DType::bf16 : precise_type(backend.compute_type()))) {
    for_each_parameter(architecture, parameters, [&](const ParameterInfo& info, Tensor& tensor) {
        parameters_.push_back(
            {.info = info, .parameter = tensor, .master = {}, .gradient = {}, .moment1 = {}, .moment2 = {}});
    });
    const auto collect = [&](WeightMemory& memory, Tensor TrainedParameter::*member) {
        std::size_t next = 0;
        for_each_parameter(architecture, memory.weights(), [&](const ParameterInfo&, Tensor& tensor) {
            parameters_[next++].*member = tensor;
        });
    };
    collect(masters_, &TrainedParameter::master);
    collect(gradients_, &TrainedParameter::gradient);
    collect(moment1_, &TrainedParameter::moment1);
    collect(moment2_, &TrainedParameter::moment2);
    for (const TrainedParameter& p : parameters_) {
        gradient_list_.push_back(p.gradient);
        trained_.push_back({.parameter = p.parameter,
                            .master = p.master,
                            .gradient = p.gradient,
                            .moment1 = p.moment1,
                            .moment2 = p.moment2,
                            .decays = p.info.decays});
    }
}

void Optimizer::fill(const ParameterSource& source) {
    for (const TrainedParameter& parameter : parameters_) {
        source.fill(backend_, parameter.info, parameter.parameter);
        if (parameter.master) source.fill(backend_, parameter.info, parameter.master);
    }
}

void Optimizer::measure_norms(const Tensor& squares) {
    backend_.run(GradientNorms{.gradients = gradient_list_, .squares = squares});
}

void Optimizer::update(const Tensor& squares, int64_t number, double learning_rate) {
    backend_.run(AdamW{.tensors = trained_,
                       .squares = squares,
                       .learning_rate = learning_rate,
                       .beta1 = settings_.beta1,
                       .beta2 = settings_.beta2,
                       .eps = settings_.eps,
                       .weight_decay = settings_.weight_decay,
                       .clip = settings_.clip,
                       .step = number});
}

}  // namespace minipuzzle::distill
