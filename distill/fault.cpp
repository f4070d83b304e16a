#include "distill/fault.h"

#include <fmt/format.h>

#include <cmath>

namespace minipuzzle::distill {
namespace {

bool is_finite(Backend& backend, const Tensor& tensor) {
    double squares = 0;
    backend.run(SquaredNorm{.x = tensor, .out = &squares});
    return std::isfinite(squares);
}

}  // namespace

std::string first_fault(Backend& backend, const Optimizer& optimizer, const TrainStep& step) {
    const std::vector<TrainedParameter>& parameters = optimizer.parameters();
    for (const TrainedParameter& parameter : parameters)
        if (!is_finite(backend, parameter.parameter)) return "weight " + parameter.info.slot.name;
    const std::vector<Tensor>& streams = step.streams();
    for (std::size_t i = 0; i < streams.size(); ++i)
        if (!is_finite(backend, streams[i]))
            return i == 0 ? "output of the embedding" : fmt::format("output of layer {}", i - 1);
    for (auto it = parameters.rbegin(); it != parameters.rend(); ++it)
        if (!is_finite(backend, it->gradient)) return "gradient of " + it->info.slot.name;
    return "the loss itself";
}

}  // namespace minipuzzle::distill
