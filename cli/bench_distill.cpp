#include "cli/bench_distill.h"

#include <fmt/format.h>

#include <filesystem>
#include <limits>

#include "cli/bench/limits.h"
#include "cli/bench/timing.h"
#include "cli/model_loading.h"
#include "cli/opened_model.h"
#include "cli/units.h"
#include "distill/memory_plan.h"
#include "distill/step_cost.h"
#include "distill/teacher_weights.h"
#include "kernels/random.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "minipuzzle.bench/1";
constexpr double kLearningRate = 1e-5;

Architecture student_architecture(const std::string& student) {
    const fs::path file = fs::is_directory(student) ? fs::path(student) / "config.json" : fs::path(student);
    if (!fs::exists(file)) return named_architecture(student);
    return parse_architecture(parse_config_text(read_file(file), file.string()), file.string());
}

PackedBatch random_rows(int64_t vocab, int64_t batch, int64_t length, uint64_t seed) {
    PackedBatch rows{.batch = batch, .length = length, .tokens = {}, .targets = {}, .document = {}};
    const CounterRandom random(seed, "bench rows");
    const auto token = [&](int64_t draw) {
        return static_cast<int32_t>(random.bits(draw) % static_cast<uint64_t>(vocab));
    };
    for (int64_t i = 0; i < batch * length; ++i) {
        rows.tokens.push_back(token(2 * i));
        rows.targets.push_back(token(2 * i + 1));
        rows.document.push_back(0);
    }
    return rows;
}

// The models and the step, on the device.
class Bench {
  public:
    Bench(Backend& backend, const ModelSource& teacher, const distill::MemoryQuestion& question,
          const distill::MemoryPlan& memory, int64_t weight_memory, uint64_t seed)
        : weights_(backend, question.student, false),
          arena_(DeviceArena::sized(backend, memory.activations)),
          teacher_(backend, teacher.architecture,
                   {.architecture = &teacher.architecture,
                    .source = teacher.source.get(),
                    .from = teacher.from(),
                    .weight_memory = weight_memory,
                    .origin = ""}) {
        backend.reserve_scratch(memory.scratch);
        step_.emplace(backend, arena_,
                      distill::RunModels{.student = question.student,
                                         .weights = weights_.weights(),
                                         .teacher = &teacher.architecture,
                                         .teacher_weights = teacher_.source()},
                      question.shape, question.optimizer);
        const auto source = random_source(question.student, seed + 1);
        step_->optimizer().fill(*source);
        const distill::StepShape& shape = question.shape;
        step_->feed().start(
            [=, vocab = question.student.vocab, batch = shape.batch, length = shape.seq_len](int64_t step) {
                return random_rows(vocab, batch, length, seed + static_cast<uint64_t>(step));
            },
            1, std::numeric_limits<int64_t>::max() - 1);
    }

    void run() {
        result_ = step_->run(step_->feed().next(), ++update_, kLearningRate);
        if (update_ == 1) first_ = result_;
    }
    const distill::StepResult& first() const { return first_; }
    const distill::StepResult& last() const { return result_; }
    // Milliseconds of each phase, the mean of a few steps whose phases are timed one by one.
    std::vector<std::pair<std::string, double>> phase_times() {
        constexpr int kSteps = 3;
        step_->phases().start_timing();
        for (int i = 0; i < kSteps; ++i) run();
        auto times = step_->phases().times();
        for (auto& [name, ms] : times) ms /= kSteps;
        return times;
    }

  private:
    WeightMemory weights_;
    DeviceArena arena_;
    distill::TeacherWeights teacher_;
    std::optional<distill::WholeStep> step_;
    distill::StepResult first_, result_;
    int64_t update_ = 0;
};

distill::MemoryQuestion question_of(const BenchCommand& command, const Architecture& student,
                                    const Architecture& teacher) {
    if (student.vocab != teacher.vocab)
        fail_input(
            fmt::format("the teacher's vocabulary has {} tokens, the student's {}: expected the same one",
                        teacher.vocab, student.vocab));
    distill::MemoryQuestion question{.student = student,
                                     .teacher = &teacher,
                                     .shape = {.batch = command.batch,
                                               .rows = command.batch,
                                               .seq_len = command.seq_len,
                                               .loss = {},
                                               .pairs = {},
                                               .recompute = {},
                                               .deterministic = !command.training.no_deterministic},
                                     .optimizer = {},
                                     .teacher_weight_memory = command.weights.weight_memory};
    question.optimizer.bf16_moments = command.training.bf16_moments();
    return question;
}

}  // namespace

CommandResult bench_distill(const Context& context, const BenchCommand& command) {
    const auto backend = open_backend(context);
    const ModelSource teacher(command.model, command.weights, context.seed());
    const Architecture student = student_architecture(command.distill);
    distill::MemoryQuestion question = question_of(command, student, teacher.architecture);
    const double product_rate = bench::measure_product_rate(*backend);
    const distill::MemoryPlan memory =
        distill::choose_recompute(*backend, question, command.training.policy(),
                                  distill::memory_limit(*backend, command.training.memory));
    context.console.detail(memory.table());

    Bench steps(*backend, teacher, question, memory, command.weights.weight_memory, context.seed());
    const double ms = bench::median_ms([&] { steps.run(); });
    const double tokens = static_cast<double>(question.shape.tokens());
    const double flops = distill::step_flops(student, &teacher.architecture, question.shape) / ms * 1e3;

    Json json = artefact_header(kFormat, context.provenance());
    json["device"] = backend->name();
    json["distill"] = command.distill;
    json["student_parameters"] = parameters(student);
    json["batch"] = command.batch;
    json["seq_len"] = command.seq_len;
    json["moments"] = command.training.moments;
    json["recompute"] = memory.recompute;
    json["ms"] = ms;
    json["tokens_per_second"] = tokens / ms * 1e3;
    json["tflops"] = flops * 1e-12;
    json["limit_share"] = flops / product_rate;
    json["peak_bytes"] = memory.total();
    json["first_kl"] = steps.first().sums.kl / tokens;
    json["last_kl"] = steps.last().sums.kl / tokens;
    json["last_grad_norm"] = steps.last().gradient_norm;
    std::string text = fmt::format(
        "training step of {} x {} tokens on {}: {:.2f} ms, {:.0f} tokens/s, {:.1f} TFLOP/s, {:.1f} % of a "
        "large "
        "product's {:.1f}\n{} of device memory; recompute: {}\nKL {:.6f} at first, {:.6f} at last\n",
        command.batch, command.seq_len, backend->name(), ms, tokens / ms * 1e3, flops * 1e-12,
        100 * flops / product_rate, product_rate * 1e-12, format_bytes(memory.total()), memory.recompute,
        steps.first().sums.kl / tokens, steps.last().sums.kl / tokens);
    if (context.globals.verbose) {
        json["phases"] = Json::object();
        for (const auto& [name, phase] : steps.phase_times()) {
            json["phases"][name] = phase;
            text += fmt::format("  {:<20} {:>10.2f} ms\n", name, phase);
        }
    }
    return {std::move(json), text};
}

}  // namespace minipuzzle::cli
