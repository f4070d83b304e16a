#include "distill/run_plan.h"

#include <fmt/format.h>

#include <cmath>

#include "distill/step_cost.h"

namespace minipuzzle::distill {
namespace {

void check_options(const TrainOptions& options) {
    const auto positive = [](const char* option, int64_t value) {
        if (value <= 0) fail_usage(fmt::format("--{} {}: expected a number above 0", option, value));
    };
    positive("tokens", options.tokens);
    positive("batch", options.batch);
    positive("seq-len", options.seq_len);
    const auto from_zero = [](const char* option, double value) {
        if (!(value >= 0) || !std::isfinite(value))
            fail_usage(fmt::format("--{} {}: expected a finite number >= 0", option, value));
    };
    from_zero("micro-batch", static_cast<double>(options.micro_batch));
    from_zero("warmup", static_cast<double>(options.warmup));
    from_zero("save-every", static_cast<double>(options.save_every));
    from_zero("lr", options.learning_rate);
    from_zero("min-lr-ratio", options.min_lr_ratio);
    from_zero("eps", options.eps);
    from_zero("weight-decay", options.weight_decay);
    from_zero("clip", options.clip);
    from_zero("memory", static_cast<double>(options.memory));
    for (double beta : {options.beta1, options.beta2})
        if (!(beta >= 0 && beta < 1))
            fail_usage(fmt::format("AdamW beta {}: expected a number in [0, 1)", beta));
}

void check_models(const TrainJob& job, const LossWeights& loss) {
    if (!job.teacher.architecture) return;
    const Architecture &teacher = *job.teacher.architecture, &student = job.student.architecture;
    if (loss.needs_teacher() && teacher.vocab != student.vocab)
        fail_input(
            fmt::format("the teacher's vocabulary has {} tokens, the student's {}: expected the same one",
                        teacher.vocab, student.vocab));
    if (loss.feature == 0) return;
    if (teacher.width != student.width)
        fail_input(
            fmt::format("feature loss: the teacher is {} wide, the student {}: expected the same width; "
                        "set the feature weight to 0",
                        teacher.width, student.width));
    if (job.student.teacher_layers.size() != student.layers.size())
        fail_input(
            fmt::format("feature loss: the teacher's layers are known for {} of the student's {} layers; "
                        "set the feature weight to 0 or give the plan the student was cut by",
                        job.student.teacher_layers.size(), student.layers.size()));
}

Json model_json(const Architecture& architecture, const std::string& origin) {
    return {{"arch_hash", arch_hash(architecture)}, {"origin", origin}};
}

}  // namespace

RunPlan plan_run(const TrainJob& job, const TrainOptions& options) {
    check_options(options);
    RunPlan plan;
    plan.step_tokens = options.batch * options.seq_len;
    plan.steps = div_up(options.tokens, plan.step_tokens);
    plan.shape.batch = options.batch;
    plan.shape.deterministic = options.deterministic;
    plan.shape.rows = options.micro_batch > 0 ? std::min(options.micro_batch, options.batch) : options.batch;
    plan.shape.seq_len = options.seq_len;
    plan.shape.loss = settle(options.loss, job.teacher.architecture != nullptr);
    check_models(job, plan.shape.loss);
    if (plan.shape.loss.needs_teacher()) plan.teacher = job.teacher.architecture;
    plan.step_flops = step_flops(job.student.architecture, plan.teacher, plan.shape);
    if (plan.shape.loss.feature > 0)
        plan.shape.pairs = feature_map(job.student.teacher_layers,
                                       static_cast<int64_t>(job.teacher.architecture->layers.size()));
    plan.schedule = {.peak = options.learning_rate,
                     .min_ratio = options.min_lr_ratio,
                     .warmup = options.warmup,
                     .steps = plan.steps};
    plan.optimizer = {.beta1 = options.beta1,
                      .beta2 = options.beta2,
                      .eps = options.eps,
                      .weight_decay = options.weight_decay,
                      .clip = options.clip,
                      .bf16_moments = options.bf16_moments};
    return plan;
}

MemoryPlan settle_memory(const Backend& backend, const TrainJob& job, const TrainOptions& options,
                         RunPlan& plan) {
    MemoryQuestion question{.student = job.student.architecture,
                            .teacher = plan.teacher,
                            .shape = plan.shape,
                            .optimizer = plan.optimizer,
                            .teacher_weight_memory = job.teacher.weight_memory};
    MemoryPlan memory =
        choose_recompute(backend, question, options.recompute, memory_limit(backend, options.memory));
    plan.shape.recompute = question.shape.recompute;
    return memory;
}

Json options_json(const TrainOptions& options, const RunPlan& plan) {
    const LossWeights& loss = plan.shape.loss;
    return {{"tokens", options.tokens},
            {"batch", options.batch},
            {"micro-batch", plan.shape.rows},
            {"seq-len", options.seq_len},
            {"lr", options.learning_rate},
            {"min-lr-ratio", options.min_lr_ratio},
            {"warmup", options.warmup},
            {"beta1", options.beta1},
            {"beta2", options.beta2},
            {"eps", options.eps},
            {"weight-decay", options.weight_decay},
            {"clip", options.clip},
            {"kl", loss.kl},
            {"ce", loss.ce},
            {"feature", loss.feature},
            {"temperature", loss.temperature},
            {"feature-kind", std::string(name(loss.feature_kind))},
            {"reverse-kl", loss.reverse_kl},
            {"top-k", loss.top_k},
            {"moments", options.bf16_moments ? "bf16" : "f32"},
            {"deterministic", options.deterministic},
            {"isolate", options.isolate}};
}

RunIdentity identify(const Backend& backend, const TrainJob& job, const TrainOptions& options,
                     const RunPlan& plan) {
    RunIdentity identity{.version = version(), .device = backend.name(), .inputs = {}};
    Json& inputs = identity.inputs;
    inputs["options"] = options_json(options, plan);
    inputs["seed"] = options.seed;
    inputs["student"] = model_json(job.student.architecture, job.student.origin);
    inputs["student"]["teacher_layers"] = job.student.teacher_layers;
    if (plan.teacher) inputs["teacher"] = model_json(*plan.teacher, job.teacher.origin);
    inputs["data"] = Json::array();
    for (const DataFile& file : job.corpus.files()) inputs["data"].push_back(file.hash);
    return identity;
}

}  // namespace minipuzzle::distill
