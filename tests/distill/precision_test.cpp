// What is trained when the model computes in fewer bits, and updates that must not happen.
#include <fmt/format.h>

#include "distill/run_log.h"
#include "distill/whole_step.h"
#include "runtime/files.h"
#include "runtime/safetensors.h"
#include "tests/catch.h"
#include "tests/distill/bf16_backend.h"
#include "tests/distill/lab.h"
#include "tests/support/errors.h"

using namespace minipuzzle;
using namespace minipuzzle::distill;
using test::Bf16Backend;
using test::check_same_result;
using test::kSteps;
using test::Lab;
using test::TempDir;
namespace fs = std::filesystem;

namespace {

// A lab in bf16 whose gradients are not finite in the steps that `spoiled` names; `done`: steps of the run
// before this process.
Lab bf16_lab(std::function<bool(int64_t)> spoiled = {}, int64_t done = 0) {
    auto backend = std::make_unique<Bf16Backend>();
    if (spoiled)
        backend->before_norms = [spoiled, done](int64_t number, const GradientNorms& norms) {
            if (spoiled(done + number)) norms.gradients[3].as<float>()[0] = std::nanf("");
        };
    return Lab(std::move(backend));
}

bool second_and_third(int64_t step) { return step == 2 || step == 3; }

DType stored_type(const fs::path& out, int64_t step, const std::string& name) {
    const SafetensorsFile file(out / ".state" / fmt::format("step-{}.safetensors", step));
    const StoredTensor* tensor = file.find(name);
    REQUIRE(tensor);
    return tensor->dtype;
}

}  // namespace

TEST_CASE("In bf16 a run learns what it learns in float32, and resumes to the same bytes") {
    const TempDir folder;
    Lab exact;
    const TrainOutcome expected = exact.run(folder / "exact");
    const TrainOutcome outcome = bf16_lab().run(folder / "whole");
    // Every activation of a few layers is rounded by up to 2^-9.
    CHECK(outcome.first_loss == Approx(expected.first_loss).epsilon(0.02));
    CHECK(outcome.last_loss == Approx(expected.last_loss).epsilon(0.02));
    for (int64_t stop : {1, 4}) {
        const fs::path out = folder / fmt::format("stop-{}", stop);
        Lab lab = bf16_lab();
        REQUIRE(lab.run_until(out, stop));
        CHECK(stored_type(out, stop, "parameter.layers.0.mixer.in_proj.weight") == DType::f32);
        CHECK(stored_type(out, stop, "moment1.layers.0.mixer.in_proj.weight") == DType::f32);
        lab.options.resume = true;
        lab.run(out);
        check_same_result(folder / "whole", out);
    }
}

TEST_CASE("A parameter is its master, rounded; only rounded parameters have one") {
    Bf16Backend backend;
    const Architecture student = test::tiny_architecture("M*-");
    WeightMemory weights(backend, student, false);
    Optimizer optimizer(backend, student, weights.weights(), {.weight_decay = 0.1});
    optimizer.fill(*random_source(student, 1, 0.3));
    std::vector<double> squares(static_cast<std::size_t>(optimizer.count()));
    const Tensor norms(squares.data(), DType::f64, {optimizer.count()});
    optimizer.measure_norms(norms);
    optimizer.update(norms, 1, 1e-3);  // too little for bf16: only the masters can hold what decays
    int64_t finer = 0;
    for (const TrainedParameter& p : optimizer.parameters()) {
        INFO(p.info.slot.name);
        CHECK(p.gradient.dtype == DType::f32);
        CHECK(static_cast<bool>(p.master) == (p.parameter.dtype == DType::bf16));
        if (!p.master) continue;
        const std::vector<float> master = test::values_of(p.master);
        const auto* bits = reinterpret_cast<const uint16_t*>(p.parameter.data);
        for (std::size_t i = 0; i < master.size(); ++i) {
            REQUIRE(bits[i] == float_to_bf16(master[i]));
            finer += bf16_to_float(bits[i]) != master[i];
        }
    }
    CHECK(finer > 0);
}

