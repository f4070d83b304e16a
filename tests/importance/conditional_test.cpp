// Pairs and iterative removal as parts of a score.
#include "importance/ablation.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/minis.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

struct Scoring {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 0);
    test::Mini mini{*backend, "mini-20"};
    ScoreOptions options{.seq_len = 16, .samples = 8, .seed = 5};

    ScoreOutcome run() const {
        return score(*backend, mini.checkpoint.architecture(), mini.weights.weights(),
                     mini.checkpoint.identity(), mini.corpus, options);
    }
};

}  // namespace

TEST_CASE("A score with pairs and removal adds them to the table and changes nothing else") {
    Scoring at;
    ScoreTable plain = at.run().table;
    at.options.pairs = PairOptions{.window = 1, .candidates = 3};
    at.options.iterative = 2;
    at.options.layer_bytes.assign(20, 1000);
    double done = 0, total = 0;
    at.options.control.progress = [&](const ProgressUpdate& update) {
        CHECK(update.done >= done);
        done = update.done;
        total = update.total;
    };
    const ScoreOutcome outcome = at.run();
    CHECK(done == Approx(total).epsilon(1e-12));
    REQUIRE(outcome.table.pairs);
    REQUIRE(outcome.table.iterative);
    CHECK(outcome.table.iterative->steps[1].bytes == 1000);
    CHECK(*outcome.table.iterative->steps[0].layers[7] == *plain.layers[7].loss_delta);
    CHECK(outcome.pairs.multiply_adds > 0);
    CHECK(outcome.iterative.multiply_adds > 0);
    plain.pairs = outcome.table.pairs;
    plain.iterative = outcome.table.iterative;
    CHECK(scores_json(plain) == scores_json(outcome.table));
}

TEST_CASE("Stopped in pairs or in a step of removal, then resumed: the same bytes") {
    Scoring at;
    at.options.pairs = PairOptions{.window = 1, .candidates = 0};
    at.options.iterative = 4;
    int polls = 0, stop_at = 0;
    at.options.control.stop_requested = [&] { return ++polls == stop_at; };
    const std::string whole = scores_json(at.run().table);
    const int all_polls = polls;
    REQUIRE(all_polls >= 5);  // at least once a sweep: layers, pairs, three steps of removal
    at.options.state = at.mini.scratch.path() / "state";
    for (const int fifth : {2, 5}) {
        INFO("stopped at " << fifth << " fifths");
        at.options.resume = false;
        polls = 0;
        stop_at = all_polls * fifth / 5;
        CHECK_THROWS_AS(at.run(), Interrupted);
        at.options.resume = true;
        polls = stop_at = 0;
        CHECK(scores_json(at.run().table) == whole);
        // What was measured is not measured again: by the second fifth the layers are.
        CHECK(polls < all_polls);
        if (fifth == 5) CHECK(polls < all_polls / 2);
    }
}

TEST_CASE("A state of other pairs, steps or bytes is not continued") {
    Scoring at;
    at.options.state = at.mini.scratch.path() / "state";
    at.options.iterative = 2;
    at.options.control.stop_requested = [] { return true; };
    CHECK_THROWS_AS(at.run(), Interrupted);
    at.options.resume = true;
    const auto refused = [](const Scoring& other) {
        return test::bad_input([&] { other.run(); }).find("options") != std::string::npos;
    };
    const ScoreOptions kept = at.options;
    at.options.iterative = 3;
    CHECK(refused(at));
    at.options = kept;
    at.options.layer_bytes.assign(20, 5);
    CHECK(refused(at));
    at.options = kept;
    at.options.pairs = PairOptions{};
    CHECK(refused(at));
    at.options = kept;
    CHECK_THROWS_AS(at.run(), Interrupted);
}

TEST_CASE("More steps than layers, and pairs on more sequences than there are, are refused before any work") {
    Scoring at;
    at.options.state = at.mini.scratch.path() / "state";
    at.options.iterative = 20;
    CHECK(test::error_of(ErrorKind::usage, [&] { at.run(); }).find("at most 19") != std::string::npos);
    at.options.iterative = 0;
    at.options.pairs = PairOptions{.samples = 9};
    CHECK(test::error_of(ErrorKind::usage, [&] { at.run(); }).find("8 sequences") != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(at.options.state));
}
