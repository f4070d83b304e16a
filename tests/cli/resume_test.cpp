// Runs killed at some moment and resumed give the bytes of runs that were left alone.
#include "tests/catch.h"
#include "tests/support/program.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::content_of;
using test::demo_model;
using test::Program;
using test::run;
using test::TempDir;
using test::token_rows;

// Starts, lets it work for a while, ends it by `signal`; whether it was still running then.
bool interrupt(const TempDir& dir, const std::vector<std::string>& arguments, int signal, int milliseconds) {
    Program program(dir, arguments);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
    while (std::chrono::steady_clock::now() < deadline && program.running())
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const bool alive = program.running();
    program.signal(signal);
    const int code = program.wait();
    if (alive && signal != SIGKILL) {
        INFO(program.err());
        CHECK((code == 130 || code == 0));  // 0: the last step was under way
    }
    return alive;
}

// Interrupts again and again, each time a little later, then lets it finish.
void interrupted_run(const TempDir& dir, std::vector<std::string> arguments, int signal) {
    int stops = 0;
    for (int milliseconds = 300; milliseconds < 3000; milliseconds += 350) {
        if (!interrupt(dir, arguments, signal, milliseconds)) break;
        if (arguments.back() != "--resume") arguments.push_back("--resume");
        ++stops;
    }
    CHECK(stops > 0);  // too little work to be interrupted would make this test empty
    if (arguments.back() != "--resume") arguments.push_back("--resume");
    const auto last = run(arguments);
    INFO(last.err);
    CHECK(last.code == 0);
}

TEST_CASE("score: killed or asked to stop, then resumed: the same bytes", "[slow]") {
    const TempDir dir;
    const auto data = dir.write("rows.jsonl", token_rows(10, 1025)).string();
    const std::string out = (dir / "scores.json").string();
    const std::vector<std::string> arguments = {"score", "--model", demo_model(), "--data", data, "--seq-len",
                                                "512",   "--width", "448",        "--out",  out,  "-q"};
    const auto whole = run(arguments);
    INFO(whole.err);
    REQUIRE(whole.code == 0);
    const std::string expected = content_of(out), csv = content_of(dir / "scores.csv"),
                      width = content_of(dir / "scores.width.safetensors");
    for (const int signal : {SIGKILL, SIGTERM, SIGUSR1}) {
        fs::remove(out);
        fs::remove(dir / "scores.csv");
        fs::remove(dir / "scores.width.safetensors");
        interrupted_run(dir, arguments, signal);
        CHECK(content_of(out) == expected);
        CHECK(content_of(dir / "scores.csv") == csv);
        CHECK(content_of(dir / "scores.width.safetensors") == width);
        CHECK_FALSE(fs::exists(out + ".state"));
        CHECK_FALSE(fs::exists(out + ".state.width"));
    }
}

TEST_CASE("score with pairs and removal: killed, then resumed: the same bytes", "[slow]") {
    const TempDir dir;
    const auto data = dir.write("rows.jsonl", token_rows(2, 1025)).string();
    const std::string out = (dir / "scores.json").string();
    const std::vector<std::string> arguments = {"score",      "--model",
                                                demo_model(), "--data",
                                                data,         "--seq-len",
                                                "512",        "--pairs",
                                                "2",          "--pair-candidates",
                                                "4",          "--iterative",
                                                "3",          "--mem-budget",
                                                "84%",        "--random-sets",
                                                "5",          "--out",
                                                out,          "-q"};
    const auto whole = run(arguments);
    INFO(whole.err);
    REQUIRE(whole.code == 0);
    const std::string expected = content_of(out);
    fs::remove(out);
    fs::remove(dir / "scores.csv");
    interrupted_run(dir, arguments, SIGKILL);
    CHECK(content_of(out) == expected);
    CHECK_FALSE(fs::exists(out + ".state"));
}

