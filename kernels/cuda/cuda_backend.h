// CudaBackend: bf16 storage, float32 accumulation, one compute stream (DESIGN.md, "The CUDA backend").
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/device.h"

namespace minipuzzle::cuda {

// How many CUDA devices there are; 0 also where there is no driver.
int device_count();

// Error usage where there is no such device or it is older than compute capability 8.0.
std::unique_ptr<Backend> make_cuda_backend(int index);

}  // namespace minipuzzle::cuda
