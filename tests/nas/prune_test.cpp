#include "nas/prune.h"

#include <cstring>
#include <set>

#include "nas/memory_model.h"
#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;
using namespace minipuzzle::test;
using Catch::Matchers::Contains;

namespace {

std::vector<std::byte> bytes_of_tensor(const StoredTensor& tensor) {
    return {tensor.bytes.begin(), tensor.bytes.end()};
}

void check_same_tensor(const StoredTensor& found, const StoredTensor& expected) {
    INFO(expected.name);
    CHECK(found.dtype == expected.dtype);
    CHECK(found.shape == expected.shape);
    CHECK(bytes_of_tensor(found) == bytes_of_tensor(expected));
}

StudentPlan dropping(std::vector<int64_t> layers) {
    StudentPlan plan;
    plan.drop = std::move(layers);
    return plan;
}

// Neuron orders that put the last neurons first, for every FFN.
WidthScores reversed_orders(const Architecture& teacher) {
    WidthScores scores;
    for (std::size_t layer = 0; layer < teacher.layers.size(); ++layer)
        if (const auto* ffn = std::get_if<Ffn>(&teacher.layers[layer]))
            for (int64_t neuron = ffn->width; neuron-- > 0;)
                scores.ffn_order[static_cast<int64_t>(layer)].push_back(static_cast<int32_t>(neuron));
    return scores;
}

int64_t stored_bytes(const Checkpoint& checkpoint) {
    int64_t bytes = 0;
    for (const TensorSlot& slot : tensor_slots(checkpoint.architecture()))
        bytes += static_cast<int64_t>(checkpoint.tensor(slot.name).bytes.size());
    return bytes;
}

}  // namespace

TEST_CASE("dropping nothing reproduces every tensor and file of mini-20") {
    const Checkpoint teacher(MINIPUZZLE_SOURCE_DIR "/../shared/models/mini-20");
    const TempDir folder;
    prune(teacher, StudentPlan{}, nullptr, "# A student\n", folder / "student");
    const Checkpoint student(folder / "student");
    CHECK(student.architecture() == teacher.architecture());
    CHECK(student.config() == teacher.config());
    for (const TensorSlot& slot : tensor_slots(teacher.architecture())) {
        check_same_tensor(student.tensor(slot.name), teacher.tensor(slot.name));
        CHECK(student.tensor(slot.name).name == teacher.tensor(slot.name).name);
    }
    for (const char* file : {"tokenizer.json", "reference.json"})
        CHECK(read_file(student.folder() / file) == read_file(teacher.folder() / file));
    CHECK(read_file(student.folder() / "README.md") == "# A student\n");
}

TEST_CASE("a dropped layer is gone and the later ones move up, bytes untouched") {
    const Checkpoint teacher(MINIPUZZLE_SOURCE_DIR "/../shared/models/mini-20");
    const TempDir folder;
    const StudentPlan plan = dropping({0, 5, 6});
    prune(teacher, plan, nullptr, "", folder / "student");
    const Checkpoint student(folder / "student");
    CHECK(student.architecture().pattern() == "-M-MM-M-M*-M-M-M-");
    CHECK(student.architecture() == student_architecture(teacher.architecture(), plan));
    const std::vector<int64_t> kept = plan.kept(teacher.architecture());
    for (const TensorSlot& slot : tensor_slots(student.architecture())) {
        std::string source = slot.name;
        if (slot.layer >= 0)
            source.replace(0, source.find('.', 7),
                           "layers." + std::to_string(kept[static_cast<std::size_t>(slot.layer)]));
        check_same_tensor(student.tensor(slot.name), teacher.tensor(source));
    }
    Workload workload;
    workload.weights_as_in_file = true;
    workload.weight_dtypes = dtypes_in_file(teacher);
    CHECK(memory_of(teacher.architecture(), workload).weights == stored_bytes(teacher));
    CHECK(memory_of(teacher.architecture(), plan, workload).weights == stored_bytes(student));
}

