#include "runtime/variant_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/batch_size.h"
#include "runtime/ffn_slice.h"

namespace minipuzzle {

namespace {

// Per-token outputs of the head that are read in one copy: a row of [B*T] each.
struct TokenMetrics {
    Tensor block;

    TokenMetrics(DeviceArena& arena, int64_t metrics, int64_t tokens, DType dtype)
        : block(arena.take("per-token metrics", {metrics, tokens}, dtype)) {}
    Tensor row(int64_t metric) const { return block.slice(metric, 1).view({block.size(1)}); }
    // Of each metric the means over windows.
    std::vector<std::vector<double>> window_means(Backend& backend, const WindowBatch& batch) const;
};

std::vector<std::vector<double>> TokenMetrics::window_means(Backend& backend,
                                                            const WindowBatch& batch) const {
    const std::vector<float> values = to_host(backend, block);
    std::vector<std::vector<double>> means(block.size(0), std::vector<double>(batch.batch));
    auto value = values.begin();
    for (std::vector<double>& of_metric : means)
        for (double& mean : of_metric) {
            double sum = 0;
            for (int64_t t = 0; t < batch.length; ++t) sum += *value++;
            mean = sum / static_cast<double>(batch.length);
        }
    return means;
}

enum BaseMetric { kBaseLoss, kBaseCorrect, kBasePower, kBaseMetrics };
enum VariantMetric { kLoss, kCorrect, kKl, kAgrees, kError, kHiddenMse, kCosine, kVariantMetrics };

// What the head says of one slot.
struct SlotOutputs {
    int64_t slot = 0;
    TokenMetrics metrics;
};

}  // namespace

double mean(const std::vector<double>& per_window, const std::vector<int64_t>& tokens) {
    MP_ASSERT(per_window.size() == tokens.size());
    double sum = 0, count = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        sum += per_window[i] * static_cast<double>(tokens[i]);
        count += static_cast<double>(tokens[i]);
    }
    return sum / count;
}

struct VariantSweep::State {
    Backend& backend;
    const Architecture& architecture;
    WeightSource weights;
    std::vector<StudentPlan> plans;
    const WidthScores* width_scores;
    SweepSchedule schedule;
    MeasuredRunner runner;
    LayerObserver* observer = nullptr;

    State(Backend& b, const Architecture& a, WeightSource w, std::vector<StudentPlan> p, const WidthScores* s)
        : backend(b),
          architecture(a),
          weights(w),
          plans(std::move(p)),
          width_scores(s),
          schedule(make_schedule(a, plans)),
          runner(b) {}

    void wire(Backend& on, DeviceArena& arena, const WindowBatch& batch, SweepResult& result);
    std::vector<int32_t> neurons(const DeviceArena& arena, int64_t layer, int64_t width) const;
    void apply_layers(HybridModel& model, Backend& on, DeviceArena& arena, const std::vector<Tensor>& slots);
    std::vector<SlotOutputs> take_outputs(DeviceArena& arena, int64_t rows) const;
    CompareLogits comparison(const std::vector<Tensor>& slots, const Tensor& targets,
                             const TokenMetrics& base, const std::vector<SlotOutputs>& outputs) const;
    void read(const TokenMetrics& base, const std::vector<SlotOutputs>& outputs, const WindowBatch& batch,
              SweepResult& result);
};

// A dry run may come before the neurons are ranked: it needs their number only.
std::vector<int32_t> VariantSweep::State::neurons(const DeviceArena& arena, int64_t layer,
                                                  int64_t width) const {
    if (arena.is_measuring()) return std::vector<int32_t>(width);
    MP_ASSERT(width_scores != nullptr);
    return kept_neurons(*width_scores, layer, width);
}

void VariantSweep::State::apply_layers(HybridModel& model, Backend& on, DeviceArena& arena,
                                       const std::vector<Tensor>& slots) {
    for (std::size_t layer = 0; layer < schedule.layers.size(); ++layer) {
        ArenaScope scope(arena);
        std::map<int64_t, FfnWeights> narrowed;
        for (const SweepSchedule::Step& step : schedule.layers[layer]) {
            if (step.ffn_width < 0) {
                model.set_observer(step.base ? observer : nullptr);
                model.apply(static_cast<int64_t>(layer), slots[step.from], slots[step.to]);
                continue;
            }
            if (!narrowed.count(step.ffn_width))
                narrowed[step.ffn_width] =
                    slice_ffn(on, arena, std::get<FfnWeights>(model.use(static_cast<int64_t>(layer))),
                              neurons(arena, static_cast<int64_t>(layer), step.ffn_width));
            model.apply_ffn(narrowed[step.ffn_width], slots[step.from], slots[step.to]);
        }
    }
}

