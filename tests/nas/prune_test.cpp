#include "nas/prune.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "nas/memory_model.h"
#include "runtime/evaluate.h"
#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/minis.h"
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

// Orders of mini-20's heads, 2 groups of 4, another for each Mamba layer.
WidthScores head_orders(const Architecture& teacher) {
    WidthScores scores;
    for (std::size_t layer = 0; layer < teacher.layers.size(); ++layer) {
        if (type_of(teacher.layers[layer]) != LayerType::mamba) continue;
        std::vector<std::vector<int32_t>> order = {{2, 0, 3, 1}, {5, 7, 4, 6}};
        for (std::vector<int32_t>& group : order)
            std::rotate(group.begin(), group.begin() + static_cast<int>(layer % 4), group.end());
        scores.mamba_head_order[static_cast<int64_t>(layer)] = order;
    }
    return scores;
}

// `count` rows of a tensor's first axis, as bytes.
std::vector<std::byte> rows_of(const StoredTensor& tensor, int64_t first, int64_t count) {
    const auto row = static_cast<int64_t>(tensor.bytes.size()) / tensor.shape[0];
    const auto run =
        tensor.bytes.subspan(static_cast<std::size_t>(first * row), static_cast<std::size_t>(count * row));
    return {run.begin(), run.end()};
}

// One Mamba mixer of the student beside the teacher's.
struct MixerPair {
    const Checkpoint& teacher;
    const Checkpoint& student;
    std::string from, to;  // "layers.N.mixer." of both

    void same_rows(const char* name, int64_t teacher_first, int64_t student_first, int64_t count) const {
        INFO(from << name << " row " << teacher_first);
        const StoredTensor &source = teacher.tensor(from + name), &cut = student.tensor(to + name);
        CHECK(cut.dtype == source.dtype);
        CHECK(rows_of(cut, student_first, count) == rows_of(source, teacher_first, count));
    }
    // Column blocks of out_proj, row by row.
    void same_columns(int64_t teacher_first, int64_t student_first, int64_t count) const {
        const StoredTensor &source = teacher.tensor(from + "out_proj.weight"),
                           &cut = student.tensor(to + "out_proj.weight");
        const int64_t element = bytes_of(source.dtype);
        bool same = true;
        for (int64_t row = 0; row < source.shape[0]; ++row)
            same &= std::memcmp(source.bytes.data() + (row * source.shape[1] + teacher_first) * element,
                                cut.bytes.data() + (row * cut.shape[1] + student_first) * element,
                                static_cast<std::size_t>(count * element)) == 0;
        INFO(from << "out_proj.weight column " << teacher_first);
        CHECK(same);
    }
};

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

TEST_CASE("fewer Mamba heads: every part of every tensor is that of the heads kept") {
    const Checkpoint teacher(shared_folder() / "models/mini-20");
    const WidthScores width = head_orders(teacher.architecture());
    const TempDir folder;
    StudentPlan plan = dropping({1, 2});
    plan.mamba_heads_per_group = 2;
    prune(teacher, plan, &width, "", folder / "student");
    const Checkpoint student(folder / "student");
    CHECK(student.architecture() == student_architecture(teacher.architecture(), plan));
    CHECK(student.config()["mamba_num_heads"] == 4);
    Json config = teacher.config();  // nothing else is derived from the heads
    for (const char* key : {"mamba_num_heads", "num_hidden_layers", "hybrid_override_pattern"})
        config[key] = student.config()[key];
    CHECK(student.config() == config);

    const std::vector<int64_t> kept = plan.kept(teacher.architecture());
    int64_t mixers = 0;
    for (std::size_t layer = 0; layer < kept.size(); ++layer) {
        const auto* mamba =
            std::get_if<Mamba>(&teacher.architecture().layers[static_cast<std::size_t>(kept[layer])]);
        if (mamba == nullptr) continue;
        ++mixers;
        REQUIRE(mamba->heads == 8);
        const MixerPair pair{teacher, student, "layers." + std::to_string(kept[layer]) + ".mixer.",
                             "layers." + std::to_string(layer) + ".mixer."};
        const int64_t dim = mamba->head_dim, both = 2 * 2 * mamba->state;
        for (int64_t h = 0; h < 4; ++h) {
            const auto& group = width.mamba_head_order.at(kept[layer])[static_cast<std::size_t>(h / 2)];
            const int64_t head = h % 2 == 0 ? std::min(group[0], group[1]) : std::max(group[0], group[1]);
            pair.same_rows("in_proj.weight", head * dim, h * dim, dim);                       // z
            pair.same_rows("in_proj.weight", 8 * dim + head * dim, 4 * dim + h * dim, dim);   // x
            pair.same_rows("in_proj.weight", 16 * dim + both + head, 8 * dim + both + h, 1);  // dt
            for (const char* name : {"conv1d.weight", "conv1d.bias", "norm.weight"})
                pair.same_rows(name, head * dim, h * dim, dim);
            for (const char* name : {"A_log", "D", "dt_bias"}) pair.same_rows(name, head, h, 1);
            pair.same_columns(head * dim, h * dim, dim);
        }
        pair.same_rows("in_proj.weight", 16 * dim, 8 * dim, both);  // B and C
        for (const char* name : {"conv1d.weight", "conv1d.bias"})
            pair.same_rows(name, 8 * dim, 4 * dim, both);
    }
    CHECK(mixers > 5);
    Workload workload;
    workload.weights_as_in_file = true;
    workload.weight_dtypes = dtypes_in_file(teacher);
    CHECK(memory_of(teacher.architecture(), plan, workload).weights == stored_bytes(student));
}

