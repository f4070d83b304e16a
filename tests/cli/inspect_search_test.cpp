// inspect of searches and plans: the published example, two searches, a plan in a search.
#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "cli/search_text.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/program.h"

namespace minipuzzle::cli {
namespace {

using nlohmann::json;
using test::run;
using test::run_json;
using test::TempDir;

const std::string kSource = MINIPUZZLE_SOURCE_DIR;
const std::string kScores56b = kSource + "/configs/architectures/nemotron-h-56b/scores.json";
const std::string kPlan47b = kSource + "/configs/architectures/nemotron-h-47b/plan.yaml";
const std::string kMini52 = kSource + "/configs/corrections/mini-52.json";

// Both searches of the published example, made once.
struct Published {
    TempDir dir;
    std::string plain, corrected;

    Published() : plain((dir / "plain").string()), corrected((dir / "corrected").string()) {
        std::vector<std::string> arguments = {
            "search",    "--arch",      "nemotron-h-56b", "--scores", kScores56b, "--mem-budget", "31.7GiB",
            "--context", "1000000",     "--weights",      "fp4",      "--kv",     "fp8",          "--ssm",
            "bf16",      "--ffn-width", "30720",          "--all",    "-q",       "--out",        plain};
        run_json(arguments);
        arguments.back() = corrected;
        arguments.insert(arguments.end(), {"--type-corrections", kMini52});
        run_json(arguments);
    }
    static const Published& get() {
        static const Published published;
        return published;
    }
};

void narrow_enough(const std::string& text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        INFO(line);
        CHECK(line.size() <= 100);
    }
}

TEST_CASE("inspect a search and a plan: the published 47B is in the pool, its rank with and without") {
    const Published& at = Published::get();
    const json plain = run_json({"inspect", at.plain, kPlan47b});
    CHECK(plain["rank"] == 9);
    CHECK(plain["of"] == 214);
    CHECK(plain["dropped_by_best"] == json({40, 62}));
    CHECK(plain["kept_by_best"].size() == 15);
    const json corrected = run_json({"inspect", kPlan47b, at.corrected});  // in either order
    CHECK(corrected["rank"] == 11);
    CHECK(corrected["dropped_by_best"] == json({62}));
    const auto outcome = run({"inspect", at.corrected, kPlan47b});
    REQUIRE(outcome.code == 0);
    CHECK(outcome.out.find("11 of 214") != std::string::npos);
    CHECK(outcome.out.find("sums corrected per type") != std::string::npos);
    CHECK(outcome.out.find("and drops 62 A") != std::string::npos);
    narrow_enough(outcome.out);

    const std::string other = at.dir.write("p.yaml", "format: minipuzzle.plan/1\ndrop: [1, 3]\n").string();
    CHECK(run_json({"inspect", at.plain, other})["rank"].is_null());
    CHECK(run({"inspect", at.plain, other}).out.find("none of the 214 candidates") != std::string::npos);
    const std::string beyond = at.dir.write("q.yaml", "format: minipuzzle.plan/1\ndrop: [118]\n").string();
    CHECK(run({"inspect", at.plain, beyond}).code == 3);
}

TEST_CASE("inspect a search: what was asked and proved, the best, the frontier, within 100 columns") {
    const auto outcome = run({"inspect", Published::get().corrected});
    REQUIRE(outcome.code == 0);
    narrow_enough(outcome.out);
    for (const char* part :
         {"predicted only; objective hidden_mse; 32065 compositions", "budget 34037615820 bytes (31.70 GiB)",
          "from 400 sets of mini-52", "proof (additive predictor, enumeration)", "gap 0", "51 M, 51 F, 4 A",
          "<- best", "<- knee", "drops 7, 29, 62, 73, 84"}) {
        INFO(part);
        CHECK(outcome.out.find(part) != std::string::npos);
    }
}

TEST_CASE("inspect two searches: both bests, what tells them apart, ranks in each") {
    const Published& at = Published::get();
    const json difference = run_json({"inspect", at.plain, at.corrected});
    CHECK(difference["shared"] == 214);
    CHECK(difference["best"]["only_a_drops"] == json({40}));
    CHECK(difference["best"]["only_b_drops"] == json({86, 88, 89, 90, 91, 93}));
    CHECK(difference["students"].size() == 214);
    CHECK(difference["students"][0]["a"]["rank"] == 1);
    CHECK(difference["students"][0]["b"]["rank"] == 8);
    const double correlation = difference["rank_correlation"].get<double>();
    CHECK(correlation > 0.9);
    CHECK(correlation < 1.0);
    const auto outcome = run({"inspect", at.plain, at.corrected});
    narrow_enough(outcome.out);
    CHECK(outcome.out.find("only a's best drops 40 A") != std::string::npos);
    CHECK(outcome.out.find("214 students in both") != std::string::npos);
    CHECK(run({"inspect", at.plain, at.plain}).out == "no difference\n");
}

TEST_CASE("inspect a plan with published scores: every term, corrections, a row for each of many") {
    const std::vector<std::string> scores = {"--scores", kScores56b, "--context", "1000000", "--weights",
                                             "fp4",      "--kv",     "fp8",       "--ssm",   "bf16"};
    const auto with = [&](std::vector<std::string> arguments) {
        arguments.insert(arguments.begin(), "inspect");
        arguments.insert(arguments.end(), scores.begin(), scores.end());
        return arguments;
    };
    const json plain = run_json(with({kPlan47b}));
    const json corrected = run_json(with({kPlan47b, "--type-corrections", kMini52}));
    CHECK(plain["objective"] == "hidden_mse");
    CHECK(plain["params"] == 46791554816);
    CHECK(plain["memory"]["total"] == 34018794368);
    CHECK(plain["terms"]["correction"].is_null());
    double sum = 0;
    for (const json& layer : plain["dropped"]) sum += layer["value"].get<double>();
    CHECK(plain["dropped"].size() == 20);
    CHECK(plain["value"].get<double>() == Approx(sum).epsilon(1e-12));
    CHECK(corrected["additive"] == plain["value"]);
    CHECK(corrected["value"].get<double>() ==
          Approx(sum + corrected["terms"]["correction"].get<double>()).epsilon(1e-12));
    // The search says the same of the same student.
    const json search = json::parse(test::content_of(Published::get().corrected + "/search.json"));
    for (const json& candidate : search["candidates"])
        if (candidate["drop"] == corrected["drop"])
            CHECK(candidate["predicted"]["value"] == corrected["value"]);
    const std::string text = run(with({kPlan47b, "--type-corrections", kMini52})).out;
    for (const char* term : {"layer 85 (-)", "layer 95 (*)", "correction", "sum without correction"})
        CHECK(text.find(term) != std::string::npos);

    const std::string rows =
        Published::get()
            .dir
            .write("plans.jsonl", fmt::format("{{\"drop\": {}, \"ffn_width\": 30720}}\n{{\"drop\": [88]}}\n",
                                              plain["drop"].dump()))
            .string();
    const json many = run_json(with({"--plans", rows, "--type-corrections", kMini52}))["predictions"];
    REQUIRE(many.size() == 2);
    CHECK(many[0] == corrected);
    // One Mamba layer: weight 1 and nothing used up.
    CHECK(many[1]["value"].get<double>() == Approx(0.004736).epsilon(1e-9));
}

TEST_CASE("type corrections that do not fit are refused in one line") {
    const Published& at = Published::get();
    const auto refused = [](const std::vector<std::string>& arguments, int code, const char* what) {
        const auto outcome = run(arguments);
        INFO(outcome.err);
        CHECK(outcome.code == code);
        CHECK(outcome.err.find(what) != std::string::npos);
    };
    refused({"inspect", kPlan47b, "--type-corrections", kMini52}, 2, "needs --scores");
    refused({"inspect", kPlan47b, "--scores", kScores56b, "--type-corrections", kScores56b}, 3,
            "0 usable random sets");
    refused({"search", "--arch", "nemotron-h-56b", "--scores", kScores56b, "--mem-budget", "90%",
             "--type-corrections", (at.dir / "absent.json").string(), "--out", (at.dir / "none").string()},
            3, "absent.json");
}

}  // namespace
}  // namespace minipuzzle::cli
