// The report's figures of a measured search: frontiers, predicted against measured, finalists, strips.
#include <fmt/format.h>

#include <regex>
#include <string>
#include <vector>

#include "cli/report/finalists_table.h"
#include "cli/report/frontier_chart.h"
#include "cli/report/html.h"
#include "cli/report/layer_strips.h"
#include "cli/report/page.h"
#include "cli/report/prediction_scatter.h"
#include "cli/report/words.h"
#include "cli/search_text.h"
#include "tests/catch.h"
#include "tests/cli/report_support.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using namespace minipuzzle::report;
using namespace minipuzzle::test;

namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// Candidates of 30 to 34 MiB on a text where the teacher's loss is 0.5 higher than on the scores' text; what
// is measured is the prediction there, but for c003, which turns out best, and c005, which turns out worst.
nas::SearchResult measured_search() {
    nas::SearchResult search;
    search.status = "measured";
    search.select_by = "loss";
    search.teacher_pattern = pattern_of(52);
    search.teacher_params = 17000000;
    search.teacher_memory = {.weights = 40 * kMiB};
    search.teacher_measured =
        nas::Measured{.loss = 3.0, .kl = 0, .next_token_accuracy = 0.47, .top1_agreement = 1, .tokens = 1000};
    search.budget_bytes = 35 * kMiB;
    for (int64_t i = 0; i < 5; ++i) {
        nas::Candidate candidate;
        candidate.id = fmt::format("c{:03}", i + 1);
        for (int64_t layer = 1; layer <= 5 - i; ++layer) candidate.plan.drop.push_back(layer * 7 + i);
        candidate.memory = {.weights = (34 - i) * kMiB};
        candidate.params = 15000000 - i;
        candidate.ffn_width = 768;
        candidate.mamba = 24, candidate.ffn = 20, candidate.attention = 3;
        const double rise = 0.1 * static_cast<double>(i + 1);
        candidate.predicted = {
            .value = 2.5 + rise, .loss = 2.5 + rise, .base = 2.5, .layers = rise, .width_term = 0.0};
        candidate.measured = nas::Measured{.loss = 3.0 + rise,
                                           .kl = 0.9 * rise,
                                           .next_token_accuracy = 0.47 - rise / 10,
                                           .top1_agreement = 1 - rise,
                                           .tokens = 1000};
        search.candidates.push_back(candidate);
    }
    search.candidates[2].measured->loss = 3.05;
    search.candidates[4].measured->loss = 3.9;
    search.candidates[2].pareto_measured = search.candidates[3].pareto_measured = true;
    search.candidates[4].pareto_measured = true;
    search.best = "c003";
    for (int64_t i = 0; i < 20; ++i)
        search.frontier.push_back({.total = (20 + i) * kMiB,
                                   .value = 3.5 - 0.05 * static_cast<double>(i),
                                   .drop = {},
                                   .ffn_width = 768});
    return search;
}

void add_funnel(nas::SearchResult& search) {
    search.finalists = {"c003", "c001", "c004"};
    search.rounds = {
        {.measured = 3, .fresh = 3, .best = "c001", .best_cost = 3.1, .rank_correlation = 0.5},
        {.measured = 5, .fresh = 2, .best = "c003", .best_cost = 3.05, .rank_correlation = std::nullopt}};
    for (std::size_t i = 0; i < 5; ++i) search.candidates[i].round = i < 3 ? 1 : 2;
}

std::vector<double> numbers(const std::string& svg, const std::string& pattern) {
    std::vector<double> found;
    const std::regex wanted(pattern);
    for (std::sregex_iterator at(svg.begin(), svg.end(), wanted), end; at != end; ++at)
        found.push_back(std::stod((*at)[1]));
    return found;
}

}  // namespace

TEST_CASE("report: both frontiers, the teacher on the measured axis, every candidate twice") {
    const nas::SearchResult search = measured_search();
    const std::string chart = frontier_chart(search);
    CHECK(unbalanced(chart) == "");
    CHECK(occurrences(chart, "class=\"frontier\"") == 2);
    CHECK(occurrences(chart, "class=\"frontier of-measured\"") == 2);
    CHECK(occurrences(chart, "<circle class=\"measured\"") == 10);
    CHECK(occurrences(chart, "<circle class=\"predicted paired\"") == 10);
    CHECK(occurrences(chart, "class=\"teacher-mark\"") == 1);
    CHECK(chart.find("teacher: 40.00 MiB, 3<") != chart.npos);
    CHECK(chart.find("best measured at every budget") != chart.npos);
    CHECK(overlapping_texts(chart) == "");

    nas::SearchResult by_agreement = search;
    by_agreement.select_by = "agreement";
    const std::string apart = frontier_chart(by_agreement);
    CHECK(occurrences(apart, "class=\"frontier\"") == 1);
    CHECK(occurrences(apart, "class=\"frontier of-measured\"") == 1);
    CHECK(apart.find(">agreement with the teacher<") != apart.npos);
    CHECK(overlapping_texts(apart) == "");
}

