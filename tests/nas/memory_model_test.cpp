#include "nas/memory_model.h"

#include "tests/catch.h"
#include "tests/nas/instances.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;

namespace {

double gib(int64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0); }

struct StateSizes {
    const char* name;
    int64_t ssm, conv, kv_per_token;
};
// reference: cache shapes of nemotron_h, per sequence.
constexpr int64_t kMiB = 1 << 20;
constexpr StateSizes kStates[] = {{"nemotron-h-8b", 100663296, 1474560, 16384},
                                  {"nemotron-h-47b", 720 * kMiB, 5529600, 20480},
                                  {"nemotron-h-56b", 864 * kMiB, 6635520, 40960},
                                  {"nemotron-nano-9b-v2", 135 * kMiB, 1990656, 16384},
                                  {"nemotron-nano-12b-v2", 140 * kMiB, 2064384, 24576}};

}  // namespace

TEST_CASE("state sizes of the published models, to the byte") {
    for (const StateSizes& expected : kStates) {
        INFO(expected.name);
        const Architecture architecture = named_architecture(expected.name);
        const Memory one = memory_of(architecture, {.context = 1, .batch = 1});
        CHECK(one.ssm == expected.ssm);
        CHECK(one.conv == expected.conv);
        CHECK(one.kv == expected.kv_per_token);
        const Memory many = memory_of(architecture, {.context = 1000, .batch = 3});
        CHECK(many.ssm == 3 * expected.ssm);
        CHECK(many.conv == 3 * expected.conv);
        CHECK(many.kv == 3000 * expected.kv_per_token);
        CHECK(one.weights == 2 * parameters(architecture));
    }
}

TEST_CASE("the published pair in FP4 with an fp8 cache at a million tokens") {
    Workload workload{.context = 1000000};
    workload.weights = ElementType::fp4;
    workload.kv = ElementType::fp8;
    workload.ssm = ElementType::bf16;
    const Memory teacher = memory_of(named_architecture("nemotron-h-56b"), workload);
    CHECK(teacher.weights == 56324350464 / 2);
    CHECK(gib(teacher.total()) == Approx(45.73).margin(0.005));
    CHECK(gib(memory_of(named_architecture("nemotron-h-47b"), workload).total()) ==
          Approx(31.68).margin(0.005));
}

TEST_CASE("a layer set measured elsewhere: 384.0 MiB of KV and 190.5 MiB of Mamba state") {
    Architecture architecture;
    architecture.vocab = 131072;
    architecture.width = 2688;
    for (int i = 0; i < 6; ++i)
        architecture.layers.push_back(Attention{.heads = 32, .kv_heads = 2, .head_dim = 128});
    for (int i = 0; i < 23; ++i)
        architecture.layers.push_back(
            Mamba{.heads = 64, .head_dim = 64, .state = 128, .groups = 8, .conv_kernel = 4});
    Workload workload{.context = 8192, .batch = 8};
    workload.ssm = ElementType::bf16;
    const Memory memory = memory_of(architecture, workload);
    CHECK(memory.kv == 384 * kMiB);
    CHECK(static_cast<double>(memory.ssm + memory.conv) / kMiB == Approx(190.5).margin(0.05));
}

TEST_CASE("element sizes: only the sum is rounded up") {
    CHECK(bytes_of(ElementType::fp4, 3) == 2);
    CHECK(bytes_of(ElementType::nvfp4, 16) == 9);
    CHECK(bytes_of(ElementType::nvfp4, 17) == 10);
    CHECK(bytes_of(ElementType::fp32, 5) == 20);
    Workload workload;
    workload.weights = ElementType::nvfp4;
    const Architecture architecture = testing::architecture_of("M-*-M", 13);
    CHECK(memory_of(architecture, workload).weights ==
          bytes_of(ElementType::nvfp4, parameters(architecture)));
    CHECK_THROWS_AS(parse_element_type("int3"), Error);
    CHECK(parse_element_type("nvfp4") == ElementType::nvfp4);
}

TEST_CASE("a student's memory is its own architecture's") {
    const Architecture teacher = testing::architecture_of("M-*-M-*", 16);
    StudentPlan plan{.drop = {0, 3},
                     .ffn_width = 12,
                     .ffn_widths = {},
                     .mamba_heads_per_group = {},
                     .width_scores = "",
                     .notes = ""};
    const Workload workload{.context = 77, .batch = 2};
    CHECK(memory_of(teacher, plan, workload) == memory_of(student_architecture(teacher, plan), workload));
}

TEST_CASE("weights as in the file: each tensor in its own dtype, also in students") {
    const Architecture teacher = testing::architecture_of("M-*-", 16);
    Workload workload;
    workload.weights_as_in_file = true;
    for (const TensorSlot& slot : tensor_slots(teacher)) workload.weight_dtypes[slot.name] = DType::bf16;
    CHECK(to_json(workload)["weights"] == "bf16");
    workload.weight_dtypes["layers.0.mixer.A_log"] = DType::f32;
    CHECK(to_json(workload)["weights"] == "bf16");
    CHECK(memory_of(teacher, workload).weights == 2 * parameters(teacher) + 2 * 4);  // 4 heads
    workload.weight_dtypes["layers.3.mixer.up_proj.weight"] = DType::f32;
    CHECK(to_json(workload)["weights"] == "file");

    StudentPlan plan;
    plan.drop = {1};
    plan.ffn_width = 10;  // layer 3 becomes the student's layer 2: its up_proj stays float32
    const Architecture student = student_architecture(teacher, plan);
    CHECK(memory_of(teacher, plan, workload).weights ==
          2 * parameters(student) + 2 * 4 + 2 * 10 * teacher.width);
}

TEST_CASE("a workload beyond 64 bits is the user's error") {
    const Architecture architecture = testing::architecture_of("*", 8);
    CHECK_THROWS_AS(memory_of(architecture, {.context = int64_t{1} << 55, .batch = 1 << 20}), Error);
}
