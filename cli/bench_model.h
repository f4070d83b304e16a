// minipuzzle bench --model FOLDER | --arch NAME --random-weights
#pragma once

#include "cli/command.h"
#include "cli/commands.h"

namespace minipuzzle::cli {

// Times a forward pass with its loss (or a leave-one-out sweep) over random tokens. Where the weights are
// streamed it also times them resident, if they fit, and streamed without overlap.
CommandResult bench_model(const Context& context, const BenchCommand& command);

}  // namespace minipuzzle::cli
