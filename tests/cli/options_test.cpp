#include "cli/options.h"

#include "cli/commands.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/program.h"

namespace minipuzzle::cli {
namespace {

using test::bad_input;
using test::error_of;
using test::run;
using test::run_json;
using test::TempDir;

TEST_CASE("a table reads a section, names unknown keys, and logs what it read") {
    ScoreCommand score;
    const OptionTable table = score.options();
    table.apply(
        Json::parse(
            R"({"seq-len": "1k", "samples": 32, "width": [496, 480], "data": ["a", "b"], "notes": "x"})"),
        "recipe.yaml: score");
    CHECK(score.windows.seq_len == 1000);
    CHECK(score.windows.samples == 32);
    CHECK(*score.width == std::vector<int64_t>{496, 480});
    CHECK(score.data == std::vector<std::string>{"a", "b"});
    const Json logged = table.to_json();
    CHECK(logged["seq-len"] == 1000);
    CHECK(logged["width"] == Json({496, 480}));
    CHECK(logged["resume"] == false);

    const std::string unknown =
        bad_input([&] { table.apply(Json::parse(R"({"seqlen": 1})"), "recipe.yaml: score"); });
    CHECK(unknown.find("recipe.yaml: score: unknown key 'seqlen'") == 0);
    CHECK(bad_input([&] {
              table.apply(Json::parse(R"({"data": "x"})"), "r", {"data"});
          }).find("unknown key 'data'") != std::string::npos);
    CHECK(bad_input([&] { table.apply(Json::parse(R"({"samples": {"a": 1}})"), "r"); }).find("samples") !=
          std::string::npos);
    CHECK(bad_input([&] { table.apply(Json::parse(R"({"samples": 1.5})"), "r"); }).find("samples") !=
          std::string::npos);
}

TEST_CASE("every option of every command has help, and its value survives a round trip through a section") {
    for (const auto& command : all_commands()) {
        const OptionTable table = command->options();
        for (const Option& option : table.options()) {
            INFO(command->name() << " --" << option.name);
            CHECK_FALSE(option.help.empty());
        }
        const Json before = table.to_json();
        Json section = before;
        section.erase("config");
        table.apply(section, command->name());
        CHECK(table.to_json() == before);
    }
}

TEST_CASE("the command line of a command names what differs from the defaults, quoted for a shell") {
    GlobalOptions globals;
    globals.seed = 7;
    ScoreCommand score;
    score.model = "a model";
    score.data = {"x.jsonl", "it's.jsonl"};
    score.width.emplace();
    score.resume = true;
    CHECK(command_line_of(score, globals) ==
          "minipuzzle score --model 'a model' --data x.jsonl 'it'\\''s.jsonl' --width --seed 7");
}

TEST_CASE("global options stand before or after the command") {
    const auto after = run_json({"inspect", "--arch", "nemotron-h-8b"});
    const auto before = run({"--json", "-q", "inspect", "--arch", "nemotron-h-8b"});
    REQUIRE(before.code == 0);
    CHECK(before.err.empty());
    CHECK(before.json() == after);
}

TEST_CASE("options: --config gives the same keys as the command line, which wins; unknown keys are errors") {
    const TempDir dir;
    const auto config =
        dir.write("c.yaml", "arch: nemotron-h-8b\ncontext: 16Ki\nkv: fp8\nseed: 3\n").string();
    auto json = run_json({"inspect", "--config", config});
    CHECK(json["workload"]["context"] == 16384);
    CHECK(json["workload"]["kv"] == "fp8");
    json = run_json({"inspect", "--config", config, "--context", "1k"});
    CHECK(json["workload"]["context"] == 1000);
    CHECK(json["workload"]["kv"] == "fp8");

    const auto unknown = run({"inspect", "--config", dir.write("bad.yaml", "contxt: 5\n").string()});
    CHECK(unknown.code == 3);
    CHECK(unknown.err.find("unknown key 'contxt'") != std::string::npos);
}

TEST_CASE("options: --version and --help") {
    const auto version = run({"--version"});
    CHECK(version.code == 0);
    CHECK(version.out.find("minipuzzle 0.") == 0);
    const auto help = run({"--help"});
    CHECK(help.code == 0);
    for (const auto& command : all_commands()) CHECK(help.out.find(command->name()) != std::string::npos);
    const auto score = run({"score", "--help"});
    CHECK(score.code == 0);
    CHECK(score.out.find("--seq-len") != std::string::npos);
}

TEST_CASE("usage errors are one line and exit 2") {
    const std::vector<std::vector<std::string>> wrong = {
        {},
        {"frobnicate"},
        {"score", "--no-such-option"},
        {"score"},
        {"inspect", "--arch", "nemotron-h-9000b"},
        {"inspect"},
        {"inspect", "--arch", "nemotron-h-8b", "--context", "many"},
        {"inspect", "--arch", "nemotron-h-8b", "--kv", "int3"},
        {"--device", "tpu", "eval", "--model", test::demo_model(), "--data", "x"},
        {"run"},
        {"run", "--model", "m"},
        {"distill", "--data", "x", "--out", "y"}};
    for (const auto& arguments : wrong) {
        const auto outcome = run(arguments);
        INFO(outcome.err);
        CHECK(outcome.code == 2);
        CHECK(outcome.out.empty());
        CHECK(outcome.err.rfind("minipuzzle: ", 0) == 0);
        CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
    }
}

}  // namespace
}  // namespace minipuzzle::cli
