// distill's options and refusals, and bench --distill, on the CPU.
#include <regex>

#include "tests/catch.h"
#include "tests/support/program.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::content_of;
using test::demo_model;
using test::refused;
using test::run;
using test::run_json;
using test::TempDir;
using test::token_rows;

// Two short steps of the demo model learning from itself.
struct Steps {
    TempDir dir;
    std::string data = dir.write("rows.jsonl", token_rows(6, 70)).string();

    std::vector<std::string> arguments(const std::string& out, std::vector<std::string> more = {}) const {
        std::vector<std::string> all = {
            "distill",  "--teacher", demo_model(),         "--init", demo_model(), "--data", data,
            "--tokens", "64",        "--seq-len",          "16",     "--batch",    "2",      "--device",
            "cpu",      "--out",     (dir / out).string(), "-q"};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }
    std::string weights(const std::string& out) const {
        return content_of(dir / (out + "/model-00001-of-00001.safetensors"));
    }
    // The demo model's config with another number.
    std::string changed_config(const std::string& key, int value) const {
        const std::string text = content_of(fs::path(demo_model()) / "config.json");
        const std::regex number("\"" + key + "\": [0-9]+");
        REQUIRE(std::regex_search(text, number));
        return dir
            .write(key + "/config.json",
                   std::regex_replace(text, number, "\"" + key + "\": " + std::to_string(value)))
            .string();
    }
};

// A run that must fail with `code` before it makes its folder.
void fails(const Steps& at, int code, const std::vector<std::string>& arguments,
           const std::vector<std::string>& says) {
    const auto outcome = run(arguments);
    INFO(outcome.err);
    CHECK(outcome.code == code);
    CHECK(outcome.out.empty());
    for (const std::string& words : says) CHECK(outcome.err.find(words) != std::string::npos);
    CHECK(!fs::exists(at.dir / "bad"));
}

TEST_CASE("distill: what is kept and where the teacher lies change no byte, moments and losses do") {
    const Steps at;
    run_json(at.arguments("none", {"--recompute", "none"}));
    run_json(at.arguments("full", {"--recompute", "full", "--weight-memory", "4MiB"}));
    CHECK(at.weights("none") == at.weights("full"));
    run_json(at.arguments("other", {"--moments", "bf16", "--reverse-kl", "0.5", "--no-deterministic"}));
    CHECK(at.weights("none") != at.weights("other"));

    std::istringstream lines(content_of(at.dir / "other/run.jsonl"));
    std::string line;
    std::getline(lines, line);
    const json options = json::parse(line)["options"];
    CHECK(options["moments"] == "bf16");
    CHECK(options["reverse-kl"] == 0.5);
    CHECK(options["deterministic"] == false);
    std::getline(lines, line);
    const json step = json::parse(line);
    CHECK(step["reverse_kl"].get<double>() > 0);
    CHECK(step["loss"].get<double>() ==
          Approx(step["kl"].get<double>() + 0.5 * step["reverse_kl"].get<double>()));
    CHECK(step["skipped"] == 0);
    CHECK(step["tflops"].get<double>() > 0);
    CHECK(step["limit_share"].is_null());
    CHECK(run({"inspect", (at.dir / "other/run.jsonl").string()}).out.find("2 steps") == 0);
}

TEST_CASE("distill --dry-run says what would be kept, what memory it takes and how long at least") {
    const Steps at;
    const auto outcome = run(at.arguments("dry", {"--dry-run"}));
    REQUIRE(outcome.code == 0);
    for (const char* words : {"would train 2 steps", "student weights", "AdamW moments",
                              "recompute: mamba none, attention none, ffn none", "at least ", "TFLOP/s"})
        CHECK(outcome.out.find(words) != std::string::npos);
    CHECK(!fs::exists(at.dir / "dry"));
    const auto plan = at.dir.write("plan.yaml", "format: minipuzzle.plan/1\ndrop: [3, 7]\n").string();
    auto cut = at.arguments("dry", {"--dry-run"});
    *std::find(cut.begin(), cut.end(), "--init") = "--plan";
    *(std::find(cut.begin(), cut.end(), "--plan") + 1) = plan;
    const json all = run_json(at.arguments("dry", {"--dry-run"}));
    CHECK(run_json(cut)["peak_bytes"] < all["peak_bytes"]);
    CHECK(!fs::exists(at.dir / "dry"));
    const auto least = run_json(at.arguments("dry", {"--dry-run", "--recompute", "full"}))["peak_bytes"];
    CHECK(all["peak_bytes"] > least);
    const auto limit = std::to_string((all["peak_bytes"].get<int64_t>() + least.get<int64_t>()) / 2);
    const json between = run_json(at.arguments("dry", {"--dry-run", "--memory", limit}));
    CHECK(between["peak_bytes"].get<int64_t>() <= std::stoll(limit));
    CHECK(between["peak_bytes"] > least);
}

