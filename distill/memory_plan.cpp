#include "distill/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace minipuzzle::distill {
namespace {

double mebibytes(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// The first `changed` layers recompute as much as `more` says, the others as `less`.
std::vector<Recompute> split(std::size_t layers, std::size_t changed, Recompute less, Recompute more) {
    std::vector<Recompute> policies(layers, less);
    std::fill_n(policies.begin(), changed, more);
    return policies;
}

// "mamba none, attention full, ffn selective in 3 of 8 and full in 5 of 8".
std::string describe(const Architecture& architecture, const StepShape& shape) {
    std::string text;
    for (LayerType type : kLayerTypes) {
        int64_t counts[3] = {}, layers = 0;
        for (std::size_t l = 0; l < architecture.layers.size(); ++l) {
            if (type_of(architecture.layers[l]) != type) continue;
            ++layers;
            ++counts[static_cast<int>(shape.recompute_of(static_cast<int64_t>(l)))];
        }
        if (layers == 0) continue;
        std::string part;
        for (Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
            const int64_t count = counts[static_cast<int>(policy)];
            if (count == 0) continue;
            part += fmt::format("{} {}", part.empty() ? "" : " and", name(policy));
            if (count < layers) part += fmt::format(" in {} of {}", count, layers);
        }
        text += fmt::format("{}{}{}", text.empty() ? "" : ", ", name(type), part);
    }
    return text;
}

[[noreturn]] void fail_too_small(const MemoryQuestion& question, const MemoryPlan& plan, bool least,
                                 int64_t limit) {
    std::string help = least ? "" : "--recompute auto, ";
    if (question.shape.rows > 1) help += fmt::format("a --micro-batch below {}, ", question.shape.rows);
    help += "a shorter --seq-len, ";
    if (!question.optimizer.bf16_moments) help += "--moments bf16, ";
    if (question.teacher) help += "a --weight-memory that streams the teacher's weights, ";
    throw Error(
        ErrorKind::out_of_memory,
        fmt::format("this run needs {:.1f} MiB of device memory{}, {:.1f} MiB more than the {:.1f} MiB "
                    "there are: try {}or a smaller student\n{}",
                    mebibytes(plan.total()), least ? " even with full recompute" : "",
                    mebibytes(plan.total() - limit), mebibytes(limit), help, plan.table()));
}

}  // namespace

std::string MemoryPlan::table() const {
    std::string text;
    const auto line = [&](const char* what, int64_t bytes) {
        if (bytes > 0) text += fmt::format("{:<24}{:>12.1f} MiB\n", what, mebibytes(bytes));
    };
    line("student weights", weights);
    line("teacher weights", teacher);
    line("float32 masters", masters);
    line("gradients", gradients);
    line("AdamW moments", moments);
    line("activations", activations);
    line("scratch of operations", scratch);
    line("in all", total());
    return fmt::format("{}recompute: {}\nactivations at their peak:\n{}", text, recompute, activation_table);
}

MemoryPlan measure_step(const Backend& backend, const MemoryQuestion& question) {
    const std::unique_ptr<Backend> dry = backend.measuring();
    WeightMemory weights(*dry, question.student, false);
    std::optional<WeightMemory> teacher;
    if (question.teacher) teacher.emplace(*dry, *question.teacher, false);

    DeviceArena arena = DeviceArena::measuring(*dry);
    RunModels models{.student = question.student,
                     .weights = weights.weights(),
                     .teacher = question.teacher,
                     .teacher_weights = {}};
    if (teacher) models.teacher_weights = WeightSource(teacher->weights());
    WholeStep step(*dry, arena, models, question.shape, question.optimizer);
    step.run(step.feed().next(), 1, 0);
    MemoryPlan plan{.weights = weights.bytes(),
                    .teacher = teacher ? teacher->bytes() : 0,
                    .masters = step.optimizer().master_bytes(),
                    .gradients = step.optimizer().gradient_bytes(),
                    .moments = step.optimizer().moment_bytes(),
                    .activations = arena.peak(),
                    .scratch = dry->scratch_bytes(),
                    .activation_table = arena.peak_table(),
                    .recompute = describe(question.student, question.shape)};
    if (question.teacher_weight_memory > 0)
        plan.teacher = std::min(plan.teacher, question.teacher_weight_memory);
    return plan;
}

MemoryPlan choose_recompute(const Backend& backend, MemoryQuestion& question, std::optional<Recompute> asked,
                            int64_t limit) {
    const std::size_t layers = question.student.layers.size();
    const auto with = [&](std::vector<Recompute> policies) {
        question.shape.recompute = std::move(policies);
        return measure_step(backend, question);
    };
    if (asked) {
        MemoryPlan plan = with(std::vector(layers, *asked));
        if (plan.total() > limit) fail_too_small(question, plan, *asked == Recompute::full, limit);
        return plan;
    }
    MemoryPlan plan = with(std::vector(layers, Recompute::none));
    if (plan.total() <= limit) return plan;
    for (const auto& [less, more] : {std::pair(Recompute::none, Recompute::selective),
                                     std::pair(Recompute::selective, Recompute::full)}) {
        plan = with(std::vector(layers, more));
        if (plan.total() > limit) continue;
        // The fewest layers that must recompute more: more of them never take more memory.
        std::size_t too_few = 0, enough = layers;
        while (enough - too_few > 1) {
            const std::size_t middle = (too_few + enough) / 2;
            const bool fits = with(split(layers, middle, less, more)).total() <= limit;
            (fits ? enough : too_few) = middle;
        }
        return with(split(layers, enough, less, more));
    }
    fail_too_small(question, plan, true, limit);
}

int64_t memory_limit(const Backend& backend, int64_t asked) {
    constexpr int64_t kRest = int64_t{1} << 30;
    if (asked > 0) return asked;
    const int64_t available = backend.available();
    if (available == std::numeric_limits<int64_t>::max()) return available;
    return available - std::min(kRest, available / 8);
}

}  // namespace minipuzzle::distill
