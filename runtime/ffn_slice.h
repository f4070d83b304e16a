// A narrower FFN: some of a layer's neurons.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/arena.h"
#include "runtime/weights.h"

namespace minipuzzle {

// The FFN of `neurons` (indices into F, in the order they shall have): those rows of up_proj [F, D] and
// columns of down_proj [D, F], copied into the arena with the scales of quantised rows; the norm and the
// scales of down_proj's rows, which are the whole row's, are shared.
FfnWeights slice_ffn(Backend& backend, DeviceArena& arena, const FfnWeights& weights,
                     const std::vector<int32_t>& neurons);

}  // namespace minipuzzle
