#include "importance/ablation.h"

#include <cmath>
#include <fstream>

#include "importance/width.h"
#include "tests/catch.h"
#include "tests/support/minis.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

void check_against_reference(const std::string& name) {
    const auto backend = make_cpu_backend(DType::f32, 0);
    const test::Mini mini(*backend, name);
    const ScoreOutcome outcome = score(*backend, mini.checkpoint.architecture(), mini.weights.weights(),
                                       mini.checkpoint.identity(), mini.corpus, {.seq_len = 512});
    const auto& ablation = mini.reference["ablation"];
    REQUIRE(outcome.table.layers.size() == ablation.size());
    for (std::size_t l = 0; l < ablation.size(); ++l) {
        const LayerScore& score = outcome.table.layers[l];
        const auto expected = [&](const char* key) { return ablation[l][key].get<double>(); };
        INFO("layer " << l);
        CHECK(std::abs(score.loss_delta.value() - expected("delta_loss")) < 2e-5);
        CHECK(score.kl.value() == Approx(expected("kl")).epsilon(1e-4));
        CHECK(score.hidden_mse.value() == Approx(expected("mse_final_hidden")).epsilon(1e-4));
        CHECK(score.logit_nmse.value() == Approx(expected("nmse_logits")).epsilon(1e-4));
        CHECK(score.cosine.value() == Approx(expected("cos_final_hidden")).epsilon(1e-4));
        CHECK(std::abs(score.top1_agreement.value() - expected("top1_agreement")) <= 4.01 / 16384);
        REQUIRE(score.loss_delta_ci);
        CHECK((*score.loss_delta_ci)[0] < score.loss_delta.value());
        CHECK((*score.loss_delta_ci)[1] > score.loss_delta.value());
        CHECK(score.samples == 32);
    }
    CHECK(outcome.multiply_adds < 0.60 * outcome.separate_multiply_adds);
}

}  // namespace

TEST_CASE("Scores of mini-20 are the reference's", "[slow]") { check_against_reference("mini-20"); }
TEST_CASE("Scores of mini-52 are the reference's", "[slow]") { check_against_reference("mini-52"); }

TEST_CASE("A stopped score goes on from its state and ends in the same figures", "[slow]") {
    const auto backend = make_cpu_backend(DType::f32, 0);
    const test::Mini mini(*backend, "mini-20");
    ScoreOptions options{.seq_len = 64, .samples = 300, .seed = 3};
    const auto run = [&](const ScoreOptions& some) {
        return score(*backend, mini.checkpoint.architecture(), mini.weights.weights(),
                     mini.checkpoint.identity(), mini.corpus, some);
    };
    // 256 windows of 64 tokens exist; four batches of at most 4096 tokens hold them
    options.samples = 0;
    const ScoreOutcome whole = run(options);
    options.state = mini.scratch.path() / "state";
    double share = 0;  // what is done
    options.control.progress = [&](const ProgressUpdate& update) { share = update.done / update.total; };
    options.control.stop_requested = [&] { return share > 0.3; };  // amid the second batch
    CHECK_THROWS_AS(run(options), Interrupted);
    std::ofstream(options.state, std::ios::app)
        << "{\"batch\": 1, \"tok";  // as a kill in mid-write leaves it
    options.control = {};
    options.resume = true;
    std::vector<double> shares;
    options.control.progress = [&](const ProgressUpdate& update) {
        shares.push_back(update.done / update.total);
    };
    const ScoreOutcome resumed = run(options);
    CHECK(shares.front() == Approx(0.25));  // the first batch was kept
    CHECK(shares.back() == Approx(1));
    for (std::size_t l = 0; l < whole.table.layers.size(); ++l) {
        CHECK(resumed.table.layers[l].kl == whole.table.layers[l].kl);
        CHECK(resumed.table.layers[l].loss_delta_ci == whole.table.layers[l].loss_delta_ci);
    }
    CHECK(resumed.table.per_sequence == whole.table.per_sequence);
    options.seed = 4;
    CHECK_THROWS_AS(run(options), Error);
}

TEST_CASE("The default width grid is MiniPuzzle's: nine widths down to three quarters") {
    CHECK(default_width_grid(32768) ==
          std::vector<int64_t>{32768, 31744, 30720, 29696, 28672, 27648, 26624, 25600, 24576});
    CHECK(default_width_grid(4) == std::vector<int64_t>{4, 3});
}

TEST_CASE("Width scores: neurons in falling order, and the curve is measured on them", "[slow]") {
    const auto backend = make_cpu_backend(DType::f32, 0);
    const test::Mini mini(*backend, "mini-20");
    const ScoreOutcome outcome = score(
        *backend, mini.checkpoint.architecture(), mini.weights.weights(), mini.checkpoint.identity(),
        mini.corpus, {.seq_len = 128, .samples = 8, .seed = 1, .width = true, .widths = {496, 256, 512}});
    REQUIRE(outcome.width.ffn_order.size() == 9);
    for (const auto& [layer, order] : outcome.width.ffn_order) {
        const std::vector<float>& scores = outcome.width.ffn_score.at(layer);
        REQUIRE(order.size() == 512);
        for (std::size_t i = 1; i < order.size(); ++i) CHECK(scores[order[i - 1]] >= scores[order[i]]);
    }
    const Architecture& architecture = mini.checkpoint.architecture();
    CHECK(std::ssize(outcome.width.mamba_head_order) == architecture.count(LayerType::mamba));
    CHECK(std::ssize(outcome.width.kv_head_order) == architecture.count(LayerType::attention));
    const auto& curve = outcome.table.ffn_width_curve;
    REQUIRE(curve.size() == 3);
    CHECK(curve[0].ffn_width == 512);
    CHECK(curve[0].loss_delta == 0);
    CHECK(curve[1].ffn_width == 496);
    CHECK(curve[2].loss_delta > curve[1].loss_delta);
}
