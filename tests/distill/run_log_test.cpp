#include "distill/run_log.h"

#include <fstream>

#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using namespace minipuzzle::distill;

namespace {

RunHeader header() {
    return {.provenance = {.command = "minipuzzle distill", .seed = 7},
            .device = "cpu",
            .options = {{"lr", 0.5}}};
}

RunStep step(int64_t number) {
    RunStep step;
    step.step = number;
    step.tokens = 10 * number;
    step.loss = 1.0 / static_cast<double>(number);
    step.kl = step.loss;
    step.lr = 0.1;
    step.grad_norm = 2.5;
    step.tokens_per_second = 1000;
    step.peak_bytes = 4096;
    return step;
}

}  // namespace

TEST_CASE("run.jsonl is read back as it was written") {
    const test::TempDir folder;
    {
        RunLogWriter writer(folder / "run.jsonl", header());
        for (int64_t i = 1; i <= 3; ++i) writer.append(step(i));
    }
    const RunLog log = read_run_log(folder / "run.jsonl");
    CHECK(log.header.provenance.command == "minipuzzle distill");
    CHECK(log.header.provenance.seed == 7);
    CHECK(log.header.device == "cpu");
    CHECK(log.header.options["lr"] == 0.5);
    REQUIRE(log.steps.size() == 3);
    CHECK(log.steps[2].step == 3);
    CHECK(log.steps[2].tokens == 30);
    CHECK(log.steps[2].loss == 1.0 / 3.0);
    CHECK(log.steps[2].kl == 1.0 / 3.0);
    CHECK(!log.steps[2].ce);
    CHECK(log.steps[2].peak_bytes == 4096);
}

TEST_CASE("A log goes on after a step, later and half-written lines cut off") {
    const test::TempDir folder;
    {
        RunLogWriter writer(folder / "run.jsonl", header());
        for (int64_t i = 1; i <= 3; ++i) writer.append(step(i));
    }
    std::ofstream(folder / "run.jsonl", std::ios::app) << "{\"step\": 4, \"tok";
    CHECK(read_run_log(folder / "run.jsonl").steps.size() == 3);
    {
        RunLogWriter writer(folder / "run.jsonl", 1);
        writer.append(step(2));
    }
    CHECK(read_run_log(folder / "run.jsonl").steps.size() == 2);
    { RunLogWriter writer(folder / "run.jsonl", 0); }
    CHECK(read_run_log(folder / "run.jsonl").steps.empty());
    CHECK(test::bad_input([&] { RunLogWriter writer(folder / "run.jsonl", 5); }).find("step 5") !=
          std::string::npos);
}

TEST_CASE("Broken logs are refused with file and line") {
    const test::TempDir folder;
    { RunLogWriter writer(folder / "run.jsonl", header()); }
    const std::string opening = read_file(folder / "run.jsonl");
    const auto message = [&](const std::string& text) {
        folder.write("bad.jsonl", text);
        return test::bad_input([&] { read_run_log(folder / "bad.jsonl"); });
    };
    CHECK(message("").find("header") != std::string::npos);
    CHECK(message(opening + "nonsense\n").find("bad.jsonl:2") != std::string::npos);
    CHECK(message(opening + "{\"step\": 1}\n").find("bad.jsonl:2") != std::string::npos);
    CHECK(message("{\"format\": \"minipuzzle.eval/1\"}\n").find("bad.jsonl:1") != std::string::npos);
}
