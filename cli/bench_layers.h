// minipuzzle bench --layer-latency.
#pragma once

#include "cli/commands.h"

namespace minipuzzle::cli {

// Times each size of layer of a model at a prefill and writes latency.json (nas/latency.h).
CommandResult bench_layers(const Context& context, const BenchCommand& command);

}  // namespace minipuzzle::cli