std::vector<SlotOutputs> VariantSweep::State::take_outputs(DeviceArena& arena, int64_t rows) const {
    std::vector<int64_t> used = schedule.plan_slot;
    std::sort(used.begin(), used.end());
    used.erase(std::unique(used.begin(), used.end()), used.end());
    std::vector<SlotOutputs> outputs;
    for (int64_t slot : used)
        outputs.push_back({slot, {arena, kVariantMetrics, rows, precise_type(backend.compute_type())}});
    return outputs;
}

CompareLogits VariantSweep::State::comparison(const std::vector<Tensor>& slots, const Tensor& targets,
                                              const TokenMetrics& base,
                                              const std::vector<SlotOutputs>& outputs) const {
    const auto head_of = [&](int64_t slot) {
        return LmHead{.hidden = slots[slot].view({targets.size(0), architecture.width}),
                      .head = weights->lm_head};
    };
    CompareLogits compare{.base = head_of(schedule.base_slot),
                          .targets = targets,
                          .base_loss = base.row(kBaseLoss),
                          .base_correct = base.row(kBaseCorrect),
                          .base_power = base.row(kBasePower)};
    compare.sequence_length = slots.front().size(1);
    for (const auto& [slot, metrics] : outputs)
        compare.variants.push_back({.variant = head_of(slot),
                                    .loss = metrics.row(kLoss),
                                    .correct = metrics.row(kCorrect),
                                    .kl = metrics.row(kKl),
                                    .agrees = metrics.row(kAgrees),
                                    .error = metrics.row(kError),
                                    .hidden_mse = metrics.row(kHiddenMse),
                                    .cosine = metrics.row(kCosine)});
    return compare;
}

void VariantSweep::State::wire(Backend& on, DeviceArena& arena, const WindowBatch& batch,
                               SweepResult& result) {
    const int64_t rows = batch.batch * batch.length;
    const Tensor tokens = arena.take("tokens", {batch.batch, batch.length}, DType::i32);
    const Tensor targets = arena.take("targets", {rows}, DType::i32);
    on.copy(tokens.data, reinterpret_cast<const std::byte*>(batch.tokens.data()), tokens.bytes());
    on.copy(targets.data, reinterpret_cast<const std::byte*>(batch.targets.data()), targets.bytes());
    std::vector<Tensor> slots;
    for (int64_t i = 0; i < schedule.slots; ++i)
        slots.push_back(arena.take("live states", {batch.batch, batch.length, architecture.width}));

    HybridModel model(on, arena, architecture, weights);
    model.embed(tokens, slots[0]);
    apply_layers(model, on, arena, slots);
    for (const Tensor& slot : slots) model.final_norm(slot, slot);

    const TokenMetrics base(arena, kBaseMetrics, rows, precise_type(backend.compute_type()));
    const std::vector<SlotOutputs> outputs = take_outputs(arena, rows);
    on.run(comparison(slots, targets, base, outputs));
    if (!arena.is_measuring()) read(base, outputs, batch, result);
}

void VariantSweep::State::read(const TokenMetrics& base, const std::vector<SlotOutputs>& outputs,
                               const WindowBatch& batch, SweepResult& result) {
    result.tokens.assign(batch.batch, batch.length);
    auto base_means = base.window_means(backend, batch);
    result.base.loss = std::move(base_means[kBaseLoss]);
    result.base.accuracy = std::move(base_means[kBaseCorrect]);
    const std::vector<double>& power = base_means[kBasePower];
    std::map<int64_t, SequenceMetrics> by_slot;
    for (const auto& [slot, metrics] : outputs) {
        auto means = metrics.window_means(backend, batch);
        for (int64_t b = 0; b < batch.batch; ++b) means[kError][b] /= power[b];
        by_slot[slot] = {.loss = std::move(means[kLoss]),
                         .accuracy = std::move(means[kCorrect]),
                         .kl = std::move(means[kKl]),
                         .top1_agreement = std::move(means[kAgrees]),
                         .hidden_mse = std::move(means[kHiddenMse]),
                         .logit_nmse = std::move(means[kError]),
                         .cosine = std::move(means[kCosine])};
    }
    for (int64_t slot : schedule.plan_slot) result.variants.push_back(by_slot[slot]);
    for (int64_t b = 0; b < batch.batch; ++b) {
        const auto check = [&](double loss, const std::string& whose) {
            if (!std::isfinite(loss))
                throw Error(ErrorKind::other,
                            fmt::format("the loss of {} is {} in window {}: look at that text, "
                                        "or at the model's weights",
                                        whose, loss, batch.windows[b]));
        };
        check(result.base.loss[b], "the model");
        for (std::size_t i = 0; i < plans.size(); ++i)
            check(result.variants[i].loss[b], fmt::format("variant {}", i));
    }
}

