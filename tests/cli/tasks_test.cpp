// Tasks, latency and the tournament as a person runs them.
#include "runtime/artefact.h"
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

const std::string kTasks =
    R"({"context": "the cat", "choices": [" sat on the mat", " mat the on sat"], "answer": 0, "task": "order"}
{"context": "", "choices": ["it is", "is it"], "answer": 0, "task": "order"}
{"context": "one two", "choices": [" three", " seven", " cat"], "answer": 0, "task": "count", "field": "numbers"}
)";

// The demo model's scores and the files of a search.
struct Workshop {
    TempDir dir;
    std::string rows, train, tasks, scores;

    Workshop()
        : rows(dir.write("rows.jsonl", token_rows(4, 66)).string()),
          train(dir.write("train.jsonl", token_rows(8, 66, 9)).string()),
          tasks(dir.write("tasks.jsonl", kTasks).string()),
          scores((dir / "scores.json").string()) {
        run_json(
            {"score", "--model", demo_model(), "--data", rows, "--seq-len", "64", "--out", scores, "-q"});
    }
    static const Workshop& get() {
        static const Workshop workshop;
        return workshop;
    }
    std::vector<std::string> search(const std::string& out, const std::vector<std::string>& more) const {
        std::vector<std::string> all = {"search", "--model",   demo_model(), "--scores",     scores,
                                        "--data", rows,        "--seq-len",  "64",           "--out",
                                        out,      "--measure", "6",          "--max-params", "80%"};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }
};

TEST_CASE("eval --tasks: one model, students in one sweep, beside data or alone") {
    const TempDir dir;
    const std::string tasks = dir.write("tasks.jsonl", kTasks).string(), out = (dir / "eval.json").string();
    const json alone = run_json({"eval", "--model", demo_model(), "--tasks", tasks, "--out", out});
    CHECK(json::parse(content_of(out)) == alone);
    CHECK_FALSE(alone.contains("loss"));
    CHECK(alone["tasks"]["rows"] == 3);
    CHECK(alone["tasks"]["hash"].get<std::string>().rfind("sha256:", 0) == 0);
    CHECK(alone["tasks"]["per_task"]["count"]["rows"] == 1);
    CHECK(alone["tasks"]["per_task"]["count"]["stderr"].is_null());

    const std::string plans = dir.write("plans.jsonl", "{\"drop\": []}\n{\"drop\": [3, 8]}\n").string();
    const std::string rows = dir.write("rows.jsonl", token_rows(2, 40)).string();
    const json both = run_json(
        {"eval", "--model", demo_model(), "--tasks", tasks, "--plans", plans, "--data", rows, "--out", out});
    CHECK(both["tasks"] == alone["tasks"]);
    REQUIRE(both["students"].size() == 2);
    CHECK(both["students"][0]["tasks"]["accuracy"] == alone["tasks"]["accuracy"]);
    CHECK(both["students"][0]["loss_delta"] == 0);
    CHECK(both["students"][1]["tasks"]["rows"] == 3);

    for (const std::string& file : {out, (dir / "eval.json").string()}) {
        const auto shown = run({"inspect", file});
        CHECK(shown.code == 0);
        CHECK(shown.out.find("all rows") != std::string::npos);
    }
    const auto text = run({"eval", "--model", demo_model(), "--tasks", tasks, "--plans", plans});
    CHECK(text.out.find("tasks per token") != std::string::npos);
}

TEST_CASE("tasks: what is missing or wrong is said in one line, and nothing is overwritten") {
    const TempDir dir;
    refused({"eval", "--model", demo_model()}, "--data or --tasks");
    const std::string bad =
        dir.write("bad.jsonl", R"({"context": "a", "choices": [" b"], "answer": 1})").string();
    const std::string out = dir.write("eval.json", "{\"format\": \"minipuzzle.eval/1\"}").string();
    const auto outcome = run({"eval", "--model", demo_model(), "--tasks", bad, "--out", out});
    CHECK(outcome.code == 3);
    CHECK(outcome.err.find("bad.jsonl:1: \"answer\"") != std::string::npos);
    CHECK(content_of(out) == "{\"format\": \"minipuzzle.eval/1\"}");
    const std::vector<std::string> search = {"search", "--model", demo_model(),   "--scores", "s.json",
                                             "--out",  "x",       "--max-params", "80%"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.begin(), search.begin(), search.end());
        return more;
    };
    refused(with({"--tasks", bad}), "--tasks goes with --data");
    refused(with({"--data", bad, "--select-by", "tasks"}), "needs --tasks");
    refused(with({"--max-latency", "25ms"}), "needs --latency");
    refused(with({"--max-latency", "25"}), "is not a time");
    refused(with({"--tournament", "2"}), "--tournament needs --data");
    refused(with({"--data", bad, "--tournament", "2"}), "--tournament-data");
    refused({"bench", "--model", demo_model(), "--decode", "5"}, "only a prefill");
    refused({"bench", "--model", demo_model(), "--ffn-widths", "64"}, "--layer-latency");
    refused({"bench", "--model", demo_model(), "--layer-latency"}, "--out");
}

