// The parts of the memory model against hand-derived figures, real files, and this program's own wiring.
#include <filesystem>

#include "nas/free_space.h"
#include "nas/memory_model.h"
#include "runtime/hybrid_model.h"
#include "runtime/safetensors.h"
#include "tests/catch.h"
#include "tests/nas/instances.h"
#include "tests/support/minis.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;
using Catch::Matchers::Contains;
using minipuzzle::nas::testing::architecture_of;

namespace {

// Sizes that a public test suite of another tool derives by hand.
Architecture hand_derived(const std::string& pattern) {
    Architecture architecture;
    architecture.vocab = 10;
    architecture.width = 4;
    for (const char c : pattern) {
        if (c == 'M')
            architecture.layers.push_back(
                Mamba{.heads = 2, .head_dim = 2, .state = 2, .groups = 2, .conv_kernel = 4});
        else if (c == '*')
            architecture.layers.push_back(Attention{.heads = 2, .kv_heads = 1, .head_dim = 2});
        else
            architecture.layers.push_back(Ffn{.width = 8});
    }
    return architecture;
}

int64_t weights(const Architecture& architecture, const Workload& workload) {
    return memory_of(architecture, workload).weights;
}

int64_t part_units(const Architecture& architecture, const Workload& workload, WeightPart part) {
    for (const WeightPartMemory& each : weight_parts(architecture, workload))
        if (each.part == part) return each.units;
    return 0;
}

// What the wiring of one layer takes, the stream it works on included, on a device that stores bf16.
int64_t measured_workspace(const Architecture& architecture, int64_t batch, int64_t length) {
    const auto backend = make_measuring_backend(DType::bf16, DeviceKind::cpu);
    DeviceArena arena = DeviceArena::measuring(*backend);
    Weights shapes = shaped_weights(*backend, architecture);
    HybridModel model(*backend, arena, architecture, shapes);
    const Tensor stream = arena.take("stream", {batch, length, architecture.width});
    for (int64_t layer = 0; layer < std::ssize(architecture.layers); ++layer)
        model.apply(layer, stream, stream, {});
    return arena.peak();
}

}  // namespace

TEST_CASE("hand-derived parameters and states of tiny layers") {
    Workload workload;
    workload.weights = ElementType::fp8;  // a byte a parameter
    workload.ssm = ElementType::bf16;
    const int64_t base = 84;
    CHECK(weights(hand_derived("*"), workload) == base + 52);
    CHECK(weights(hand_derived("-"), workload) == base + 68);
    CHECK(weights(hand_derived("M"), workload) == base + 162);
    CHECK(weights(hand_derived("M*-M"), workload) == base + 52 + 68 + 2 * 162);
    const Memory state = memory_of(hand_derived("M"), workload);
    CHECK(state.conv == 2 * 36);
    CHECK(state.ssm == 2 * 8);
    CHECK(memory_of(hand_derived("*"), {.context = 7, .batch = 3}).kv == 2 * 2 * 1 * 2 * 7 * 3);
}

TEST_CASE("weights by part add up to the weights, each in its own type") {
    const Architecture architecture = hand_derived("M*-");
    Workload workload;
    const std::pair<WeightPart, int64_t> parameters[] = {{WeightPart::embeddings, 40},
                                                         {WeightPart::head, 40},
                                                         {WeightPart::norms, 4 + 3 * 4 + 4},
                                                         {WeightPart::ssm_parameters, 3 * 2 + 12 * 4 + 12},
                                                         {WeightPart::mamba, 18 * 4 + 4 * 4},
                                                         {WeightPart::attention, 48},
                                                         {WeightPart::ffn, 64}};
    int64_t sum = 0;
    for (const auto& [part, count] : parameters) {
        INFO(name(part));
        CHECK(part_units(architecture, workload, part) == 2 * kUnitsPerByte * count);
        sum += count;
    }
    CHECK(sum == minipuzzle::parameters(architecture));

    workload.weights = ElementType::fp4;
    workload.embeddings = ElementType::bf16;
    workload.head = ElementType::fp8;
    workload.norms = workload.ssm_parameters = ElementType::fp32;
    CHECK(weights(architecture, workload) == 2 * 40 + 40 + 4 * (20 + 66) + (18 * 4 + 4 * 4 + 48 + 64) / 2);
    for (const WeightPartMemory& part : weight_parts(architecture, workload))
        if (part.part == WeightPart::mamba) CHECK(part.type == "fp4");
}