VariantSweep::VariantSweep(Backend& backend, const Architecture& architecture, WeightSource weights,
                           std::vector<StudentPlan> plans, const WidthScores* width_scores)
    : state_(std::make_unique<State>(backend, architecture, weights, std::move(plans), width_scores)) {}
VariantSweep::~VariantSweep() = default;
void VariantSweep::observe(LayerObserver* observer) { state_->observer = observer; }

SweepResult VariantSweep::run(const WindowBatch& batch) {
    SweepResult result;
    state_->runner.run([&](Backend& on, DeviceArena& arena) { state_->wire(on, arena, batch, result); });
    const int64_t tokens = batch.batch * batch.length;
    result.multiply_adds = shared_multiply_adds(state_->architecture, state_->schedule, tokens, batch.length);
    result.separate_multiply_adds =
        separate_multiply_adds(state_->architecture, state_->plans, tokens, batch.length);
    return result;
}

int64_t VariantSweep::batch_tokens(const std::vector<Window>& windows) {
    State& state = *state_;
    if (state.backend.device() != DeviceKind::cpu)
        return tokens_that_fit(state.backend, windows, [&](int64_t batch, int64_t length) {
            SweepResult unused;
            const WindowBatch blank = blank_batch(batch, length);
            return state.runner.peak_of(
                [&](Backend& on, DeviceArena& arena) { state.wire(on, arena, blank, unused); });
        });
    const int64_t bytes_per_token =
        state.schedule.slots * state.architecture.width * bytes_of(state.backend.compute_type());
    return std::clamp((int64_t{1} << 30) / bytes_per_token, int64_t{512}, int64_t{4096});
}

int64_t VariantSweep::memory_bytes() const { return state_->runner.peak(); }
const std::string& VariantSweep::memory_table() const { return state_->runner.table(); }

namespace {

void scatter_metrics(const SequenceMetrics& from, const std::vector<int64_t>& windows, int64_t total,
                     SequenceMetrics& into) {
    for (auto member : {&SequenceMetrics::loss, &SequenceMetrics::accuracy, &SequenceMetrics::kl,
                        &SequenceMetrics::top1_agreement, &SequenceMetrics::hidden_mse,
                        &SequenceMetrics::logit_nmse, &SequenceMetrics::cosine}) {
        const std::vector<double>& values = from.*member;
        if (values.empty()) continue;
        (into.*member).resize(total);
        for (std::size_t i = 0; i < windows.size(); ++i) (into.*member)[windows[i]] = values[i];
    }
}

}  // namespace

void scatter(const SweepResult& from, const std::vector<int64_t>& windows, int64_t total_windows,
             SweepResult& into) {
    into.tokens.resize(total_windows);
    for (std::size_t i = 0; i < windows.size(); ++i) into.tokens[windows[i]] = from.tokens[i];
    scatter_metrics(from.base, windows, total_windows, into.base);
    into.variants.resize(from.variants.size());
    for (std::size_t v = 0; v < from.variants.size(); ++v)
        scatter_metrics(from.variants[v], windows, total_windows, into.variants[v]);
    into.multiply_adds += from.multiply_adds;
    into.separate_multiply_adds += from.separate_multiply_adds;
}

SweepResult sweep(Backend& backend, const Architecture& architecture, WeightSource weights,
                  const std::vector<StudentPlan>& plans, const WidthScores* width_scores,
                  const Corpus& corpus, const std::vector<Window>& windows, const RunControl& control) {
    VariantSweep variant_sweep(backend, architecture, weights, plans, width_scores);
    const std::vector<WindowBatch> batches =
        batch_windows(corpus, windows, variant_sweep.batch_tokens(windows));
    const double total_tokens = std::accumulate(windows.begin(), windows.end(), 0.0,
                                                [](double sum, const Window& w) { return sum + w.length; });
    SweepResult result;
    double done = 0;
    for (const WindowBatch& batch : batches) {
        if (control.stopping()) throw Interrupted{"the sweep was stopped; nothing was kept"};
        scatter(variant_sweep.run(batch), batch.windows, static_cast<int64_t>(windows.size()), result);
        done += static_cast<double>(batch.batch * batch.length);
        control.report(
            {.what = "measuring", .done = done, .total = total_tokens, .unit = "tokens", .detail = ""});
    }
    return result;
}

}  // namespace minipuzzle
