// Pairs and iterative removal of mini-52 against every student computed alone.
#include "importance/ablation.h"
#include "tests/catch.h"
#include "tests/support/minis.h"
#include "tests/support/students.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

// Nothing is shared here: each student is a model of its own, evaluated by itself, remembered by what it
// drops.
class Alone {
  public:
    Alone(Backend& backend, const test::Mini& mini, std::vector<Window> windows)
        : backend_(backend), mini_(mini), windows_(std::move(windows)) {
        for (const Window& window : windows_) tokens_.push_back(window.length);
    }
    const std::vector<double>& losses(const LayerSet& drop) {
        auto [found, fresh] = known_.try_emplace(drop);
        if (fresh)
            found->second = test::losses_alone(backend_, mini_.checkpoint.architecture(),
                                               mini_.weights.weights(), drop, mini_.corpus, windows_);
        return found->second;
    }
    // Mean of loss(a) - loss(b).
    double rise(const LayerSet& a, const LayerSet& b) {
        std::vector<double> differences(tokens_.size());
        for (std::size_t w = 0; w < tokens_.size(); ++w) differences[w] = losses(a)[w] - losses(b)[w];
        return mean(differences, tokens_);
    }
    std::size_t students() const { return known_.size(); }

  private:
    Backend& backend_;
    const test::Mini& mini_;
    std::vector<Window> windows_;
    std::vector<int64_t> tokens_;
    std::map<LayerSet, std::vector<double>> known_;
};

void check_pairs_alone(const PairScores& scores, Alone& alone) {
    std::size_t within = 0;
    for (const PairScore& pair : scores.pairs) {
        INFO("pair " << pair.first << ", " << pair.second);
        const double both = alone.rise({pair.first, pair.second}, {});
        CHECK(pair.loss_delta == both);
        // The sum of three means against the mean of the sums: a few roundings of values below 16.
        const double sum = alone.rise({pair.first}, {}) + alone.rise({pair.second}, {});
        CHECK(std::abs(pair.interaction - (both - sum)) < 1e-13);
        within += pair.second - pair.first <= scores.window ? 1 : 0;
    }
    CHECK(within == 51 + 50 + 49 + 48);
}

void check_removal_alone(const IterativeScores& scores, Alone& alone, int64_t layers) {
    LayerSet gone;
    for (const RemovalStep& step : scores.steps) {
        int64_t least = -1;
        double least_rise = 0;
        for (int64_t l = 0; l < layers; ++l) {
            if (std::count(gone.begin(), gone.end(), l)) continue;
            LayerSet off = gone;
            off.push_back(l);
            std::sort(off.begin(), off.end());
            const double rise = alone.rise(off, gone);
            INFO("layer " << l << " after " << gone.size() << " others");
            CHECK(step.layers[l] == rise);
            if (least < 0 || rise <= least_rise) {
                least = l;
                least_rise = rise;
            }
        }
        CHECK(step.removed == least);
        gone.push_back(least);
        std::sort(gone.begin(), gone.end());
        CHECK(step.loss_delta == alone.rise(gone, {}));
    }
}

void check_mini_52(int64_t seq_len, int64_t samples) {
    const auto backend = make_cpu_backend(DType::f32, 0);
    const test::Mini mini(*backend, "mini-52");
    const Architecture& architecture = mini.checkpoint.architecture();
    const ScoreOptions options{.seq_len = seq_len,
                               .samples = samples,
                               .seed = 2,
                               .pairs = PairOptions{.window = 4, .candidates = 0},
                               .iterative = 6};
    const ScoreOutcome outcome = score(*backend, architecture, mini.weights.weights(),
                                       mini.checkpoint.identity(), mini.corpus, options);
    Alone alone(*backend, mini, choose_windows(mini.corpus, seq_len, samples, options.seed));
    check_pairs_alone(*outcome.table.pairs, alone);
    check_removal_alone(*outcome.table.iterative, alone, 52);
    CHECK(alone.students() > 400);
}

}  // namespace

// Bits must be equal: a window's figures depend on that window and the layers kept alone.
TEST_CASE("mini-52: pairs in a window of 4 and six steps of removal are those of students alone", "[slow]") {
    check_mini_52(64, 4);
}
