// Whole models on the GPU against the CPU: the two trained minis.
#include "kernels/random.h"
#include "nas/funnel.h"
#include "runtime/batch_size.h"
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

// The device budget that leaves about half of the layers to be streamed.
int64_t half_resident(const WeightMemory& weights) { return weights.bytes() * 6 / 10; }

}  // namespace

TEST_CASE("the minis on CUDA agree with the CPU in logits, loss and the ranking of layers", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const auto cpu = make_cpu_backend(DType::f32, 0);
    for (const char* name : {"mini-20", "mini-52"}) {
        CAPTURE(name);
        const test::Mini on_cpu(*cpu, name), on_gpu(*gpu, name);
        const Architecture& architecture = on_cpu.checkpoint.architecture();

        const double reference = on_cpu.reference["base"]["loss"];
        const Evaluation evaluation = evaluate(*gpu, {architecture, on_gpu.weights.weights()}, nullptr,
                                               on_gpu.corpus, on_gpu.windows, {});
        CHECK(std::abs(evaluation.loss - reference) < 5e-4);

        // Mean KL(CPU || CUDA) of the logits over one window.
        const std::vector<int32_t>& row = on_cpu.corpus.documents()[0].tokens;
        const std::vector<int32_t> tokens(row.begin(), row.begin() + 512);
        const auto expected = logits_of(*cpu, {architecture, on_cpu.weights.weights()}, tokens);
        const auto got = logits_of(*gpu, {architecture, on_gpu.weights.weights()}, tokens);
        double kl = 0;
        const int64_t vocab = architecture.vocab, rows = static_cast<int64_t>(tokens.size());
        for (int64_t t = 0; t < rows; ++t) {
            const float *p = &expected[t * vocab], *q = &got[t * vocab];
            double sum_p = 0, sum_q = 0;
            for (int64_t v = 0; v < vocab; ++v) sum_p += std::exp(p[v]), sum_q += std::exp(q[v]);
            for (int64_t v = 0; v < vocab; ++v)
                kl += std::exp(p[v]) / sum_p * ((p[v] - std::log(sum_p)) - (q[v] - std::log(sum_q)));
        }
        CHECK(kl / static_cast<double>(rows) <= 3e-4);

        std::vector<double> reference_deltas, deltas;
        const SweepResult scores =
            sweep_of(*gpu, on_gpu, on_gpu.weights.weights(), leave_one_out(architecture));
        const double base = mean(scores.base.loss, scores.tokens);
        for (std::size_t l = 0; l < architecture.layers.size(); ++l) {
            deltas.push_back(mean(scores.variants[l].loss, scores.tokens) - base);
            reference_deltas.push_back(on_cpu.reference["ablation"][l]["loss"].get<double>() - reference);
        }
        CHECK(spearman(deltas, reference_deltas).value() >= 0.998);
        WARN(name << ": loss " << evaluation.loss << " (reference " << reference << "), KL of logits "
                  << kl / static_cast<double>(rows) << ", Spearman of loss_delta "
                  << spearman(deltas, reference_deltas).value());
    }
}

TEST_CASE("each row of a sweep has the bits of that student alone, resident and streamed", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const char* name : {"mini-20", "mini-52"}) {
        CAPTURE(name);
        const test::Mini mini(*gpu, name);
        const Architecture& architecture = mini.checkpoint.architecture();
        const auto plans = leave_one_out(architecture);
        const SweepResult together = sweep_of(*gpu, mini, mini.weights.weights(), plans);
        const SweepResult again = sweep_of(*gpu, mini, mini.weights.weights(), plans);
        const auto source = checkpoint_source(mini.checkpoint);
        StreamedWeights streamed(*gpu, architecture, *source, StreamFrom::source,
                                 half_resident(mini.weights));
        CHECK(streamed.streamed_layers() > 4);
        const SweepResult from_stream = sweep_of(*gpu, mini, streamed, plans);
        CHECK(again.base.loss == together.base.loss);
        CHECK(from_stream.base.loss == together.base.loss);
        for (std::size_t l = 0; l < plans.size(); ++l) {
            CAPTURE(l);
            CHECK(again.variants[l].loss == together.variants[l].loss);
            CHECK(again.variants[l].kl == together.variants[l].kl);
            CHECK(from_stream.variants[l].loss == together.variants[l].loss);
            CHECK(from_stream.variants[l].hidden_mse == together.variants[l].hidden_mse);

            // The student as a model of its own, one window at a time.
            Architecture student = student_architecture(architecture, plans[l]);
            Weights kept = mini.weights.weights();
            kept.layers.erase(kept.layers.begin() + static_cast<std::ptrdiff_t>(l));
            const std::vector<Window> some(mini.windows.begin(), mini.windows.begin() + 3);
            const Evaluation alone = evaluate(*gpu, {student, kept}, nullptr, mini.corpus, some, {});
            for (std::size_t w = 0; w < some.size(); ++w)
                CHECK(alone.per_sequence_loss[w] == together.variants[l].loss[w]);
        }
    }
}

TEST_CASE("a sweep's bits do not depend on where its states lie", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const test::Mini mini(*gpu, "mini-52");
    const Architecture& architecture = mini.checkpoint.architecture();
    // The longer windows are compared in several pieces where states wait on the host.
    for (const auto& [count, length] : {std::pair{5, 256}, {2, 2000}}) {
        CAPTURE(length);
        WindowBatch batch = blank_batch(count, length);
        const CounterRandom random(3, "windows");
        for (int64_t i = 0; i < count; ++i) batch.windows.push_back(i);
        for (int64_t i = 0; i < count * length; ++i) {
            batch.tokens.push_back(static_cast<int32_t>(random.bits(2 * i) % architecture.vocab));
            batch.targets.push_back(static_cast<int32_t>(random.bits(2 * i + 1) % architecture.vocab));
        }
        VariantSweep reference(*gpu, architecture, mini.weights.weights(), leave_one_out(architecture),
                               nullptr);
        const SweepResult expected = reference.run(batch);
        const SweepMemory all = reference.plan(batch.batch, batch.length);
        CHECK(all.host_states == 0);
        for (const int64_t short_of : {1, 20, 53}) {
            VariantSweep spilled(*gpu, architecture, mini.weights.weights(), leave_one_out(architecture),
                                 nullptr);
            spilled.limit_memory(all.device_bytes - short_of * all.state_bytes, int64_t{1} << 34);
            const SweepMemory plan = spilled.plan(batch.batch, batch.length);
            CHECK(plan.host_states >= short_of);
            for (int again = 0; again < 2; ++again) {
                const SweepResult got = spilled.run(batch);
                CHECK(got.base.loss == expected.base.loss);
                for (std::size_t l = 0; l < architecture.layers.size(); ++l) {
                    CAPTURE(l, plan.host_states);
                    CHECK(got.variants[l].loss == expected.variants[l].loss);
                    CHECK(got.variants[l].kl == expected.variants[l].kl);
                    CHECK(got.variants[l].logit_nmse == expected.variants[l].logit_nmse);
                    CHECK(got.variants[l].hidden_mse == expected.variants[l].hidden_mse);
                }
            }
        }
    }
}
