#include "runtime/variant_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/batch_size.h"
#include "runtime/ffn_slice.h"

namespace minipuzzle {

namespace {

// One slot's per-token outputs of the head, [B*T] each.
struct SlotOutputs {
    int64_t slot = 0;
    LogitsComparison comparison;
};

std::vector<double> window_means(Backend& backend, const Tensor& per_token, const WindowBatch& batch) {
    const std::vector<float> values = to_host(backend, per_token);
    std::vector<double> means(batch.batch);
    for (int64_t b = 0; b < batch.batch; ++b) {
        double sum = 0;
        for (int64_t t = 0; t < batch.length; ++t) sum += values[b * batch.length + t];
        means[b] = sum / static_cast<double>(batch.length);
    }
    return means;
}

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
    std::vector<SlotOutputs> take_outputs(DeviceArena& arena, const std::vector<Tensor>& slots, int64_t rows);
    void read(const Tensor& base_loss, const Tensor& base_correct, const Tensor& base_power,
              const std::vector<SlotOutputs>& outputs, const WindowBatch& batch, SweepResult& result);
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

std::vector<SlotOutputs> VariantSweep::State::take_outputs(DeviceArena& arena,
                                                           const std::vector<Tensor>& slots, int64_t rows) {
    std::vector<int64_t> used = schedule.plan_slot;
    std::sort(used.begin(), used.end());
    used.erase(std::unique(used.begin(), used.end()), used.end());
    std::vector<SlotOutputs> outputs;
    for (int64_t slot : used) {
        const auto take = [&] {
            return arena.take("per-token metrics", {rows}, precise_type(backend.compute_type()));
        };
        outputs.push_back(
            {slot,
             {.variant = {.hidden = slots[slot].view({rows, architecture.width}), .head = weights->lm_head},
              .loss = take(),
              .correct = take(),
              .kl = take(),
              .agrees = take(),
              .error = take(),
              .hidden_mse = take(),
              .cosine = take()}});
    }
    return outputs;
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

    const std::vector<SlotOutputs> outputs = take_outputs(arena, slots, rows);
    CompareLogits compare{
        .base = {.hidden = slots[schedule.base_slot].view({rows, architecture.width}),
                 .head = weights->lm_head},
        .targets = targets,
        .base_loss = arena.take("per-token metrics", {rows}, precise_type(backend.compute_type())),
        .base_correct = arena.take("per-token metrics", {rows}, precise_type(backend.compute_type())),
        .base_power = arena.take("per-token metrics", {rows}, precise_type(backend.compute_type()))};
    compare.sequence_length = batch.length;
    for (const SlotOutputs& output : outputs) compare.variants.push_back(output.comparison);
    on.run(compare);
    if (!arena.is_measuring())
        read(compare.base_loss, compare.base_correct, compare.base_power, outputs, batch, result);
}

void VariantSweep::State::read(const Tensor& base_loss, const Tensor& base_correct, const Tensor& base_power,
                               const std::vector<SlotOutputs>& outputs, const WindowBatch& batch,
                               SweepResult& result) {
    result.tokens.assign(batch.batch, batch.length);
    result.base.loss = window_means(backend, base_loss, batch);
    result.base.accuracy = window_means(backend, base_correct, batch);
    const std::vector<double> power = window_means(backend, base_power, batch);
    std::map<int64_t, SequenceMetrics> by_slot;
    for (const auto& [slot, c] : outputs) {
        SequenceMetrics& m = by_slot[slot];
        m.loss = window_means(backend, c.loss, batch);
        m.accuracy = window_means(backend, c.correct, batch);
        m.kl = window_means(backend, c.kl, batch);
        m.top1_agreement = window_means(backend, c.agrees, batch);
        m.hidden_mse = window_means(backend, c.hidden_mse, batch);
        m.logit_nmse = window_means(backend, c.error, batch);
        for (int64_t b = 0; b < batch.batch; ++b) m.logit_nmse[b] /= power[b];
        m.cosine = window_means(backend, c.cosine, batch);
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
