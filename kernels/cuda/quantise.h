// Operations that end in codes with kernels of their own, because a scale needs the whole row.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// With a quantised result.
void quantised_squared_relu(const Context&, const SquaredReluForward&);
void quantised_gated_norm(const Context&, const GatedNormForward&);

}  // namespace minipuzzle::cuda
