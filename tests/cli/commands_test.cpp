// Every command as a process, its output parsed.
#include "cli/inspect.h"

#include <map>
#include <set>

#include "cli/search_text.h"
#include "nas/memory_model.h"
#include "runtime/student_plan.h"

#include "tests/catch.h"
#include "tests/support/program.h"

namespace minipuzzle::cli {
namespace {

using nlohmann::json;
using test::demo_model;
using test::run;
using test::run_json;
using test::TempDir;
using test::token_rows;

// One folder of small data and the scores of the demo model on it, made once.
struct Workshop {
    TempDir dir;
    std::string rows, select, scores;

    Workshop()
        : rows(dir.write("rows.jsonl", token_rows(10, 90)).string()),
          select(dir.write("select.jsonl", token_rows(6, 90, 5)).string()),
          scores((dir / "scores.json").string()) {
        run_json({"score", "--model", demo_model(), "--data", rows, "--seq-len", "64", "--width", "496,480",
                  "--out", scores, "-q"});
    }
    static const Workshop& get() {
        static const Workshop workshop;
        return workshop;
    }
};

TEST_CASE("inspect --arch gives the published parameter counts exactly") {
    const std::pair<const char*, int64_t> known[] = {
        {"nemotron-h-4b", 4489223040},       {"nemotron-h-8b", 8100852736},
        {"nemotron-h-47b", 46791554816},     {"nemotron-h-56b", 56324350464},
        {"nemotron-nano-9b-v2", 8888227328}, {"nemotron-nano-12b-v2", 12310001152}};
    for (const auto& [name, params] : known) CHECK(run_json({"inspect", "--arch", name})["params"] == params);
}

TEST_CASE("inspect a model folder, its config.json, and two of a kind", "[slow]") {
    const json folder = run_json({"inspect", demo_model()});
    CHECK(folder["pattern"] == "M-M-M*-M-M-M*-M-M-M-");
    CHECK(folder["layers"] == json({{"mamba", 9}, {"attention", 2}, {"ffn", 9}}));
    CHECK(folder["weights_hash"].get<std::string>().rfind("sha256:", 0) == 0);
    // A_log and D are float32 in the file, everything else bf16.
    CHECK(folder["memory"]["weights"] > 2 * folder["params"].get<int64_t>());
    const json config = run_json({"inspect", demo_model() + "/config.json", "--weights", "bf16"});
    CHECK(config["params"] == folder["params"]);
    CHECK(config["memory"]["weights"] == 2 * folder["params"].get<int64_t>());

    const json difference = run_json({"inspect", "--arch", "nemotron-h-8b", demo_model()});
    bool found = false;
    for (const json& row : difference["differences"])
        if (row["at"] == "params") {
            found = true;
            CHECK(row["change"] == row["b"].get<int64_t>() - row["a"].get<int64_t>());
        }
    CHECK(found);
    CHECK(run_json({"inspect", demo_model(), demo_model()})["differences"].empty());
    CHECK(run({"inspect", demo_model(), Workshop::get().scores}).code == 2);
}

TEST_CASE("score writes its files, shares work, and does not depend on the number of threads", "[slow]") {
    const Workshop& at = Workshop::get();
    const json scores = json::parse(test::content_of(at.scores));
    CHECK(scores["layers"].size() == 20);
    CHECK(scores["calibration"]["tokens"] == 10 * 89);
    CHECK(scores["ffn_width_curve"].size() == 3);
    CHECK(std::filesystem::exists(at.dir / "scores.csv"));
    CHECK(std::filesystem::exists(at.dir / "scores.width.safetensors"));
    CHECK_FALSE(std::filesystem::exists(at.scores + ".state"));

    const TempDir dir;
    json layers[2];
    for (int threads = 1; threads <= 2; ++threads)
        layers[threads - 1] =
            run_json({"score", "--model", demo_model(), "--data", at.rows, "--seq-len", "64", "--threads",
                      std::to_string(threads), "--out", (dir / "s.json").string()})["layers"];
    CHECK(layers[0] == layers[1]);
    CHECK(layers[0] == scores["layers"]);

    const auto text = run({"score", "--model", demo_model(), "--data", at.rows, "--seq-len", "64",
                           "--samples", "2", "--out", (dir / "s.json").string()});
    CHECK(text.code == 0);
    CHECK(text.out.find("of the") != std::string::npos);  // "... 0.55 of the ... that separate passes take"
}

TEST_CASE("score with pairs and removal says both, and weighs layers where there is a budget", "[slow]") {
    const Workshop& at = Workshop::get();
    const TempDir dir;
    const std::vector<std::string> arguments = {
        "score", "--model",      demo_model(), "--data",    at.rows, "--seq-len",
        "32",    "--samples",    "4",          "--pairs",   "1",     "--iterative",
        "2",     "--mem-budget", "84%",        "--context", "1000"};
    const auto with = [&](const std::vector<std::string>& more) {
        std::vector<std::string> all = arguments;
        all.insert(all.end(), more.begin(), more.end());
        return all;
    };
    const json scores = run_json(with({"--out", (dir / "s.json").string()}));
    CHECK(scores["pairs"]["window"] == 1);
    CHECK(scores["pairs"]["pairs"].size() >= 19);
    CHECK(scores["iterative"]["steps"].size() == 2);
    // A layer's bytes are what the memory table loses with it, to the rounding of whole bytes.
    const int64_t removed = scores["iterative"]["steps"][0]["removed"];
    const auto plan = dir.write("plan.jsonl", "{\"drop\": [" + std::to_string(removed) + "]}\n");
    const Checkpoint checkpoint{demo_model()};
    const nas::Workload workload{
        .context = 1000, .weights_as_in_file = true, .weight_dtypes = nas::dtypes_in_file(checkpoint)};
    const int64_t whole = nas::memory_of(checkpoint.architecture(), workload).total();
    const int64_t less =
        nas::memory_of(checkpoint.architecture(), read_plan_rows(plan).at(0), workload).total();
    CHECK(scores["iterative"]["steps"][0]["bytes"] == whole - less);

    const auto text = run(with({"--out", (dir / "t.json").string()}));
    CHECK(text.code == 0);
    CHECK(text.out.find("iterative removal on 4 sequences") != std::string::npos);
    CHECK(text.out.find("interaction") != std::string::npos);
    CHECK(text.out.find("pairs: ") != std::string::npos);
    CHECK(text.out.find("iterative: ") != std::string::npos);
    CHECK(text.err.find("workload: ") != std::string::npos);
}

TEST_CASE("prune, then eval, equals eval --plans and the layer's score", "[slow]") {
    const Workshop& at = Workshop::get();
    const TempDir dir;
    const json scores = json::parse(test::content_of(at.scores));
    const auto plan = dir.write("plan.yaml", "format: minipuzzle.plan/1\ndrop: [3]\n").string();
    const auto rows =
        dir.write("plans.jsonl", "{\"drop\": [3]}\n{\"drop\": [3, 7], \"ffn_width\": 480}\n").string();
    const std::string student = (dir / "student").string();
    const json pruned = run_json({"prune", "--model", demo_model(), "--plan", plan, "--out", student});
    CHECK(pruned["pattern"] == "M-MM*-M-M-M*-M-M-M-");
    CHECK(test::content_of(dir / "student/README.md").find("| 3 | ffn |") != std::string::npos);

    const json eval = run_json({"eval", "--model", student, "--reference", demo_model(), "--data", at.rows,
                                "--seq-len", "64", "--out", (dir / "eval.json").string()});
    CHECK(json::parse(test::content_of(dir / "eval.json")) == eval);
    CHECK(eval["per_source"]["odd"]["tokens"] == 5 * 89);
    const json plans =
        run_json({"eval", "--model", demo_model(), "--plans", rows, "--width-scores",
                  (at.dir / "scores.width.safetensors").string(), "--data", at.rows, "--seq-len", "64"});
    const json& row = plans["students"][0];
    CHECK(plans["base"]["loss"] == scores["base"]["loss"]);
    // The same products in the same order: a state's bits never depend on its company.
    CHECK(row["loss"].get<double>() == Approx(eval["loss"].get<double>()).epsilon(1e-9));
    CHECK(row["kl"].get<double>() == Approx(eval["kl"].get<double>()).epsilon(1e-6));
    CHECK(row["loss_delta"].get<double>() ==
          Approx(scores["layers"][3]["loss_delta"].get<double>()).margin(1e-9));
    CHECK(plans["students"][1]["loss"] != row["loss"]);
}

TEST_CASE("search by prediction, then by measurement; inspect and report what it wrote; prune from it") {
    const Workshop& at = Workshop::get();
    const TempDir dir;
    const std::string predicted = (dir / "predicted").string(), measured = (dir / "measured").string();
    const json by_prediction = run_json({"search", "--model", demo_model(), "--scores", at.scores,
                                         "--mem-budget", "84%", "--out", predicted});
    CHECK(by_prediction["status"] == "predicted_only");
    const auto total = by_prediction["teacher"]["memory"]["total"].get<int64_t>();
    CHECK(by_prediction["budget"]["bytes"] == total * 84 / 100);
    const auto outcome = run({"search", "--model", demo_model(), "--scores", at.scores, "--mem-budget", "84%",
                              "--data", at.select, "--seq-len", "64", "--measure", "8", "--out", measured});
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    CHECK(outcome.err.find("budget 84% of the teacher's") != std::string::npos);
    const json search = json::parse(test::content_of(dir / "measured/search.json"));
    CHECK(search["status"] == "measured");
    for (const json& candidate : search["candidates"])
        CHECK(candidate["memory"]["total"].get<int64_t>() <= search["budget"]["bytes"].get<int64_t>());

    CHECK(run({"inspect", measured}).out.find("<- knee") != std::string::npos);
    const json prediction = run_json({"inspect", measured + "/best.plan.yaml", "--scores", at.scores});
    for (const json& candidate : search["candidates"])
        if (candidate["id"] == search["best"])
            CHECK(prediction["value"].get<double>() ==
                  Approx(candidate["predicted"]["value"].get<double>()).epsilon(1e-12));
    const std::string page = test::content_of(dir / "measured/report.html");
    CHECK(page.find("<svg") != std::string::npos);
    const std::string student = (dir / "student").string();
    run_json({"prune", "--model", demo_model(), "--search", measured, "--out", student});
    const json card = run_json({"inspect", student});
    for (const json& candidate : search["candidates"])
        if (candidate["id"] == search["best"]) CHECK(card["params"] == candidate["params"]);
}

TEST_CASE("fewer Mamba heads: searched by prediction, pruned, evaluated; a sweep refuses them") {
    const Workshop& at = Workshop::get();
    const TempDir dir;
    const std::string found = (dir / "search").string(), student = (dir / "student").string();
    const std::vector<std::string> command = {"search",  "--model",      demo_model(), "--scores",
                                              at.scores, "--mem-budget", "80%",        "--mamba-heads",
                                              "3",       "--out",        found};
    std::vector<std::string> measured = command;
    measured.insert(measured.end(), {"--data", at.select, "--seq-len", "64"});
    test::refused(measured, "--mamba-heads goes without --data");
    CHECK_FALSE(std::filesystem::exists(found));

    const json search = run_json(command);
    const std::string plan = found + "/best.plan.yaml";
    CHECK(test::content_of(plan).find("mamba_heads_per_group: 3") != std::string::npos);
    const json pruned = run_json({"prune", "--model", demo_model(), "--plan", plan, "--out", student});
    CHECK(pruned["mamba_heads_per_group"] == 3);
    for (const json& candidate : search["candidates"])
        if (candidate["id"] == search["best"]) CHECK(pruned["params"] == candidate["params"]);
    CHECK(test::content_of(dir / "student/config.json").find("\"mamba_num_heads\": 6,") != std::string::npos);
    CHECK(test::content_of(dir / "student/README.md").find("3 Mamba heads a group") != std::string::npos);
    CHECK(run({"inspect", plan}).out.find("Mamba heads a group 3") != std::string::npos);
    const json eval = run_json({"eval", "--model", student, "--data", at.rows, "--seq-len", "64"});
    CHECK(eval["loss"].get<double>() > 0);
    const std::string again = (dir / "again").string();
    run_json({"prune", "--model", demo_model(), "--search", found, "--out", again});
    CHECK(test::content_of(dir / "again/model-00001-of-00001.safetensors") ==
          test::content_of(dir / "student/model-00001-of-00001.safetensors"));

    const auto rows =
        dir.write("plans.jsonl", "{\"drop\": [3]}\n{\"drop\": [], \"mamba_heads_per_group\": 3}\n").string();
    test::refused({"eval", "--model", demo_model(), "--plans", rows, "--data", at.rows, "--seq-len", "64"},
                  "plans.jsonl:2: found mamba_heads_per_group 3");
    const auto bare =
        dir.write("bare.yaml", "format: minipuzzle.plan/1\ndrop: []\nmamba_heads_per_group: 3\n").string();
    const auto outcome =
        run({"prune", "--model", demo_model(), "--plan", bare, "--out", (dir / "none").string()});
    CHECK(outcome.code == 3);
    CHECK(outcome.err.find("name the file that `score --width` wrote") != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(dir / "none"));
}

TEST_CASE("a budget that nothing fits exits 4 and names the smallest student", "[slow]") {
    const Workshop& at = Workshop::get();
    const TempDir dir;
    const auto outcome = run({"search", "--model", demo_model(), "--scores", at.scores, "--mem-budget", "1kB",
                              "--out", (dir / "s").string()});
    CHECK(outcome.code == 4);
    CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
    CHECK(outcome.err.find("smallest") != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(dir / "s"));
}

TEST_CASE("distill trains the student, and a model from a config alone", "[slow]") {
    const Workshop& at = Workshop::get();
    const TempDir dir;
    const auto plan = dir.write("plan.yaml", "format: minipuzzle.plan/1\ndrop: [3, 7]\n").string();
    const json cut =
        run_json({"distill", "--teacher", demo_model(), "--plan", plan, "--data", at.rows, "--seq-len", "32",
                  "--batch", "2", "--tokens", "256", "--feature", "0.1", "--out", (dir / "cut").string()});
    CHECK(cut["steps"] == 4);
    CHECK(run_json({"inspect", (dir / "cut").string()})["pattern"] == "M-MM*--M-M*-M-M-M-");
    CHECK(run({"inspect", (dir / "cut/run.jsonl").string()}).out.find("4 steps") == 0);
    const json fresh = run_json({"distill", "--init", demo_model(), "--data", at.rows, "--seq-len", "32",
                                 "--batch", "2", "--tokens", "128", "--out", (dir / "fresh").string()});
    // Random weights know nothing: about log(2048) nats.
    CHECK(fresh["first_loss"].get<double>() == Approx(7.62).margin(0.5));
    CHECK(run_json({"eval", "--model", (dir / "fresh").string(), "--data", at.rows, "--seq-len",
                    "64"})["tokens"] == 890);
}

// A whole run on tiny data.
std::string small_recipe(const TempDir& dir, const std::string& train = "train.jsonl") {
    const char* parts[] = {"calib", "select", "train", "test"};
    for (int i = 0; i < 4; ++i) dir.write(std::string(parts[i]) + ".jsonl", token_rows(4, 90, 10 + i));
    const std::string root = dir.path().string();
    return dir
        .write("recipe.yaml",
               "format: minipuzzle.recipe/1\nmodel: " + demo_model() + "\nout: " + root +
                   "/out\ndata: {calib: " + root + "/calib.jsonl, select: " + root +
                   "/select.jsonl, train: " + root + "/" + train + ", test: " + root + "/test.jsonl}\n" +
                   "score: {seq-len: 64, width: true}\nsearch: {mem-budget: 84%, measure: 4, seq-len: 64}\n"
                   "distill: {tokens: 256, seq-len: 32, batch: 2}\neval: {seq-len: 64}\n")
        .string();
}

TEST_CASE("run makes everything, skips what is finished, and redoes what changed", "[slow]") {
    const TempDir dir;
    const std::string recipe = small_recipe(dir);
    const json summary = run_json({"run", recipe});
    for (const char* file : {"recipe.yaml", "scores.json", "search/search.json", "student/config.json",
                             "distilled/config.json", "eval/teacher.json", "report.html", "summary.json"})
        CHECK(std::filesystem::exists(dir / ("out/" + std::string(file))));
    CHECK(json::parse(test::content_of(dir / "out/summary.json")) == summary);
    CHECK(summary["pruned"]["memory"].get<double>() <= 0.84 * summary["teacher"]["memory"].get<double>());
    for (const char* name : {"teacher", "pruned", "distilled"})
        CHECK(summary[name]["test_loss"].get<double>() > 0);

    const auto before = test::files_of(dir / "out");
    const auto again = run({"run", recipe, "--json"});
    CHECK(again.code == 0);
    for (const char* step :
         {"score", "search", "prune", "distill", "eval teacher", "eval pruned", "eval distilled"})
        CHECK(again.err.find(std::string(step) + ": done already") != std::string::npos);
    CHECK(test::files_of(dir / "out") == before);

    dir.write("train.jsonl", token_rows(4, 90, 99));  // only what depends on it is done again
    const auto changed = run({"run", recipe, "--json"});
    CHECK(changed.code == 0);
    CHECK(changed.err.find("prune: done already") != std::string::npos);
    CHECK(changed.err.find("distill: done already") == std::string::npos);
}

TEST_CASE("run refuses a document that stands in two parts, naming both files and rows") {
    const TempDir dir;
    const std::string recipe = small_recipe(dir, "test.jsonl");
    const auto outcome = run({"run", recipe});
    CHECK(outcome.code == 3);
    CHECK(outcome.err.find("train (") != std::string::npos);
    CHECK(outcome.err.find("test.jsonl row 1") != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(dir / "out"));
}

TEST_CASE("run with three options splits the data by document and writes its recipe") {
    const TempDir dir;
    // Eleven documents, one of them twice: its copies must stay together.
    std::string rows = token_rows(11, 60);
    rows += rows.substr(0, rows.find('\n') + 1);
    dir.write("all.jsonl", rows);
    const std::string out = (dir / "out").string();
    // A stop as soon as the recipe stands: the split is what is looked at here.
    test::Program program(dir, {"run", "--model", demo_model(), "--data", (dir / "all.jsonl").string(),
                                "--mem-budget", "84%", "--out", out, "--seed", "3"});
    while (program.running() && !std::filesystem::exists(dir / "out/scores.json"))
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    program.signal(SIGTERM);
    const int code = program.wait();
    INFO(program.err());
    CHECK((code == 130 || code == 0));
    CHECK(run({"inspect", out + "/recipe.yaml"}).code == 0);
    std::map<std::string, std::set<std::string>> parts_of;  // row -> parts
    std::size_t total = 0;
    for (const char* part : {"calib", "select", "train", "test"}) {
        std::istringstream lines(test::content_of(dir / ("out/data/" + std::string(part) + ".jsonl")));
        for (std::string line; std::getline(lines, line); ++total) parts_of[line].insert(part);
    }
    CHECK(total == 12);
    CHECK(parts_of.size() == 11);
    for (const auto& [row, parts] : parts_of) CHECK(parts.size() == 1);
}

TEST_CASE("the knee of a frontier is the point farthest below the chord") {
    const std::vector<nas::FrontierPoint> frontier = {{.total = 0, .value = 10, .drop = {}},
                                                      {.total = 10, .value = 3, .drop = {}},
                                                      {.total = 50, .value = 2, .drop = {}},
                                                      {.total = 100, .value = 0, .drop = {}}};
    CHECK(knee_of(frontier) == 1);
    CHECK(knee_of({frontier[0], frontier[3]}) == -1);
}

}  // namespace
}  // namespace minipuzzle::cli