TEST_CASE("report: predicted against measured stands on the identity where both are the same") {
    nas::SearchResult search = measured_search();
    for (nas::Candidate& candidate : search.candidates)
        candidate.measured->loss = candidate.predicted.value + 0.5;
    const std::string svg = prediction_scatter(search);
    CHECK(unbalanced(svg) == "");
    CHECK(overlapping_texts(svg) == "");
    // Alike axes: x - left == bottom - y for every dot, with the plot's own corner.
    const auto x = numbers(svg, "class=\"measured\" cx=\"([^\"]*)\"");
    const auto y = numbers(svg, "class=\"measured\" cx=\"[^\"]*\" cy=\"([^\"]*)\"");
    REQUIRE(x.size() == 5);
    for (std::size_t i = 1; i < x.size(); ++i) CHECK(x[i] + y[i] == Approx(x[0] + y[0]).margin(0.03));
    const auto ends = numbers(svg, "class=\"identity\" x1=\"([^\"]*)\"");
    REQUIRE(ends.size() == 1);
    CHECK(svg.find("1.000") != svg.npos);
}

TEST_CASE("report: rank correlations over all and of every round") {
    nas::SearchResult search = measured_search();
    add_funnel(search);
    const std::string page = prediction_scatter(search);
    // Measured order of c001..c005: 2 3 1 4 5; Spearman 1 - 6 (1 + 1 + 4) / 120.
    CHECK(page.find(">0.700<") != page.npos);
    CHECK(page.find("round 1, as foretold") != page.npos);
    CHECK(page.find(">0.500<") != page.npos);
    CHECK(page.find("round 2, as foretold</td><td class=\"number\">2</td><td class=\"number\">\u2013") !=
          page.npos);

    // More is better: the same order read the other way.
    search.select_by = "accuracy";
    CHECK(prediction_scatter(search).find(">1.000<") != std::string::npos);
    CHECK(prediction_scatter(search).find("identity") == std::string::npos);
    for (std::size_t i = 1; i < 5; ++i) search.candidates[i].measured.reset();
    CHECK(prediction_scatter(search) == "");
}

TEST_CASE("report: finalists with every figure that is known, and no column that none has") {
    nas::SearchResult search = measured_search();
    CHECK(finalists_of(search).size() == 5);
    CHECK(finalists_of(search)[0]->id == "c003");
    const std::string plain = finalists_table(search);
    CHECK(plain.find(">round<") == plain.npos);
    CHECK(plain.find(">tasks<") == plain.npos);

    add_funnel(search);
    search.candidates[0].measured->tasks = nas::TaskMeasurement{.accuracy = 0.6125, .standard_error = 0.012};
    search.constraints = {{.context = 8192, .batch = 64, .bytes = 90 * kMiB, .total = 100 * kMiB}};
    for (nas::Candidate& candidate : search.candidates) candidate.fit_totals = {80 * kMiB};
    search.tournament = {
        {.id = "c001", .tokens = 5000, .loss_before = 3.1, .after = {.loss = 2.9125, .tokens = 0}}};
    const std::string table = finalists_table(search);
    CHECK(unbalanced(table) == "");
    CHECK(table.find(">2.9125<") != table.npos);
    CHECK(occurrences(table, "<tr") == 5);  // heading, teacher, three finalists
    for (const char* part : {">round<", ">tasks<", "0.613 \u00b1 0.012", "at 8,192 \u00d7 64", "100.00 MiB",
                             "80.00 MiB", ">3.0500<", ">0.4700<", "\u2605"}) {
        INFO(part);
        CHECK(table.find(part) != table.npos);
    }
    // Predictions stand on the search's text: 2.5 + 0.3 raised by 0.5.
    CHECK(table.find(">3.3000<") != table.npos);
    CHECK(prediction_shift(search) == Approx(0.5));

    const auto drawn = drawn_candidates(search);
    const char* order[] = {"c003", "c001", "c004", "c002", "c005"};
    for (std::size_t i = 0; i < 5; ++i) CHECK(drawn[i]->id == order[i]);
    const std::string strips = layer_strips(search);
    CHECK(occurrences(strips, "\u2605") == 1);
    CHECK(occurrences(strips, "\u2606") == 2);
}

TEST_CASE("report: the page of a measured search is redrawn from its file alone") {
    nas::SearchResult search = measured_search();
    search.compositions = 7;
    add_funnel(search);
    const TempDir folder;
    folder.write("search.json", nas::search_json(search));
    const ReportInputs inputs = read_report_inputs(folder.path());
    REQUIRE(inputs.search);
    REQUIRE(inputs.search->teacher_measured);
    CHECK(inputs.search->teacher_measured->loss == 3.0);
    CHECK(frontier_chart(*inputs.search) == frontier_chart(search));
    CHECK(prediction_scatter(*inputs.search) == prediction_scatter(search));
    CHECK(finalists_table(*inputs.search) == finalists_table(search));
    CHECK(layer_strips(*inputs.search) == layer_strips(search));
    const std::string page = report_page(inputs);
    CHECK(unbalanced(page) == "");
    CHECK(page.find("Predicted against measured") != page.npos);
    CHECK(page.find("raised by the difference, 0.5000") != page.npos);
}

TEST_CASE("search as text: rounds, finalists and their measurements") {
    nas::SearchResult search = measured_search();
    add_funnel(search);
    const std::string text = cli::search_summary(search);
    CHECK(text.find("rounds of measuring") != text.npos);
    CHECK(text.find("finalists, 3\n") != text.npos);
    CHECK(text.find("c003  24/20/3") != text.npos);
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) CHECK(line.size() <= 100);
}
