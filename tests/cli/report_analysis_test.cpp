// The report's figures of what scores hold beyond a row a layer.
#include "cli/report/agreement_matrix.h"
#include "cli/report/importance_chart.h"
#include "cli/report/page.h"
#include "cli/report/pair_map.h"
#include "cli/report/removal_chart.h"
#include "tests/catch.h"
#include "tests/cli/report_support.h"

using namespace minipuzzle;
using namespace minipuzzle::report;
using namespace minipuzzle::test;

namespace {

ReportInputs page_of(ScoreTable scores) {
    ReportInputs inputs;
    inputs.folder = "run";
    inputs.scores = std::move(scores);
    return inputs;
}

}  // namespace

TEST_CASE("report: figures of the scores' parts are there only where the parts are") {
    const char* const headings[] = {"How far the metrics agree", "Removing layer after layer",
                                    "Layers in pairs"};
    const std::string bare = report_page(page_of(scores_of(pattern_of(20))));
    const std::string full = report_page(page_of(full_scores_of(pattern_of(20), 4, 6)));
    for (const char* heading : headings) {
        CHECK(bare.find(heading) == bare.npos);
        CHECK(occurrences(full, heading) == 1);
    }
    CHECK(unbalanced(full) == "");

    ScoreTable empty = full_scores_of(pattern_of(20), 4, 6);
    empty.pairs->pairs.clear();
    empty.iterative->steps.clear();
    CHECK(removal_chart(empty) == "");
    CHECK(pair_map(empty) == "");
    CHECK(pair_table(empty) == "");
}

TEST_CASE("report: a page with all pairs of 118 layers stays under 1 MB and is whole") {
    const std::string page = report_page(page_of(full_scores_of(pattern_of(118), 117, 117)));
    CHECK(page.size() < 500000);  // with a search and a run beside it the page has twice that
    CHECK(unbalanced(page) == "");
    CHECK(page.find("url(") == page.npos);
    CHECK(page.find("nan") == page.npos);
    CHECK(occurrences(page, "role=\"img\"") == occurrences(page, "aria-label="));
}

TEST_CASE("report: a scale for orders of magnitude is linear about 0 and logarithmic beyond") {
    CHECK(!symlog_knee({}, 40));
    CHECK(!symlog_knee({0.01, 0.02, 0.3}, 40));
    CHECK(!symlog_knee({0, 0, 0, 5}, 40));
    CHECK(*symlog_knee({-0.03, 0.05, 0.07, 9.0}, 40) == Approx(0.01));  // the quartile is 0.05
    const Scale scale{-1, 100, 300, 0, ScaleKind::symlog, 0.01};
    CHECK(scale(-1) == Approx(300));
    CHECK(scale(100) == Approx(0).margin(1e-9));
    // From 1 on asinh(x / 0.01) is log(200 x) within 3e-5: decades are equally long.
    CHECK(scale(1) - scale(10) == Approx(scale(10) - scale(100)).epsilon(1e-4));
    CHECK(scale(0) - scale(0.002) == Approx(scale(0.002) - scale(0.004)).epsilon(0.05));
    const Ticks marks = ticks(scale, 5);
    REQUIRE(marks.values.size() >= 5);
    CHECK(std::count(marks.values.begin(), marks.values.end(), 0.0) == 1);
    for (std::size_t i = 1; i < marks.values.size(); ++i)
        CHECK(scale(marks.values[i - 1]) - scale(marks.values[i]) >= 20);

    ScoreTable scores = scores_of(pattern_of(40));
    CHECK(importance_chart(scores, Objective::loss_delta, {}).find("logarithmic") == std::string::npos);
    for (std::size_t i = 0; i < 40; i += 3) scores.layers[i].loss_delta = 5.0;
    const std::string chart = importance_chart(scores, Objective::loss_delta, {});
    CHECK(chart.find("logarithmic beyond 0.01") != chart.npos);
    CHECK(occurrences(chart, "class=\"break\"") == 0);
    CHECK(overlapping_texts(chart) == "");
}

TEST_CASE("report: no text of the analysis lies on another") {
    for (const int64_t layers : {4, 20, 52, 118}) {
        const ScoreTable scores = full_scores_of(pattern_of(layers), layers, layers - 1);
        CHECK(overlapping_texts(agreement_matrix(scores)) == "");
        CHECK(overlapping_texts(removal_chart(scores)) == "");
        CHECK(overlapping_texts(pair_map(scores)) == "");
    }
    CHECK(overlapping_texts("<text class=\"tick\" x=\"10\" y=\"10\" text-anchor=\"start\">one</text>"
                            "<text class=\"tick\" x=\"20\" y=\"12\" text-anchor=\"middle\">two</text>") !=
          "");
}

