// score's options on pairs and iterative removal.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/model_loading.h"
#include "importance/ablation.h"

namespace minipuzzle::cli {

// Error usage where --pairs is neither a number nor "all", or options go with it that mean nothing.
std::optional<importance::PairOptions> pair_options(const ConditionalOptions& options);

// What each layer weighs in the deployment memory of the workload: its weights and caches in whole bytes.
std::vector<int64_t> layer_bytes(const Architecture& architecture, const nas::Workload& workload);

// "pairs: 1.2e+12 multiply-adds, 0.131 of the 9.1e+12 that separate passes take".
std::string sharing_line(const std::string& what, const importance::SweepWork& work);

}  // namespace minipuzzle::cli