TEST_CASE("search chooses by tasks and within a latency", "[slow]") {
    const Workshop& at = Workshop::get();
    const TempDir dir;
    const json result =
        run_json(at.search((dir / "by_tasks").string(), {"--tasks", at.tasks, "--select-by", "tasks"}));
    CHECK(result["select_by"] == "tasks");
    double best = -1;
    int measured = 0;
    std::string first_best;
    for (const json& candidate : result["candidates"]) {
        if (candidate["measured"].is_null()) continue;
        ++measured;
        const double accuracy = candidate["measured"]["tasks"]["accuracy"];
        CHECK(candidate["measured"]["tasks"]["stderr"].is_number());
        if (accuracy > best) best = accuracy, first_best = candidate["id"];
    }
    CHECK(measured == 6);
    CHECK(result["best"] == first_best);

    // The times of a table bound the sum over kept layers.
    const std::string table = (dir / "latency.json").string();
    const json times =
        run_json({"bench", "--model", demo_model(), "--layer-latency", "--prefill", "64", "--out", table});
    CHECK(json::parse(content_of(table)) == times);
    const double whole = times["checks"][0]["predicted"];
    const json fast = run_json(at.search(
        (dir / "fast").string(), {"--latency", table, "--max-latency", std::to_string(600 * whole) + "ms"}));
    REQUIRE_FALSE(fast["candidates"].empty());
    for (const json& candidate : fast["candidates"])
        CHECK(candidate["latency"].get<double>() <= 0.6 * whole * (1 + 1e-4));
    CHECK(run({"inspect", (dir / "fast" / "search.json").string()}).out.find("predicted latency") !=
          std::string::npos);
    const auto other = run({"search", "--arch", "nemotron-h-8b", "--scores", at.scores, "--latency", table,
                            "--max-params", "80%", "--out", (dir / "no").string()});
    CHECK(other.code == 3);
}

TEST_CASE("search --tournament: killed and started again it ends in the same bytes", "[slow]") {
    const Workshop& at = Workshop::get();
    const TempDir dir;
    const std::string out = (dir / "s").string();
    const std::vector<std::string> arguments =
        at.search(out, {"--tournament", "2", "--tournament-tokens", "1024", "--tournament-data", at.train,
                        "--tournament-lr", "1e-3", "-q"});
    const json result = run_json(arguments);
    REQUIRE(result["tournament"].size() == 2);
    double best = 1e9;
    std::string winner;
    for (const json& entry : result["tournament"]) {
        CHECK(entry["tokens"] == 1024);
        CHECK(entry["loss"].get<double>() < entry["loss_before"].get<double>());
        if (entry["loss"] < best) best = entry["loss"], winner = entry["id"];
    }
    CHECK(result["best"] == winner);
    // The winner's folder is a model of that loss, and the only one kept.
    const fs::path kept = fs::path(out) / "tournament" / winner;
    const json eval = run_json({"eval", "--model", kept.string(), "--data", at.rows, "--seq-len", "64"});
    CHECK(eval["loss"].get<double>() == best);
    CHECK(std::distance(fs::directory_iterator(fs::path(out) / "tournament"), fs::directory_iterator()) == 2);
    CHECK(run({"inspect", (fs::path(out) / "search.json").string()}).out.find("tournament") !=
          std::string::npos);

    const std::string expected = content_of(fs::path(out) / "search.json");
    const std::string plan = content_of(fs::path(out) / "best.plan.yaml");
    const auto model = test::files_of(kept);
    fs::remove_all(out);
    int stops = 0;
    for (int milliseconds = 600; milliseconds < 8000; milliseconds += 700) {
        std::vector<std::string> with_json = arguments;
        with_json.push_back("--json");
        test::Program program(dir, with_json);
        std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
        const bool alive = program.running();
        program.signal(SIGKILL);
        program.wait();
        if (!alive) break;
        ++stops;
    }
    CHECK(stops > 0);
    CHECK(run_json(arguments) == result);
    CHECK(content_of(fs::path(out) / "search.json") == expected);
    CHECK(content_of(fs::path(out) / "best.plan.yaml") == plan);
    // run.jsonl holds times.
    const auto again = test::files_of(kept);
    REQUIRE(again.size() == model.size());
    for (std::size_t i = 0; i < model.size(); ++i) {
        INFO(model[i].first);
        CHECK(again[i].first == model[i].first);
        if (model[i].first != "run.jsonl") CHECK(again[i].second == model[i].second);
    }
}

}  // namespace
}  // namespace minipuzzle::cli
