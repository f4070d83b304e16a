// What every CUDA source needs: checked calls, and what a launcher is given.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/check.h"

namespace minipuzzle::cuda {

// Throws Error: out_of_memory for cudaErrorMemoryAllocation, else other; names expression, file and line.
[[noreturn]] void fail_cuda(cudaError_t error, const char* expression, const char* file, int line);

inline void check_cuda(cudaError_t error, const char* expression, const char* file, int line) {
    if (error != cudaSuccess) fail_cuda(error, expression, file, line);
}
#define MP_CUDA(expression) ::minipuzzle::cuda::check_cuda((expression), #expression, __FILE__, __LINE__)
// After a launch: what <<<>>> itself had to say.
#define MP_CUDA_LAUNCHED() MP_CUDA(cudaGetLastError())

// What a launcher works with. Everything goes to `stream`, in order.
struct Context {
    cudaStream_t stream = nullptr;
    int multiprocessors = 0;
    int architecture = 0;  // 90 for compute capability 9.0
    // The kernels run as compiled for 9.0a, with Hopper's own instructions; not so where the driver made the
    // code of 8.0's PTX, on whatever device.
    bool hopper_code = false;
    int64_t shared_memory_per_block = 0;  // the opt-in limit, bytes
    // Memory an operation may use until it ends, 256-byte aligned: at least its own scratch_bytes() (see
    // operations.h).
    std::byte* scratch = nullptr;
    int64_t scratch_capacity = 0;
};

// The size of a part of the scratch memory, up to where the next one may begin.
inline int64_t aligned(int64_t bytes) { return div_up(bytes, 256) * 256; }

// Whether the current device runs the code compiled for 9.0a.
bool runs_hopper_code(cudaStream_t stream);

}  // namespace minipuzzle::cuda
