// minipuzzle bench
#include <fmt/format.h>

#include "cli/bench_ops.h"
#include "cli/commands.h"
#include "kernels/check.h"

namespace minipuzzle::cli {

OptionTable BenchCommand::options() {
    OptionTable table;
    table.positional("what", what, "ops: every operation of the forward pass, checked and timed");
    table.text("match", "REGEX", match, "with ops: only operations whose name and shape match");
    return table;
}

CommandResult BenchCommand::run(const Context& context) {
    if (what == "ops") return bench_ops(context, match);
    if (what.empty()) fail_usage("bench needs to know what to measure: minipuzzle bench ops");
    fail_usage(fmt::format("bench knows ops, found \"{}\"", what));
}

}  // namespace minipuzzle::cli
