#include "distill/memory_plan.h"

#include <algorithm>

#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/distill/fixture.h"

using namespace minipuzzle;
using namespace minipuzzle::distill;

namespace {

Architecture bench_student() {
    const std::string file = MINIPUZZLE_SOURCE_DIR "/configs/bench/student-3.7b/config.json";
    return parse_architecture(parse_config_text(read_file(file), file), file);
}

// A step of the 8B teacher and a student of 3.7B on a device that computes in bf16.
struct Planned {
    std::unique_ptr<Backend> backend = make_measuring_backend(DType::bf16, DeviceKind::cuda);
    Architecture student = bench_student(), teacher = named_architecture("nemotron-h-8b");
    MemoryQuestion question{
        .student = student,
        .teacher = &teacher,
        .shape = {.batch = 1, .rows = 1, .seq_len = 8192, .loss = {}, .pairs = {}, .recompute = {}},
        .optimizer = {}};

    MemoryPlan with(Recompute policy) {
        question.shape.recompute.assign(student.layers.size(), policy);
        return measure_step(*backend, question);
    }
    // How many layers of the last choice have that policy.
    int64_t count(Recompute policy) const {
        return std::count(question.shape.recompute.begin(), question.shape.recompute.end(), policy);
    }
};

}  // namespace

TEST_CASE("A bf16 device holds 2 bytes of a parameter, a float32 master, gradient and moments") {
    Planned run;
    const MemoryPlan plan = run.with(Recompute::full);
    const auto count = static_cast<double>(parameters(run.student));
    // Norms and scan parameters, a few thousandths, are their own masters.
    CHECK(static_cast<double>(plan.weights) == Approx(2 * count).epsilon(1e-3));
    CHECK(static_cast<double>(plan.masters) == Approx(4 * count).epsilon(1e-3));
    CHECK(static_cast<double>(plan.gradients) == Approx(4 * count).epsilon(1e-3));
    CHECK(static_cast<double>(plan.moments) == Approx(8 * count).epsilon(1e-3));
    run.question.optimizer.bf16_moments = true;
    CHECK(static_cast<double>(run.with(Recompute::full).moments) == Approx(4 * count).epsilon(1e-3));
    run.question.teacher_weight_memory = int64_t{4} << 30;
    CHECK(run.with(Recompute::full).teacher == int64_t{4} << 30);
}

TEST_CASE("As little is computed again as the memory takes") {
    Planned run;
    const int64_t none = run.with(Recompute::none).total(), full = run.with(Recompute::full).total(),
                  selective = run.with(Recompute::selective).total();
    CHECK(none > selective);
    CHECK(selective > full);
    const auto layers = static_cast<int64_t>(run.student.layers.size());
    const auto choose = [&](int64_t limit) {
        const MemoryPlan plan = choose_recompute(*run.backend, run.question, std::nullopt, limit);
        CHECK(plan.total() <= limit);
        CHECK(std::ssize(run.question.shape.recompute) == layers);
        return plan;
    };
    choose(none);
    CHECK(run.count(Recompute::none) == layers);
    choose(none - 1);
    CHECK(run.count(Recompute::none) == layers - 1);
    CHECK(run.question.shape.recompute.front() == Recompute::selective);
    choose(selective);
    CHECK(run.count(Recompute::full) == 0);
    // Beside the backward's own memory there may be room for the last layer or two.
    CHECK(run.count(Recompute::selective) >= layers - 2);
    const MemoryPlan mixed = choose((selective + full) / 2);
    CHECK(run.count(Recompute::none) == 0);
    CHECK(run.count(Recompute::full) > 0);
    CHECK(run.count(Recompute::selective) > 0);
    CHECK(mixed.table().find("full in") != std::string::npos);
    CHECK(run.question.shape.recompute.back() == Recompute::selective);
    choose(full);
    CHECK(run.count(Recompute::full) >= layers - 2);
    CHECK(run.count(Recompute::none) == 0);
}

TEST_CASE("Too little memory is refused with what is missing and what would help") {
    Planned run;
    run.question.shape.batch = run.question.shape.rows = 2;
    const int64_t full = run.with(Recompute::full).total(), none = run.with(Recompute::none).total();
    const auto refused = [&](std::optional<Recompute> asked, int64_t limit) {
        try {
            choose_recompute(*run.backend, run.question, asked, limit);
        } catch (const Error& error) {  // of several lines: the table follows
            CHECK(error.kind() == ErrorKind::out_of_memory);
            return std::string(error.what());
        }
        return std::string();
    };
    const std::string message = refused(std::nullopt, full - (int64_t{3} << 20));
    INFO(message);
    for (const char* words : {"even with full recompute", "3.0 MiB more than", "--micro-batch below 2",
                              "--moments bf16", "--weight-memory", "float32 masters"})
        CHECK(message.find(words) != std::string::npos);
    CHECK(refused(Recompute::none, none - 1).find("--recompute auto") != std::string::npos);
    CHECK(choose_recompute(*run.backend, run.question, Recompute::none, none).total() == none);
}
