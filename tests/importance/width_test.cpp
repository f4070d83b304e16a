// Width statistics against sums over activations in plain loops, and their independence of batches and
// interruptions.
#include "importance/width.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>

#include "kernels/random.h"
#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;
using Catch::Matchers::Contains;

namespace {

namespace fs = std::filesystem;
using Values = std::vector<double>;

// A tiny model in double and rows of some lengths.
struct World {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f64, 2);
    Architecture architecture = test::tiny_architecture("M-*M-");
    WeightMemory weights = random_weights(*backend, architecture, 4, 0.2);
    test::TempDir scratch;
    std::unique_ptr<Corpus> corpus;
    std::vector<Window> windows;

    explicit World(const std::vector<int>& lengths) {
        CounterRandom random(8, "tokens");
        std::ofstream file(scratch.path() / "rows.jsonl");
        int64_t draw = 0;
        for (const int length : lengths) {
            nlohmann::json row;
            for (int i = 0; i <= length; ++i)
                row["tokens"].push_back(random.bits(draw++) % architecture.vocab);
            file << row << "\n";
        }
        file.close();
        corpus = std::make_unique<Corpus>(std::vector<std::string>{(scratch.path() / "rows.jsonl").string()},
                                          TokenizerContext{.vocab = architecture.vocab}, false);
        windows = choose_windows(*corpus, 20, 0, 0);
    }

    WidthScores scores(WidthAggregation aggregation, int64_t batch_tokens, const fs::path& saved = "") const {
        WidthStatistics statistics(*backend, architecture, aggregation, saved);
        VariantSweep sweep(*backend, architecture, weights.weights(), leave_one_out(architecture), nullptr);
        sweep.observe(&statistics);
        for (const WindowBatch& batch : batch_windows(*corpus, windows, batch_tokens)) {
            sweep.run(batch);
            statistics.finish(batch.windows);
        }
        return statistics.scores();
    }

    // Through a stage of a score until `stopping`; what is then in the file of sums.
    std::string staged(const fs::path& path, bool resume, std::function<bool()> stopping = {}) const {
        const RunControl control{.stop_requested = std::move(stopping)};
        ScoreState state(path, "the same", resume);
        ScoreRun run(*backend, architecture, weights.weights(), *corpus, windows, state, control);
        WidthStatistics statistics(*backend, architecture, {}, state.width_path());
        run.sweep("layers", leave_one_out(architecture), nullptr, run.all_windows(), &statistics);
        return read_file(state.width_path());
    }
};

// Asks to stop once the state at `path` has so many finished batches.
std::function<bool()> after_batches(const fs::path& path, int64_t batches) {
    return [=] {
        const std::string text = read_file(path);
        return std::count(text.begin(), text.end(), '\n') > batches;  // the first line is the header
    };
}

const double* data(const Tensor& tensor) { return tensor.as<double>(); }

// x [T, D] times rows [first, first + count) of a matrix [O, D].
Values product(const Values& x, const Tensor& weight, int64_t first, int64_t count) {
    const int64_t inputs = weight.size(1), rows = std::ssize(x) / inputs;
    Values out(rows * count, 0.0);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t o = 0; o < count; ++o)
            for (int64_t i = 0; i < inputs; ++i)
                out[r * count + o] += x[r * inputs + i] * data(weight)[(first + o) * inputs + i];
    return out;
}

Values normed(const Values& x, const Tensor& weight, double eps) {
    const int64_t width = weight.size(0);
    Values out(x.size());
    for (std::size_t r = 0; r < x.size(); r += width) {
        double square = 0;
        for (int64_t i = 0; i < width; ++i) square += x[r + i] * x[r + i];
        for (int64_t i = 0; i < width; ++i)
            out[r + i] = data(weight)[i] * x[r + i] / std::sqrt(square / static_cast<double>(width) + eps);
    }
    return out;
}

// Causal attention of [T, heads * P], query head h with KV head h / (heads / kv_heads).
Values attended(const Attention& shape, const Values& q, const Values& k, const Values& v) {
    const int64_t p = shape.head_dim, columns = shape.heads * p, kv_columns = shape.kv_heads * p;
    const int64_t time = std::ssize(q) / columns;
    Values out(q.size(), 0.0);
    for (int64_t h = 0; h < shape.heads; ++h)
        for (int64_t t = 0; t < time; ++t) {
            const int64_t kv = h / (shape.heads / shape.kv_heads) * p;
            Values weights(t + 1);
            double sum = 0;
            for (int64_t s = 0; s <= t; ++s) {
                double dot = 0;
                for (int64_t i = 0; i < p; ++i)
                    dot += q[t * columns + h * p + i] * k[s * kv_columns + kv + i];
                sum += weights[s] = std::exp(dot / std::sqrt(static_cast<double>(p)));
            }
            for (int64_t s = 0; s <= t; ++s)
                for (int64_t i = 0; i < p; ++i)
                    out[t * columns + h * p + i] += weights[s] / sum * v[s * kv_columns + kv + i];
        }
    return out;
}