TEST_CASE("distill refuses what cannot be trained, before it writes anything") {
    const Steps at;
    fails(at, 5, at.arguments("bad", {"--memory", "20MiB"}),
          {"even with full recompute", "more than the 20.0 MiB", "--micro-batch", "--moments bf16",
           "--weight-memory"});
    fails(at, 5, at.arguments("bad", {"--memory", "51MiB", "--recompute", "none"}), {"--recompute auto"});
    fails(at, 2, at.arguments("bad", {"--top-k", "8", "--reverse-kl", "1"}), {"--reverse-kl", "--top-k"});
    fails(at, 2, at.arguments("bad", {"--moments", "f16"}), {"moments"});
    fails(at, 2, at.arguments("bad", {"--recompute", "some"}), {"recompute"});

    const auto with_init = [&](const std::string& config, std::vector<std::string> more) {
        auto arguments = at.arguments("bad", std::move(more));
        *(std::find(arguments.begin(), arguments.end(), "--init") + 1) = config;
        return arguments;
    };
    fails(at, 3, with_init(at.changed_config("vocab_size", 3000), {}), {"2048", "3000", "vocabulary"});
    fails(at, 3, with_init(at.changed_config("hidden_size", 512), {"--feature", "1"}),
          {"512", "the same width"});
    at.dir.write("rows.jsonl", "{\"tokens\": [5]}\n{\"tokens\": [7]}\n");
    fails(at, 3, at.arguments("bad"), {"rows.jsonl", "nothing to train on"});
}

TEST_CASE("bench --distill times whole training steps") {
    std::vector<std::string> arguments = {"bench",      "--model",   demo_model(), "--distill",
                                          demo_model(), "--seq-len", "16",         "--batch",
                                          "2",          "--device",  "cpu",        "-v"};
    const json none = run_json(arguments);
    CHECK(none["format"] == "minipuzzle.bench/1");
    CHECK(none["ms"].get<double>() > 0);
    CHECK(none["tokens_per_second"].get<double>() == Approx(32 / none["ms"].get<double>() * 1e3));
    CHECK(none["tflops"].get<double>() > 0);
    CHECK(none["limit_share"].get<double>() > 0);
    CHECK(none["recompute"] == "mamba none, attention none, ffn none");
    for (const char* phase : {"teacher forward", "student forward", "loss", "student backward", "optimizer"})
        CHECK(none["phases"][phase].get<double>() > 0);
    arguments.insert(arguments.end(),
                     {"--recompute", "full", "--moments", "bf16", "--weight-memory", "4MiB"});
    const json full = run_json(arguments);
    CHECK(full["first_kl"] == none["first_kl"]);
    CHECK(full["peak_bytes"] < none["peak_bytes"]);
}

TEST_CASE("bench --distill refuses what it cannot do") {
    refused({"bench", "--device", "cpu", "--model", demo_model(), "--distill", "no-such-model"},
            "no architecture is named");
    refused({"bench", "--device", "cpu", "--arch", "nemotron-h-8b", "--distill", demo_model()},
            "--random-weights");
    refused({"bench", "--device", "cpu", "--model", demo_model(), "--distill", demo_model(), "--sweep"},
            "--sweep");
    refused({"bench", "--device", "cpu", "--model", demo_model(), "--recompute", "full"}, "bench --distill");
    refused({"bench", "ops", "--device", "cpu", "--distill", demo_model()}, "shapes of its own");
}

}  // namespace
}  // namespace minipuzzle::cli