TEST_CASE("report: the metrics' agreement, over all layers and inside each type that is large enough") {
    const std::string pattern = pattern_of(20);  // 9 Mamba, 9 FFN, 2 attention: too few to rank
    const std::string figure = agreement_matrix(full_scores_of(pattern, 1, 1));
    CHECK(figure.find(">all (20 layers)<") != figure.npos);
    CHECK(figure.find(">Mamba (") != figure.npos);
    CHECK(figure.find(">FFN (") != figure.npos);
    CHECK(figure.find(">attention (") == figure.npos);
    // Each of three triangles has 15 cells; 1.00 for the ten pairs of the five metrics that rise with one
    // another.
    CHECK(occurrences(figure, "<rect class=\"heat ") == 3 * 15);
    CHECK(occurrences(figure, ">1.00<") == 3 * 10);
    CHECK(agreement_matrix(scores_of(pattern)) == "");  // loss_delta alone

    // The largest and the least of five layers by kl changed: rho = 1 - 6 * 32 / (5 * 24) = -0.6.
    ScoreTable five = scores_of("MMMMM");
    const double kl[] = {5, 2, 3, 4, 1};
    for (std::size_t i = 0; i < 5; ++i)
        five.layers[i].loss_delta = static_cast<double>(i), five.layers[i].kl = kl[i];
    CHECK(occurrences(agreement_matrix(five), ">\u22120.60<") == 2);
    CHECK(occurrences(agreement_matrix(five), "heat below s") == 2);
}

TEST_CASE("report: the removal chart names every step's layer and draws both lines") {
    const ScoreTable scores = full_scores_of(pattern_of(20), 4, 6);
    const std::string chart = removal_chart(scores);
    CHECK(occurrences(chart, "<circle class=\"point ") == 6);
    CHECK(occurrences(chart, "class=\"additive\"") == 1);
    CHECK(occurrences(chart, "class=\"band\"") == 1);
    CHECK(chart.find(">F 1<") != chart.npos);
    CHECK(chart.find(">M 6<") != chart.npos);
    ScoreTable one = full_scores_of(pattern_of(20), 4, 1);
    one.iterative->steps[0].loss_delta_ci.reset();
    one.layers[1].loss_delta.reset();
    CHECK(occurrences(removal_chart(one), "<circle class=\"point ") == 1);
    CHECK(removal_chart(one).find("additive") == std::string::npos);
}

TEST_CASE("report: the pair map's colours end at a robust size, both signs alike") {
    PairScores pairs;
    for (int64_t i = 1; i <= 100; ++i)
        pairs.pairs.push_back({.first = 0,
                               .second = i,
                               .loss_delta = 0,
                               .interaction = i % 2 == 0 ? 0.001 : -0.001,
                               .interaction_ci = {}});
    CHECK(*colour_end(pairs) == Approx(0.001));
    pairs.pairs[7].interaction = 5;  // one outlier of a hundred changes nothing
    CHECK(*colour_end(pairs) == Approx(0.001));
    for (PairScore& pair : pairs.pairs) pair.interaction = -0.0017;
    CHECK(*colour_end(pairs) == Approx(0.002));
    CHECK(!colour_end(PairScores{}));

    ScoreTable scores = full_scores_of("MMMM", 1, 1);
    scores.pairs->pairs = {
        {.first = 0, .second = 1, .loss_delta = 0, .interaction = 1, .interaction_ci = {}},
        {.first = 1, .second = 2, .loss_delta = 0, .interaction = 0, .interaction_ci = {}},
        {.first = 2, .second = 3, .loss_delta = 0, .interaction = -1, .interaction_ci = {}}};
    const std::string map = pair_map(scores);
    CHECK(occurrences(map, "<path class=\"heat up s10\"") == 1);
    CHECK(occurrences(map, "<path class=\"heat down s10\"") == 1);
    CHECK(occurrences(map, "<path class=\"heat zero\"") == 1);
    CHECK(occurrences(map, "<path class=\"heat up") == 1);
    for (PairScore& pair : scores.pairs->pairs) pair.interaction = 0;
    CHECK(unbalanced(pair_map(scores)) == "");
    CHECK(pair_map(scores).find("nan") == std::string::npos);
}
