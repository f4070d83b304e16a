#include "distill/whole_step.h"

#include <algorithm>
#include <cmath>

#include "distill/memory_plan.h"
#include "kernels/random.h"
#include "tests/catch.h"
#include "tests/distill/fixture.h"

using namespace minipuzzle;
using namespace minipuzzle::distill;
using minipuzzle::test::TinyCorpus;

namespace {

constexpr int64_t kSeqLen = 9, kBatch = 3;

// A student of three layers against a teacher of six, on packed rows. A rate of 0 leaves the weights as they
// are, so that the same step can be run again.
struct StepFixture {
    std::unique_ptr<Backend> backend;
    Architecture student, teacher;
    WeightMemory weights, teacher_weights;
    TinyCorpus data;
    PackedBatch batch;
    StepShape shape;
    AdamWSettings settings;
    std::optional<DeviceArena> arena;
    std::optional<WholeStep> step;

    StepFixture(DType type, const LossWeights& loss, bool tied = false, const std::string& pattern = "M*-")
        : backend(make_cpu_backend(type, 2)),
          student(test::tiny_architecture(pattern, tied)),
          teacher(test::tiny_architecture("M-M*-M")),
          weights(random_weights(*backend, student, pattern == "M*-" ? 1 : 2, 0.4)),
          teacher_weights(random_weights(*backend, teacher, 2, 0.4)),
          batch(PackedRows(data.corpus, kSeqLen, 3, true).rows(1, kBatch)),
          shape{.batch = kBatch,
                .rows = kBatch,
                .seq_len = kSeqLen,
                .loss = loss,
                .pairs = {},
                .recompute = {}} {
        if (loss.feature > 0)
            shape.pairs = pattern == "M*-" ? feature_map({0, 3, 4}, 6) : feature_map({0, 1, 2, 3, 4, 5}, 6);
    }
    MemoryPlan plan() const {
        return measure_step(
            *backend,
            {.student = student, .teacher = teacher_if_needed(), .shape = shape, .optimizer = settings});
    }
    // The loss of the batch, `rows` at a time; gradients start from zero.
    double run(int64_t rows = kBatch) { return means(run_step(rows).sums, shape.loss, targets()).loss; }
    StepResult run_step(int64_t rows = kBatch) {
        shape.rows = rows;
        step.reset();
        arena.emplace(DeviceArena::sized(*backend, plan().activations));
        step.emplace(*backend, *arena,
                     RunModels{.student = student,
                               .weights = weights.weights(),
                               .teacher = teacher_if_needed(),
                               .teacher_weights = teacher_weights.weights()},
                     shape, settings);
        step->feed().start([&](int64_t) { return batch; }, 1, 1);
        return step->run(step->feed().next(), 1, 0);
    }
    int64_t targets() const {
        return std::count_if(batch.targets.begin(), batch.targets.end(), [](int32_t t) { return t >= 0; });
    }
    const Architecture* teacher_if_needed() const { return shape.loss.needs_teacher() ? &teacher : nullptr; }
    const std::vector<TrainedParameter>& parameters() { return step->optimizer().parameters(); }
    // All gradients after one another.
    template <class T = double>
    std::vector<T> gradients() {
        std::vector<T> values;
        for (const TrainedParameter& parameter : parameters())
            values.insert(values.end(), parameter.gradient.as<T>(),
                          parameter.gradient.as<T>() + parameter.gradient.elements());
        return values;
    }
};

// Central differences: the truncation error is of order step^2 and the rounding error of order 1e-16 / step,
// both below 1e-9 for losses of order 1.
double slope(StepFixture& fixture, double& value) {
    constexpr double kStep = 1e-5;
    const double at = value;
    value = at + kStep;
    const double above = fixture.run();
    value = at - kStep;
    const double below = fixture.run();
    value = at;
    return (above - below) / (2 * kStep);
}

void check_gradients(StepFixture& fixture) {
    fixture.run();
    const std::vector<double> gradients = fixture.gradients();
    std::size_t begin = 0;
    std::vector<std::pair<std::string, Tensor>> parameters;  // every run makes another step
    for (const TrainedParameter& p : fixture.parameters())
        parameters.emplace_back(p.info.slot.name, p.parameter);
    for (const auto& [name, parameter] : parameters) {
        const int64_t elements = parameter.elements();
        const CounterRandom random(5, name);
        for (int64_t draw = 0; draw < 3; ++draw) {
            const auto index = static_cast<int64_t>(random.bits(draw) % static_cast<uint64_t>(elements));
            const double expected = slope(fixture, parameter.as<double>()[index]);
            INFO(name << "[" << index << "]");
            CHECK(gradients[begin + static_cast<std::size_t>(index)] ==
                  Approx(expected).epsilon(1e-6).margin(1e-8));
        }
        begin += static_cast<std::size_t>(elements);
    }
}

}  // namespace

