#include "importance/until_certain.h"

#include <algorithm>
#include <fstream>
#include <numeric>
#include <set>

#include "importance/ablation.h"
#include "importance/feed_order.h"
#include "kernels/random.h"
#include "tests/catch.h"
#include "tests/support/minis.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

// The cheapest `count` Mamba layers.
std::vector<int64_t> cheapest(const ScoreTable& table, std::size_t count) {
    std::vector<const LayerScore*> layers;
    for (const LayerScore& layer : table.layers)
        if (layer.type == LayerType::mamba) layers.push_back(&layer);
    std::stable_sort(layers.begin(), layers.end(),
                     [](const auto* a, const auto* b) { return *a->loss_delta < *b->loss_delta; });
    std::vector<int64_t> drop;
    for (std::size_t i = 0; i < count; ++i) drop.push_back(layers[i]->layer);
    std::sort(drop.begin(), drop.end());
    return drop;
}

// Rows of 33 tokens, a document each.
class ShortRows {
  public:
    ShortRows(const test::Mini& mini, int64_t rows)
        : corpus_({write(mini, rows)}, {.tokenizer = nullptr, .vocab = mini.checkpoint.architecture().vocab},
                  false) {}
    const Corpus& corpus() const { return corpus_; }

  private:
    static std::string write(const test::Mini& mini, int64_t rows) {
        const auto path = mini.scratch.path() / "short.jsonl";
        std::ofstream file(path);
        for (int64_t row = 0; row < rows; ++row) {
            const auto& tokens = mini.reference["calibration_tokens"][row % 32];
            const int64_t begin = row / 32 * 33;
            std::vector<int64_t> part(tokens.begin() + begin, tokens.begin() + begin + 33);
            file << nlohmann::json{{"tokens", part}} << "\n";
        }
        return path.string();
    }
    Corpus corpus_;
};

struct Bench {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 0);
    test::Mini mini{*backend, "mini-20"};
    ShortRows rows{mini, 96};

    ScoreOutcome run(const ScoreOptions& options) const {
        return score(*backend, mini.checkpoint.architecture(), mini.weights.weights(),
                     mini.checkpoint.identity(), rows.corpus(), options);
    }
    ScoreOptions options(std::size_t cut) const {
        return {.seq_len = 32,
                .seed = 2,
                .until_certain =
                    UntilCertain{.drop = [cut](const ScoreTable& table) { return cheapest(table, cut); },
                                 .cut = "the cheapest"}};
    }
};

// Of mini-20's nine Mamba layers three are far dearer than the others.
constexpr std::size_t kEasy = 6;

std::vector<double> noisy(double mean, double spread, int64_t count, uint64_t seed) {
    std::vector<double> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(mean + spread * CounterRandom(seed, "x").normal(i));
    return values;
}

PairState compared(const std::vector<double>& dropped, const std::vector<double>& kept) {
    const std::vector<int64_t> tokens(256, 100);
    std::vector<int64_t> documents(256);
    std::iota(documents.begin(), documents.end(), 0);
    return compare(dropped, kept, tokens, documents, 0.001, 64, 0.002);
}

}  // namespace

TEST_CASE("Pairs: certain where the kept layer costs more, a tie where both cost the same, open otherwise") {
    const std::vector<double> zeros(256, 0.0);
    CHECK(compared(zeros, noisy(0.1, 0.05, 256, 1)) == PairState::certain);
    CHECK(compared(zeros, noisy(0, 0.001, 256, 1)) == PairState::tie);
    CHECK(compared(zeros, noisy(0, 0.05, 256, 1)) == PairState::open);
    CHECK(compared(zeros, noisy(-0.1, 0.05, 256, 1)) == PairState::open);  // the cut is wrong: look again
    // the difference of the pair decides, not the spread that both share
    const std::vector<double> shared = noisy(1, 5, 256, 1), own = noisy(0.1, 0.05, 256, 2);
    std::vector<double> kept = shared;
    for (std::size_t i = 0; i < kept.size(); ++i) kept[i] += own[i];
    CHECK(compared(shared, kept) == PairState::certain);
    // on the windows that both have
    CHECK(compared(zeros, noisy(0.1, 0.01, 7, 1)) == PairState::open);
    CHECK(compared(zeros, noisy(0.1, 0.01, 30, 1)) == PairState::certain);
}

