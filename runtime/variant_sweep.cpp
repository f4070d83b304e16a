#include "runtime/variant_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "runtime/batch_progress.h"
#include "runtime/batch_size.h"
#include "runtime/ffn_slice.h"
#include "runtime/head_outputs.h"
#include "runtime/host_memory.h"
#include "runtime/live_states.h"

namespace minipuzzle {

struct VariantSweep::State {
    // Of a batch's shape.
    struct Layout {
        StatePlan states;
        int64_t arena_bytes = 0, device_bytes = 0;  // the latter with scratch
        std::string table;
    };

    Backend& backend;
    const Architecture& architecture;
    WeightSource weights;
    std::vector<StudentPlan> plans;
    const WidthScores* width_scores;
    SweepSchedule schedule;
    MeasuredRunner runner;
    std::optional<int64_t> device_limit, host_limit;
    std::map<std::pair<int64_t, int64_t>, Layout> layouts;  // by batch and length
    std::byte* pinned = nullptr;                            // the states that wait on the host
    int64_t pinned_bytes = 0;
    std::string table;  // of the last batch
    LayerObserver* observer = nullptr;

    State(Backend& b, const Architecture& a, WeightSource w, std::vector<StudentPlan> p, const WidthScores* s)
        : backend(b),
          architecture(a),
          weights(w),
          plans(std::move(p)),
          width_scores(s),
          schedule(make_schedule(a, plans)),
          runner(b) {}
    ~State() {
        if (pinned) backend.free_pinned(pinned);
    }

    Tensor state_shape(int64_t batch, int64_t length) const {
        return {nullptr, backend.compute_type(), {batch, length, architecture.width}, backend.device()};
    }
    StatePlan all_resident() const { return plan_states(schedule, schedule.slots); }
    int64_t room();  // of the device, before the sweep took any of it
    int64_t peak_of(const StatePlan& states, int64_t batch, int64_t length);
    const Layout& layout_of(int64_t batch, int64_t length);
    void check_host(const StatePlan& states, int64_t state_bytes);
    void reserve_pinned(int64_t bytes);

