#include "distill/trainer.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>

#include "distill/run_log.h"
#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/distill/lab.h"
#include "tests/support/errors.h"

using namespace minipuzzle;
using namespace minipuzzle::distill;
using test::check_same_result;
using test::kSteps;
using test::Lab;
using test::names_in;
using test::TempDir;
using test::tiny_options;
using test::TinyCorpus;
namespace fs = std::filesystem;

namespace {

// A child process runs and is killed (SIGKILL) inside its `step`-th step.
void run_and_kill(const fs::path& out, int64_t step) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        Lab lab;
        int64_t reports = 0;
        lab.options.control.progress = [&](const ProgressUpdate&) {
            if (++reports == step) ::raise(SIGKILL);
        };
        lab.run(out);
        ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
}

}  // namespace

TEST_CASE("A run writes a model folder, its log and nothing else") {
    Lab lab;
    const TempDir folder;
    const TrainOutcome outcome = lab.run(folder / "out");
    CHECK(outcome.steps == kSteps);
    CHECK(outcome.tokens == lab.options.tokens);
    CHECK(outcome.peak_bytes > 0);
    const RunLog log = read_run_log(folder / "out" / "run.jsonl");
    REQUIRE(log.steps.size() == kSteps);
    CHECK(log.steps.front().loss == outcome.first_loss);
    CHECK(log.steps.back().loss == outcome.last_loss);
    CHECK(log.steps.front().lr == 0.005);
    CHECK(log.steps.back().tokens == outcome.tokens);
    CHECK(log.steps.back().peak_bytes == outcome.peak_bytes);
    for (const RunStep& step : log.steps)
        CHECK(step.loss == Approx(*step.kl + 0.2 * *step.ce + 0.1 * *step.feature));
    CHECK(log.header.options["seq-len"] == 10);

    const Checkpoint model(folder / "out");
    CHECK(model.architecture() == test::tiny_architecture("M*-"));
    CHECK(model.tensor("layers.0.mixer.A_log").dtype == DType::f32);
    CHECK(model.tensor("layers.0.mixer.D").dtype == DType::f32);
    CHECK(model.tensor("layers.0.mixer.dt_bias").dtype == DType::bf16);
    CHECK(model.tensor("embeddings.weight").name == "backbone.embeddings.weight");
    CHECK(model.tensor("lm_head.weight").name == "lm_head.weight");
    CHECK(names_in(folder / "out" / ".state") == std::vector<std::string>{"state.json"});
}

TEST_CASE("A stopped run resumes to the same bytes, wherever it stopped") {
    const TempDir folder;
    Lab().run(folder / "whole");
    for (int64_t stop : {0, 1, 2, 3, 5}) {
        INFO("stopped after step " << stop);
        const fs::path out = folder / fmt::format("stop-{}", stop);
        Lab lab;
        REQUIRE(lab.run_until(out, stop));
        CHECK(!fs::exists(out / "config.json"));
        CHECK(read_run_log(out / "run.jsonl").steps.size() == static_cast<std::size_t>(stop));
        lab.options.resume = true;
        lab.run(out);
        check_same_result(folder / "whole", out);
    }
}

TEST_CASE("A killed run resumes from its last save to the same bytes") {
    const TempDir folder;
    Lab().run(folder / "whole");
    for (int64_t step : {1, 3, 4, 6}) {
        INFO("killed in step " << step);
        const fs::path out = folder / fmt::format("killed-{}", step);
        run_and_kill(out, step);
        // What a kill while saving, logging or publishing leaves behind besides.
        fs::create_directories(out / ".state" / "model.partial");
        std::ofstream(out / ".state" / "step-5.safetensors") << "half a fi";
        std::ofstream(out / "run.jsonl", std::ios::app) << "{\"step\": ";
        Lab lab;
        lab.options.resume = true;
        lab.run(out);
        check_same_result(folder / "whole", out);
    }
}

TEST_CASE("Resuming a finished run changes nothing") {
    const TempDir folder;
    Lab lab;
    const TrainOutcome first = lab.run(folder / "out");
    const std::string log = read_file(folder / "out" / "run.jsonl");
    lab.options.resume = true;
    CHECK(lab.run(folder / "out").last_loss == first.last_loss);
    CHECK(read_file(folder / "out" / "run.jsonl") == log);
}

TEST_CASE("The result does not depend on the number of threads") {
    const TempDir folder;
    Lab(1).run(folder / "one");
    Lab(3).run(folder / "three");
    check_same_result(folder / "one", folder / "three");
}

TEST_CASE("A resume under other conditions is refused by name") {
    const TempDir folder;
    const fs::path out = folder / "out";
    REQUIRE(Lab().run_until(out, 3));
    CHECK(test::error_of(ErrorKind::usage, [&] { Lab().run(out); }).find("--resume") != std::string::npos);

    Lab lab;
    lab.options.resume = true;
    lab.options.learning_rate = 0.02;
    const std::string message = test::bad_input([&] { lab.run(out); });
    CHECK(message.find("options/lr was 0.01, now 0.02") != std::string::npos);

    Lab elsewhere;
    elsewhere.options.resume = true;
    const TinyCorpus other(20, 1);
    CHECK(test::bad_input([&] { elsewhere.run(out, other.corpus); }).find("data/0") != std::string::npos);

    std::string state = read_file(out / ".state" / "state.json");
    const std::string device = Json(elsewhere.backend->name()).dump();
    state.replace(state.find(device), device.size(), "\"cpu (other)\"");
    write_file_atomically(out / ".state" / "state.json", state);
    CHECK(test::bad_input([&] { elsewhere.run(out); }).find("device was cpu (other)") != std::string::npos);
    elsewhere.options.resume_elsewhere = true;
    CHECK(elsewhere.run(out).steps == kSteps);
}

