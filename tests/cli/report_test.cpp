// The report's page: what it shows, what it escapes, how large it grows.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "cli/report/html.h"
#include "cli/report/importance_chart.h"
#include "cli/report/layer_strips.h"
#include "cli/report/loss_curve.h"
#include "cli/report/page.h"
#include "cli/report/svg.h"
#include "tests/catch.h"
#include "tests/cli/report_support.h"
#include "tests/support/errors.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using namespace minipuzzle::report;
using namespace minipuzzle::test;

namespace {

nas::SearchResult search_of(const std::string& pattern, int64_t candidates) {
    nas::SearchResult search;
    search.status = "measured";
    search.select_by = "loss";
    search.teacher_pattern = pattern;
    search.teacher_params = 1000000;
    search.teacher_memory = {.weights = 2000000, .kv = 300000, .ssm = 200000, .conv = 10000, .buffers = 0};
    search.budget_bytes = 2100000;
    for (int64_t i = 0; i < candidates; ++i) {
        nas::Candidate candidate;
        candidate.id = fmt::format("c{:03}", i + 1);
        for (int64_t layer = i % 3; layer < static_cast<int64_t>(pattern.size()); layer += 5)
            candidate.plan.drop.push_back(layer);
        candidate.memory = {
            .weights = 1500000 + 1000 * i, .kv = 200000, .ssm = 200000, .conv = 9000, .buffers = 0};
        candidate.params = 800000 + i;
        candidate.predicted = {.value = 2.6 + 0.001 * static_cast<double>(i),
                               .loss = 2.6,
                               .base = 2.5,
                               .layers = 0.1,
                               .width_term = 0.0};
        // The later half was measured, and better the later it comes.
        if (i >= candidates / 2)
            candidate.measured = nas::Measured{.loss = 3 - 0.001 * static_cast<double>(i),
                                               .kl = 0.1,
                                               .next_token_accuracy = 0.5,
                                               .top1_agreement = 0.8,
                                               .tokens = 100};
        search.candidates.push_back(candidate);
    }
    search.best = search.candidates.back().id;
    for (int64_t i = 0; i < 2000; ++i)
        search.frontier.push_back({.total = 500000 + 1000 * i,
                                   .value = 5 - 0.001 * static_cast<double>(i),
                                   .drop = {},
                                   .ffn_width = 0});
    return search;
}

distill::RunLog log_of(int64_t steps) {
    distill::RunLog log;
    log.header.device = "cpu";
    for (int64_t i = 1; i <= steps; ++i) {
        distill::RunStep step;
        step.step = i;
        step.tokens = 4096 * i;
        step.loss = 0.1 + 1 / static_cast<double>(i);
        step.kl = step.loss;
        step.lr = 1e-4;
        log.steps.push_back(step);
    }
    return log;
}

ReportInputs inputs_of(int64_t layers, int64_t candidates, int64_t steps) {
    ReportInputs inputs;
    inputs.folder = "run";
    inputs.scores = scores_of(pattern_of(layers));
    inputs.search = search_of(pattern_of(layers), candidates);
    inputs.runs.push_back({"distilled/run.jsonl", log_of(steps)});
    return inputs;
}

constexpr const char* kScores = R"({"format": "minipuzzle.scores/1", "version": "0.1.0",
 "command": "minipuzzle score --model M", "seed": 7, "model": {"path": "M", "pattern": "M-*-", "arch_hash": "sha256:00",
 "weights_hash": "sha256:00"}, "calibration": {"sources": [], "sequences": 8, "seq_len": 16, "tokens": 128},
 "base": {"loss": 1.95, "next_token_accuracy": 0.57}, "layers": [
 {"layer": 0, "type": "M", "loss_delta": 8.49, "loss_delta_ci": [8.31, 8.67], "kl": 8.4, "hidden_mse": 9.3, "logit_nmse": 1.0, "cosine": 0.1, "top1_agreement": 0.0, "samples": 8},
 {"layer": 1, "type": "-", "loss_delta": 0.178, "loss_delta_ci": [0.17, 0.186], "kl": 0.17, "hidden_mse": 0.4, "logit_nmse": 0.03, "cosine": 0.9, "top1_agreement": 0.8, "samples": 8},
 {"layer": 2, "type": "*", "loss_delta": null, "loss_delta_ci": null, "kl": null, "hidden_mse": 0.3, "logit_nmse": null, "cosine": null, "top1_agreement": null, "samples": 8},
 {"layer": 3, "type": "-", "loss_delta": 0.187, "loss_delta_ci": [0.18, 0.195], "kl": 0.18, "hidden_mse": 0.5, "logit_nmse": 0.03, "cosine": 0.9, "top1_agreement": 0.8, "samples": 8}]})";

