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
    table.count("prefill", prefill, "tokens of a sequence", 1);
    table.count("batch", batch, "sequences at once", 1);
    table.flag("sweep", sweep, "time a leave-one-out sweep, not one forward pass");
    return table;
}

CommandResult BenchCommand::run(const Context& context) {
    if (what == "ops") return bench_ops(context, match);
    if (what.empty() && model.empty() && weights.arch.empty())
        fail_usage("bench needs to know what to measure: minipuzzle bench ops, or a model");
    if (what.empty()) return bench_model(context, *this);
    fail_usage(fmt::format("bench knows ops, found \"{}\"", what));
}

}  // namespace minipuzzle::cli
