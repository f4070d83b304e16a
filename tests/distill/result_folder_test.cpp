#include <cstring>

#include "distill/trainer.h"
#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/distill/fixture.h"
#include "tests/support/errors.h"

using namespace minipuzzle;
using namespace minipuzzle::distill;
using test::TempDir;
using test::TinyCorpus;
namespace fs = std::filesystem;

namespace {

// Trains one step with a learning rate of 0, which changes no weight.
void train_nothing(Backend& backend, Student& student, const fs::path& out,
                   std::vector<fs::path> inputs = {}) {
    const TinyCorpus data;
    TrainOptions options;
    options.tokens = 40;
    options.batch = 4;
    options.seq_len = 10;
    options.learning_rate = 0;
    const TrainJob job{.student = student,
                       .teacher = {},
                       .corpus = data.corpus,
                       .out = out,
                       .provenance = {},
                       .inputs = std::move(inputs)};
    train(backend, job, options);
}

// A model folder of random weights, with a tokenizer beside them.
void write_model(Backend& backend, const std::string& pattern, const TempDir& folder) {
    Student student;
    student.architecture = test::tiny_architecture(pattern);
    const auto source = random_source(student.architecture, 1, 0.3);
    student.source = source.get();
    student.config = test::tiny_config(pattern);
    student.other_files = {folder.write("source/tokenizer.json", "{}")};
    student.texts = {{"README.md", "a card\n"}};
    train_nothing(backend, student, folder / "model");
}

bool same_bytes(const StoredTensor& a, const StoredTensor& b) {
    return a.dtype == b.dtype && a.shape == b.shape && a.bytes.size() == b.bytes.size() &&
           std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
}

}  // namespace

TEST_CASE("A student is written with the names, dtypes and files of its own folder") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    const TempDir folder;
    write_model(*backend, "M*-", folder);
    const Checkpoint before(folder / "model");
    Student student;
    student.architecture = before.architecture();
    const auto source = checkpoint_source(before);
    student.source = source.get();
    student.layout = &before;
    train_nothing(*backend, student, folder / "again", {folder / "model"});

    const Checkpoint after(folder / "again");
    for (const TensorSlot& slot : tensor_slots(before.architecture())) {
        INFO(slot.name);
        CHECK(after.tensor(slot.name).name == before.tensor(slot.name).name);
        CHECK(same_bytes(after.tensor(slot.name), before.tensor(slot.name)));
    }
    CHECK(read_file(folder / "again" / "config.json") == read_file(folder / "model" / "config.json"));
    CHECK(read_file(folder / "again" / "tokenizer.json") == "{}");
    CHECK(read_file(folder / "again" / "README.md") == "a card\n");
}

TEST_CASE("A student cut in memory takes its dtypes and config from the teacher's folder") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    const TempDir folder;
    write_model(*backend, "*-M-", folder);
    const Checkpoint teacher(folder / "model");
    Student student;
    student.architecture = test::tiny_architecture("M-");
    const auto source = random_source(student.architecture, 4, 0.3);
    student.source = source.get();
    student.layout = &teacher;
    student.teacher_layers = {2, 3};
    student.texts = {{"README.md", "cut\n"}};
    train_nothing(*backend, student, folder / "student", {folder / "model"});

    const Checkpoint written(folder / "student");
    CHECK(written.architecture() == student.architecture);
    CHECK(written.tensor("layers.0.mixer.A_log").dtype == DType::f32);
    CHECK(written.tensor("layers.0.mixer.in_proj.weight").dtype == DType::bf16);
    CHECK(read_file(folder / "student" / "tokenizer.json") == "{}");
    CHECK(read_file(folder / "student" / "README.md") == "cut\n");
}

TEST_CASE("A run never writes over the models it reads") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    const TempDir folder;
    write_model(*backend, "M-", folder);
    const Checkpoint model(folder / "model");
    Student student;
    student.architecture = model.architecture();
    const auto source = checkpoint_source(model);
    student.source = source.get();
    student.layout = &model;
    const std::string message = test::error_of(
        ErrorKind::usage, [&] { train_nothing(*backend, student, folder / "model", {folder / "model"}); });
    CHECK(message.find("name another folder") != std::string::npos);
    CHECK(fs::exists(folder / "model" / "config.json"));
}

TEST_CASE("A finished run's folder is replaced by a new run") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    const TempDir folder;
    write_model(*backend, "M-", folder);
    write_model(*backend, "M*-M", folder);
    CHECK(Checkpoint(folder / "model").architecture() == test::tiny_architecture("M*-M"));
}
