// One causal attention of one sequence as a cuDNN execution plan, through the library's backend ("graph")
// interface.
#pragma once

#include <array>
#include <memory>

#include "kernels/cuda/device.h"

struct cudnnContext;

namespace minipuzzle::cuda {

class CudnnHandle {
  public:
    CudnnHandle();
    ~CudnnHandle();
    CudnnHandle(const CudnnHandle&) = delete;
    CudnnHandle& operator=(const CudnnHandle&) = delete;

    cudnnContext* get() const { return handle_; }

  private:
    cudnnContext* handle_ = nullptr;
};

struct CudnnAttentionShape {
    int64_t length = 0, heads = 0, kv_heads = 0, head_dim = 0;
    bool lse = false;
};

// bf16 and 16-byte aligned; lse float32.
struct CudnnAttentionOperands {
    const std::byte* q = nullptr;  // [T, heads, head_dim]
    const std::byte* k = nullptr;  // [T, kv_heads, head_dim]
    const std::byte* v = nullptr;  // [T, kv_heads, head_dim]
    std::byte* out = nullptr;      // [T, heads, head_dim]
    std::byte* lse = nullptr;      // [heads, T], where the shape says so
};

class CudnnAttentionPlan {
  public:
    // Null where cuDNN has no kernel for the shape on this device within that much workspace.
    static std::unique_ptr<CudnnAttentionPlan> build(const CudnnHandle&, const CudnnAttentionShape&,
                                                     int64_t most_workspace_bytes);
    ~CudnnAttentionPlan();

    // `workspace` is of the size that build() was given.
    void run(cudaStream_t, std::byte* workspace, const CudnnAttentionOperands&) const;

  private:
    struct State;
    explicit CudnnAttentionPlan(std::unique_ptr<State>);
    std::unique_ptr<State> state_;
};

}  // namespace minipuzzle::cuda