std::string evaluation(double loss) {
    return fmt::format(
        R"({{"format": "minipuzzle.eval/1", "version": "0.1.0", "command": "minipuzzle eval", "seed": 0,
 "model": {{"path": "M", "arch_hash": "sha256:11", "weights_hash": "sha256:11"}}, "loss": {}, "perplexity": 7.0, "tokens": 128,
 "sequences": 8, "next_token_accuracy": 0.5, "per_source": {{}}, "kl": null, "top1_agreement": null}})",
        loss);
}

}  // namespace

TEST_CASE("report: the largest page is whole, small and loads nothing") {
    const std::string page = report_page(inputs_of(118, 100, 20000));
    CHECK(unbalanced(page) == "");
    CHECK(page.size() < 1000000);
    CHECK(page.find("http") == page.npos);
    CHECK(page.find("<script") == page.npos);
    CHECK(page.find("src=") == page.npos);
    CHECK(page.find("url(") == page.npos);
    CHECK(page.find("nan") == page.npos);
    CHECK(page.find("inf\"") == page.npos);
    CHECK(occurrences(page, "role=\"img\"") == occurrences(page, "aria-label="));
}

TEST_CASE("report: at most thirty strips, the best first, then by what was measured") {
    const ReportInputs inputs = inputs_of(118, 100, 3);
    CHECK(occurrences(report_page(inputs), "<svg class=\"strip\"") == 30);
    const auto drawn = drawn_candidates(*inputs.search);
    REQUIRE(drawn.size() == 30);
    CHECK(drawn[0]->id == "c100");
    CHECK(drawn[1]->id == "c099");
    CHECK(drawn[29]->id == "c071");

    nas::SearchResult predicted = search_of(pattern_of(20), 4);
    predicted.status = "predicted_only";
    predicted.best = "c002";
    for (nas::Candidate& candidate : predicted.candidates) candidate.measured.reset();
    const auto order = drawn_candidates(predicted);
    REQUIRE(order.size() == 4);
    CHECK(order[0]->id == "c002");
    CHECK(order[1]->id == "c001");
    CHECK(order[3]->id == "c004");
}

TEST_CASE("report: every layer has a bar, those without a score a placeholder") {
    for (const int64_t layers : {1, 4, 52, 118}) {
        ScoreTable table = scores_of(pattern_of(layers));
        table.layers[0].loss_delta.reset();
        table.layers[0].loss_delta_ci.reset();
        const std::string chart = importance_chart(table, Objective::loss_delta, {layers - 1});
        CHECK(occurrences(chart, "<g class=\"bar ") == layers);
        CHECK(occurrences(chart, "unknown\"><title>") == 1);
        CHECK(occurrences(chart, "class=\"cross\"") == 1);
    }
}

TEST_CASE("report: only outliers are cut off") {
    CHECK(!clip_level({}));
    CHECK(clip_level({1, 2, 3}) == 3.0);
    CHECK(clip_level({8.49, 0.178, 0.187}) == 0.187);
    // A twentieth of the layers at most: two of 40.
    std::vector<double> values(37, 1.0);
    for (const double outlier : {100.0, 90.0, 80.0}) values.push_back(outlier);
    CHECK(clip_level(values) == 80.0);
    CHECK(clip_level({-1, -2, -3}) == -1.0);
    ScoreTable table = scores_of(pattern_of(40));
    table.layers[3].loss_delta = 5.125;
    const std::string chart = importance_chart(table, Objective::loss_delta, {});
    CHECK(chart.find(">5.12<") != chart.npos);  // three digits, the even one of two as near
    CHECK(occurrences(chart, "class=\"break\"") == 2);
}

