#include "cli/bench_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>

#include "cli/bench/timing.h"
#include "cli/opened_model.h"
#include "cli/table.h"
#include "cli/units.h"
#include "kernels/random.h"
#include "runtime/batch_size.h"
#include "runtime/variant_sweep.h"

namespace minipuzzle::cli {
namespace {

constexpr const char* kFormat = "minipuzzle.bench/1";

constexpr double kLongPass = 3000;      // ms: a pass that takes longer is timed once
constexpr double kLongSweep = 1e16;     // multiply-adds: so long that only what was asked for is timed
constexpr int64_t kWarmUpTokens = 128;  // of the short pass that chooses algorithms
constexpr int64_t kExtrapolated = 128;  // sequences

WindowBatch random_batch(int64_t vocab, int64_t batch, int64_t length, uint64_t seed, int64_t number) {
    WindowBatch tokens = blank_batch(batch, length);
    const CounterRandom random(seed, fmt::format("bench tokens {}", number));
    for (int64_t i = 0; i < batch; ++i) tokens.windows.push_back(i);
    for (int64_t i = 0; i < batch * length; ++i) {
        tokens.tokens.push_back(static_cast<int32_t>(random.bits(2 * i) % static_cast<uint64_t>(vocab)));
        tokens.targets.push_back(static_cast<int32_t>(random.bits(2 * i + 1) % static_cast<uint64_t>(vocab)));
    }
    return tokens;
}

double seconds_of(const std::function<void()>& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t sequences(const BenchCommand& command) {
    return command.samples > 0 ? command.samples : command.batch;
}

std::vector<StudentPlan> plans_of(const BenchCommand& command, const Architecture& architecture) {
    return command.sweep ? leave_one_out(architecture) : std::vector<StudentPlan>();
}

// One way of holding the weights, timed.
struct Row {
    std::string weights;  // "resident", "streamed", "streamed, no overlap"
    double ms = 0, tflops = 0, load_seconds = 0;
    int64_t weight_bytes = 0, arena_bytes = 0, streamed_bytes = 0, peak_bytes = 0;
    int64_t states = 0, host_states = 0;
    double loss = 0;
};

// A model in memory, as long as it takes to time passes over it.
class Passes {
  public:
    Passes(Backend& backend, const WeightOptions& weights, const Context& context,
           const BenchCommand& command, int64_t free_before)
        : backend_(backend), free_before_(free_before) {
        load_seconds_ = seconds_of([&] { model_.emplace(backend, command.model, weights, context); });
        const Architecture& architecture = model_->architecture();
        sweep_.emplace(backend, architecture, model_->weights(), plans_of(command, architecture), nullptr);
        for (int64_t first = 0; first < sequences(command); first += command.batch)
            batches_.push_back(random_batch(architecture.vocab,
                                            std::min(command.batch, sequences(command) - first),
                                            command.prefill, context.seed(), std::ssize(batches_)));
        sweep_->run(random_batch(architecture.vocab, 1, std::min(kWarmUpTokens, command.prefill),
                                 context.seed(), -1));
    }

    OpenedModel& model() { return *model_; }
    const std::string& memory_table() const { return sweep_->memory_table(); }

    Row measure(const std::string& how) {
        Row row{.weights = how, .load_seconds = load_seconds_};
        double multiply_adds = 0;
        const auto pass = [&] {
            multiply_adds = 0;
            for (std::size_t i = 0; i < batches_.size(); ++i) {
                const SweepResult result = sweep_->run(batches_[i]);
                multiply_adds += result.multiply_adds;
                if (i == 0) row.loss = mean(result.base.loss, result.tokens);
            }
        };
        row.ms = 1e3 * seconds_of(pass);
        if (row.ms < kLongPass) row.ms = bench::median_ms(pass);
        row.tflops = 2 * multiply_adds / row.ms * 1e-9;
        row.arena_bytes = sweep_->memory_bytes();
        row.weight_bytes = model_->device_bytes();
        row.peak_bytes = backend_.device() == DeviceKind::cpu ? row.weight_bytes + row.arena_bytes
                                                              : free_before_ - backend_.available();
        const SweepMemory memory = sweep_->plan(batches_.front().batch, batches_.front().length);
        row.states = memory.states;
        row.host_states = memory.host_states;
        if (model_->streamed()) row.streamed_bytes = model_->streamed()->streamed_bytes();
        return row;
    }

  private:
    Backend& backend_;
    int64_t free_before_;  // of the device's memory, before anything was taken
    double load_seconds_ = 0;
    std::optional<OpenedModel> model_;
    std::optional<VariantSweep> sweep_;
    std::vector<WindowBatch> batches_;
};

void add_resident(Backend& backend, const Context& context, const BenchCommand& command, int64_t free_before,
                  std::vector<Row>& rows) {
    WeightOptions options = command.weights;
    options.weight_memory = 0;
    Passes passes(backend, options, context, command, free_before);
    rows.push_back(passes.measure("resident"));
    context.console.detail("activations and scratch at their peak:\n" + passes.memory_table());
}

bool is_long(const Context& context, const BenchCommand& command) {
    const ModelSource model(command.model, command.weights, context.seed());
    const SweepSchedule schedule = make_schedule(model.architecture, plans_of(command, model.architecture));
    return shared_multiply_adds(model.architecture, schedule, sequences(command) * command.prefill,
                                command.prefill) > kLongSweep;
}

std::vector<Row> measure_all(Backend& backend, const Context& context, const BenchCommand& command) {
    const int64_t free_before = backend.available();
    std::vector<Row> rows;
    if (command.weights.weight_memory == 0) {
        add_resident(backend, context, command, free_before, rows);
        return rows;
    }
    const bool alone = is_long(context, command);
    if (alone)
        context.console.note(
            "one pass is long: only streamed weights are timed, once; leave --weight-memory "
            "out for resident ones");
    try {
        if (!alone) add_resident(backend, context, command, free_before, rows);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::out_of_memory) throw;
        context.console.detail("the weights do not fit the device: only streamed ones are timed");
    }
    Passes passes(backend, command.weights, context, command, free_before);
    rows.push_back(passes.measure("streamed"));
    context.console.detail("activations and scratch at their peak:\n" + passes.memory_table());
    if (alone) return rows;
    passes.model().streamed()->set_overlap(false);
    rows.push_back(passes.measure("streamed, no overlap"));
    return rows;
}

// Seconds that kExtrapolated sequences of the same length would take.
double extrapolated_seconds(const Row& row, const BenchCommand& command) {
    return row.ms * 1e-3 * static_cast<double>(kExtrapolated) / static_cast<double>(sequences(command));
}

Json to_json(const Row& row, const BenchCommand& command, double first_ms) {
    const double tokens = static_cast<double>(sequences(command) * command.prefill);
    return {{"weights", row.weights},
            {"ms", row.ms},
            {"tokens_per_second", tokens / row.ms * 1e3},
            {"tflops", row.tflops},
            {"share_of_first", first_ms / row.ms},
            {"loss", row.loss},
            {"load_seconds", row.load_seconds},
            {"extrapolated_seconds", extrapolated_seconds(row, command)},
            {"weight_bytes", row.weight_bytes},
            {"streamed_bytes", row.streamed_bytes},
            {"activation_bytes", row.arena_bytes},
            {"peak_bytes", row.peak_bytes},
            {"states", row.states},
            {"host_states", row.host_states}};
}

}  // namespace

CommandResult bench_model(const Context& context, const BenchCommand& command) {
    if (command.samples > 0 && command.samples < command.batch)
        fail_usage(fmt::format("--samples {} is less than one batch: expected at least --batch {}",
                               command.samples, command.batch));
    const auto backend = open_backend(context);
    const std::vector<Row> rows = measure_all(*backend, context, command);
    const double tokens = static_cast<double>(sequences(command) * command.prefill);
    Json json = artefact_header(kFormat, context.provenance());
    json["device"] = backend->name();
    json["prefill"] = command.prefill;
    json["batch"] = command.batch;
    json["samples"] = sequences(command);
    json["sweep"] = command.sweep;
    json["precision"] = name(command.weights.number_format());
    json["rows"] = Json::array();
    Table table({"weights", "ms", "tokens/s", "TFLOP/s", "speed", "on device", "streamed a pass",
                 "activations", "peak", "load s"});
    for (const Row& row : rows) {
        json["rows"].push_back(to_json(row, command, rows.front().ms));
        table.add({row.weights, fmt::format("{:.2f}", row.ms), fmt::format("{:.0f}", tokens / row.ms * 1e3),
                   fmt::format("{:.1f}", row.tflops), fmt::format("{:.1f} %", 100 * rows.front().ms / row.ms),
                   format_bytes(row.weight_bytes), format_bytes(row.streamed_bytes),
                   format_bytes(row.arena_bytes), format_bytes(row.peak_bytes),
                   fmt::format("{:.1f}", row.load_seconds)});
    }
    std::string text = fmt::format("{} in {} of {} x {} tokens, {} at once, on {}, loss {:.6f}\n{}",
                                   command.sweep ? "leave-one-out sweep" : "forward and loss",
                                   command.weights.precision, sequences(command), command.prefill,
                                   command.batch, backend->name(), rows.front().loss, table.text());
    if (command.sweep)
        text += fmt::format("{} live states, {} of them in host memory; {} x {} tokens would take {}\n",
                            rows.back().states, rows.back().host_states, kExtrapolated, command.prefill,
                            format_duration(extrapolated_seconds(rows.back(), command)));
    return {std::move(json), text};
}

}  // namespace minipuzzle::cli
