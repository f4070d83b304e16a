// The memory model from the command line: parts, several workloads, answers where nothing fits, --explain.
// Published scores and architectures: no weights are touched.
#include <algorithm>
#include <regex>

#include "tests/catch.h"
#include "tests/support/program.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using nlohmann::json;
using test::run;
using test::run_json;
using test::TempDir;

namespace {

const std::string kScores = MINIPUZZLE_SOURCE_DIR "/configs/architectures/nemotron-h-56b/scores.json";

std::vector<std::string> search_56b(const std::string& out, std::vector<std::string> more) {
    std::vector<std::string> command = {"search",    "--arch", "nemotron-h-56b", "--scores", kScores,
                                        "--weights", "fp4",    "--out",          out};
    command.insert(command.end(), more.begin(), more.end());
    return command;
}

}  // namespace

TEST_CASE("inspect prints weights by part, states and workspace, and they add up") {
    const json plain = run_json({"inspect", "--arch", "nemotron-h-8b"});
    CHECK_FALSE(plain["memory"].contains("workspace"));
    const std::vector<std::string> options = {"inspect",
                                              "--arch",
                                              "nemotron-h-8b",
                                              "--weights",
                                              "int4",
                                              "--int4-group",
                                              "64",
                                              "--norms-type",
                                              "bf16",
                                              "--embeddings-type",
                                              "fp8",
                                              "--head-type",
                                              "bf16",
                                              "--ssm-parameters-type",
                                              "fp32",
                                              "--prefill-chunk",
                                              "2048"};
    const json shown = run_json(options);
    double bytes = 0;
    int64_t parameters = 0;
    for (const json& part : shown["weights"]) {
        bytes += part["bytes"].get<double>();
        parameters += part["parameters"].get<int64_t>();
        if (part["part"] == "embeddings") CHECK(part["bytes"] == 131072 * 4096);
        if (part["part"] == "ffn") CHECK(part["bytes"] == part["parameters"].get<int64_t>() * 17 / 32);
    }
    CHECK(bytes == shown["memory"]["weights"].get<double>());
    CHECK(parameters == shown["params"]);
    CHECK(shown["workload"]["int4_group"] == 64);
    // The widest layer of the 8B is Mamba: 4096 + 18560 + 10240 + 8192 activations beside the stream.
    CHECK(shown["memory"]["workspace"] == int64_t{2} * 2048 * (4096 + 4096 + 18560 + 10240 + 8192));
    const std::string text = run(options).out;
    CHECK(text.find("ssm_parameters") != std::string::npos);
    CHECK(text.find("workspace") != std::string::npos);
}

TEST_CASE("search --fits says what the student takes at each workload, and refuses what is none") {
    const TempDir dir;
    const json result = run_json(search_56b(
        (dir / "s").string(), {"--mem-budget", "31.7GiB", "--context", "1M", "--kv", "fp8", "--ssm", "bf16",
                               "--ffn-width", "30720", "--fits", "8kx64:80%", "1kx1"}));
    REQUIRE(result["constraints"].size() == 2);
    CHECK(result["constraints"][1]["bytes"] == result["budget"]["bytes"]);
    for (const json& student : result["candidates"])
        for (std::size_t i = 0; i < 2; ++i) CHECK(student["fits"][i] <= result["constraints"][i]["bytes"]);
    CHECK(run({"inspect", (dir / "s").string()}).out.find("context 8000, batch 64: ") != std::string::npos);
    for (const char* wrong : {"8k", "8k:64x1", "0x1", "8kxtwo", "8kx1:much"}) {
        INFO(wrong);
        const auto outcome =
            run(search_56b((dir / "t").string(), {"--mem-budget", "31.7GiB", "--fits", wrong}));
        CHECK(outcome.code == 2);
        CHECK(outcome.err.find("--fits") != std::string::npos);
    }
    CHECK(run(search_56b((dir / "t").string(), {"--fits", "8kx1"})).code == 2);  // no size anywhere
}

TEST_CASE("where nothing fits, every option that the message names makes it fit") {
    const TempDir dir;
    const std::vector<std::string> asked = {"--mem-budget",   "34GiB",  "--context",          "1M",
                                            "--ssm",          "bf16",   "--attention-layers", "6..10",
                                            "--mamba-layers", "40..54", "--ffn-layers",       "40..54"};
    const auto outcome = run(search_56b((dir / "s").string(), asked));
    REQUIRE(outcome.code == 4);
    CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
    const std::regex option("(--[a-z-]+) ([a-z0-9]+)(?: or|\n|$)");
    const std::string advice = outcome.err.substr(outcome.err.find("a student fits with"));
    int tried = 0;
    for (std::sregex_iterator hint(advice.begin(), advice.end(), option), end; hint != end; ++hint) {
        const std::string name = (*hint)[1], value = (*hint)[2];
        INFO(name << " " << value);
        std::vector<std::string> changed = search_56b((dir / name).string(), asked);
        const auto at = std::find(changed.begin(), changed.end(), name);
        if (at != changed.end())
            *(at + 1) = value;
        else
            changed.insert(changed.end(), {name, value});
        CHECK(run(changed).code == 0);
        ++tried;
    }
    CHECK(tried >= 2);
    CHECK(advice.find("--context") != std::string::npos);
    CHECK(advice.find("--kv") != std::string::npos);
}

TEST_CASE("search --explain has a row a layer, in the table and in --json") {
    const TempDir dir;
    std::vector<std::string> command =
        search_56b((dir / "s").string(), {"--mem-budget", "31.7GiB", "--context", "1M", "--kv", "fp8",
                                          "--ssm", "bf16", "--ffn-width", "30720", "--explain"});
    const json result = run_json(command);
    const json& explain = result["explain"];
    REQUIRE(explain["layers"].size() == 118);
    std::vector<int64_t> dropped;
    for (const json& layer : explain["layers"])
        if (layer["dropped"].get<bool>()) dropped.push_back(layer["layer"].get<int64_t>());
    for (const json& student : result["candidates"])
        if (student["id"] == result["best"]) CHECK(student["drop"] == dropped);
    const std::string text = run(command).out;
    CHECK(text.find("loss per MiB") != std::string::npos);
    CHECK(text.find("costs more than every dropped one of its type") != std::string::npos);
}
