// Vectors on their way from device memory to shared memory (cp.async) while a thread works on others. Each
// thread waits for its own copies and reads nothing but them, so that no barrier is needed.
#pragma once

#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {

// A vector of W bf16 as it lies in shared memory.
template <int W>
struct alignas(2 * W) Copied {
    static_assert(W == 8 || W == 4);
    uint32_t pairs[W / 2];
};

template <int W>
__device__ inline void copy(Copied<W>& to, const bf16* from) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(&to));
    if constexpr (W == 8)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(address), "l"(from) : "memory");
}

template <int W>
__device__ inline Packed<W> read(const Copied<W>& at) {
    if constexpr (W == 8) {
        const uint4 v = *reinterpret_cast<const uint4*>(&at);
        return {{v.x, v.y, v.z, v.w}};
    } else {
        const uint2 v = *reinterpret_cast<const uint2*>(&at);
        return {{v.x, v.y}};
    }
}

// The copies since the last call are a group.
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups but the newest.
template <int kNewest>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

}  // namespace minipuzzle::cuda