TEST_CASE("tied embeddings are one tensor, counted once, in the embeddings' type") {
    Architecture architecture = hand_derived("-");
    architecture.tied_embeddings = true;
    Workload workload;
    workload.embeddings = ElementType::fp8;
    workload.head = ElementType::fp32;  // there is no tensor that has it
    CHECK(weights(architecture, workload) == 40 + 2 * (4 + 68));
    CHECK(part_units(architecture, workload, WeightPart::head) == 0);
}

TEST_CASE("int4 has a bf16 scale per group of a row, a partial group a whole one") {
    const Architecture architecture = hand_derived("-");
    Workload workload;
    workload.weights = ElementType::int4;
    workload.int4_group = 3;
    // up [8, 4]: two groups a row; down [4, 8]: three.
    CHECK(part_units(architecture, workload, WeightPart::ffn) ==
          kUnitsPerByte * (8 * (2 + 2 * 2) + 4 * (4 + 3 * 2)));
    workload.int4_group = 4;
    CHECK(part_units(architecture, workload, WeightPart::ffn) ==
          kUnitsPerByte * (8 * (2 + 1 * 2) + 4 * (4 + 2 * 2)));
    workload.int4_group = 128;  // longer than any row: one scale a row
    CHECK(part_units(architecture, workload, WeightPart::ffn) == kUnitsPerByte * (8 * (2 + 2) + 4 * (4 + 2)));
    // conv1d's row is a channel's taps, a vector is one row: 12 channels x (2 + 2) bytes, a bias of 12, and
    // A_log, D and dt_bias of 2 each.
    CHECK(part_units(hand_derived("M"), workload, WeightPart::ssm_parameters) ==
          kUnitsPerByte * (12 * (2 + 2) + (6 + 2) + 3 * (1 + 2)));

    // At a published model's sizes, all rows whole groups: 4.125 bits an element but for the short rows.
    const Architecture large = named_architecture("nemotron-h-8b");
    Workload kept = workload;
    kept.norms = kept.ssm_parameters = ElementType::bf16;
    const int64_t projections = part_units(large, kept, WeightPart::ffn);
    Workload bf16;
    CHECK(projections * 32 == part_units(large, bf16, WeightPart::ffn) * 33 / 4);
}

TEST_CASE("the workspace of a prefill is what the forward pass takes") {
    // Extents are multiples of 128 elements, so that the arena's alignment adds nothing.
    Architecture architecture;
    architecture.vocab = 256;
    architecture.width = 128;
    const Layer mamba = Mamba{.heads = 8, .head_dim = 64, .state = 16, .groups = 2, .conv_kernel = 4};
    const Layer attention = Attention{.heads = 6, .kv_heads = 2, .head_dim = 64};
    const Layer ffn = Ffn{.width = 640};
    const std::vector<std::vector<Layer>> models = {
        {mamba}, {attention}, {ffn}, {attention, ffn}, {ffn, attention, mamba, attention}};
    for (const auto& layers : models) {
        architecture.layers = layers;
        Workload workload{.context = 4096, .batch = 2};
        CHECK(memory_of(architecture, workload).workspace == 0);
        workload.prefill_chunk = 256;
        CHECK(memory_of(architecture, workload).workspace == measured_workspace(architecture, 2, 256));
        workload.context = 128;  // no more tokens than there are
        CHECK(memory_of(architecture, workload).workspace == measured_workspace(architecture, 2, 128));
    }
    // Few tokens: the logits of the last one are the largest.
    Workload one{.context = 4096, .batch = 3};
    one.prefill_chunk = 1;
    architecture.vocab = 100000;
    CHECK(memory_of(architecture, one).workspace == 3 * (2 * 128 + 2 * 128 + 4 * 100000));
    // A student without the largest layers takes the next.
    Workload chunked{.context = 4096};
    chunked.prefill_chunk = 4096;
    StudentPlan plan;
    plan.drop = {2};
    const Memory student = memory_of(architecture, plan, chunked);
    CHECK(student.workspace == memory_of(student_architecture(architecture, plan), chunked).workspace);
    CHECK(student.workspace < memory_of(architecture, chunked).workspace);
}

