// Training on the GPU with random weights: what mini_training_test.cpp leaves out, which is a loss of
// several terms, and whole runs that stop and go on.
#include <fmt/format.h>

#include "distill/memory_plan.h"
#include "distill/run_log.h"
#include "kernels/random.h"
#include "tests/distill/lab.h"
#include "tests/gpu/gpu.h"

using namespace minipuzzle;
using namespace minipuzzle::distill;
using minipuzzle::testing::cuda_backend;
using minipuzzle::testing::norm_error;
using test::check_same_result;
using test::Lab;
using test::TempDir;

namespace {

// Sizes like the minis', so that the kernels' ordinary paths run.
Architecture small(const std::string& pattern) {
    Json config = test::tiny_config(pattern);
    config["vocab_size"] = 512;
    config["hidden_size"] = 192;
    config["intermediate_size"] = 512;
    config["num_attention_heads"] = 6;
    config["num_key_value_heads"] = 2;
    config["head_dim"] = 32;
    config["mamba_num_heads"] = 12;
    config["mamba_head_dim"] = 32;
    config["ssm_state_size"] = 32;
    return parse_architecture(config, "small config");
}

// Rows of random tokens, two documents each.
PackedBatch random_rows(int64_t batch, int64_t length) {
    PackedBatch rows{.batch = batch, .length = length, .tokens = {}, .targets = {}, .document = {}};
    const CounterRandom random(4, "rows");
    for (int64_t i = 0; i < batch * length; ++i) {
        const bool second = i % length >= length / 3, boundary = i % length == length / 3 - 1;
        rows.tokens.push_back(static_cast<int32_t>(random.bits(2 * i) % 512));
        rows.targets.push_back(boundary ? -1 : static_cast<int32_t>(random.bits(2 * i + 1) % 512));
        rows.document.push_back(second);
    }
    return rows;
}

struct Gradients {
    double loss;
    std::vector<float> all;  // every parameter's, after one another
};

// One step of a student of four layers that learns from a teacher of six, in two micro-batches.
Gradients one_step(Backend& backend) {
    constexpr int64_t kRows = 4, kLength = 150;
    const Architecture student = small("M*-M"), teacher = small("M-M*-M");
    WeightMemory weights = random_weights(backend, student, 1, 0.05),
                 teacher_weights = random_weights(backend, teacher, 2, 0.05);
    const StepShape shape{.batch = kRows,
                          .rows = 3,
                          .seq_len = kLength,
                          .loss = {.kl = 1, .ce = 0.5, .feature = 0.1},
                          .pairs = feature_map({0, 3, 4, 5}, 6),
                          .recompute = {}};
    const MemoryPlan plan =
        measure_step(backend, {.student = student, .teacher = &teacher, .shape = shape, .optimizer = {}});
    DeviceArena arena = DeviceArena::sized(backend, plan.activations);
    backend.reserve_scratch(plan.scratch);
    WholeStep step(backend, arena,
                   {.student = student,
                    .weights = weights.weights(),
                    .teacher = &teacher,
                    .teacher_weights = teacher_weights.weights()},
                   shape, {});
    step.optimizer().fill(*random_source(student, 1, 0.05));
    step.feed().start([&](int64_t) { return random_rows(kRows, kLength); }, 1, 1);
    const DeviceBatch& batch = step.feed().next();
    Gradients result{.loss = means(step.run(batch, 1, 0).sums, shape.loss, batch.target_count).loss,
                     .all = {}};
    for (const TrainedParameter& parameter : step.optimizer().parameters()) {
        const std::vector<float> values = to_host(backend, parameter.gradient);
        result.all.insert(result.all.end(), values.begin(), values.end());
    }
    return result;
}

}  // namespace

TEST_CASE("a step on logits, tokens and features gives the CPU's loss and gradients", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const Gradients exact = one_step(*make_cpu_backend(DType::f32, 0)), rounded = one_step(*gpu);
    const double error = norm_error(rounded.all, exact.all);
    INFO("loss " << rounded.loss << ", the CPU's " << exact.loss << "; gradients are off by " << error);
    // Weights and some fifty activations on the way are rounded by up to 2^-9 each, and the gradient goes
    // both ways.
    CHECK(rounded.loss == Approx(exact.loss).epsilon(0.005));
    CHECK(error < 0.05);
}

TEST_CASE("a run on CUDA resumes to the same bytes, its teacher resident or streamed", "[gpu]") {
    if (!cuda_backend()) return;
    const TempDir folder;
    const auto gpu = [] { return make_backend("cuda", 1); };
    Lab whole(gpu());
    const TrainOutcome outcome = whole.run(folder / "whole");
    const TrainOutcome on_cpu = Lab().run(folder / "cpu");
    CHECK(outcome.first_loss == Approx(on_cpu.first_loss).epsilon(0.02));
    CHECK(outcome.last_loss == Approx(on_cpu.last_loss).epsilon(0.02));
    CHECK(outcome.skipped == 0);
    for (int64_t stop : {1, 4}) {
        const auto out = folder / fmt::format("stop-{}", stop);
        Lab stopped(gpu());
        REQUIRE(stopped.run_until(out, stop));
        Lab resumed(gpu());
        resumed.options.resume = true;
        resumed.run(out);
        check_same_result(folder / "whole", out);
    }
    Lab streamed(gpu());
    streamed.teacher_weight_memory = test::kHalfOfTheTeacher;
    streamed.run(folder / "streamed");
    check_same_result(folder / "whole", folder / "streamed");
}
