#include "cli/score_dry_run.h"

#include <fmt/format.h>

#include "cli/bench/limits.h"
#include "cli/opened_model.h"
#include "cli/units.h"
#include "runtime/batch_size.h"
#include "runtime/host_memory.h"

namespace minipuzzle::cli {
namespace {

StreamPlan plan_weights(const Backend& backend, const ModelSource& model, const WeightOptions& options) {
    if (options.weight_memory > 0)
        return StreamedWeights::plan(backend, model.architecture, model.from(), options.weight_memory,
                                     options.number_format());
    const auto measuring = backend.measuring();
    return {.device_bytes = WeightMemory(*measuring, model.architecture, options.number_format()).bytes()};
}

std::string weights_line(const StreamPlan& weights, int64_t layers) {
    if (weights.streamed_layers == 0)
        return fmt::format("weights: {} on the device\n", format_bytes(weights.device_bytes));
    return fmt::format("weights: {} on the device; {} of {} layers, {} a batch, are streamed\n",
                       format_bytes(weights.device_bytes), weights.streamed_layers, layers,
                       format_bytes(weights.streamed_bytes));
}

std::string states_line(const SweepMemory& memory) {
    const std::string where = memory.host_states == 0
                                  ? "all on the device"
                                  : fmt::format("{} on the device, {} ({}) in pinned host memory",
                                                memory.states - memory.host_states, memory.host_states,
                                                format_bytes(memory.pinned_bytes()));
    return fmt::format("live states: {} of {}, {}\n", memory.states, format_bytes(memory.state_bytes), where);
}

}  // namespace

CommandResult score_dry_run(const Context& context, Backend& backend, const ScoreCommand& command,
                            const importance::ScoreOptions& options) {
    const ModelSource model(command.model, command.weights, context.seed());
    const Corpus corpus = model.reader().for_measuring(command.data);
    const StreamPlan weights = plan_weights(backend, model, command.weights);
    const Weights shapes = shaped_weights(backend, model.architecture, command.weights.number_format());
    const importance::ScorePlan plan = importance::plan_score(
        backend, model.architecture, shapes, corpus, options, usable_memory(backend) - weights.device_bytes,
        available_host_memory() - weights.pinned_bytes);
    const SweepMemory& memory = plan.memory;
    const int64_t layers = std::ssize(model.architecture.layers);
    const int64_t peak = weights.device_bytes + memory.device_bytes;
    const int64_t pinned = weights.pinned_bytes + memory.pinned_bytes();
    const double rate = bench::measure_product_rate(backend), seconds = 2 * plan.multiply_adds / rate;
    Json json = {{"dry_run", true},
                 {"model", model.name},
                 {"device", backend.name()},
                 {"layers", layers},
                 {"windows", plan.windows},
                 {"tokens", plan.tokens},
                 {"batches", plan.batches},
                 {"batch", memory.batch},
                 {"length", memory.length},
                 {"states", memory.states},
                 {"state_bytes", memory.state_bytes},
                 {"host_states", memory.host_states},
                 {"weight_bytes", weights.device_bytes},
                 {"streamed_layers", weights.streamed_layers},
                 {"streamed_bytes", weights.streamed_bytes},
                 {"activation_bytes", memory.device_bytes},
                 {"peak_bytes", peak},
                 {"pinned_bytes", pinned},
                 {"multiply_adds", plan.multiply_adds},
                 {"product_rate", rate},
                 {"seconds", seconds}};
    return {
        std::move(json),
        fmt::format("would score {} layers of {} on {} windows, {} tokens, in {} batches of at most {} "
                    "x {}\n",
                    layers, model.name, plan.windows, plan.tokens, plan.batches, memory.batch,
                    memory.length) +
            weights_line(weights, layers) + states_line(memory) +
            fmt::format("peak memory {}, pinned host memory {}\n", format_bytes(peak), format_bytes(pinned)) +
            fmt::format("about {:.4g} s: {:.4g} multiply-adds at the {:.4g} TFLOP/s that one large "
                        "product reached on this device just now; the rest of a pass comes on top\n",
                        seconds, plan.multiply_adds, rate * 1e-12) +
            memory.table};
}

}  // namespace minipuzzle::cli
