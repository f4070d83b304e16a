#include "importance/precision_check.h"

#include <algorithm>
#include <cmath>

#include "importance/ablation.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/minis.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

// mini-20 on the CPU, whose compute type is float32, and its scores in fp8.
struct NarrowMini {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 0);
    test::Mini exact{*backend, "mini-20"}, narrow{*backend, "mini-20", Precision::fp8};
    int reloads = 0;

    ScoreOptions options(int64_t seq_len, int64_t samples, bool quantized) {
        ScoreOptions options{.seq_len = seq_len, .samples = samples, .seed = 1};
        if (quantized)
            options.narrow = NarrowSweep{.precision = Precision::fp8, .unquantized = [this] {
                                             ++reloads;
                                             return WeightSource(exact.weights.weights());
                                         }};
        return options;
    }
    ScoreOutcome run(const ScoreOptions& options) {
        const test::Mini& mini = options.narrow ? narrow : exact;
        return score(*backend, exact.checkpoint.architecture(), mini.weights.weights(),
                     exact.checkpoint.identity(), exact.corpus, options);
    }
};

}  // namespace

TEST_CASE("mini-20 in fp8 ranks its layers as in float32, and the check says how far they moved", "[slow]") {
    NarrowMini mini;
    const ScoreOutcome narrow = mini.run(mini.options(256, 24, true)),
                       exact = mini.run(mini.options(256, 16, false));
    REQUIRE(narrow.table.precision);
    const PrecisionCheck& check = *narrow.table.precision;
    CHECK(check.sweep == "fp8");
    CHECK(check.head == "bf16");
    CHECK(check.sequences == 16);
    CHECK(mini.reloads == 1);
    CHECK_FALSE(exact.table.precision);

    // By hand, from the sequences that both runs hold.
    double squares = 0, largest = 0, all_deltas = 0;
    const auto delta = [](const ScoreTable& table, std::size_t layer) {
        double sum = 0;
        for (std::size_t i = 0; i < 16; ++i)
            sum += table.per_sequence.at(std::to_string(layer))[i] - table.per_sequence.at("base")[i];
        return sum / 16;
    };
    for (std::size_t l = 0; l < exact.table.layers.size(); ++l) {
        CHECK(delta(exact.table, l) == Approx(exact.table.layers[l].loss_delta.value()).epsilon(1e-9));
        const double error = delta(narrow.table, l) - delta(exact.table, l);
        squares += error * error;
        largest = std::max(largest, std::abs(error));
        all_deltas += std::max(0.0, delta(exact.table, l));
    }
    CHECK(check.rms_error == Approx(std::sqrt(squares / 20)).epsilon(1e-9));
    CHECK(check.largest_error == Approx(largest).epsilon(1e-9));
    CHECK(check.rank_correlation >= 0.99);
    // Rounding to three bits of mantissa moves a value by at most 2^-4 of it, by 0.026 in the root mean
    // square; the two operands of a product together by 0.037, the two products of a branch, one behind the
    // other, by 0.052, and squaring the ReLU doubles the first: 0.08. Losing a whole branch raises the loss
    // by its loss_delta; noise of a share e of it, without direction, by about e^2 of that. So all layers'
    // noise together moves a loss by about 0.08^2 times the sum of loss_delta.
    CHECK(check.rms_error > 0);
    CHECK(check.rms_error <= 0.08 * 0.08 * all_deltas);
    WARN("fp8 against float32: Spearman " << check.rank_correlation << ", rms error " << check.rms_error
                                          << ", largest " << check.largest_error << ", bound "
                                          << 0.08 * 0.08 * all_deltas);
}

TEST_CASE("neurons are ranked in fp8 by activations as they are before they are quantised") {
    NarrowMini mini;
    ScoreOptions options = mini.options(32, 8, true), exact = mini.options(32, 8, false);
    options.width = exact.width = true;
    options.widths = exact.widths = {387};
    const ScoreOutcome narrow = mini.run(options), whole = mini.run(exact);
    // The first FFN stands before all quantised layers: the same sums, whatever comes after.
    CHECK(narrow.width.ffn_score.at(1) == whole.width.ffn_score.at(1));
    for (const auto& [layer, scores] : whole.width.ffn_score) {
        const std::vector<float>& got = narrow.width.ffn_score.at(layer);
        REQUIRE(got.size() == scores.size());
        double difference = 0, all = 0;
        for (std::size_t i = 0; i < got.size(); ++i) {
            difference += (got[i] - scores[i]) * (got[i] - scores[i]);
            all += scores[i] * scores[i];
        }
        // The noise of a pre-activation, 0.037 of it, doubled by the square; the stream brings some of its
        // own.
        CHECK(std::sqrt(difference / all) < 0.1);
    }
    REQUIRE(narrow.table.ffn_width_curve.size() == 2);
    CHECK(narrow.table.ffn_width_curve[1].loss_delta ==
          Approx(whole.table.ffn_width_curve[1].loss_delta).margin(0.05));
}

TEST_CASE("the check takes sixteen windows, fewer of long ones") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    const test::Mini mini(*backend, "mini-20");
    const RunControl control;
    ScoreState state("", "", false);
    const auto checked = [&](int64_t length, std::size_t count) {
        const ScoreRun run(*backend, mini.checkpoint.architecture(), mini.weights.weights(), mini.corpus,
                           std::vector<Window>(count, Window{.document = 0, .begin = 0, .length = length}),
                           state, control);
        return checked_windows(run);
    };
    CHECK(checked(512, 40) == 16);
    CHECK(checked(512, 3) == 3);
    CHECK(checked(8192, 40) == 2);
    CHECK(checked(100'000, 40) == 1);
}

TEST_CASE("a stopped fp8 score goes on in its last stage too, and not in another precision", "[slow]") {
    NarrowMini mini;
    const ScoreOutcome whole = mini.run(mini.options(32, 20, true));
    ScoreOptions options = mini.options(32, 20, true);
    options.state = mini.exact.scratch.path() / "state";
    // All windows are one batch of the sweep and one of the check: the second question is the check's.
    int polls = 0;
    options.control.stop_requested = [&] { return ++polls > 1; };
    CHECK_THROWS_AS(mini.run(options), Interrupted);
    CHECK(polls == 2);
    options.control = {};
    options.resume = true;

    ScoreOptions other = mini.options(32, 20, false);
    other.state = options.state;
    other.resume = true;
    CHECK(test::bad_input([&] { mini.run(other); }).find("options") != std::string::npos);

    mini.reloads = 0;
    const ScoreOutcome resumed = mini.run(options);
    CHECK(mini.reloads == 1);
    CHECK(resumed.table.per_sequence == whole.table.per_sequence);
    CHECK(resumed.table.precision->rms_error == whole.table.precision->rms_error);
    CHECK(resumed.table.precision->rank_correlation == whole.table.precision->rank_correlation);
    const ScoreOutcome again = mini.run(options);  // the state holds everything: nothing is loaded
    CHECK(mini.reloads == 1);
    CHECK(again.table.precision->largest_error == whole.table.precision->largest_error);
}