TEST_CASE("a student of fewer Mamba heads computes what the teacher does with the others silent") {
    // A head whose x is 0 gives y = 0. In the gated norm of a group of 4 heads, 3 of them silent, the mean of
    // squares is a quarter of that of the head that is left (the norm's epsilon apart, here next to nothing),
    // so the output is twice as large; the teacher's norm weights are halved, which is exact. What remains is
    // the order of float32 sums.
    const auto backend = make_cpu_backend(DType::f32, 0);
    const Checkpoint teacher(shared_folder() / "models/mini-20");
    const WidthScores width = head_orders(teacher.architecture());
    const TempDir folder;
    StudentPlan plan;
    plan.mamba_heads_per_group = 1;
    prune(teacher, plan, &width, "", folder / "student");
    const Checkpoint student(folder / "student");

    Architecture full = teacher.architecture(), cut = student.architecture();
    full.norm_eps = cut.norm_eps = 1e-12;
    WeightMemory full_weights = load_weights(*backend, full, *checkpoint_source(teacher));
    const WeightMemory cut_weights = load_weights(*backend, cut, *checkpoint_source(student));
    const std::vector<int32_t> tokens = {5, 900, 17, 3, 256, 1999, 44, 44, 8, 731, 12, 600, 77, 1024, 9, 310};
    const auto logits = [&](const Architecture& architecture, const WeightMemory& weights) {
        return logits_of(*backend, {architecture, weights.weights()}, tokens);
    };
    const std::vector<float> untouched = logits(full, full_weights);
    for (const auto& [layer, order] : width.mamba_head_order) {
        auto& mixer = std::get<MambaWeights>(full_weights.weights().layers[static_cast<std::size_t>(layer)]);
        const auto& mamba = std::get<Mamba>(full.layers[static_cast<std::size_t>(layer)]);
        const auto values = [](const Tensor& tensor) { return reinterpret_cast<float*>(tensor.data); };
        for (const std::vector<int32_t>& group : order)
            for (std::size_t i = 1; i < group.size(); ++i) {
                const int64_t first = group[i] * mamba.head_dim;
                std::fill_n(values(mixer.conv_bias) + first, mamba.head_dim, 0.0f);
                std::fill_n(values(mixer.conv_weight) + first * mamba.conv_kernel,
                            mamba.head_dim * mamba.conv_kernel, 0.0f);
            }
        for (int64_t i = 0; i < mamba.inner(); ++i) values(mixer.gate_norm)[i] *= 0.5f;
    }
    const std::vector<float> expected = logits(full, full_weights), found = logits(cut, cut_weights);
    REQUIRE(found.size() == expected.size());
    double error = 0, norm = 0, change = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        error += std::pow(static_cast<double>(found[i]) - expected[i], 2);
        norm += std::pow(static_cast<double>(expected[i]), 2);
        change += std::pow(static_cast<double>(untouched[i]) - expected[i], 2);
    }
    CHECK(std::sqrt(error) < 1e-5 * std::sqrt(norm));
    CHECK(std::sqrt(change) > 0.01 * std::sqrt(norm));  // the heads matter
}

TEST_CASE("keeping every Mamba head is the identity, with and without orders") {
    const Checkpoint teacher(shared_folder() / "models/mini-20");
    const WidthScores width = head_orders(teacher.architecture());
    const TempDir folder;
    StudentPlan plan;
    plan.mamba_heads_per_group = 4;
    prune(teacher, plan, &width, "", folder / "with");
    prune(teacher, plan, nullptr, "", folder / "without");
    for (const char* name : {"with", "without"}) {
        const Checkpoint student(folder / name);
        CHECK(student.config() == teacher.config());
        for (const TensorSlot& slot : tensor_slots(teacher.architecture()))
            check_same_tensor(student.tensor(slot.name), teacher.tensor(slot.name));
    }
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
    plan.mamba_heads_per_group = 1;  // of 2
    CHECK_THAT(bad_input([&] { prune(teacher, plan, nullptr, "", folder / "s"); }),
               Contains("layer 0 is narrowed to 1 Mamba heads a group") && Contains("`score --width`"));
    CHECK_THAT(bad_input([&] { prune(teacher, plan, &other, "", folder / "s"); }),
               Contains("0 groups of 0 Mamba heads for layer 0, expected the teacher's 2 of 2") &&
                   Contains("`score --width`"));
    other.mamba_head_order[0] = {{0, 1, 2, 3}};
    CHECK_THAT(bad_input([&] { prune(teacher, plan, &other, "", folder / "s"); }),
               Contains("1 groups of 4 Mamba heads"));
    plan.mamba_heads_per_group = 3;
    CHECK_THAT(bad_input([&] { prune(teacher, plan, &other, "", folder / "s"); }), Contains("expected 1..2"));
    CHECK_FALSE(std::filesystem::exists(folder / "s"));
}
