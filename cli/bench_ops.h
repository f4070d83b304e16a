// minipuzzle bench ops
#pragma once

#include <string>

#include "cli/command.h"

namespace minipuzzle::cli {

// Measures the device's limits, then each operation whose name matches the regular expression (empty: all of
// them): its time, its share of what the limits allow, and a part of its result against the CPU's. Fails
// where one is wrong.
CommandResult bench_ops(const Context& context, const std::string& match);

}  // namespace minipuzzle::cli