TEST_CASE("Gradients of the whole training step agree with finite differences") {
    for (FeatureKind kind : {FeatureKind::cosine, FeatureKind::mse}) {
        StepFixture fixture(DType::f64,
                            {.kl = 0.7, .ce = 0.3, .feature = 0.5, .temperature = 1.5, .feature_kind = kind});
        check_gradients(fixture);
    }
}

TEST_CASE("Gradients of a model with tied embeddings agree with finite differences") {
    StepFixture fixture(DType::f64, {.kl = 0, .ce = 1}, true);
    check_gradients(fixture);
}

TEST_CASE("Features alone train too") {
    StepFixture fixture(DType::f64, {.kl = 0, .ce = 0, .feature = 1});
    check_gradients(fixture);
}

TEST_CASE("Accumulated micro-batches give the gradient of the whole batch") {
    StepFixture fixture(DType::f64, {.kl = 1, .ce = 0.5, .feature = 0.25});
    const double loss = fixture.run();
    const std::vector<double> whole = fixture.gradients();
    double norm = 0;
    for (double value : whole) norm += value * value;
    for (int64_t rows : {1, 2}) {
        CHECK(fixture.run(rows) == Approx(loss).epsilon(1e-13));
        const std::vector<double> split = fixture.gradients();
        double error = 0;
        for (std::size_t i = 0; i < whole.size(); ++i) error += std::pow(whole[i] - split[i], 2);
        // Sums of 27 tokens in another order: a few dozen roundings of 1.1e-16.
        CHECK(std::sqrt(error) < 1e-14 * std::sqrt(norm));
    }
}

TEST_CASE("A student equal to its teacher has no KL and no gradient") {
    for (DType type : {DType::f32, DType::f64}) {
        StepFixture fixture(type, {.kl = 1, .ce = 0, .feature = 1}, false, "M-M*-M");
        const StepResult result = fixture.run_step();
        // Rounding of probabilities and of 1 - cos near 1.
        const double eps = type == DType::f64 ? 1e-14 : 1e-6;
        CHECK(std::abs(result.sums.kl) < eps * static_cast<double>(fixture.targets()));
        CHECK(std::abs(result.sums.feature) < 6 * eps * static_cast<double>(fixture.targets()));
        CHECK(result.gradient_norm < 20 * eps);
    }
}

TEST_CASE("Whatever is kept or computed again, losses and gradients have the same bits") {
    StepFixture fixture(DType::f32, {.kl = 1, .ce = 0.5, .feature = 0.25});
    const double loss = fixture.run(2);
    const std::vector<float> gradients = fixture.gradients<float>();
    const auto policies = {Recompute::none, Recompute::selective, Recompute::full};
    for (Recompute first : policies)
        for (Recompute last : policies) {
            fixture.shape.recompute = {first, last, first};
            CHECK(fixture.run(2) == loss);
            CHECK(fixture.gradients<float>() == gradients);
            CHECK(fixture.arena->peak() == fixture.plan().activations);
            fixture.shape.recompute = {first, first, last};
            CHECK(fixture.run(2) == loss);
            CHECK(fixture.gradients<float>() == gradients);
        }
}

TEST_CASE("The dry run's memory is what the step takes") {
    StepFixture fixture(DType::f32, {.kl = 1, .ce = 0, .feature = 1});
    fixture.shape.recompute = {Recompute::none, Recompute::full, Recompute::selective};
    fixture.run();
    const MemoryPlan plan = fixture.plan();
    CHECK(fixture.arena->peak() == plan.activations);
    Optimizer& optimizer = fixture.step->optimizer();
    CHECK(plan.gradients == optimizer.gradient_bytes());
    CHECK(plan.moments == optimizer.moment_bytes());
    CHECK(plan.masters == 0);
    CHECK(plan.total() == plan.weights + plan.teacher + plan.gradients + plan.moments + plan.activations);
    CHECK(plan.table().find("teacher weights") != std::string::npos);
    CHECK(plan.table().find("recompute: mamba none, attention full, ffn selective") != std::string::npos);
}
