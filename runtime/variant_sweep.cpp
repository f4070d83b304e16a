#include "runtime/variant_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <numeric>

#include "runtime/batch_size.h"
#include "runtime/ffn_slice.h"
#include "runtime/host_memory.h"
#include "runtime/live_states.h"
#include "runtime/work_progress.h"

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

namespace {

// Rows of a sequence that the head takes at once of states that wait in host memory: whole row blocks of the
// CPU's comparison and of the CUDA one's products, so that a row's bits do not depend on it.
constexpr int64_t kHeadRows = 768;

// The head's share of a batch's rows at a time: all of them, or pieces of one sequence.
class HeadChunks {
  public:
    struct Chunk {
        int64_t begin = 0, count = 0, length = 0;  // rows of the batch; of a sequence among them
    };
    HeadChunks(const WindowBatch& batch, bool in_pieces) {
        if (!in_pieces) {
            chunks_.push_back({0, batch.batch * batch.length, batch.length});
            return;
        }
        for (int64_t sequence = 0; sequence < batch.batch; ++sequence)
            for (int64_t row = 0; row < batch.length; row += kHeadRows) {
                const int64_t count = std::min(kHeadRows, batch.length - row);
                chunks_.push_back({sequence * batch.length + row, count, count});
            }
    }
    int64_t count() const { return std::ssize(chunks_); }
    const Chunk& operator[](int64_t chunk) const { return chunks_[chunk]; }

  private:
    std::vector<Chunk> chunks_;
};

// Tells of work that is done: at once where operations end when their call returns, else about once a second,
// after a wait for the device.
class BatchProgress {
  public:
    BatchProgress(Backend& backend, const SweepProgress& tell) : backend_(backend), tell_(tell) {}

    void begin() {
        told_ = Clock::now();
        if (tell_) tell_({});
    }
    void done(const Work& work) {
        undone_ += work;
        if (!tell_) return;
        if (backend_.device() != DeviceKind::cpu) {
            if (Clock::now() - told_ < kInterval) return;
            backend_.synchronize();
        }
        tell();
    }
    // Everything is, the device waited for.
    void end() {
        if (tell_) tell();
    }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::seconds kInterval{1};

    void tell() {
        told_ = Clock::now();
        tell_(std::exchange(undone_, {}));
    }

    Backend& backend_;
    const SweepProgress& tell_;
    Clock::time_point told_{};
    Work undone_;  // not told of yet
};

}  // namespace

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

// All states on the device where they fit; else none, plus as many as what is left holds.
const VariantSweep::State::Layout& VariantSweep::State::layout_of(int64_t batch, int64_t length) {
    const std::pair shape(batch, length);
    if (const auto known = layouts.find(shape); known != layouts.end()) return known->second;
    const int64_t state_bytes = state_shape(batch, length).bytes();
    Layout layout{.states = all_resident()};
    layout.device_bytes = peak_of(layout.states, batch, length);
    if (layout.device_bytes > room()) {
        const int64_t least = peak_of(plan_states(schedule, 0), batch, length);
        const int64_t resident = std::max<int64_t>(0, room() - least) / DeviceArena::aligned(state_bytes);
        layout.states = plan_states(schedule, std::min(resident, schedule.slots - 1));
        check_host(layout.states, state_bytes);
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
            const Tensor gathered = buffers[i % 2].slice(0, states.host_states() * count);
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
void VariantSweep::observe(LayerObserver* observer) { state_->observer = observer; }

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
    const SweepSchedule schedule = make_schedule(architecture, plans);
    WorkProgress progress("measuring", control);
    for (const Window& window : windows)
        progress.announce(schedule_work(architecture, schedule, window.length, window.length));
    const auto tell = [&](const Work& done) {
        if (control.stopping()) throw Interrupted{"the sweep was stopped; nothing was kept"};
        progress.advance(done);
    };
    SweepResult result;
    for (const WindowBatch& batch : batches)
        scatter(variant_sweep.run(batch, tell), batch.windows, static_cast<int64_t>(windows.size()), result);
    return result;
}

}  // namespace minipuzzle