    void wire(Backend& on, DeviceArena& arena, const WindowBatch& batch, const StatePlan& plan,
              BatchProgress* progress, SweepResult& result);
    std::vector<int32_t> neurons(const DeviceArena& arena, int64_t layer, int64_t width) const;
    void apply_layers(HybridModel& model, Backend& on, DeviceArena& arena, LiveStates& states,
                      const WindowBatch& batch, BatchProgress* progress);
    std::vector<SlotOutputs> take_outputs(DeviceArena& arena, int64_t rows) const;
    void compare(HybridModel& model, Backend& on, DeviceArena& arena, LiveStates& states,
                 const Tensor& targets, const TokenMetrics& base, const std::vector<SlotOutputs>& outputs,
                 const WindowBatch& batch);
    CompareLogits comparison(const std::vector<Tensor>& hidden, const Tensor& targets, int64_t begin,
                             int64_t length, const TokenMetrics& base,
                             const std::vector<SlotOutputs>& outputs) const;
    void read(const TokenMetrics& base, const std::vector<SlotOutputs>& outputs, const WindowBatch& batch,
              SweepResult& result);
};

int64_t VariantSweep::State::room() {
    if (!device_limit) device_limit = usable_memory(backend);
    return *device_limit;
}

int64_t VariantSweep::State::peak_of(const StatePlan& states, int64_t batch, int64_t length) {
    SweepResult unused;
    const WindowBatch blank = blank_batch(batch, length);
    return runner.peak_of(
        [&](Backend& on, DeviceArena& arena) { wire(on, arena, blank, states, nullptr, unused); });
}

// All states on the device where they fit, else as many as fit beside the buffers that the others take.
const VariantSweep::State::Layout& VariantSweep::State::layout_of(int64_t batch, int64_t length) {
    const std::pair shape(batch, length);
    if (const auto known = layouts.find(shape); known != layouts.end()) return known->second;
    Layout layout{.states = all_resident()};
    layout.device_bytes = peak_of(layout.states, batch, length);
    if (layout.device_bytes > room()) {
        int64_t fit = 0, too_many = schedule.slots;  // the least is taken whether it fits or not
        while (too_many - fit > 1) {
            const int64_t some = (fit + too_many) / 2;
            (peak_of(plan_states(schedule, some), batch, length) <= room() ? fit : too_many) = some;
        }
        layout.states = plan_states(schedule, fit);
        check_host(layout.states, state_shape(batch, length).bytes());
        layout.device_bytes = peak_of(layout.states, batch, length);
    }
    layout.arena_bytes = layout.device_bytes - runner.scratch_bytes();
    layout.table = runner.table();
    return layouts.emplace(shape, std::move(layout)).first->second;
}

void VariantSweep::State::check_host(const StatePlan& states, int64_t state_bytes) {
    if (!host_limit) host_limit = available_host_memory() + pinned_bytes;
    const int64_t bytes = states.host_states() * state_bytes;
    if (bytes <= *host_limit) return;
    const auto gib = [](int64_t count) { return static_cast<double>(count) / (1 << 30); };
    throw Error(ErrorKind::out_of_memory,
                fmt::format("{} of {} live states ({:.2f} GiB) do not fit the device and must wait in host "
                            "memory, which has {:.2f} GiB free: {:.2f} GiB are missing; use shorter "
                            "sequences or a smaller --weight-memory",
                            states.host_states(), schedule.slots, gib(bytes), gib(*host_limit),
                            gib(bytes - *host_limit)));
}

void VariantSweep::State::reserve_pinned(int64_t bytes) {
    if (bytes <= pinned_bytes) return;
    if (pinned) backend.free_pinned(pinned);
    pinned = nullptr;
    pinned_bytes = 0;
    pinned = backend.allocate_pinned(bytes);
    pinned_bytes = bytes;
}

// A dry run may come before the neurons are ranked: it needs their number only.
std::vector<int32_t> VariantSweep::State::neurons(const DeviceArena& arena, int64_t layer,
                                                  int64_t width) const {
    if (arena.is_measuring()) return std::vector<int32_t>(width);
    MP_ASSERT(width_scores != nullptr);
    return kept_neurons(*width_scores, layer, width);
}

void VariantSweep::State::apply_layers(HybridModel& model, Backend& on, DeviceArena& arena,
                                       LiveStates& states, const WindowBatch& batch,
                                       BatchProgress* progress) {
    const int64_t tokens = batch.batch * batch.length;
    for (int64_t layer = 0; layer < std::ssize(schedule.layers); ++layer) {
        ArenaScope scope(arena);
        std::map<int64_t, FfnWeights> narrowed;
        Work work;
        for (const SweepSchedule::Step& step : schedule.layers[layer]) {
            const LiveStates::Step state = states.begin_step();
            if (step.ffn_width < 0) {
                model.set_observer(step.base ? observer : nullptr);
                model.apply(layer, state.from, state.to);
            } else {
                if (!narrowed.count(step.ffn_width))
                    narrowed[step.ffn_width] = slice_ffn(on, arena, std::get<FfnWeights>(model.use(layer)),
                                                         neurons(arena, layer, step.ffn_width));
                model.apply_ffn(narrowed[step.ffn_width], state.from, state.to);
            }
            states.end_step();
            if (progress) work += step_work(architecture, layer, step, tokens, batch.length);
        }
        if (progress) progress->done(work);
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

// `hidden` of each slot and `targets` are `rows` rows of sequences of `length`, from row `begin` of the batch
// on.
CompareLogits VariantSweep::State::comparison(const std::vector<Tensor>& hidden, const Tensor& targets,
                                              int64_t begin, int64_t length, const TokenMetrics& base,
                                              const std::vector<SlotOutputs>& outputs) const {
    const int64_t rows = targets.size(0);
    const auto head_of = [&](int64_t slot) {
        return LmHead{.hidden = hidden[slot], .head = weights->lm_head};
    };
    const auto part = [&](const TokenMetrics& metrics, int64_t metric) {
        return metrics.row(metric).slice(begin, rows);
    };
    CompareLogits compare{.base = head_of(schedule.base_slot),
                          .targets = targets,
                          .base_loss = part(base, kBaseLoss),
                          .base_correct = part(base, kBaseCorrect),
                          .base_power = part(base, kBasePower)};
    compare.sequence_length = length;
    for (const auto& [slot, metrics] : outputs)
        compare.variants.push_back({.variant = head_of(slot),
                                    .loss = part(metrics, kLoss),
                                    .correct = part(metrics, kCorrect),
                                    .kl = part(metrics, kKl),
                                    .agrees = part(metrics, kAgrees),
                                    .error = part(metrics, kError),
                                    .hidden_mse = part(metrics, kHiddenMse),
                                    .cosine = part(metrics, kCosine)});
    return compare;
}

// Final norm and head. Where all states are resident, of all rows at once; else some rows of every state at a
// time, those of host states loaded into one of two buffers while the other is compared.
void VariantSweep::State::compare(HybridModel& model, Backend& on, DeviceArena& arena, LiveStates& states,
                                  const Tensor& targets, const TokenMetrics& base,
                                  const std::vector<SlotOutputs>& outputs, const WindowBatch& batch) {
    const int64_t width = architecture.width, rows = batch.batch * batch.length;
    for (int64_t slot = 0; slot < schedule.slots; ++slot)
        if (const Tensor& state = states.resident(slot)) model.final_norm(state, state);
    const HeadChunks chunks(batch, states.host_states() > 0);
    Tensor buffers[2];
    CopyQueue::Ticket loaded[2] = {};
    const auto load = [&](int64_t chunk) {
        if (chunk >= chunks.count()) return;
        loaded[chunk % 2] = states.load_rows(chunks[chunk].begin, chunks[chunk].count, buffers[chunk % 2]);
    };
    if (states.host_states() > 0) {
        for (Tensor& buffer : buffers)
            buffer = arena.take("final rows of states", {states.host_states() * chunks[0].count, width});
        load(0);
    }
    for (int64_t i = 0; i < chunks.count(); ++i) {
        const auto [begin, count, length] = chunks[i];
        std::vector<Tensor> hidden;
        if (states.host_states() > 0) {
            states.operations_wait(loaded[i % 2]);
            load(i + 1);
            const Tensor gathered = buffers[i % 2]
                                        .slice(0, states.host_states() * count)
                                        .view({states.host_states(), count, width});
            model.final_norm(gathered, gathered);
        }
        for (int64_t slot = 0; slot < schedule.slots; ++slot) {
            const Tensor& resident = states.resident(slot);
            hidden.push_back(resident ? resident.view({rows, width}).slice(begin, count)
                                      : buffers[i % 2].slice(states.host_index(slot) * count, count));
        }
        on.run(comparison(hidden, targets.slice(begin, count), begin, length, base, outputs));
    }
}

void VariantSweep::State::wire(Backend& on, DeviceArena& arena, const WindowBatch& batch,
                               const StatePlan& plan, BatchProgress* progress, SweepResult& result) {
    const int64_t rows = batch.batch * batch.length;
    const Tensor tokens = arena.take("tokens", {batch.batch, batch.length}, DType::i32);
    const Tensor targets = arena.take("targets", {rows}, DType::i32);
    on.copy(tokens.data, reinterpret_cast<const std::byte*>(batch.tokens.data()), tokens.bytes());
    on.copy(targets.data, reinterpret_cast<const std::byte*>(batch.targets.data()), targets.bytes());
    LiveStates states(on, arena, schedule, plan, state_shape(batch.batch, batch.length),
                      arena.is_measuring() ? nullptr : pinned);
    HybridModel model(on, arena, architecture, weights);
    if (progress) progress->begin();
    {
        ArenaScope scope(arena);
        states.begin_layers();
        model.embed(tokens, states.begin_step().to);
        states.end_step();
        apply_layers(model, on, arena, states, batch, progress);
        states.end_layers();
    }
    const TokenMetrics base(arena, kBaseMetrics, rows, precise_type(backend.compute_type()));
    const std::vector<SlotOutputs> outputs = take_outputs(arena, rows);
    compare(model, on, arena, states, targets, base, outputs, batch);
    if (arena.is_measuring()) return;
    read(base, outputs, batch, result);
    if (progress) {
        progress->done(head_work(architecture, schedule, rows));
        progress->end();
    }
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
void VariantSweep::observe(LayerObserver* observer) {
    state_->observer = observer;
    state_->layouts.clear();  // what it takes of the arena counts
}

void VariantSweep::limit_memory(int64_t device_bytes, int64_t host_bytes) {
    state_->device_limit = device_bytes;
    state_->host_limit = host_bytes;
    state_->layouts.clear();
}

SweepResult VariantSweep::run(const WindowBatch& batch, const SweepProgress& tell) {
    State& state = *state_;
    SweepResult result;
    const State::Layout& layout = state.layout_of(batch.batch, batch.length);
    state.reserve_pinned(layout.states.host_states() * state.state_shape(batch.batch, batch.length).bytes());
    state.table = layout.table;
    BatchProgress progress(state.backend, tell);
    state.runner.run_in(layout.arena_bytes, [&](Backend& on, DeviceArena& arena) {
        state.wire(on, arena, batch, layout.states, &progress, result);
    });
    const int64_t tokens = batch.batch * batch.length;
    result.multiply_adds = shared_multiply_adds(state.architecture, state.schedule, tokens, batch.length);
    result.separate_multiply_adds =
        separate_multiply_adds(state.architecture, state.plans, tokens, batch.length);
    return result;
}

int64_t VariantSweep::batch_tokens(const std::vector<Window>& windows) {
    State& state = *state_;
    if (state.backend.device() != DeviceKind::cpu)
        return tokens_that_fit(state.room(), windows, [&](int64_t batch, int64_t length) {
            return state.peak_of(state.all_resident(), batch, length);
        });
    const int64_t bytes_per_token =
        state.schedule.slots * state.architecture.width * bytes_of(state.backend.compute_type());
    return std::clamp((int64_t{1} << 30) / bytes_per_token, int64_t{512}, int64_t{4096});
}

SweepMemory VariantSweep::plan(int64_t batch, int64_t length) {
    const State::Layout& layout = state_->layout_of(batch, length);
    return {.batch = batch,
            .length = length,
            .states = state_->schedule.slots,
            .state_bytes = state_->state_shape(batch, length).bytes(),
            .host_states = layout.states.host_states(),
            .device_bytes = layout.device_bytes,
            .table = layout.table};
}

int64_t VariantSweep::memory_bytes() const { return state_->runner.peak(); }
const std::string& VariantSweep::memory_table() const { return state_->table; }

}  // namespace minipuzzle
