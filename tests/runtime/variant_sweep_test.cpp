#include "runtime/variant_sweep.h"

#include <fstream>

#include "kernels/random.h"
#include "runtime/evaluate.h"
#include "runtime/ffn_slice.h"
#include "tests/catch.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

using namespace minipuzzle;

namespace {

struct TinyWorld {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 2);
    Architecture architecture = test::tiny_architecture("M-M*-M-");
    WeightMemory weights;
    WidthScores width_scores;
    test::TempDir scratch;
    std::unique_ptr<Corpus> corpus;
    std::vector<Window> windows;

    explicit TinyWorld(Precision precision = Precision::bf16)
        : weights(load_weights(*backend, architecture, *random_source(architecture, 4, 0.2), precision)) {
        CounterRandom random(8, "tokens");
        std::ofstream file(scratch.path() / "rows.jsonl");
        int64_t draw = 0;
        for (int length : {41, 41, 23, 41, 7}) {
            nlohmann::json row;
            for (int i = 0; i < length; ++i)
                row["tokens"].push_back(random.bits(draw++) % architecture.vocab);
            file << row << "\n";
        }
        file.close();
        corpus = std::make_unique<Corpus>(std::vector<std::string>{(scratch.path() / "rows.jsonl").string()},
                                          TokenizerContext{.vocab = architecture.vocab}, false);
        windows = choose_windows(*corpus, 20, 0, 0);
        for (std::size_t l = 0; l < architecture.layers.size(); ++l) {
            const Ffn* ffn = std::get_if<Ffn>(&architecture.layers[l]);
            if (!ffn) continue;
            auto& order = width_scores.ffn_order[static_cast<int64_t>(l)];
            for (int64_t i = 0; i < ffn->width; ++i)
                order.push_back(static_cast<int32_t>((i * 5 + 3) % ffn->width));
        }
    }
};

// The student of a plan as a model of its own: kept layers' weights, narrowed FFNs.
std::vector<double> losses_of_student(TinyWorld& world, const StudentPlan& plan) {
    const Architecture student = student_architecture(world.architecture, plan);
    DeviceArena arena = DeviceArena::sized(*world.backend, 1 << 22);
    Weights weights = world.weights.weights();
    weights.layers.clear();
    for (int64_t layer : plan.kept(world.architecture)) {
        LayerWeights kept = world.weights.weights().layers[layer];
        if (auto* ffn = std::get_if<FfnWeights>(&kept)) {
            const int64_t width = plan.width_of(world.architecture, layer);
            if (width < ffn->up_proj.size(0))
                *ffn = slice_ffn(*world.backend, arena, *ffn, kept_neurons(world.width_scores, layer, width));
        }
        weights.layers.push_back(kept);
    }
    return evaluate(*world.backend, {student, weights}, nullptr, *world.corpus, world.windows, {})
        .per_sequence_loss;
}

}  // namespace

TEST_CASE("Leaving one layer out shares half the layer work and never recomputes a prefix") {
    const Architecture architecture = test::tiny_architecture("M-M*-M-");
    std::vector<StudentPlan> plans(7);
    for (int64_t l = 0; l < 7; ++l) plans[l].drop = {l};
    const SweepSchedule schedule = make_schedule(architecture, plans);
    CHECK(schedule.slots == 8);
    int64_t applications = 0;
    for (std::size_t l = 0; l < schedule.layers.size(); ++l) {
        CHECK(schedule.layers[l].size() == l + 1);  // the base and the variants switched off below
        applications += static_cast<int64_t>(schedule.layers[l].size());
    }
    CHECK(applications == 7 * 8 / 2);
}

TEST_CASE("Plans that are the same student share one slot") {
    const Architecture architecture = test::tiny_architecture("M-M*-M-");
    std::vector<StudentPlan> plans(3);
    plans[0].drop = {2, 4};
    plans[1].drop = {2, 4};
    const SweepSchedule schedule = make_schedule(architecture, plans);
    CHECK(schedule.slots == 2);
    CHECK(schedule.plan_slot[0] == schedule.plan_slot[1]);
    CHECK(schedule.plan_slot[2] == schedule.base_slot);
}

