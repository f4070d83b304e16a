// --arch, --random-weights and --weight-memory, on the CPU.
#include <filesystem>

#include "tests/catch.h"
#include "tests/support/program.h"

namespace minipuzzle::cli {
namespace {

using nlohmann::json;
using test::demo_model;
using test::refused;
using test::run;
using test::run_json;
using test::TempDir;
using test::token_rows;

struct Rows {
    TempDir dir;
    std::string path = dir.write("rows.jsonl", token_rows(6, 70)).string();
};

TEST_CASE("streamed weights change no figure of eval and score") {
    const Rows rows;
    const std::vector<std::string> eval = {"eval",      "--model", demo_model(), "--data", rows.path,
                                           "--seq-len", "64",      "--device",   "cpu",    "-q"};
    auto streamed = eval;
    streamed.insert(streamed.end(), {"--weight-memory", "4MiB"});
    CHECK(run_json(eval)["loss"] == run_json(streamed)["loss"]);
    streamed.insert(streamed.end(), {"--reference", demo_model()});
    CHECK(run_json(streamed)["kl"] == 0);

    const auto scores_of = [&](const std::string& name, const std::vector<std::string>& more) {
        std::vector<std::string> arguments = {
            "score", "--model",   demo_model(), "--data", rows.path, "--device",
            "cpu",   "--seq-len", "64",         "-q",     "--out",   (rows.dir / name).string()};
        arguments.insert(arguments.end(), more.begin(), more.end());
        run_json(arguments);
        return test::content_of((rows.dir / name).replace_extension(".csv"));
    };
    CHECK(scores_of("resident.json", {}) == scores_of("streamed.json", {"--weight-memory", "4MiB"}));

    const auto best_of = [&](const std::string& name, const std::vector<std::string>& more) {
        std::vector<std::string> arguments = {"search",
                                              "--model",
                                              demo_model(),
                                              "--scores",
                                              (rows.dir / "resident.json").string(),
                                              "--data",
                                              rows.path,
                                              "--seq-len",
                                              "64",
                                              "--mem-budget",
                                              "84%",
                                              "--measure",
                                              "3",
                                              "--device",
                                              "cpu",
                                              "-q",
                                              "--out",
                                              (rows.dir / name).string()};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_json(arguments)["candidates"];
    };
    CHECK(best_of("resident", {}) == best_of("streamed", {"--weight-memory", "4MiB"}));
}

TEST_CASE("with -v a run says where the weights lie and what its time went into") {
    const Rows rows;
    const auto outcome = run({"eval", "--model", demo_model(), "--data", rows.path, "--seq-len", "64",
                              "--device", "cpu", "--weight-memory", "4MiB", "-v"});
    REQUIRE(outcome.code == 0);
    for (const char* words : {"device cpu", "are streamed", "context ", "load ", "compute "})
        CHECK(outcome.err.find(words) != std::string::npos);
}

TEST_CASE("weights that cannot be had are refused in one line") {
    const Rows rows;
    refused({"eval", "--data", rows.path}, "--model");
    refused({"eval", "--data", rows.path, "--arch", "nemotron-h-8b"}, "--random-weights");
    refused(
        {"eval", "--data", rows.path, "--arch", "nemotron-h-8b", "--random-weights", "--model", demo_model()},
        "one of");
    refused({"eval", "--data", rows.path, "--model", demo_model(), "--random-weights"}, "go together");
    refused({"score", "--data", rows.path, "--model", demo_model(), "--weight-memory", "1000", "--out",
             (rows.dir / "s.json").string()},
            "at least");
}

TEST_CASE("bench times a model resident, streamed, and streamed without overlap") {
    const json result = run_json({"bench", "--model", demo_model(), "--prefill", "32", "--batch", "2",
                                  "--weight-memory", "4MiB", "--device", "cpu", "-q"});
    CHECK(result["format"] == "minipuzzle.bench/1");
    CHECK(result["batch"] == 2);
    REQUIRE(result["rows"].size() == 3);
    for (const json& row : result["rows"]) {
        CHECK(row["loss"] == result["rows"][0]["loss"]);
        CHECK(row["ms"].get<double>() > 0);
        CHECK(row["tokens_per_second"].get<double>() == Approx(64 / row["ms"].get<double>() * 1e3));
    }
    CHECK(result["rows"][0]["weights"] == "resident");
    CHECK(result["rows"][0]["streamed_bytes"] == 0);
    CHECK(result["rows"][1]["weight_bytes"].get<int64_t>() <= 4 << 20);
    CHECK(result["rows"][1]["streamed_bytes"].get<int64_t>() > 0);
}

TEST_CASE("bench --samples times several batches as a whole") {
    const auto bench = [](const std::vector<std::string>& more) {
        std::vector<std::string> arguments = {"bench", "--model",  demo_model(), "--prefill", "32", "--batch",
                                              "2",     "--device", "cpu",        "--sweep",   "-q"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_json(arguments);
    };
    const json one = bench({}), five = bench({"--samples", "5"});
    CHECK(one["samples"] == 2);
    CHECK(five["samples"] == 5);
    const json &first = one["rows"][0], &row = five["rows"][0];
    CHECK(row["loss"] == first["loss"]);  // of the first batch
    CHECK(row["states"] == 21);           // twenty layers and the model itself
    CHECK(row["host_states"] == 0);
    const double ms = row["ms"];
    CHECK(row["tokens_per_second"].get<double>() == Approx(5 * 32 / ms * 1e3));
    CHECK(row["extrapolated_seconds"].get<double>() == Approx(ms * 1e-3 * 128 / 5));
    CHECK(row["peak_bytes"] == row["weight_bytes"].get<int64_t>() + row["activation_bytes"].get<int64_t>());
    refused({"bench", "--device", "cpu", "--model", demo_model(), "--batch", "4", "--samples", "3"},
            "--batch 4");
}

TEST_CASE("score --dry-run says what would be done and writes nothing") {
    const Rows rows;
    const std::string out = (rows.dir / "scores.json").string();
    std::vector<std::string> arguments = {"score",     "--model", demo_model(), "--data", rows.path,
                                          "--device",  "cpu",     "--out",      out,      "-q",
                                          "--seq-len", "64",      "--dry-run"};
    const json plan = run_json(arguments);
    CHECK(plan["dry_run"] == true);
    CHECK(plan["layers"] == 20);
    CHECK(plan["windows"] == 12);  // six rows of 64 and 5 tokens to predict
    CHECK(plan["tokens"] == 6 * 69);
    CHECK(plan["states"] == 21);
    CHECK(plan["host_states"] == 0);
    CHECK(plan["pinned_bytes"] == 0);
    CHECK(plan["peak_bytes"] ==
          plan["weight_bytes"].get<int64_t>() + plan["activation_bytes"].get<int64_t>());
    CHECK(plan["seconds"].get<double>() ==
          Approx(2 * plan["multiply_adds"].get<double>() / plan["product_rate"].get<double>()));

    auto with_pairs = arguments;
    with_pairs.push_back("--iterative");
    with_pairs.push_back("2");
    CHECK(run_json(with_pairs)["multiply_adds"].get<double>() > plan["multiply_adds"].get<double>());

    arguments.insert(arguments.end(), {"--weight-memory", "4MiB"});
    const auto outcome = run(arguments);
    REQUIRE(outcome.code == 0);
    for (const char* word : {"12 windows", "live states: 21 of ", "are streamed", "peak memory", "about ",
                             "multiply-adds", "MiB"}) {
        CAPTURE(word, outcome.out);
        CHECK(outcome.out.find(word) != std::string::npos);
    }
    CHECK_FALSE(std::filesystem::exists(out));
    CHECK_FALSE(std::filesystem::exists(out + ".state"));
    arguments.back() = "1MiB";
    refused(arguments, "at least");
}

TEST_CASE("score --precision fp8 says what it did to the scores, eval holds it against bf16") {
    const Rows rows;
    const std::string out = (rows.dir / "scores.json").string();
    const std::vector<std::string> score = {"score",    "--model", demo_model(), "--data", rows.path,
                                            "--device", "cpu",     "--seq-len",  "64",     "--precision",
                                            "fp8",      "--out",   out};
    const auto outcome = run(score);
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    INFO(outcome.out);
    CHECK(outcome.out.find("fp8 sweep, bf16 head, against bf16 on 12 sequences: Spearman") !=
          std::string::npos);
    const json check = json::parse(test::content_of(out))["precision"];
    CHECK(check["sweep"] == "fp8");
    CHECK(check["head"] == "bf16");
    CHECK(check["sequences"] == 12);
    CHECK(check["rank_correlation"].get<double>() > 0.9);  // 768 tokens only
    CHECK(check["rms_error"].get<double>() > 0);
    CHECK(check["largest_error"].get<double>() >= check["rms_error"].get<double>());

    // The losses of the table are those of eval in fp8, wherever the weights lie.
    std::vector<std::string> eval = {"eval", "--model",  demo_model(), "--data", rows.path,     "--seq-len",
                                     "64",   "--device", "cpu",        "-q",     "--precision", "fp8"};
    const json resident = run_json(eval);
    CHECK(resident["precision"] == "fp8");
    CHECK(resident["loss"] == json::parse(test::content_of(out))["base"]["loss"]);
    eval.insert(eval.end(), {"--weight-memory", "4MiB", "--reference", demo_model()});
    const json against = run_json(eval);
    CHECK(against["loss"] == resident["loss"]);
    CHECK(against["kl"].get<double>() > 0);
    CHECK(against["kl"].get<double>() < 0.05);
}

TEST_CASE("a precision that is not there, or has nothing to do, is refused") {
    const Rows rows;
    refused({"score", "--data", rows.path, "--model", demo_model(), "--precision", "fp4"}, "bf16");
    refused({"bench", "ops", "--precision", "fp8"}, "--precision");
    refused({"bench", "--model", demo_model(), "--distill", demo_model(), "--precision", "fp8"}, "bf16");
}

TEST_CASE("bench times a sweep in fp8") {
    const json result = run_json({"bench", "--model", demo_model(), "--prefill", "32", "--sweep",
                                  "--precision", "fp8", "--device", "cpu", "-q"});
    CHECK(result["precision"] == "fp8");
    REQUIRE(result["rows"].size() == 1);
    CHECK(result["rows"][0]["loss"].get<double>() > 0);
}

}  // namespace
}  // namespace minipuzzle::cli
