// A small distillation run for tests, started again and again from the same bytes.
#pragma once

#include <cmath>
#include <functional>

#include "distill/trainer.h"
#include "tests/distill/fixture.h"

namespace minipuzzle::test {

constexpr int64_t kSteps = 6;
// Bytes in bf16 that hold what of the teacher must be on the device, and not all of its layers.
constexpr int64_t kHalfOfTheTeacher = 9000;

inline distill::TrainOptions tiny_options() {
    distill::TrainOptions options;
    options.batch = 4;
    options.micro_batch = 3;
    options.seq_len = 10;
    options.tokens = kSteps * options.batch * options.seq_len;
    options.learning_rate = 0.01;
    options.warmup = 2;
    options.save_every = 2;
    options.loss = {.kl = 1, .ce = 0.2, .feature = 0.1};
    return options;
}

// Another source's values, one of them NaN.
struct Poisoned : ParameterSource {
    const ParameterSource& values;
    std::string fault;  // the canonical name of the tensor; "": none

    Poisoned(const ParameterSource& source, std::string name) : values(source), fault(std::move(name)) {}
    void read(const ParameterInfo& parameter, DType type, std::byte* host) const override {
        values.read(parameter, type, host);
    }
    void fill(Backend& backend, const ParameterInfo& parameter, const Tensor& tensor) const override {
        values.fill(backend, parameter, tensor);
        if (parameter.slot.name == fault) tensor.as<float>()[0] = std::nanf("");
    }
};

// A teacher of six layers, a student of three of them from other random weights.
struct Lab {
    std::unique_ptr<Backend> backend;
    Architecture teacher = tiny_architecture("M-M*-M");
    std::unique_ptr<ParameterSource> teacher_source = random_source(teacher, 2, 0.3);
    int64_t teacher_weight_memory = 0;
    TinyCorpus data;
    distill::TrainOptions options = tiny_options();
    std::string student_weight_fault;  // a canonical name that gets a NaN before the run

    explicit Lab(int threads = 2) : Lab(make_cpu_backend(DType::f32, threads)) {}
    explicit Lab(std::unique_ptr<Backend> on) : backend(std::move(on)) {}

    distill::TrainOutcome run(const std::filesystem::path& out) { return run(out, data.corpus); }
    distill::TrainOutcome run(const std::filesystem::path& out, const Corpus& corpus) {
        distill::Student student;
        student.architecture = tiny_architecture("M*-");
        const auto values = random_source(student.architecture, 1, 0.3);
        const Poisoned source(*values, student_weight_fault);
        student.source = &source;
        student.config = tiny_config("M*-");
        student.teacher_layers = {0, 3, 4};
        student.origin = "random, seed 1";
        const distill::TrainJob job{.student = student,
                                    .teacher = {.architecture = &teacher,
                                                .source = teacher_source.get(),
                                                .from = StreamFrom::pinned_memory,
                                                .weight_memory = teacher_weight_memory,
                                                .origin = "two"},
                                    .corpus = corpus,
                                    .out = out,
                                    .provenance = {.command = "minipuzzle distill", .seed = 0},
                                    .inputs = {}};
        return distill::train(*backend, job, options);
    }
    // Stops the run once `steps` are done. Returns whether it was interrupted.
    bool run_until(const std::filesystem::path& out, int64_t steps) {
        int64_t polls = 0;
        options.control.stop_requested = [&] { return polls++ == steps; };
        bool interrupted = false;
        try {
            run(out);
        } catch (const Interrupted&) {
            interrupted = true;
        }
        options.control.stop_requested = nullptr;
        return interrupted;
    }
};

// The elements of a float32 tensor in host memory.
inline std::vector<float> values_of(const Tensor& tensor) {
    return {tensor.as<float>(), tensor.as<float>() + tensor.elements()};
}

std::vector<std::string> names_in(const std::filesystem::path& folder);
// Two finished runs' folders: the same files with the same bytes, but for the log's times and memory.
void check_same_result(const std::filesystem::path& expected, const std::filesystem::path& found);

}  // namespace minipuzzle::test
