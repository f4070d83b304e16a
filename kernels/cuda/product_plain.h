// A matrix product of any size and alignment, for the shapes that cuBLASLt has no algorithm for.
#pragma once

#include "kernels/cuda/products.h"

namespace minipuzzle::cuda {

// Product's maths, inputs summed in ascending order in float32: a row's bits depend on that row alone.
void product_plain(const Context&, const Product&);

}  // namespace minipuzzle::cuda
