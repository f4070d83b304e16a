// minipuzzle bench
#include <fmt/format.h>

#include "cli/bench_model.h"
#include "cli/bench_ops.h"
#include "cli/commands.h"
#include "kernels/check.h"

namespace minipuzzle::cli {

OptionTable BenchCommand::options() {
    OptionTable table;
    table.positional("what", what, "ops: every operation of the forward pass, checked and timed");
    table.text("match", "REGEX", match, "with ops: only operations whose name and shape match");
    table.text("model", "FOLDER", model, "time this model");
    weights.add_to(table);
    table.count("prefill", prefill, "with a model: tokens of a sequence", 1);
    table.count("batch", batch, "with a model: sequences at once", 1);
    table.flag("sweep", sweep, "with a model: time a leave-one-out sweep, not one forward pass");
    return table;
}

CommandResult BenchCommand::run(const Context& context) {
    const bool a_model = !model.empty() || !weights.arch.empty();
    if (!what.empty() && what != "ops") fail_usage(fmt::format("bench knows ops, found \"{}\"", what));
    if (what.empty() && !a_model)
        fail_usage("bench needs to know what to measure: minipuzzle bench ops, or a model");
    if (what.empty() && !match.empty()) fail_usage("--match goes with bench ops");
    if (what.empty()) return bench_model(context, *this);
    if (a_model || weights.random_weights || weights.weight_memory > 0 || sweep)
        fail_usage(
            "bench ops has shapes of its own: no --model, --arch, --random-weights, --weight-memory, "
            "--sweep");
    return bench_ops(context, match);
}

}  // namespace minipuzzle::cli
