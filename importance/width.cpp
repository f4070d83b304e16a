#include "importance/width.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/hybrid_model.h"

namespace minipuzzle::importance {

namespace {

// Small, since sums per neuron are read back after every batch.
constexpr int64_t kBatchTokens = 4096;

// Per FFN layer, per neuron: sum over sequences of the squared mean activation.
using SquaredMeans = std::map<int64_t, std::vector<double>>;

void add_batch(Backend& on, DeviceArena& arena, const Architecture& architecture, WeightSource weights,
               const WindowBatch& batch, SquaredMeans& sums) {
    const Tensor tokens = arena.take("tokens", {batch.batch, batch.length}, DType::i32);
    on.copy(tokens.data, reinterpret_cast<const std::byte*>(batch.tokens.data()), tokens.bytes());
    const Tensor hidden = arena.take("hidden", {batch.batch, batch.length, architecture.width});
    HybridModel model(on, arena, architecture, weights);
    model.embed(tokens, hidden);
    for (int64_t layer = 0; layer < static_cast<int64_t>(architecture.layers.size()); ++layer) {
        const Ffn* ffn = std::get_if<Ffn>(&architecture.layers[layer]);
        if (!ffn) {
            model.apply(layer, hidden, hidden);
            continue;
        }
        ArenaScope scope(arena);
        const Tensor activation =
            arena.take("activation sums", {batch.batch, ffn->width}, precise_type(on.compute_type()));
        model.apply_ffn(std::get<FfnWeights>(model.use(layer)), hidden, hidden, activation);
        if (arena.is_measuring()) continue;
        const std::vector<float> values = to_host(on, activation);
        std::vector<double>& layer_sums = sums[layer];
        layer_sums.resize(ffn->width);
        for (int64_t b = 0; b < batch.batch; ++b)
            for (int64_t i = 0; i < ffn->width; ++i) {
                const double mean = values[b * ffn->width + i] / static_cast<double>(batch.length);
                layer_sums[i] += mean * mean;
            }
    }
}

}  // namespace

WidthScores rank_neurons(Backend& backend, const Architecture& architecture, WeightSource weights,
                         const Corpus& corpus, const std::vector<Window>& windows,
                         const RunControl& control) {
    SquaredMeans sums;
    MeasuredRunner runner(backend);
    const std::vector<WindowBatch> batches = batch_windows(corpus, windows, kBatchTokens);
    for (std::size_t i = 0; i < batches.size(); ++i) {
        if (control.stopping()) throw Interrupted{"stopped while ranking neurons; nothing was kept yet"};
        runner.run([&](Backend& on, DeviceArena& arena) {
            add_batch(on, arena, architecture, weights, batches[i], sums);
        });
        control.report({.what = "ranking neurons",
                        .done = static_cast<double>(i + 1),
                        .total = static_cast<double>(batches.size()),
                        .unit = "batches",
                        .detail = ""});
    }
    WidthScores scores;
    for (const auto& [layer, squares] : sums) {
        std::vector<int32_t> order(squares.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return squares[a] > squares[b]; });
        scores.ffn_order[layer] = order;
        for (double square : squares)
            scores.ffn_score[layer].push_back(static_cast<float>(std::sqrt(square)));
    }
    return scores;
}

std::vector<int64_t> default_width_grid(int64_t ffn_width) {
    std::vector<int64_t> grid;
    for (int64_t i = 0; i <= 8; ++i) {
        const int64_t width = ffn_width - i * ffn_width / 32;
        if (grid.empty() || width < grid.back()) grid.push_back(width);
    }
    return grid;
}

}  // namespace minipuzzle::importance