TEST_CASE("Moments may be kept in bf16, on any backend") {
    const TempDir folder;
    for (const bool rounded : {false, true}) {
        const fs::path whole = folder / fmt::format("whole-{}", rounded),
                       out = folder / fmt::format("out-{}", rounded);
        const auto backend = [&]() -> std::unique_ptr<Backend> {
            if (rounded) return std::make_unique<Bf16Backend>();
            return make_cpu_backend(DType::f32, 2);
        };
        Lab unstopped(backend()), stopped(backend());
        unstopped.options.bf16_moments = stopped.options.bf16_moments = true;
        unstopped.run(whole);
        REQUIRE(stopped.run_until(out, 3));
        CHECK(stored_type(out, 3, "moment2.lm_head.weight") == DType::bf16);
        CHECK(stored_type(out, 3, "parameter.lm_head.weight") == DType::f32);
        stopped.options.resume = true;
        stopped.options.bf16_moments = false;
        CHECK(test::bad_input([&] { stopped.run(out); }).find("options/moments was \"bf16\", now \"f32\"") !=
              std::string::npos);
        stopped.options.bf16_moments = true;
        stopped.run(out);
        check_same_result(whole, out);
    }
}

TEST_CASE("A step whose gradients are not finite is skipped and counted, through a resume too") {
    const TempDir folder;
    const TrainOutcome outcome = bf16_lab(second_and_third).run(folder / "whole");
    CHECK(outcome.skipped == 2);
    const RunLog log = read_run_log(folder / "whole" / "run.jsonl");
    REQUIRE(log.steps.size() == kSteps);
    const std::vector<int64_t> skipped{0, 1, 2, 2, 2, 2};
    for (std::size_t i = 0; i < log.steps.size(); ++i) {
        CHECK(log.steps[i].skipped == skipped[i]);
        CHECK(log.steps[i].grad_norm.has_value() != second_and_third(static_cast<int64_t>(i) + 1));
        CHECK(std::isfinite(log.steps[i].loss));
    }
    for (int64_t stop : {2, 3, 4}) {
        const fs::path out = folder / fmt::format("stop-{}", stop);
        Lab lab = bf16_lab(second_and_third);
        REQUIRE(lab.run_until(out, stop));
        const Json state = read_json(out / ".state" / "state.json");
        CHECK(state["skipped"] == std::min<int64_t>(stop - 1, 2));
        CHECK(state["skipped_in_a_row"] == (stop == 4 ? 0 : stop - 1));
        Lab resumed = bf16_lab(second_and_third, stop);
        resumed.options.resume = true;
        resumed.run(out);
        check_same_result(folder / "whole", out);
    }
}

TEST_CASE("Ten skipped updates in a row stop the run with the tensor at fault, the last state kept") {
    const TempDir folder;
    Lab lab = bf16_lab([](int64_t step) { return step >= 3; });
    lab.options.tokens *= 4;
    const std::string message = test::error_of(ErrorKind::other, [&] { lab.run(folder / "out"); });
    INFO(message);
    CHECK(message.find("step 12: 10 updates in a row were skipped") != std::string::npos);
    // The fourth of the list.
    CHECK(message.find("gradient of layers.0.mixer.conv1d.weight") != std::string::npos);
    CHECK(message.find("the state of step 10 is kept") != std::string::npos);
    CHECK(read_run_log(folder / "out" / "run.jsonl").steps.size() == 12);
    CHECK(fs::exists(folder / "out" / ".state" / "step-10.safetensors"));
    CHECK(!fs::exists(folder / "out" / "config.json"));
}

TEST_CASE("A streamed teacher teaches the same bytes") {
    const TempDir folder;
    bf16_lab().run(folder / "resident");
    Lab lab = bf16_lab();
    lab.teacher_weight_memory = test::kHalfOfTheTeacher;
    const TrainOutcome outcome = lab.run(folder / "streamed");
    CHECK(outcome.memory_table.find("teacher weights") != std::string::npos);
    check_same_result(folder / "resident", folder / "streamed");
}