TEST_CASE("a narrower FFN keeps its neurons' rows and columns in ascending order") {
    const TempDir folder;
    const Architecture architecture = tiny_architecture("M-*-");
    write_tiny_model(folder / "teacher", architecture);
    const Checkpoint teacher(folder / "teacher");
    WidthScores width = reversed_orders(architecture);
    width.ffn_order[1] = {9, 4, 30, 7};
    for (int32_t neuron = 0; neuron < 32; ++neuron)
        if (neuron != 9 && neuron != 4 && neuron != 30 && neuron != 7) width.ffn_order[1].push_back(neuron);
    StudentPlan plan = dropping({0});
    plan.ffn_widths = {{1, 3}};
    prune(teacher, plan, &width, "", folder / "student");
    const Checkpoint student(folder / "student");
    CHECK(std::get<Ffn>(student.architecture().layers[0]).width == 3);
    CHECK(std::get<Ffn>(student.architecture().layers[2]).width == 32);

    const int64_t width_in = architecture.width;
    const auto element = [](const StoredTensor& tensor, int64_t row, int64_t column) {
        uint16_t value = 0;  // bf16
        std::memcpy(&value, tensor.bytes.data() + 2 * (row * tensor.shape[1] + column), 2);
        return value;
    };
    const int64_t neurons[] = {4, 9, 30};
    const StoredTensor& up = student.tensor("layers.0.mixer.up_proj.weight");
    const StoredTensor& down = student.tensor("layers.0.mixer.down_proj.weight");
    REQUIRE(up.shape == std::vector<int64_t>{3, width_in});
    REQUIRE(down.shape == std::vector<int64_t>{width_in, 3});
    for (int64_t i = 0; i < 3; ++i)
        for (int64_t c = 0; c < width_in; ++c) {
            CHECK(element(up, i, c) ==
                  element(teacher.tensor("layers.1.mixer.up_proj.weight"), neurons[i], c));
            CHECK(element(down, c, i) ==
                  element(teacher.tensor("layers.1.mixer.down_proj.weight"), c, neurons[i]));
        }
    check_same_tensor(student.tensor("layers.2.mixer.up_proj.weight"),
                      teacher.tensor("layers.3.mixer.up_proj.weight"));
    check_same_tensor(student.tensor("layers.0.norm.weight"), teacher.tensor("layers.1.norm.weight"));
}

TEST_CASE("one width for every FFN, and the full width needs no order") {
    const TempDir folder;
    const Architecture architecture = tiny_architecture("M-*-");
    write_tiny_model(folder / "teacher", architecture);
    const Checkpoint teacher(folder / "teacher");
    const WidthScores width = reversed_orders(architecture);
    StudentPlan plan;
    plan.ffn_width = 8;
    prune(teacher, plan, &width, "", folder / "student");
    CHECK(Checkpoint(folder / "student").architecture().ffn_width() == 8);
    plan.ffn_width = 32;
    prune(teacher, plan, nullptr, "", folder / "same");
    check_same_tensor(Checkpoint(folder / "same").tensor("layers.1.mixer.up_proj.weight"),
                      teacher.tensor("layers.1.mixer.up_proj.weight"));
}

TEST_CASE("plans that cannot be cut are refused and leave nothing behind") {
    const TempDir folder;
    const Architecture architecture = tiny_architecture("M-*-");
    write_tiny_model(folder / "teacher", architecture);
    const Checkpoint teacher(folder / "teacher");
    StudentPlan plan;
    plan.ffn_width = 8;
    CHECK_THAT(bad_input([&] { prune(teacher, plan, nullptr, "", folder / "s"); }), Contains("width_scores"));
    WidthScores other = reversed_orders(architecture);
    other.ffn_order[3].resize(16);
    CHECK_THAT(bad_input([&] { prune(teacher, plan, &other, "", folder / "s"); }), Contains("layer 3"));
    CHECK_THAT(bad_input([&] { prune(teacher, dropping({4}), nullptr, "", folder / "s"); }),
               Contains("0..3"));
    plan = {};
    plan.mamba_heads_per_group = 1;
    CHECK_THAT(error_of(ErrorKind::usage, [&] { prune(teacher, plan, nullptr, "", folder / "s"); }),
               Contains("mamba_heads_per_group"));
    CHECK_FALSE(std::filesystem::exists(folder / "s"));
}
