// minipuzzle bench --model FOLDER | --arch NAME --random-weights, with --distill STUDENT
#pragma once

#include "cli/command.h"
#include "cli/commands.h"

namespace minipuzzle::cli {

// Times whole training steps of a student with random weights on random tokens: teacher's and student's
// forward, loss, backward, AdamW.
CommandResult bench_distill(const Context& context, const BenchCommand& command);

}  // namespace minipuzzle::cli
