// inspect scores.json as a process: its text, its JSON, two of them.
#include <stdlib.h>

#include <sstream>

#include "cli/score_analysis.h"
#include "cli/score_text.h"
#include "cli/terminal.h"
#include "tests/catch.h"
#include "tests/cli/report_support.h"
#include "tests/support/program.h"

namespace minipuzzle::cli {
namespace {

using nlohmann::json;
using test::refused;
using test::run;
using test::run_json;
using test::TempDir;

// Of this process and those it starts, while it lives.
class Environment {
  public:
    Environment(const char* name, const char* value) : name_(name) {
        if (const char* old = ::getenv(name)) old_ = old;
        ::setenv(name, value, 1);
    }
    ~Environment() { old_ ? ::setenv(name_, old_->c_str(), 1) : ::unsetenv(name_); }
    Environment(const Environment&) = delete;
    Environment& operator=(const Environment&) = delete;

  private:
    const char* name_;
    std::optional<std::string> old_;
};

std::string write_scores(const TempDir& dir, const std::string& name, const ScoreTable& scores) {
    return dir.write(name, scores_json(scores)).string();
}

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

// The rows of the table whose header opens with `header`, split at blanks.
std::vector<std::vector<std::string>> table_after(const std::string& text, const std::string& header) {
    std::vector<std::vector<std::string>> rows;
    bool inside = false;
    for (const std::string& line : lines_of(text)) {
        if (inside && line.empty()) break;
        if (inside) {
            std::istringstream cells(line);
            std::vector<std::string>& row = rows.emplace_back();
            for (std::string cell; cells >> cell;) row.push_back(cell);
        }
        inside = inside || line.rfind(header, 0) == 0;
    }
    return rows;
}

TEST_CASE("inspect scores: a row and a bar a layer, then every part, within 100 columns") {
    const TempDir dir;
    const std::string file =
        write_scores(dir, "s.json", test::full_scores_of(test::pattern_of(118), 117, 40));
    const Environment locale("LC_ALL", "C"), columns("COLUMNS", "100");
    const auto outcome = run({"inspect", file});
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    for (const std::string& line : lines_of(outcome.out)) CHECK(line.size() <= 100);
    for (const char c : outcome.out) REQUIRE(static_cast<unsigned char>(c) < 128);

    const auto rows = table_after(outcome.out, "layer  type");
    REQUIRE(rows.size() == 118);
    CHECK(rows[0][0] == "0");
    CHECK(rows[117][0] == "117");
    CHECK(rows[2][2] == fmt::format("{:.4f}", 0.002 * 0 + 2e-5));  // (2 * 7 + 3) % 17 == 0
    CHECK(rows[16].back().find_first_not_of('#') == std::string::npos);

    for (const char* part :
         {"Spearman over 118 layers", "Spearman over 54 mamba layers", "200 resamples of 64 documents",
          "split-half rank correlation 0.910", "until certain: 1 ties under 0.002 nats, 1 pairs open",
          "layer work 0.41", "cut: drops 0, 1", "1 = 2", "0 ? 2", "fp8 sweep, bf16 head",
          "6903 pairs on 32 sequences"}) {
        INFO(part);
        CHECK(outcome.out.find(part) != std::string::npos);
    }
    const auto removals = table_after(outcome.out, "step  layer");
    REQUIRE(removals.size() == 40);
    CHECK(removals[1][1] == "6");
    CHECK(removals[1][3] == "0.0080");
    CHECK(removals[1][7] == "0.0060");  // the rise of step two: 0.002 (4 - 1)
}

TEST_CASE("inspect scores: bars of blocks where the locale has them, as wide as the line allows") {
    const TempDir dir;
    const std::string file = write_scores(dir, "s.json", test::full_scores_of(test::pattern_of(20), 2, 2));
    const Environment locale("LC_ALL", "C.UTF-8"), term("TERM", "xterm");
    std::size_t blocks[2];
    for (const auto& [columns, at] : {std::pair{"80", 0}, std::pair{"130", 1}}) {
        const Environment width("COLUMNS", columns);
        blocks[at] = static_cast<std::size_t>(test::occurrences(run({"inspect", file}).out, "\u2588"));
    }
    CHECK(blocks[0] > 0);
    CHECK(blocks[1] > 2 * blocks[0]);
}

TEST_CASE("inspect scores: sorted by score, one type alone") {
    const TempDir dir;
    const std::string file = write_scores(dir, "s.json", test::full_scores_of(test::pattern_of(20), 2, 2));
    const auto sorted = table_after(run({"inspect", file, "--sort", "score"}).out, "layer  type");
    REQUIRE(sorted.size() == 20);
    for (std::size_t i = 1; i < sorted.size(); ++i)
        CHECK(std::stod(sorted[i][2]) >= std::stod(sorted[i - 1][2]));
    for (const char* type : {"M", "-", "*"}) {
        const std::string pattern = test::pattern_of(20);
        const auto rows = table_after(run({"inspect", file, "--type", type}).out, "layer  type");
        CHECK(static_cast<int64_t>(rows.size()) == std::count(pattern.begin(), pattern.end(), *type));
        const json shown = run_json({"inspect", file, "--type", type})["analysis"]["shown"];
        CHECK(shown.size() == rows.size());
    }
    refused({"inspect", file, "--sort", "name"}, "not one of depth, score");
    refused({"inspect", "--arch", "nemotron-h-4b", "--sort", "score"}, "go with scores.json");
    refused({"inspect", file, "--scores", file, "--type", "M"}, "do not go with --scores");
}

TEST_CASE("inspect scores --json holds the file and what follows from it") {
    const TempDir dir;
    const std::string file = write_scores(dir, "s.json", test::full_scores_of(test::pattern_of(20), 4, 3));
    json whole = run_json({"inspect", file});
    const json analysis = whole["analysis"];
    whole.erase("analysis");
    CHECK(whole == json::parse(test::content_of(file)));

    REQUIRE(analysis["agreement"].size() == 3);  // all, Mamba, FFN; two attention layers are too few
    CHECK(analysis["agreement"][0]["type"].is_null());
    CHECK(analysis["agreement"][1]["type"] == "mamba");
    const json& rho = analysis["agreement"][0]["spearman"];
    REQUIRE(rho.size() == 6);
    for (std::size_t a = 0; a < 6; ++a)
        for (std::size_t b = 0; b < 6; ++b) {
            CHECK(rho[a][b] == rho[b][a]);
            CHECK(rho[a][b].get<double>() <= 1 + 1e-12);
        }
    CHECK(rho[0][1].get<double>() == Approx(1));  // kl rises with loss_delta
    CHECK(rho[0][2].get<double>() < 0.9);         // hidden_mse goes by depth
    CHECK(analysis["types"][0]["count"] == 9);
    CHECK(analysis["removals"][2]["layer"] == 11);
    const double singles =
        whole["layers"][1]["loss_delta"].get<double>() + whole["layers"][6]["loss_delta"].get<double>();
    CHECK(analysis["removals"][1]["additive"].get<double>() == Approx(singles));
    const json& positive = analysis["strongest_pairs"]["positive"];
    for (std::size_t i = 1; i < positive.size(); ++i)
        CHECK(positive[i]["interaction"] <= positive[i - 1]["interaction"]);
    CHECK(analysis["strongest_pairs"]["negative"][0]["interaction"] < 0);
}

TEST_CASE("inspect of two scores: both values, their difference, ranks and their correlation") {
    const TempDir dir;
    ScoreTable scores = test::full_scores_of(test::pattern_of(20), 2, 2);
    const std::string a = write_scores(dir, "a.json", scores);
    // The least important layer, 2 ((2 * 7 + 3) % 17 == 0), becomes the most important one.
    scores.layers[2].loss_delta = 1.0;
    scores.layers[2].loss_delta_ci = {{0.9, 1.1}};
    const std::string b = write_scores(dir, "b.json", scores);
    const json difference = run_json({"inspect", a, b});
    CHECK(difference["kind"] == "minipuzzle.scores/1");
    REQUIRE(difference["layers"].size() == 20);
    const json& moved = difference["layers"][2];
    CHECK(moved["rank_a"] == 0);
    CHECK(moved["rank_b"] == 19);
    CHECK(moved["change"].get<double>() == Approx(1.0 - 2e-5));
    CHECK(difference["layers"][3]["change"] == 0.0);
    // d = 19 once and 1 for the other nineteen: rho = 1 - 6 (361 + 19) / (20 * 399).
    CHECK(difference["spearman"]["all"].get<double>() == Approx(1 - 6.0 * 380 / 7980));
    CHECK(difference["spearman"]["attention"].is_null());
    CHECK(difference["differences"].size() == 3);

    const auto outcome = run({"inspect", a, b, "--sort", "score"});
    REQUIRE(outcome.code == 0);
    const auto rows = table_after(outcome.out, "layer  type");
    REQUIRE(rows.size() == 20);
    CHECK(rows[0] ==
          std::vector<std::string>{"2", "mamba", "0.0000", "1.0000", "+1.0000", "0", "19", "+19", "apart"});
    CHECK(run({"inspect", a, a}).out == "no difference\n");
}

TEST_CASE("bars: eighths of a cell, whole marks in ASCII, what goes beyond is marked") {
    CHECK(bar(0.5, 8, false) == "####");
    CHECK(bar(0.5, 3, true) == "\u2588\u258c");
    CHECK(bar(1, 2, true) == "\u2588\u2588");
    CHECK(bar(1.5, 3, true) == "\u2588\u2588\u25b6");
    CHECK(bar(1.5, 3, false) == "##>");
    CHECK(bar(0, 8, true).empty());
    CHECK(bar(-1, 8, false).empty());
    CHECK(bar(0.5, 0, false).empty());
}

TEST_CASE("what score says in the end is short, whatever the scores hold") {
    const std::string text = scores_summary(test::full_scores_of(test::pattern_of(118), 117, 6));
    CHECK(lines_of(text).size() < 60);  // no row a layer
    for (const char* part : {"base loss 2.5", "mamba", "iterative removal on 32 sequences",
                             "6903 pairs on 32", "fp8", "split-half rank correlation 0.910"}) {
        INFO(part);
        CHECK(text.find(part) != std::string::npos);
    }
}

TEST_CASE("analysis: ranking, type summaries, widest ranks") {
    ScoreTable scores = test::scores_of("MM-*");
    const double values[] = {0.5, 0.1, 0.3, 0.1};
    for (std::size_t i = 0; i < 4; ++i) scores.layers[i].loss_delta = values[i];
    scores.layers[2].loss_delta.reset();
    CHECK(ranking(scores, Objective::loss_delta) == std::vector<int64_t>{1, 3, 0, 2});
    const auto types = type_summaries(scores, Objective::loss_delta);
    REQUIRE(types.size() == 2);  // the FFN layer has no value
    CHECK(types[0].median == Approx(0.3));
    CHECK(types[0].most_layer == 0);
    RankStability stability;
    stability.ranks = {{0, 1}, {0, 3}, {2, 3}, {1, 4}};
    CHECK(least_certain_ranks(stability, 3) == std::vector<int64_t>{1, 3, 0});
}

}  // namespace
}  // namespace minipuzzle::cli