TEST_CASE("report: odd values still give a whole chart") {
    for (const double odd : {0.0, -0.5, 1e-12, 1e9}) {
        ScoreTable table = scores_of("M-*-");
        for (LayerScore& layer : table.layers) layer.loss_delta = odd, layer.loss_delta_ci.reset();
        const std::string chart = importance_chart(table, Objective::loss_delta, {});
        CHECK(unbalanced(chart) == "");
        CHECK(chart.find("nan") == chart.npos);
        CHECK(chart.find("\"inf") == chart.npos);
    }
    ScoreTable nothing = scores_of("M-*-");
    for (LayerScore& layer : nothing.layers) layer.loss_delta.reset(), layer.loss_delta_ci.reset();
    CHECK(occurrences(importance_chart(nothing, Objective::loss_delta, {}), "<g class=\"bar ") == 4);
    CHECK(loss_curve(distill::RunLog{}) == "");
    CHECK(unbalanced(loss_curve(log_of(1))) == "");
    distill::RunLog broken = log_of(5);
    broken.steps[2].loss = std::numeric_limits<double>::quiet_NaN();
    broken.steps[2].kl.reset();
    CHECK(loss_curve(broken).find("nan") == std::string::npos);
}

TEST_CASE("report: text from files is escaped wherever it is shown") {
    const std::string bad = "<script>alert(\"1\")</script>'&";
    ReportInputs inputs = inputs_of(12, 3, 3);
    inputs.folder = inputs.scores->model.path = inputs.scores->notes = bad;
    inputs.search->best = inputs.search->candidates[1].id = bad;
    inputs.runs[0].path = inputs.runs[0].log.header.device = bad;
    EvaluationFile evaluation;
    evaluation.name = evaluation.model.path = bad;
    inputs.evaluations = {evaluation};
    SourceFile source;
    source.path = source.format = source.provenance.command = source.version = bad;
    inputs.sources.push_back(source);
    inputs.left_aside = {bad};
    const std::string page = report_page(inputs);
    CHECK(page.find("<script") == page.npos);
    CHECK(page.find("\"1\"") == page.npos);
    CHECK(page.find("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&#39;&amp;") != page.npos);
    CHECK(unbalanced(page) == "");
    CHECK(escape("a\x01\n") == "a  ");
}

TEST_CASE("report: a search without measurements says so") {
    ReportInputs inputs = inputs_of(12, 3, 3);
    inputs.search->status = "predicted_only";
    inputs.search->objective = Objective::hidden_mse;
    for (nas::Candidate& candidate : inputs.search->candidates) candidate.measured.reset();
    const std::string page = report_page(inputs);
    CHECK(page.find(">predicted only<") != page.npos);
    CHECK(page.find("No student was run") != page.npos);
    CHECK(page.find("ranking aid") != page.npos);
    CHECK(page.find("Rank correlation") == page.npos);
}

TEST_CASE("report: a run's folder is read with its sub-folders") {
    const test::TempDir folder;
    folder.write("scores.json", kScores);
    folder.write("search/scores.json", kScores);
    folder.write("eval/teacher.json", evaluation(2.0));
    folder.write("eval/pruned.json", evaluation(3.0));
    folder.write("eval/distilled.json", evaluation(2.25));
    folder.write("student/config.json", R"({"model_type": "nemotron_h"})");
    folder.write("student/tokenizer.json", "not even JSON");
    folder.write("data/a/b/scores.json", "{\"format\": \"minipuzzle.scores/1\", too deep to be read");
    folder.write(
        "summary.json",
        R"({"format": "minipuzzle.summary/1", "version": "0.1.0", "command": "minipuzzle run", "seed": 0,
 "model": "M", "budget": null, "teacher": {"params": 1000, "memory": 2048, "test_loss": 2.0},
 "pruned": {"params": 900, "memory": 1024, "test_loss": 3.0}, "distilled": {"params": 900, "memory": 1024, "test_loss": 2.25}})");
    folder.write("distilled/run.jsonl",
                 "{\"format\": \"minipuzzle.run/1\", \"version\": \"0.1.0\", \"command\": \"minipuzzle "
                 "distill\", \"seed\": 0, "
                 "\"device\": \"cpu\", \"options\": {}}\n");
    const ReportInputs inputs = read_report_inputs(folder.path());
    REQUIRE(inputs.scores);
    CHECK(inputs.scores->layers.size() == 4);
    CHECK(inputs.left_aside == std::vector<std::string>{"search/scores.json"});
    CHECK(inputs.runs.size() == 1);
    REQUIRE(inputs.evaluations.size() == 3);
    REQUIRE(inputs.sources.size() == 6);
    CHECK(inputs.sources[0].path == "scores.json");
    CHECK(inputs.sources[0].provenance.seed == 7);
    CHECK(inputs.sources[0].version == "0.1.0");
    CHECK(inputs.sources[1].path == "distilled/run.jsonl");
    CHECK(inputs.sources[5].path == "summary.json");
    const std::string page = report_page(inputs);
    CHECK(unbalanced(page) == "");
    CHECK(page.find("minipuzzle score --model M") != page.npos);
    CHECK(page.find("closed 75 % of the gap") != page.npos);
    CHECK(page.find("2.00 KiB") != page.npos);
}

