#include "runtime/live_states.h"

#include "kernels/random.h"
#include "runtime/batch_size.h"
#include "tests/catch.h"
#include "tests/support/tiny_model.h"

using namespace minipuzzle;

namespace {

constexpr int64_t kPlenty = int64_t{1} << 40;

WindowBatch random_windows(const Architecture& architecture, int64_t batch, int64_t length) {
    const CounterRandom random(5, "windows");
    WindowBatch windows = blank_batch(batch, length);
    for (int64_t i = 0; i < batch; ++i) windows.windows.push_back(i);
    const auto vocab = static_cast<uint64_t>(architecture.vocab);
    for (int64_t i = 0; i < batch * length; ++i) {
        windows.tokens.push_back(static_cast<int32_t>(random.bits(2 * i) % vocab));
        windows.targets.push_back(static_cast<int32_t>(random.bits(2 * i + 1) % vocab));
    }
    return windows;
}

std::vector<std::vector<double>> everything(const SweepResult& result) {
    std::vector<std::vector<double>> all{result.base.loss, result.base.accuracy};
    for (const SequenceMetrics& of : result.variants)
        for (const auto& metric :
             {of.loss, of.accuracy, of.kl, of.top1_agreement, of.hidden_mse, of.logit_nmse, of.cosine})
            all.push_back(metric);
    return all;
}

struct SpillWorld {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 2);
    Architecture architecture = test::tiny_architecture("M-M*-M-");
    WeightMemory weights = random_weights(*backend, architecture, 4, 0.2);
    std::vector<StudentPlan> plans;
    WidthScores width_scores;

    // Leave-one-out, a deep student and two widths, so that states part in every way there is.
    SpillWorld() : plans(leave_one_out(architecture)) {
        plans.push_back({.drop = {1, 2, 5}});
        const int64_t full = architecture.ffn_width();
        for (const int64_t width : {full / 2, full - 3}) plans.push_back({.drop = {}, .ffn_width = width});
        for (std::size_t l = 0; l < architecture.layers.size(); ++l)
            if (const Ffn* ffn = std::get_if<Ffn>(&architecture.layers[l]))
                for (int64_t i = 0; i < ffn->width; ++i)
                    width_scores.ffn_order[static_cast<int64_t>(l)].push_back(
                        static_cast<int32_t>((i * 5 + 3) % ffn->width));
    }
    VariantSweep sweep() {
        return {*backend, architecture, WeightSource(weights.weights()), plans, &width_scores};
    }
};

}  // namespace

TEST_CASE("states that most steps touch stay on the device") {
    const Architecture architecture = test::tiny_architecture("M-M*-M-");
    const SweepSchedule schedule = make_schedule(architecture, leave_one_out(architecture));
    // Slot l belongs to the variant without layer l: the first ones live the longest.
    const StatePlan plan = plan_states(schedule, 3);
    CHECK(plan.resident_states() == 3);
    CHECK(plan.host_states() == 5);
    for (int64_t slot = 0; slot < schedule.slots; ++slot) CHECK(plan.on_host[slot] == (slot >= 3));
    CHECK(plan_states(schedule, 100).host_states() == 0);
}

TEST_CASE("a sweep's bits do not depend on where its states lie") {
    SpillWorld world;
    // The long one is compared in three pieces, the last of them odd.
    for (const auto& [batch, length] : {std::pair{3, 20}, {2, 1601}}) {
        const WindowBatch windows = random_windows(world.architecture, batch, length);
        VariantSweep reference = world.sweep();
        const auto expected = everything(reference.run(windows));
        const SweepMemory all = reference.plan(batch, length);
        CHECK(all.host_states == 0);
        CHECK(all.states == std::ssize(world.plans) + 1);
        VariantSweep none = world.sweep();
        none.limit_memory(1, kPlenty);
        const SweepMemory least = none.plan(batch, length);
        CHECK(least.host_states == all.states);
        CHECK(least.pinned_bytes() == all.states * all.state_bytes);
        CHECK(everything(none.run(windows)) == expected);
        for (const int64_t resident : {1, 2, 6}) {
            CAPTURE(batch, length, resident);
            VariantSweep some = world.sweep();
            const int64_t limit = least.device_bytes + resident * DeviceArena::aligned(all.state_bytes);
            some.limit_memory(limit, kPlenty);
            const SweepMemory plan = some.plan(batch, length);
            CHECK(plan.device_bytes <= limit);
            CHECK((plan.host_states == 0) == (limit >= all.device_bytes));
            CHECK(plan.host_states <= all.states - resident);
            CHECK(everything(some.run(windows)) == expected);
            CHECK(some.memory_bytes() == plan.device_bytes);
        }
    }
}

TEST_CASE("states that fit nowhere are an error that says what is missing") {
    SpillWorld world;
    VariantSweep sweep = world.sweep();
    const int64_t states = std::ssize(world.plans) + 1;
    const int64_t bytes = states * 2 * 20 * world.architecture.width * 4;
    sweep.limit_memory(1, bytes - 1);
    try {
        sweep.plan(2, 20);
        FAIL("no error");
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::out_of_memory);
        CHECK(std::string(error.what()).find("are missing") != std::string::npos);
    }
    sweep.limit_memory(1, bytes);
    CHECK(sweep.plan(2, 20).pinned_bytes() == bytes);
}

TEST_CASE("a sweep tells of its work while it runs, and ends where it is told to") {
    SpillWorld world;
    VariantSweep sweep = world.sweep();
    const WindowBatch windows = random_windows(world.architecture, 2, 20);
    Work told;
    int calls = 0;
    const SweepResult result = sweep.run(windows, [&](const Work& done) {
        if (calls++ == 0) CHECK(done.total() == 0);
        told += done;
    });
    CHECK(calls >= 9);  // the beginning, seven layers, the head
    CHECK(told.total() == Approx(result.multiply_adds).epsilon(1e-12));
    const Work whole =
        schedule_work(world.architecture, make_schedule(world.architecture, world.plans), 2 * 20, 20);
    for (int kind = 0; kind < kWorkKinds; ++kind)
        CHECK(told.of[kind] == Approx(whole.of[kind]).epsilon(1e-12));

    struct Stop {};
    CHECK_THROWS_AS(sweep.run(windows,
                              [&](const Work& done) {
                                  if (done.total() > 0) throw Stop{};
                              }),
                    Stop);
    CHECK(everything(sweep.run(windows)) == everything(result));
}
