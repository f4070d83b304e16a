// Width statistics of a trained model on the GPU against the CPU.
#include "importance/width.h"
#include "runtime/rank_correlation.h"
#include "tests/gpu/gpu.h"
#include "tests/support/minis.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;
using minipuzzle::testing::cuda_backend;

namespace {

WidthScores scores_of(Backend& backend, const test::Mini& mini, WidthAggregation aggregation,
                      int64_t batch_tokens) {
    const Architecture& architecture = mini.checkpoint.architecture();
    WidthStatistics statistics(backend, architecture, aggregation, "");
    VariantSweep sweep(backend, architecture, mini.weights.weights(), {}, nullptr);
    sweep.observe(&statistics);
    for (const WindowBatch& batch : batch_windows(mini.corpus, mini.windows, batch_tokens)) {
        sweep.run(batch);
        statistics.finish(batch.windows);
    }
    return statistics.scores();
}

// Activations are rounded to bf16 (2^-9) at every step of up to 20 layers, the sums average that out.
void compare(const std::map<int64_t, std::vector<float>>& expected,
             const std::map<int64_t, std::vector<float>>& actual, double least_correlation) {
    REQUIRE(expected.size() == actual.size());
    for (const auto& [layer, values] : expected) {
        const std::vector<double> a(values.begin(), values.end()),
            b(actual.at(layer).begin(), actual.at(layer).end());
        double error = 0, norm = 0;
        for (std::size_t i = 0; i < a.size(); ++i)
            error += (a[i] - b[i]) * (a[i] - b[i]), norm += a[i] * a[i];
        INFO("layer " << layer << ", relative error " << std::sqrt(error / norm));
        CHECK(error <= 0.01 * 0.01 * norm);
        if (a.size() > 4) CHECK(spearman(a, b).value() >= least_correlation);
    }
}

bool same(const WidthScores& a, const WidthScores& b) {
    return a.ffn_score == b.ffn_score && a.mamba_head_score == b.mamba_head_score &&
           a.kv_head_score == b.kv_head_score && a.ffn_order == b.ffn_order;
}

}  // namespace

TEST_CASE("width statistics on CUDA are the CPU's, and the same bits in batches of any size", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const auto cpu = make_cpu_backend(DType::f32, 0);
    const test::Mini on_cpu(*cpu, "mini-20"), on_gpu(*gpu, "mini-20");
    for (const char* text : {"mean,l2", "l2,mean"}) {
        CAPTURE(text);
        const WidthAggregation aggregation = parse_width_aggregation(text);
        const WidthScores expected = scores_of(*cpu, on_cpu, aggregation, 4096),
                          actual = scores_of(*gpu, on_gpu, aggregation, 32768);
        compare(expected.ffn_score, actual.ffn_score, 0.999);
        compare(expected.mamba_head_score, actual.mamba_head_score, 0.95);
        compare(expected.kv_head_score, actual.kv_head_score, 0.9);
        CHECK(same(scores_of(*gpu, on_gpu, aggregation, 512), actual));
        CHECK(same(scores_of(*gpu, on_gpu, aggregation, 1536), actual));
    }
}