TEST_CASE("report: folders with nothing to show, and broken files, are refused") {
    const test::TempDir folder;
    CHECK(test::bad_input([&] { read_report_inputs(folder.path()); }).find("nothing to report") !=
          std::string::npos);
    CHECK(test::bad_input([&] { read_report_inputs(folder / "absent"); }).find("no such folder") !=
          std::string::npos);
    folder.write("config.json", R"({"format": "other"})");
    test::bad_input([&] { read_report_inputs(folder.path()); });
    folder.write("scores.json", R"({"format": "minipuzzle.scores/1", "layers": 3})");
    CHECK(test::bad_input([&] { read_report_inputs(folder.path()); }).find("scores.json") !=
          std::string::npos);
}

TEST_CASE("report: numbers as people read them") {
    CHECK(memory_text(34037615820) == "31.70 GiB");
    CHECK(memory_text(int64_t{1} << 20) == "1.00 MiB");
    CHECK(memory_text(1023) == "1023 bytes");
    CHECK(exact_bytes(34037615820) == "34,037,615,820 bytes");
    CHECK(grouped(999) == "999");
    CHECK(grouped(-1234567) == "-1,234,567");
    CHECK(count_text(46774000000) == "46.77 B");
    CHECK(count_text(17300000) == "17.30 M");
    CHECK(count_text(8192) == "8,192");
    CHECK(value_text(-0.25) == "\u22120.25");
    CHECK(decimals_for({0.03106, -0.5}) == 4);
    CHECK(decimals_for({12345}) == 0);
    CHECK(fixed_or_dash(std::nullopt, 2) == "\u2013");
}

TEST_CASE("report: ticks are round, inside the range and told apart by their labels") {
    for (const auto& [from, to] :
         {std::pair{0.0, 1.0}, {2.1, 2.14}, {-0.3, 0.7}, {35.2, 36.3}, {0.0, 1e-6}, {1e5, 9e5}}) {
        const Scale scale{from, to, 0, 100};
        const Ticks marks = ticks(scale, 5);
        CHECK(marks.values.size() >= 2);
        CHECK(marks.values.size() <= 12);
        for (std::size_t i = 0; i < marks.values.size(); ++i) {
            CHECK(marks.values[i] >= from - 1e-9 * (to - from));
            CHECK(marks.values[i] <= to + 1e-9 * (to - from));
            if (i > 0) CHECK(marks.label(marks.values[i]) != marks.label(marks.values[i - 1]));
        }
    }
    const Scale decades{0.1, 1000, 0, 100, ScaleKind::log};
    CHECK(ticks(decades, 5).values.size() == 5);
    CHECK(decades(10) == Approx(50));
}

TEST_CASE("report: labels that would overlap rise to a higher row") {
    LabelRows rows;
    CHECK(rows.place(0, 10) == 0);
    CHECK(rows.place(5, 15) == 1);
    CHECK(rows.place(10, 20) == 0);
    CHECK(rows.place(6, 12) == 2);
    CHECK(rows.rows() == 3);
}

TEST_CASE("report: smoothing keeps a constant and follows the end") {
    const std::vector<double> constant(500, 2.5);
    for (const double value : smoothed(constant)) CHECK(value == Approx(2.5));
    std::vector<double> noisy;
    for (int i = 0; i < 1000; ++i) noisy.push_back(1.0 + (i % 2 == 0 ? 0.1 : -0.1));
    CHECK(smoothed(noisy).back() == Approx(1.0).margin(0.01));
    CHECK(smoothed({1, 2, 3}) == std::vector<double>{1, 2, 3});
}