TEST_CASE("byte counts of real files are the model's weights, to the byte") {
    const std::string model = GENERATE("mini-20", "mini-52");
    const std::filesystem::path folder = test::shared_folder() / "models" / model;
    const Checkpoint checkpoint(folder);
    int64_t payload = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        if (entry.path().extension() == ".safetensors")
            payload += static_cast<int64_t>(entry.file_size()) - 8 -  // the header's length and the header
                       std::ssize(SafetensorsFile(entry.path()).header());
    Workload workload;
    workload.weights_as_in_file = true;
    workload.weight_dtypes = dtypes_in_file(checkpoint);
    CHECK(weights(checkpoint.architecture(), workload) == payload);
}

TEST_CASE("a workload's additions come back from JSON and are left out where they say nothing") {
    CHECK(to_json(Workload{}).size() == 7);
    Workload workload;
    workload.weights = ElementType::int4;
    workload.int4_group = 64;
    workload.embeddings = ElementType::bf16;
    workload.norms = ElementType::fp32;
    workload.prefill_chunk = 512;
    const Json json = to_json(workload);
    const Workload read = read_workload(ObjectReader(json, "workload"));
    CHECK(to_json(read) == json);
    CHECK(read.int4_group == 64);
    CHECK(read.norms == ElementType::fp32);
    CHECK_FALSE(read.head);
    Json wrong = json;
    wrong["kv"] = "int4";  // group scales are of weights
    CHECK_THROWS_WITH(read_workload(ObjectReader(wrong, "workload")), Contains("int4"));
}

TEST_CASE("the free space weighs the workspace of the layers that a student keeps") {
    testing::Random random(7);
    const Architecture teacher = architecture_of("M-*M-", 96);
    ScoreTable scores = testing::random_scores(random, teacher);
    for (LayerScore& layer : scores.layers) layer.loss_delta = 0.125;
    scores.layers[2].loss_delta = std::nullopt;  // always kept: its workspace is always there
    scores.ffn_width_curve = {{.ffn_width = 40, .loss_delta = 0.25, .kl = {}}};
    const Surrogate surrogate = make_surrogate(scores, Objective::loss_delta);
    SearchOptions options;
    options.workload.context = 64;
    options.workload.weights = ElementType::nvfp4;
    options.workload.prefill_chunk = 64;
    options.fits = {{.context = 16, .batch = 3}};
    const int64_t total = memory_of(teacher, options.workload).total();
    int64_t within = 0, beyond = 0;
    for (const int64_t percent : {40, 60, 75, 90}) {
        options.mem_budget = total * percent / 100;
        const FreeSpace space(teacher, surrogate, options);
        for (unsigned mask = 0; mask < 32; ++mask)
            for (const std::optional<int64_t> width :
                 {std::optional<int64_t>(), std::optional<int64_t>(40)}) {
                StudentPlan plan;
                for (int64_t layer = 0; layer < 5; ++layer)
                    if (mask >> layer & 1) plan.drop.push_back(layer);
                plan.ffn_width = width;
                if (plan.drops(2) || (width && plan.drops(1) && plan.drops(4))) continue;
                bool fits = true;
                for (const MemoryLimit& limit : memory_limits(options))
                    fits = fits && memory_of(teacher, plan, limit.workload).total() <= limit.bytes;
                CHECK(space.fits(plan) == fits);
                ++(fits ? within : beyond);
            }
    }
    CHECK(within > 10);
    CHECK(beyond > 10);
}
