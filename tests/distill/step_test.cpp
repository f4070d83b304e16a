#include "distill/step.h"

#include <cmath>

#include "distill/memory_plan.h"
#include "distill/optimizer.h"
#include "kernels/random.h"
#include "tests/catch.h"
#include "tests/distill/fixture.h"

using namespace minipuzzle;
using namespace minipuzzle::distill;
using minipuzzle::test::TinyCorpus;

namespace {

constexpr int64_t kSeqLen = 9, kBatch = 3;

// A student of three layers against a teacher of six, on packed rows.
struct StepFixture {
    std::unique_ptr<Backend> backend;
    Architecture student, teacher;
    WeightMemory weights, teacher_weights;
    Optimizer optimizer;
    TinyCorpus data;
    PackedBatch batch;
    int64_t targets;
    StepShape shape;

    StepFixture(DType type, const LossWeights& loss, bool tied = false)
        : backend(make_cpu_backend(type, 2)),
          student(test::tiny_architecture("M*-", tied)),
          teacher(test::tiny_architecture("M-M*-M")),
          weights(random_weights(*backend, student, 1, 0.4)),
          teacher_weights(random_weights(*backend, teacher, 2, 0.4)),
          optimizer(*backend, student, weights.weights(), {}),
          batch(PackedRows(data.corpus, kSeqLen, 3, true).rows(1, kBatch)),
          targets(count_targets(batch)),
          shape{.rows = kBatch, .seq_len = kSeqLen, .loss = loss, .pairs = {}} {
        if (loss.feature > 0) shape.pairs = feature_map({0, 3, 4}, 6);
    }
    // The loss of the batch, `rows` at a time; gradients start from zero.
    double run(int64_t rows = kBatch) {
        optimizer.zero_gradients();
        shape.rows = rows;
        DeviceArena arena = DeviceArena::sized(
            *backend, measure_step(*backend, student, teacher_if_needed(), shape).activations);
        TrainStep step(*backend, arena,
                       {.student = student,
                        .weights = weights.weights(),
                        .gradients = optimizer.gradients(),
                        .teacher = teacher_if_needed(),
                        .teacher_weights = &teacher_weights.weights()},
                       shape);
        const LossSums sums = accumulate_batch(step, batch, rows, targets);
        return means(sums, shape.loss, targets).loss;
    }
    const Architecture* teacher_if_needed() const { return shape.loss.needs_teacher() ? &teacher : nullptr; }
    // All gradients after one another.
    std::vector<double> gradients() const {
        std::vector<double> values;
        for (const TrainedParameter& parameter : optimizer.parameters())
            values.insert(values.end(), parameter.gradient.as<double>(),
                          parameter.gradient.as<double>() + parameter.gradient.elements());
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
    for (const TrainedParameter& parameter : fixture.optimizer.parameters()) {
        const int64_t elements = parameter.parameter.elements();
        const CounterRandom random(5, parameter.info.slot.name);
        for (int64_t draw = 0; draw < 3; ++draw) {
            const auto index = static_cast<int64_t>(random.bits(draw) % static_cast<uint64_t>(elements));
            const double expected = slope(fixture, parameter.parameter.as<double>()[index]);
            INFO(parameter.info.slot.name << "[" << index << "]");
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
        StepFixture fixture(type, {.kl = 1, .ce = 0, .feature = 1});
        fixture.student = fixture.teacher;
        WeightMemory same = random_weights(*fixture.backend, fixture.teacher, 2, 0.4);
        Optimizer optimizer(*fixture.backend, fixture.teacher, same.weights(), {});
        fixture.shape.pairs = feature_map({0, 1, 2, 3, 4, 5}, 6);
        DeviceArena arena = DeviceArena::sized(
            *fixture.backend,
            measure_step(*fixture.backend, fixture.teacher, &fixture.teacher, fixture.shape).activations);
        TrainStep step(*fixture.backend, arena,
                       {.student = fixture.teacher,
                        .weights = same.weights(),
                        .gradients = optimizer.gradients(),
                        .teacher = &fixture.teacher,
                        .teacher_weights = &fixture.teacher_weights.weights()},
                       fixture.shape);
        const LossSums sums = accumulate_batch(step, fixture.batch, kBatch, fixture.targets);
        // Rounding of probabilities and of 1 - cos near 1.
        const double eps = type == DType::f64 ? 1e-14 : 1e-6;
        CHECK(std::abs(sums.kl) < eps * static_cast<double>(fixture.targets));
        CHECK(std::abs(sums.feature) < 6 * eps * static_cast<double>(fixture.targets));
        CHECK(optimizer.gradient_norm() < 20 * eps);
    }
}

TEST_CASE("The dry run's activations are what the step takes") {
    StepFixture fixture(DType::f32, {.kl = 1, .ce = 0, .feature = 1});
    const MemoryPlan plan = measure_step(*fixture.backend, fixture.student, &fixture.teacher, fixture.shape);
    DeviceArena arena = DeviceArena::sized(*fixture.backend, plan.activations);
    TrainStep step(*fixture.backend, arena,
                   {.student = fixture.student,
                    .weights = fixture.weights.weights(),
                    .gradients = fixture.optimizer.gradients(),
                    .teacher = &fixture.teacher,
                    .teacher_weights = &fixture.teacher_weights.weights()},
                   fixture.shape);
    accumulate_batch(step, fixture.batch, kBatch, fixture.targets);
    CHECK(arena.peak() == plan.activations);
    CHECK(plan.gradients + plan.moments == fixture.optimizer.bytes());
    CHECK(plan.total() == plan.weights + plan.teacher + plan.gradients + plan.moments + plan.activations);
    CHECK(plan.table().find("teacher weights") != std::string::npos);
}