TEST_CASE("score --until-certain: killed or asked to stop, then resumed: the same bytes", "[slow]") {
    const TempDir dir;
    const auto data = dir.write("rows.jsonl", token_rows(40, 129)).string();
    const std::string out = (dir / "scores.json").string();
    const std::vector<std::string> arguments = {
        "score",           "--model",      demo_model(), "--data", data, "--seq-len", "128",
        "--until-certain", "--mem-budget", "84%",        "--out",  out,  "-q"};
    const auto whole = run(arguments);
    INFO(whole.err);
    REQUIRE(whole.code == 0);
    CHECK(whole.out.find("layer work") != std::string::npos);
    CHECK(whole.out.find("split-half rank correlation") != std::string::npos);
    const std::string expected = content_of(out);
    const json scores = json::parse(expected);
    CHECK(scores["stability"]["until_certain"]["drop"].size() > 0);
    // Rounds take sixteen; which of them is the last is the data's to say.
    CHECK(scores["stability"]["documents"] >= 16);
    CHECK(scores["stability"]["documents"] <= 40);
    for (const int signal : {SIGKILL, SIGTERM}) {
        fs::remove(out);
        fs::remove(dir / "scores.csv");
        interrupted_run(dir, arguments, signal);
        CHECK(content_of(out) == expected);
        CHECK_FALSE(fs::exists(out + ".state"));
    }
}

// run.jsonl without what a clock says.
std::string timeless(const fs::path& log) {
    std::istringstream lines(content_of(log));
    std::string text;
    for (std::string line; std::getline(lines, line);) {
        json row = json::parse(line);
        row.erase("tokens_per_second");
        row.erase("tflops");
        text += row.dump() + "\n";
    }
    return text;
}

TEST_CASE("distill: killed or asked to stop, then resumed: the same bytes", "[slow]") {
    const TempDir dir;
    const auto data = dir.write("rows.jsonl", token_rows(16, 300)).string();
    const auto plan = dir.write("plan.yaml", "format: minipuzzle.plan/1\ndrop: [3, 7]\n").string();
    const std::string student = (dir / "student").string(), out = (dir / "out").string();
    REQUIRE(run({"prune", "--model", demo_model(), "--plan", plan, "--out", student}).code == 0);
    const std::vector<std::string> arguments = {
        "distill",   "--teacher",    demo_model(), "--student", student,    "--data", data,
        "--seq-len", "128",          "--batch",    "4",         "--tokens", "12k",    "--lr",
        "0.001",     "--save-every", "3",          "--out",     out,        "-q"};
    const auto whole = run(arguments);
    INFO(whole.err);
    REQUIRE(whole.code == 0);
    const auto files = [&] {
        std::vector<std::pair<std::string, std::string>> all;
        for (auto& [name, content] : test::files_of(out))
            if (name != "run.jsonl") all.push_back({name, content});
        return all;
    };
    const auto expected = files();
    const std::string log = timeless(dir / "out/run.jsonl");
    for (const int signal : {SIGKILL, SIGTERM}) {
        fs::remove_all(out);
        interrupted_run(dir, arguments, signal);
        CHECK(files() == expected);
        CHECK(timeless(dir / "out/run.jsonl") == log);
    }
}

TEST_CASE("distill with an unfinished run and without --resume is refused", "[slow]") {
    const TempDir dir;
    const auto data = dir.write("rows.jsonl", token_rows(16, 300)).string();
    const std::vector<std::string> arguments = {
        "distill",   "--init",       demo_model(), "--data", data,
        "--seq-len", "128",          "--batch",    "4",      "--tokens",
        "100k",      "--save-every", "1",          "--out",  (dir / "out").string(),
        "-q"};
    REQUIRE(interrupt(dir, arguments, SIGTERM, 2500));
    const auto again = run(arguments);
    INFO(again.err);
    CHECK(again.code == 2);
    CHECK(again.err.find("--resume") != std::string::npos);
}

}  // namespace
}  // namespace minipuzzle::cli