// Per token the units' own numbers, [T, units]: neurons, channels of Mamba heads, KV heads.
Values units_of(const Architecture& architecture, const Layer& layer, const LayerWeights& weights,
                const Values& in) {
    if (auto* mamba = std::get_if<MambaWeights>(&weights)) {
        const Values x = normed(in, mamba->norm, architecture.norm_eps);
        const int64_t inner = std::get<Mamba>(layer).inner();
        return product(x, mamba->in_proj, inner, inner);
    }
    if (auto* ffn = std::get_if<FfnWeights>(&weights)) {
        Values up =
            product(normed(in, ffn->norm, architecture.norm_eps), ffn->up_proj, 0, ffn->up_proj.size(0));
        for (double& value : up) value = value > 0 ? value * value : 0;
        return up;
    }
    const auto& attention = std::get<AttentionWeights>(weights);
    const auto& shape = std::get<Attention>(layer);
    const Values x = normed(in, attention.norm, architecture.norm_eps);
    const auto all = [&](const Tensor& weight) { return product(x, weight, 0, weight.size(0)); };
    const Values out = attended(shape, all(attention.q_proj), all(attention.k_proj), all(attention.v_proj));
    const int64_t channels = shape.heads / shape.kv_heads * shape.head_dim;
    Values norms(out.size() / channels);
    for (std::size_t i = 0; i < norms.size(); ++i) {
        double square = 0;
        for (int64_t c = 0; c < channels; ++c) square += std::pow(out[i * channels + c], 2);
        norms[i] = std::sqrt(square);
    }
    return norms;
}

double aggregated(Aggregation how, const Values& values) {
    double sum = 0;
    for (const double value : values) sum += how == Aggregation::l2 ? value * value : std::abs(value);
    return how == Aggregation::l2 ? std::sqrt(sum) : sum / static_cast<double>(values.size());
}

// Of every layer its units' scores (of Mamba: its heads').
std::vector<Values> brute_force(World& world, WidthAggregation aggregation) {
    Backend& backend = *world.backend;
    const Architecture& architecture = world.architecture;
    const std::size_t layers = architecture.layers.size();
    std::vector<std::vector<Values>> of_windows(layers);  // [layer][unit][window]
    DeviceArena arena = DeviceArena::sized(backend, 1 << 22);
    HybridModel model(backend, arena, architecture, world.weights.weights());
    for (const WindowBatch& batch : batch_windows(*world.corpus, world.windows, 1)) {
        ArenaScope scope(arena);
        std::vector<int32_t> ids = batch.tokens;
        const Tensor hidden = arena.take("hidden", {1, batch.length, architecture.width});
        model.embed(Tensor(ids.data(), DType::i32, {1, batch.length}), hidden);
        for (std::size_t l = 0; l < layers; ++l) {
            const Values in(data(hidden), data(hidden) + hidden.elements());
            const Values units =
                units_of(architecture, architecture.layers[l], model.weights().layers[l], in);
            const int64_t count = std::ssize(units) / batch.length;
            of_windows[l].resize(count);
            for (int64_t n = 0; n < count; ++n) {
                Values tokens;
                for (int64_t t = 0; t < batch.length; ++t) tokens.push_back(units[t * count + n]);
                of_windows[l][n].push_back(aggregated(aggregation.sequence, tokens));
            }
            model.apply(static_cast<int64_t>(l), hidden, hidden);
        }
    }
    std::vector<Values> scores(layers);
    for (std::size_t l = 0; l < layers; ++l) {
        Values units;
        for (const Values& windows : of_windows[l]) units.push_back(aggregated(aggregation.batch, windows));
        const Mamba* mamba = std::get_if<Mamba>(&architecture.layers[l]);
        for (std::size_t n = 0; mamba && n < units.size(); n += mamba->head_dim)
            scores[l].push_back(
                aggregated(Aggregation::l2, {units.begin() + n, units.begin() + n + mamba->head_dim}));
        if (!mamba) scores[l] = units;
    }
    return scores;
}

// Scores agree to float32's rounding; the order falls and holds each unit from `first` on once.
void check_scores(const Values& expected, const std::vector<float>& scores) {
    REQUIRE(scores.size() == expected.size());
    for (std::size_t i = 0; i < scores.size(); ++i)
        CHECK(scores[i] == Approx(expected[i]).epsilon(1e-7).margin(1e-12));
}
void check_order(const Values& expected, std::vector<int32_t> order, int32_t first) {
    for (std::size_t i = 1; i < order.size(); ++i) CHECK(expected[order[i - 1]] >= expected[order[i]]);
    std::sort(order.begin(), order.end());
    for (const int32_t place : order) CHECK(place == first++);
}

}  // namespace