TEST_CASE("Cross-entropy alone from random weights lowers the loss") {
    Lab lab;
    lab.options.loss = {.kl = 0, .ce = 1};
    lab.options.tokens = 60 * 40;
    lab.options.learning_rate = 0.03;
    const TempDir folder;
    Student student;
    student.architecture = test::tiny_architecture("M*-");
    const auto source = random_source(student.architecture, 1, 0.3);
    student.source = source.get();
    student.config = test::tiny_config("M*-");
    const TrainJob job{.student = student,
                       .teacher = {},
                       .corpus = lab.data.corpus,
                       .out = folder / "out",
                       .provenance = {},
                       .inputs = {}};
    const TrainOutcome outcome = train(*lab.backend, job, lab.options);
    // Every token but the first follows from the one before it: from about log 13 to almost nothing.
    CHECK(outcome.first_loss > 2);
    CHECK(outcome.last_loss < 0.5);
    const RunLog log = read_run_log(folder / "out" / "run.jsonl");
    CHECK(!log.steps.back().kl);
    CHECK(*log.steps.back().ce == log.steps.back().loss);
}

TEST_CASE("NaN stops the run with the step and the first tensor at fault") {
    const TempDir folder;
    Lab broken;
    broken.student_weight_fault = "layers.2.mixer.up_proj.weight";
    const std::string message = test::error_of(ErrorKind::other, [&] { broken.run(folder / "broken"); });
    CHECK(message.find("step 1: ") != std::string::npos);
    CHECK(message.find("weight layers.2.mixer.up_proj.weight") != std::string::npos);

    Lab steep;  // the weights overflow within a few steps
    steep.options.learning_rate = 1e30;
    steep.options.save_every = 1;
    const std::string late = test::error_of(ErrorKind::other, [&] { steep.run(folder / "steep"); });
    CHECK(late.find("the state of step") != std::string::npos);
    const std::size_t logged = read_run_log(folder / "steep" / "run.jsonl").steps.size();
    CHECK(late.find(fmt::format("step {}: ", logged + 1)) != std::string::npos);
    CHECK(fs::exists(folder / "steep" / ".state" / fmt::format("step-{}.safetensors", logged)));
    CHECK(!fs::exists(folder / "steep" / "config.json"));
}

// Files of this process may not grow beyond that while it lives, as on a full disk.
class FileSizeLimit {
  public:
    explicit FileSizeLimit(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
        ::getrlimit(RLIMIT_FSIZE, &before_);
        const rlimit limit{bytes, before_.rlim_max};
        ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    ~FileSizeLimit() {
        ::setrlimit(RLIMIT_FSIZE, &before_);
        ::signal(SIGXFSZ, handler_);
    }

  private:
    rlimit before_{};
    sighandler_t handler_;
};

TEST_CASE("A disk that is full when a state is saved costs no older state") {
    const TempDir folder;
    const fs::path out = folder / "out";
    Lab().run(folder / "whole");
    REQUIRE(Lab().run_until(out, 3));
    Lab lab;
    lab.options.resume = true;
    std::string message;
    {
        const FileSizeLimit limit(8192);  // the log fits, the state does not
        message = test::error_of(ErrorKind::other, [&] { lab.run(out); });
    }
    CHECK(message.find("step-4.safetensors") != std::string::npos);
    CHECK(fs::exists(out / ".state" / "step-3.safetensors"));
    lab.run(out);
    check_same_result(folder / "whole", out);
}

TEST_CASE("A dry run plans and writes nothing") {
    const TempDir folder;
    Lab lab;
    lab.options.dry_run = true;
    const TrainOutcome outcome = lab.run(folder / "out");
    CHECK(outcome.steps == kSteps);
    CHECK(outcome.memory_table.find("activations") != std::string::npos);
    CHECK(!fs::exists(folder / "out"));
}

TEST_CASE("Folders and options that make no sense are refused") {
    const TempDir folder;
    folder.write("theirs/letter.txt", "not ours");
    CHECK(test::bad_input([&] { Lab().run(folder / "theirs"); }).find("not ours") != std::string::npos);
    Lab lab;
    lab.options.tokens = 0;
    CHECK(test::error_of(ErrorKind::usage, [&] { lab.run(folder / "out"); }).find("tokens") !=
          std::string::npos);
    lab.options = tiny_options();
    lab.options.loss.temperature = 0;
    CHECK(test::error_of(ErrorKind::usage, [&] { lab.run(folder / "out"); }).find("temperature") !=
          std::string::npos);
    lab.options = tiny_options();
    lab.teacher.vocab = 14;
    CHECK(test::bad_input([&] { lab.run(folder / "out"); }).find("vocabulary") != std::string::npos);
    CHECK(!fs::exists(folder / "out"));
}
