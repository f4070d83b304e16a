#include "distill/memory_plan.h"

#include <fmt/format.h>

#include <optional>

namespace minipuzzle::distill {

std::string MemoryPlan::table() const {
    std::string text;
    const auto line = [&](const char* what, int64_t bytes) {
        if (bytes > 0)
            text += fmt::format("{:<24}{:>12.1f} MiB\n", what, static_cast<double>(bytes) / (1 << 20));
    };
    line("student weights", weights);
    line("teacher weights", teacher);
    line("gradients", gradients);
    line("AdamW moments", moments);
    line("activations", activations);
    line("in all", total());
    return text + "activations at their peak:\n" + activation_table;
}

MemoryPlan measure_step(const Backend& backend, const Architecture& student, const Architecture* teacher,
                        const StepShape& shape) {
    const std::unique_ptr<Backend> measuring =
        make_measuring_backend(backend.compute_type(), backend.device());
    const WeightMemory weights(*measuring, student, false);
    WeightMemory gradients(*measuring, student, false);
    std::optional<WeightMemory> teacher_weights;
    if (teacher) teacher_weights.emplace(*measuring, *teacher, false);

    DeviceArena arena = DeviceArena::measuring(*measuring);
    const StepModels models{.student = student,
                            .weights = weights.weights(),
                            .gradients = gradients.weights(),
                            .teacher = teacher,
                            .teacher_weights = teacher ? &teacher_weights->weights() : nullptr};
    TrainStep step(*measuring, arena, models, shape);
    const std::vector<int32_t> any(static_cast<std::size_t>(shape.rows * shape.seq_len), 0);
    step.accumulate({.rows = shape.rows, .tokens = any, .targets = any, .document = any}, 1.0);
    return {.weights = weights.bytes(),
            .teacher = teacher ? teacher_weights->bytes() : 0,
            .gradients = gradients.bytes(),
            .moments = 2 * gradients.bytes(),
            .activations = arena.peak(),
            .activation_table = arena.peak_table()};
}

}  // namespace minipuzzle::distill
