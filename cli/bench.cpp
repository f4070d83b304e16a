// minipuzzle bench
#include <fmt/format.h>

#include "cli/bench_distill.h"
#include "cli/bench_layers.h"
#include "cli/bench_model.h"
#include "cli/bench_ops.h"
#include "cli/commands.h"
#include "cli/model_loading.h"
#include "kernels/check.h"

namespace minipuzzle::cli {

OptionTable BenchCommand::options() {
    OptionTable table;
    table.positional("what", what, "ops: every operation, forward and backward, checked and timed");
    table.text("match", "REGEX", match, "with ops: only operations whose name and shape match");
    table.text("model", "FOLDER", model, "time this model");
    weights.add_to(table);
    table.count("prefill", prefill, "with a model: tokens of a sequence", 1);
    table.count("batch", batch, "with a model: sequences at once", 1);
    table.count("samples", samples, "with a model: sequences in all, in batches; 0: one batch");
    table.flag("sweep", sweep, "with a model: time a leave-one-out sweep, not one forward pass");
    table.count("decode", decode, "tokens to generate; refused: this version times prefills only");
    table.flag("layer-latency", layer_latency,
               "with a model: time each size of layer at the prefill, for search --latency");
    table.choices("ffn-widths", ffn_widths, "with --layer-latency: narrower FFNs to time too");
    table.text("out", "FILE.json", out, "with --layer-latency: where the times go");
    table.text(
        "distill", "STUDENT", distill,
        "with a model: time training steps of a student (an architecture's name or a config.json) that "
        "learns from it, both with random weights if the model has them");
    table.count("seq-len", seq_len, "with --distill: tokens a row", 1);
    training.add_to(table);
    return table;
}

namespace {

// What an option does nothing for is refused.
void check_distill(const BenchCommand& command) {
    const BenchCommand none;
    const TrainingOptions &training = command.training, &untouched = none.training;
    const bool given = command.seq_len != none.seq_len || training.moments != untouched.moments ||
                       training.recompute != untouched.recompute || training.memory > 0 ||
                       training.no_deterministic;
    if (command.distill.empty() && given)
        fail_usage(
            "--seq-len, --moments, --recompute, --memory and --no-deterministic go with bench --distill");
    if (!command.distill.empty() && (command.sweep || command.samples > 0 || command.prefill != none.prefill))
        fail_usage(
            "bench --distill times training steps: no --sweep or --samples, and --seq-len instead of "
            "--prefill");
    if (!command.distill.empty() && command.weights.number_format() != Precision::bf16)
        fail_usage("bench --distill trains in bf16: no --precision fp8");
}

void check_layer_latency(const BenchCommand& command) {
    if (!command.layer_latency) {
        if (!command.ffn_widths.empty() || !command.out.empty())
            fail_usage("--ffn-widths and --out go with bench --layer-latency");
        return;
    }
    require_option(command, "out", !command.out.empty());
    if (command.sweep || command.samples > 0 || !command.distill.empty() || command.weights.weight_memory > 0)
        fail_usage(
            "bench --layer-latency times single layers whose weights are on the device: no --sweep, "
            "--samples, "
            "--distill or --weight-memory");
    if (command.weights.number_format() != Precision::bf16)
        fail_usage("bench --layer-latency times bf16 layers only: no --precision fp8");
}

}  // namespace

CommandResult BenchCommand::run(const Context& context) {
    const bool a_model = !model.empty() || !weights.arch.empty();
    if (!what.empty() && what != "ops") fail_usage(fmt::format("bench knows ops, found \"{}\"", what));
    if (what.empty() && !a_model)
        fail_usage("bench needs to know what to measure: minipuzzle bench ops, or a model");
    if (what.empty() && !match.empty()) fail_usage("--match goes with bench ops");
    if (decode)
        fail_usage(
            "--decode: nothing generates tokens yet, so only a prefill can be timed; leave --decode out");
    check_distill(*this);
    check_layer_latency(*this);
    if (what.empty() && !distill.empty()) return bench_distill(context, *this);
    if (what.empty() && layer_latency) return bench_layers(context, *this);
    if (what.empty()) return bench_model(context, *this);
    if (a_model || layer_latency || !distill.empty() || weights.random_weights || weights.weight_memory > 0 ||
        sweep || weights.number_format() != Precision::bf16)
        fail_usage(
            "bench ops has shapes of its own: no --model, --arch, --random-weights, --weight-memory, "
            "--precision, --sweep, --distill, --layer-latency");
    return bench_ops(context, match);
}

}  // namespace minipuzzle::cli
