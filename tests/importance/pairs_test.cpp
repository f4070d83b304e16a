#include "importance/pairs.h"

#include "tests/catch.h"
#include "tests/importance/bench.h"
#include "tests/support/errors.h"
#include "tests/support/tiny_model.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

TEST_CASE("The likeliest layers are the least of all and each type's share of its own least") {
    const Architecture architecture = test::tiny_architecture("M-M-M-*-");
    const std::vector<double> rises = {0.8, 0.1, 0.7, 0.2, 0.6, 0.3, 0.9, 0.3};
    // two of all: 1 and 3; of 3 Mamba layers one, of 4 FFN one, of 1 attention layer one
    CHECK(likeliest(architecture, rises, 2) == std::vector<int64_t>{1, 3, 4, 6});
    CHECK(likeliest(architecture, rises, 0).empty());
    CHECK(likeliest(architecture, rises, 8) == std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7});
}

TEST_CASE("Pairs: all within the window, and all of the likeliest layers") {
    test::SingleLayers at;
    SweepWork work;
    const PairScores scores = measure_pairs(at.losses, {.window = 2, .candidates = 5}, work);
    CHECK(scores.window == 2);
    CHECK(scores.sequences == 8);
    std::vector<double> rises;
    for (int64_t l = 0; l < 20; ++l)
        rises.push_back(at.losses.paired_mean(at.losses.differences({l}, {}, 8)).mean);
    std::vector<std::array<int64_t, 2>> expected, found;
    const std::vector<int64_t> likely = likeliest(at.architecture, rises, 5);
    const auto is_likely = [&](int64_t l) { return std::count(likely.begin(), likely.end(), l) > 0; };
    for (int64_t i = 0; i < 20; ++i)
        for (int64_t j = i + 1; j < 20; ++j)
            if (j - i <= 2 || (is_likely(i) && is_likely(j))) expected.push_back({i, j});
    for (const PairScore& pair : scores.pairs) found.push_back({pair.first, pair.second});
    CHECK(found == expected);
    CHECK(found.size() > 19 + 18);  // some pair of likely layers lies farther apart
    CHECK(work.multiply_adds < 0.7 * work.separate_multiply_adds);
}

TEST_CASE("An interaction is what both layers off cost more than each alone") {
    test::SingleLayers at;
    SweepWork work;
    const PairScores scores = measure_pairs(at.losses, {.window = 1, .candidates = 0}, work);
    REQUIRE(scores.pairs.size() == 19);
    const std::vector<int64_t>& tokens = at.layers.tokens;
    const double base = mean(at.layers.base.loss, tokens);
    for (const PairScore& pair : scores.pairs) {
        const double both = mean(at.losses.of({pair.first, pair.second}), tokens);
        const double first = mean(at.layers.variants[pair.first].loss, tokens);
        const double second = mean(at.layers.variants[pair.second].loss, tokens);
        INFO("pair " << pair.first << ", " << pair.second);
        // means of differences against differences of means: a few roundings of losses below 16
        CHECK(std::abs(pair.loss_delta - (both - base)) < 1e-13);
        CHECK(std::abs(pair.interaction - (both - first - second + base)) < 1e-13);
        REQUIRE(pair.interaction_ci);
        CHECK((*pair.interaction_ci)[0] < pair.interaction);
        CHECK((*pair.interaction_ci)[1] > pair.interaction);
    }
}

TEST_CASE("Pairs on the first windows are those of a run that has no others") {
    test::SingleLayers at;
    SweepWork work;
    const PairScores few = measure_pairs(at.losses, {.window = 1, .candidates = 0, .samples = 3}, work);
    CHECK(few.sequences == 3);
    CHECK_FALSE(few.pairs[0].interaction_ci);  // too few for an interval
    for (const PairScore& pair : few.pairs) {
        const std::vector<double>& loss = at.losses.of({pair.first, pair.second});
        REQUIRE(loss.size() == 3);
        const std::vector<int64_t> tokens(at.layers.tokens.begin(), at.layers.tokens.begin() + 3);
        const std::vector<double> base(at.layers.base.loss.begin(), at.layers.base.loss.begin() + 3);
        CHECK(std::abs(pair.loss_delta - (mean(loss, tokens) - mean(base, tokens))) < 1e-13);
    }
}

TEST_CASE("All pairs are all pairs") {
    test::SingleLayers at;
    SweepWork work;
    const PairScores scores = measure_pairs(at.losses, {.all = true, .samples = 2}, work);
    CHECK(scores.window == 19);
    CHECK(scores.pairs.size() == 20 * 19 / 2);
    CHECK(work.multiply_adds < 0.5 * work.separate_multiply_adds);
}

TEST_CASE("Pair options that do not fit are refused in one line") {
    const Architecture architecture = test::tiny_architecture("M-M*-");
    const auto refused = [&](const PairOptions& options) {
        return test::error_of(ErrorKind::usage, [&] { check_pairs(options, architecture, 10); });
    };
    CHECK(refused({.window = 5}).find("1 to 4") != std::string::npos);
    CHECK(refused({.window = 0}).find("--pairs 0") != std::string::npos);
    CHECK(refused({.candidates = 6}).find("5 layers") != std::string::npos);
    CHECK(refused({.samples = 11}).find("10 sequences") != std::string::npos);
    CHECK_NOTHROW(check_pairs({.window = 4, .candidates = 5, .samples = 10}, architecture, 10));
}
