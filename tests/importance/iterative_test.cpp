#include "importance/iterative.h"

#include "importance/pairs.h"
#include "tests/catch.h"
#include "tests/importance/bench.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

// What `step` must have chosen: the least of its own figures, per byte where there are bytes.
int64_t least(const RemovalStep& step, const std::vector<int64_t>& bytes) {
    int64_t found = -1;
    for (int64_t l = 0; l < static_cast<int64_t>(step.layers.size()); ++l) {
        const auto cost = [&](int64_t of) {
            return *step.layers[of] / (bytes.empty() ? 1.0 : static_cast<double>(bytes[of]));
        };
        if (step.layers[l] && (found < 0 || cost(l) <= cost(found))) found = l;
    }
    return found;
}

}  // namespace

TEST_CASE("Every step of removal takes the least of what is left, given what is gone") {
    test::SingleLayers at;
    SweepWork work;
    const IterativeScores scores = remove_iteratively(at.losses, 4, {}, work);
    CHECK(scores.sequences == 8);
    REQUIRE(scores.steps.size() == 4);
    LayerSet gone;
    double sum = 0;
    for (const RemovalStep& step : scores.steps) {
        CHECK(step.removed == least(step, {}));
        CHECK_FALSE(step.bytes);
        for (int64_t l = 0; l < 20; ++l)
            CHECK(step.layers[l].has_value() == (std::count(gone.begin(), gone.end(), l) == 0));
        gone.push_back(step.removed);
        std::sort(gone.begin(), gone.end());
        sum += *step.layers[step.removed];
        CHECK(std::abs(step.loss_delta - sum) < 1e-13);  // a few roundings
        CHECK(std::abs(step.loss_delta - (mean(at.losses.of(gone), at.layers.tokens) -
                                          mean(at.layers.base.loss, at.layers.tokens))) < 1e-13);
        REQUIRE(step.loss_delta_ci);
        CHECK((*step.loss_delta_ci)[0] < step.loss_delta);
    }
    // The first step is the single layers; the other three shared somewhat less than half.
    for (int64_t l = 0; l < 20; ++l)
        CHECK(*scores.steps[0].layers[l] == at.losses.paired_mean(at.losses.differences({l}, {}, 8)).mean);
    CHECK(work.multiply_adds < 0.5 * work.separate_multiply_adds);
}

TEST_CASE("After all pairs the second step is measured already, and nothing changes") {
    test::SingleLayers at;
    AblationLosses with_pairs(at.run, at.layers);
    SweepWork alone, pairs, after_pairs;
    const IterativeScores expected = remove_iteratively(at.losses, 3, {}, alone);
    measure_pairs(with_pairs, {.all = true}, pairs);
    const IterativeScores found = remove_iteratively(with_pairs, 3, {}, after_pairs);
    for (std::size_t i = 0; i < 3; ++i) {
        CHECK(found.steps[i].removed == expected.steps[i].removed);
        CHECK(found.steps[i].loss_delta == expected.steps[i].loss_delta);
        CHECK(found.steps[i].layers == expected.steps[i].layers);
    }
    CHECK(after_pairs.multiply_adds < 0.6 * alone.multiply_adds);
    CHECK(after_pairs.separate_multiply_adds == alone.separate_multiply_adds);
}

TEST_CASE("With bytes the rise counts per byte") {
    test::SingleLayers at;
    SweepWork work;
    const IterativeScores plain = remove_iteratively(at.losses, 2, {}, work);
    // The plain choice weighs so little that another layer must go first.
    std::vector<int64_t> bytes(20, 1'000'000);
    bytes[plain.steps[0].removed] = 1;
    const IterativeScores weighed = remove_iteratively(at.losses, 2, bytes, work);
    for (const RemovalStep& step : weighed.steps) {
        CHECK(step.removed == least(step, bytes));
        CHECK(step.bytes == bytes[step.removed]);
    }
    CHECK(weighed.steps[0].layers == plain.steps[0].layers);
    REQUIRE(plain.steps[0].layers[plain.steps[0].removed] > 0);  // else nothing is cheaper than it
    CHECK(weighed.steps[0].removed != plain.steps[0].removed);
}
