// Times of a model's layers on a device, for a latency table.
#pragma once

#include <vector>

#include "nas/latency.h"
#include "runtime/run_control.h"
#include "runtime/weight_source.h"

namespace minipuzzle::nas {

struct LatencyWorkload {
    int64_t prefill = 8192, batch = 1;
    std::vector<int64_t> ffn_widths;  // narrower FFNs to time too
};

// Fills outer, layers and checks of a table: every size of layer that the model has and every FFN width asked
// for, through HybridModel's own layers on random tokens. Up to kRotated layers of a size take turns, so that
// weights come from memory as in a whole pass, not from a cache. Each figure is the median over rounds, after
// one that warms up; a round times everything once, so that a device that grows slower does so for all
// figures alike. Two whole passes are timed in the same rounds to be held against the sums: all layers, and
// every second layer of each type. `weights` must lie on the device. Error usage for a width that is no
// narrower than the FFNs; out_of_memory.
inline constexpr int64_t kRotated = 4;
LatencyTable time_layers(Backend& backend, const Architecture& architecture, WeightSource weights,
                         const LatencyWorkload& workload, uint64_t seed, const RunControl& control);

}  // namespace minipuzzle::nas
