// The minis with fp8 projections on the GPU: what the narrower format does to the scores, and that their bits
// keep every promise that bf16 gives.
#include <cmath>

#include "runtime/evaluate.h"
#include "runtime/rank_correlation.h"
#include "runtime/variant_sweep.h"
#include "tests/gpu/gpu.h"
#include "tests/support/minis.h"

using namespace minipuzzle;
using minipuzzle::testing::cuda_backend;

namespace {

SweepResult sweep_of(Backend& backend, const test::Mini& mini, WeightSource weights,
                     const std::vector<StudentPlan>& plans) {
    return sweep(backend, mini.checkpoint.architecture(), weights, plans, nullptr, mini.corpus, mini.windows,
                 {});
}

std::vector<double> loss_deltas(const SweepResult& result) {
    std::vector<double> deltas;
    for (const SequenceMetrics& off : result.variants)
        deltas.push_back(mean(off.loss, result.tokens) - mean(result.base.loss, result.tokens));
    return deltas;
}

// Mean and standard error of the differences of two per-sequence losses.
struct Paired {
    double mean = 0, error = 0;
    Paired(const std::vector<double>& a, const std::vector<double>& b) {
        const double n = static_cast<double>(a.size());
        for (std::size_t i = 0; i < a.size(); ++i) mean += (a[i] - b[i]) / n;
        double squares = 0;
        for (std::size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i] - mean) * (a[i] - b[i] - mean);
        error = std::sqrt(squares / (n - 1) / n);
    }
};

}  // namespace

TEST_CASE("fp8 keeps the ranking of the minis' layers", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const char* name : {"mini-20", "mini-52"}) {
        CAPTURE(name);
        const test::Mini exact(*gpu, name), narrow(*gpu, name, Precision::fp8);
        CHECK(narrow.weights.bytes() < exact.weights.bytes());
        const auto plans = leave_one_out(exact.checkpoint.architecture());
        const SweepResult in_bf16 = sweep_of(*gpu, exact, exact.weights.weights(), plans);
        const SweepResult in_fp8 = sweep_of(*gpu, narrow, narrow.weights.weights(), plans);
        const std::vector<double> expected = loss_deltas(in_bf16), got = loss_deltas(in_fp8);
        const double correlation = spearman(got, expected).value();
        CHECK(correlation >= 0.99);

        double squares = 0, largest = 0;
        for (std::size_t l = 0; l < got.size(); ++l) {
            squares += (got[l] - expected[l]) * (got[l] - expected[l]);
            largest = std::max(largest, std::abs(got[l] - expected[l]));
        }
        // Layers change places only where the text could not tell them apart anyway.
        int changed = 0;
        double widest = 0;
        for (std::size_t i = 0; i < got.size(); ++i)
            for (std::size_t j = 0; j < i; ++j) {
                if ((got[i] < got[j]) == (expected[i] < expected[j])) continue;
                ++changed;
                const Paired difference(in_bf16.variants[i].loss, in_bf16.variants[j].loss);
                CAPTURE(i, j, difference.mean, difference.error, got[i] - got[j]);
                CHECK(std::abs(difference.mean) < 2 * difference.error);
                widest = std::max(widest, std::abs(difference.mean) / difference.error);
            }
        WARN(name << " fp8 against bf16: base loss " << mean(in_fp8.base.loss, in_fp8.tokens) << " and "
                  << mean(in_bf16.base.loss, in_bf16.tokens) << ", Spearman " << correlation
                  << ", rms error of loss_delta " << std::sqrt(squares / static_cast<double>(got.size()))
                  << ", largest " << largest << ", pairs that changed places " << changed
                  << ", the widest of them " << widest << " standard errors apart");
    }
}

TEST_CASE("each row of an fp8 sweep has the bits of that student alone, resident and streamed", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const char* name : {"mini-20", "mini-52"}) {
        CAPTURE(name);
        const test::Mini mini(*gpu, name, Precision::fp8);
        const Architecture& architecture = mini.checkpoint.architecture();
        const auto plans = leave_one_out(architecture);
        const SweepResult together = sweep_of(*gpu, mini, mini.weights.weights(), plans);
        const auto source = checkpoint_source(mini.checkpoint);
        for (const StreamFrom from : {StreamFrom::source, StreamFrom::pinned_memory}) {
            StreamedWeights streamed(*gpu, architecture, *source, from,
                                     StreamedWeights::least_bytes(*gpu, architecture, from, Precision::fp8),
                                     Precision::fp8);
            CHECK(streamed.streamed_layers() == std::ssize(architecture.layers));
            const SweepResult from_stream = sweep_of(*gpu, mini, streamed, plans);
            CHECK(from_stream.base.loss == together.base.loss);
            for (std::size_t l = 0; l < plans.size(); ++l) {
                CAPTURE(l);
                CHECK(from_stream.variants[l].loss == together.variants[l].loss);
                CHECK(from_stream.variants[l].hidden_mse == together.variants[l].hidden_mse);
            }
        }
        for (std::size_t l = 0; l < plans.size(); ++l) {
            CAPTURE(l);
            // The student as a model of its own, one window at a time.
            const Architecture student = student_architecture(architecture, plans[l]);
            Weights kept = mini.weights.weights();
            kept.layers.erase(kept.layers.begin() + static_cast<std::ptrdiff_t>(l));
            const std::vector<Window> some(mini.windows.begin(), mini.windows.begin() + 3);
            const Evaluation alone = evaluate(*gpu, {student, kept}, nullptr, mini.corpus, some, {});
            for (std::size_t w = 0; w < some.size(); ++w)
                CHECK(alone.per_sequence_loss[w] == together.variants[l].loss[w]);
        }
    }
}

TEST_CASE("an fp8 sweep cuts FFNs to widths of any size", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const test::Mini mini(*gpu, "mini-20", Precision::fp8);
    WidthScores orders;
    for (std::size_t l = 0; l < mini.checkpoint.architecture().layers.size(); ++l)
        for (int32_t neuron = 0; neuron < 512; ++neuron)
            orders.ffn_order[static_cast<int64_t>(l)].push_back((neuron * 5 + 3) % 512);
    std::vector<StudentPlan> plans(3);
    plans[0].ffn_width = 496;
    plans[1].ffn_width = 387;
    plans[2].ffn_width = 1;
    const std::vector<Window> some(mini.windows.begin(), mini.windows.begin() + 4);
    const auto losses = [&](const std::vector<StudentPlan>& of) {
        std::vector<std::vector<double>> all;
        const SweepResult result = sweep(*gpu, mini.checkpoint.architecture(), mini.weights.weights(), of,
                                         &orders, mini.corpus, some, {});
        for (const SequenceMetrics& variant : result.variants) all.push_back(variant.loss);
        return all;
    };
    const auto together = losses(plans);
    for (std::size_t i = 0; i < plans.size(); ++i) CHECK(losses({plans[i]})[0] == together[i]);
    CHECK(together[0][0] < together[2][0]);
}