TEST_CASE("Every plan of a sweep measures what its student measures alone, bit for bit") {
    const Precision precision = GENERATE(Precision::bf16, Precision::fp8);
    TinyWorld world(precision);
    CAPTURE(name(precision));
    // Layer 4, an FFN, is among the quantised: widths cut it too.
    CHECK(is_quantized(std::get<FfnWeights>(world.weights.weights().layers[4]).down_proj) ==
          (precision == Precision::fp8));
    const int64_t full = world.architecture.ffn_width();
    std::vector<StudentPlan> plans(6);
    plans[0].drop = {0};
    plans[1].drop = {2, 3};
    plans[2].drop = {2, 3, 6};
    plans[3].ffn_width = full - 5;
    plans[4] = {.drop = {1, 5}, .ffn_width = full / 2};
    plans[5].drop = {6};
    const SweepResult result = sweep(*world.backend, world.architecture, world.weights.weights(), plans,
                                     &world.width_scores, *world.corpus, world.windows, {});
    for (std::size_t i = 0; i < plans.size(); ++i) {
        INFO("plan " << i);
        CHECK(result.variants[i].loss == losses_of_student(world, plans[i]));
    }
    CHECK(result.base.loss == losses_of_student(world, {}));
    CHECK(result.multiply_adds < result.separate_multiply_adds);
}

TEST_CASE("A window's figures do not depend on the windows or the plans beside it") {
    TinyWorld world;
    std::vector<StudentPlan> plans(2);
    plans[0].drop = {3};
    plans[1].drop = {1, 2};
    const auto run = [&](const std::vector<StudentPlan>& some_plans,
                         const std::vector<Window>& some_windows) {
        return sweep(*world.backend, world.architecture, world.weights.weights(), some_plans, nullptr,
                     *world.corpus, some_windows, {});
    };
    const SweepResult all = run(plans, world.windows);
    for (std::size_t w = 0; w < world.windows.size(); ++w) {
        const SweepResult alone = run({plans[1]}, {world.windows[w]});
        CHECK(alone.variants[0].kl[0] == all.variants[1].kl[w]);
        CHECK(alone.variants[0].loss[0] == all.variants[1].loss[w]);
        CHECK(alone.variants[0].logit_nmse[0] == all.variants[1].logit_nmse[w]);
        CHECK(alone.base.loss[0] == all.base.loss[w]);
    }
}

TEST_CASE("Layers with quantised projections have no backward") {
    TinyWorld world(Precision::fp8);
    const Architecture& architecture = world.architecture;
    DeviceArena arena = DeviceArena::sized(*world.backend, 1 << 22);
    const WeightMemory gradients(*world.backend, architecture, true);
    Weights sums = gradients.weights();
    HybridModel model(*world.backend, arena, architecture, world.weights.weights());
    const Tensor in = arena.take("in", {1, 5, architecture.width}),
                 d = arena.take("d", {1, 5, architecture.width});
    world.backend->zero(in);
    world.backend->zero(d);
    model.apply_backward(1, in, d, sums);
    for (const int64_t layer : {2, 3, 4})
        CHECK_THROWS_AS(model.apply_backward(layer, in, d, sums), InternalError);
}

TEST_CASE("A loss that is not finite stops the sweep and names the window") {
    TinyWorld world;
    world.weights.weights().norm_f.as<float>()[0] = std::numeric_limits<float>::infinity();
    try {
        sweep(*world.backend, world.architecture, world.weights.weights(), {}, nullptr, *world.corpus,
              world.windows, {});
        FAIL("the sweep should have stopped");
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::other);
        CHECK(std::string(error.what()).find("window") != std::string::npos);
    }
}