TEST_CASE("Until certain: the full run's layers for less work, its figures on the windows that were used",
          "[slow]") {
    const Bench bench;
    ScoreOptions options = bench.options(kEasy);
    const ScoreOutcome certain = bench.run(options);
    ScoreOptions everything{.seq_len = 32, .seed = 2};
    const ScoreOutcome whole = bench.run(everything);
    REQUIRE(certain.table.certainty);
    const Certainty& certainty = *certain.table.certainty;
    CHECK(certainty.drop == cheapest(whole.table, kEasy));
    CHECK(certainty.drop == cheapest(certain.table, kEasy));
    CHECK(certainty.open.empty());
    CHECK(certainty.layer_work < 0.8);
    CHECK(certain.table.stability);

    // both runs have the same windows, one in corpus order
    const std::vector<Window> plain = cut_windows(bench.rows.corpus(), 32), fed = by_document(plain, 2);
    std::set<int64_t> samples;
    for (const LayerScore& layer : certain.table.layers) {
        const auto& losses = certain.table.per_sequence.at(std::to_string(layer.layer));
        REQUIRE(static_cast<int64_t>(losses.size()) == layer.samples);
        samples.insert(layer.samples);
        for (std::size_t i = 0; i < losses.size(); ++i)
            CHECK(losses[i] == whole.table.per_sequence.at(std::to_string(layer.layer))[fed[i].document]);
    }
    CHECK(samples.size() > 1);
    CHECK(*samples.begin() == 16);  // some were settled by the first look
    // every layer of the cut was compared on as many windows as the one it stands nearest to
    CHECK(certain.table.calibration->sequences == *samples.rbegin());
    // work: that of every round's open layers, at least the first round of all
    CHECK(certainty.layer_work > 16.0 / 96);
}

TEST_CASE("Until certain, bounded: what --samples leaves undecided is named and was measured on everything",
          "[slow]") {
    const Bench bench;
    ScoreOptions options = bench.options(4);
    options.samples = 24;
    options.until_certain->tie = 0;
    const ScoreOutcome outcome = bench.run(options);
    const Certainty& certainty = *outcome.table.certainty;
    CHECK(certainty.ties.empty());
    REQUIRE(!certainty.open.empty());
    for (const auto& [dropped, kept] : certainty.open) {
        CHECK(std::count(certainty.drop.begin(), certainty.drop.end(), dropped) == 1);
        CHECK(std::count(certainty.drop.begin(), certainty.drop.end(), kept) == 0);
        CHECK(outcome.table.layers[dropped].type == outcome.table.layers[kept].type);
        CHECK(outcome.table.layers[dropped].samples == 24);
        CHECK(outcome.table.layers[kept].samples == 24);
    }
}

TEST_CASE("Until certain: rounds end where documents end", "[slow]") {
    const Bench bench;
    const Corpus& corpus = bench.mini.corpus;  // 32 documents of eight windows each
    ScoreOptions options = bench.options(4);
    options.seq_len = 64;
    options.samples = 40;
    const ScoreOutcome outcome =
        score(*bench.backend, bench.mini.checkpoint.architecture(), bench.mini.weights.weights(),
              bench.mini.checkpoint.identity(), corpus, options);
    const std::vector<Window> fed = by_document(choose_windows(corpus, 64, 40, 2), 2);
    std::set<int64_t> documents;
    for (const Window& window : fed) documents.insert(window.document);
    CHECK(documents.size() < fed.size());
    for (const LayerScore& layer : outcome.table.layers) {
        INFO("layer " << layer.layer << ", " << layer.samples << " windows");
        CHECK((layer.samples == 40 || fed[layer.samples].document != fed[layer.samples - 1].document));
    }
    CHECK(outcome.documents <= static_cast<int64_t>(documents.size()));
}

TEST_CASE("Until certain: stopped anywhere and resumed, the same figures", "[slow]") {
    const Bench bench;
    ScoreOptions options = bench.options(kEasy);
    const ScoreOutcome whole = bench.run(options);
    options.state = bench.mini.scratch.path() / "state";
    int stops = 0;
    for (bool done = false; !done; options.resume = true) {
        int polls = 0;
        // in mid-batch and between batches; each run gets further than the one before
        options.control.stop_requested = [&] { return ++polls > 15 * (stops + 1); };
        try {
            const ScoreOutcome resumed = bench.run(options);
            CHECK(scores_json(resumed.table) == scores_json(whole.table));
            done = true;
        } catch (const Interrupted&) {
            ++stops;
        }
        REQUIRE(stops < 100);
    }
    CHECK(stops >= 2);

    // other options are another run, and the state stays as it is
    const auto size = std::filesystem::file_size(options.state);
    const auto refused = [&](ScoreOptions other) {
        CHECK_THROWS_AS(bench.run(other), Error);
        CHECK(std::filesystem::file_size(options.state) == size);
    };
    ScoreOptions other = options;
    other.until_certain->tie = 0.001;
    refused(other);
    other = options;
    other.until_certain->cut = "another budget";
    refused(other);
    other = options;
    other.until_certain.reset();
    refused(other);
    other = options;
    other.resume = false;
    other.samples = 7;  // too few documents, found before the old state is given up
    refused(other);
}
