#include "cli/bench_model.h"

#include <fmt/format.h>

#include <algorithm>

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

WindowBatch random_batch(int64_t vocab, int64_t batch, int64_t length, uint64_t seed) {
    WindowBatch tokens = blank_batch(batch, length);
    const CounterRandom random(seed, "bench tokens");
    for (int64_t i = 0; i < batch; ++i) tokens.windows.push_back(i);
    for (int64_t i = 0; i < batch * length; ++i) {
        tokens.tokens.push_back(static_cast<int32_t>(random.bits(2 * i) % static_cast<uint64_t>(vocab)));
        tokens.targets.push_back(static_cast<int32_t>(random.bits(2 * i + 1) % static_cast<uint64_t>(vocab)));
    }
    return tokens;
}

// One way of holding the weights, timed.
struct Row {
    std::string weights;  // "resident", "streamed", "streamed, no overlap"
    double ms = 0, tflops = 0;
    int64_t weight_bytes = 0, arena_bytes = 0, streamed_bytes = 0;
    double loss = 0;
};

class Passes {
  public:
    Passes(Backend& backend, const OpenedModel& model, const BenchCommand& command, uint64_t seed)
        : model_(model),
          batch_(random_batch(model.architecture().vocab, command.batch, command.prefill, seed)),
          sweep_(backend, model.architecture(), model.weights(),
                 command.sweep ? leave_one_out(model.architecture()) : std::vector<StudentPlan>(), nullptr) {}

    const std::string& memory_table() const { return sweep_.memory_table(); }

    Row measure(const std::string& how) {
        SweepResult result;
        Row row{.weights = how};
        row.ms = bench::median_ms([&] { result = sweep_.run(batch_); });
        row.tflops = 2 * result.multiply_adds / row.ms * 1e-9;
        row.loss = mean(result.base.loss, result.tokens);
        row.arena_bytes = sweep_.memory_bytes();
        row.weight_bytes = model_.device_bytes();
        if (model_.streamed()) row.streamed_bytes = model_.streamed()->streamed_bytes();
        return row;
    }

  private:
    const OpenedModel& model_;
    WindowBatch batch_;
    VariantSweep sweep_;
};

void add_resident(Backend& backend, const Context& context, const BenchCommand& command,
                  std::vector<Row>& rows) {
    WeightOptions options = command.weights;
    options.weight_memory = 0;
    const OpenedModel model(backend, command.model, options, context);
    Passes passes(backend, model, command, context.seed());
    rows.push_back(passes.measure("resident"));
    context.console.detail("activations and scratch at their peak:\n" + passes.memory_table());
}

std::vector<Row> measure_all(Backend& backend, const Context& context, const BenchCommand& command) {
    std::vector<Row> rows;
    if (command.weights.weight_memory == 0) {
        add_resident(backend, context, command, rows);
        return rows;
    }
    try {
        add_resident(backend, context, command, rows);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::out_of_memory) throw;
        context.console.detail("the weights do not fit the device: only streamed ones are timed");
    }
    const OpenedModel model(backend, command.model, command.weights, context);
    Passes passes(backend, model, command, context.seed());
    rows.push_back(passes.measure("streamed"));
    model.streamed()->set_overlap(false);
    rows.push_back(passes.measure("streamed, no overlap"));
    return rows;
}

Json to_json(const Row& row, double tokens, double first_ms) {
    return {{"weights", row.weights},
            {"ms", row.ms},
            {"tokens_per_second", tokens / row.ms * 1e3},
            {"tflops", row.tflops},
            {"share_of_first", first_ms / row.ms},
            {"loss", row.loss},
            {"weight_bytes", row.weight_bytes},
            {"streamed_bytes", row.streamed_bytes},
            {"activation_bytes", row.arena_bytes}};
}

}  // namespace

CommandResult bench_model(const Context& context, const BenchCommand& command) {
    const auto backend = open_backend(context);
    const std::vector<Row> rows = measure_all(*backend, context, command);
    const double tokens = static_cast<double>(command.batch * command.prefill);
    Json json = artefact_header(kFormat, context.provenance());
    json["device"] = backend->name();
    json["prefill"] = command.prefill;
    json["batch"] = command.batch;
    json["sweep"] = command.sweep;
    json["precision"] = name(command.weights.number_format());
    json["rows"] = Json::array();
    Table table(
        {"weights", "ms", "tokens/s", "TFLOP/s", "speed", "on device", "streamed a pass", "activations"});
    for (const Row& row : rows) {
        json["rows"].push_back(to_json(row, tokens, rows.front().ms));
        table.add({row.weights, fmt::format("{:.2f}", row.ms), fmt::format("{:.0f}", tokens / row.ms * 1e3),
                   fmt::format("{:.1f}", row.tflops), fmt::format("{:.1f} %", 100 * rows.front().ms / row.ms),
                   format_bytes(row.weight_bytes), format_bytes(row.streamed_bytes),
                   format_bytes(row.arena_bytes)});
    }
    return {std::move(json),
            fmt::format("{} in {} of {} x {} tokens on {}, loss {:.6f}\n{}",
                        command.sweep ? "leave-one-out sweep" : "forward and loss", command.weights.precision,
                        command.batch, command.prefill, backend->name(), rows.front().loss, table.text())};
}

}  // namespace minipuzzle::cli