TEST_CASE("width statistics are those of the activations in plain loops, under every aggregation") {
    World world({41, 41, 23, 41, 7});
    for (const char* text : {"mean,l2", "mean,mean", "l2,l2", "l2,mean"}) {
        CAPTURE(text);
        const WidthAggregation aggregation = parse_width_aggregation(text);
        CHECK(name(aggregation) == text);
        const WidthScores scores = world.scores(aggregation, 64);
        const std::vector<Values> expected = brute_force(world, aggregation);
        REQUIRE(scores.mamba_head_order.size() == 2);
        REQUIRE(scores.ffn_order.size() == 2);
        REQUIRE(scores.kv_head_order.size() == 1);
        for (const int64_t layer : {0, 3}) {
            check_scores(expected[layer], scores.mamba_head_score.at(layer));
            const auto& groups = scores.mamba_head_order.at(layer);
            REQUIRE(groups.size() == 2);  // 4 heads: the group of a head is the half it lies in
            REQUIRE(groups[0].size() == 2);
            check_order(expected[layer], groups[0], 0);
            check_order(expected[layer], groups[1], 2);
        }
        for (const int64_t layer : {1, 4}) {
            check_scores(expected[layer], scores.ffn_score.at(layer));
            check_order(expected[layer], scores.ffn_order.at(layer), 0);
            CHECK(scores.ffn_order.at(layer).size() == 32);
        }
        check_scores(expected[2], scores.kv_head_score.at(2));
        check_order(expected[2], scores.kv_head_order.at(2), 0);
        CHECK(scores.kv_head_order.at(2).size() == 2);
    }
    for (const char* text : {"", "mean", "l2,", "mean, l2", "var,l2"})
        CHECK_THROWS_AS(parse_width_aggregation(text), Error);
}

TEST_CASE("width statistics do not depend on how windows are batched") {
    const World world({41, 41, 23, 41, 7});
    const auto sums = [&](int64_t tokens) {
        const fs::path saved = world.scratch.path() / ("sums " + std::to_string(tokens));
        world.scores({}, tokens, saved);
        return read_file(saved);
    };
    const std::string alone = sums(1);
    for (const int64_t tokens : {40, 60, 4096}) CHECK((sums(tokens) == alone));
}

// 204 windows of 20 tokens fill a batch of 4096. The short window stands before what is left of them.
TEST_CASE("width statistics of an interrupted score are those of one that was left alone, in every bit") {
    std::vector<int> lengths(204, 20);
    lengths.push_back(6);
    lengths.insert(lengths.end(), 30, 20);
    const World world(lengths);
    const fs::path path = world.scratch.path() / "state";
    const fs::path width = path.string() + ".width", older = path.string() + ".older";
    const std::string whole = world.staged(world.scratch.path() / "whole", false);

    CHECK_THROWS_AS(world.staged(path, false, after_batches(path, 1)), Interrupted);
    REQUIRE(fs::exists(width));
    fs::copy_file(width, older);
    SECTION("stopped between batches") { CHECK((world.staged(path, true) == whole)); }
    SECTION("stopped between the layers of a batch") {
        int polls = 0;
        CHECK_THROWS_AS(world.staged(path, true, [&] { return ++polls > 4; }), Interrupted);
        CHECK((read_file(width) == read_file(older)));
        CHECK((world.staged(path, true) == whole));
    }
    SECTION("killed between the figures and the statistics of a batch") {
        CHECK_THROWS_AS(world.staged(path, true, after_batches(path, 2)), Interrupted);
        fs::rename(older, width);
        CHECK((world.staged(path, true) == whole));
    }
    SECTION("the statistics lost") {
        fs::remove(width);
        CHECK((world.staged(path, true) == whole));
    }
    SECTION("statistics of windows that were not measured are refused") {
        CHECK_THROWS_AS(world.staged(path, true, after_batches(path, 2)), Interrupted);
        std::ifstream in(path);
        std::string header, line;
        std::getline(in, header);
        std::getline(in, line);
        std::ofstream(path) << header << "\n" << line << "\n";
        CHECK_THROWS_WITH(world.staged(path, true), Catch::Matchers::Contains("leave out --resume"));
    }
    SECTION("a damaged file is refused, and gone when the score starts anew") {
        std::ofstream(width) << "no tensors";
        CHECK_THROWS_AS(world.staged(path, true), Error);
        CHECK((world.staged(path, false) == whole));
    }
}
