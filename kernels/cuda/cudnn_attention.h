// Causal attention and its gradients as cuDNN execution plans.
#pragma once

#include <memory>

#include "kernels/cuda/device.h"

namespace minipuzzle::cuda {

class CudnnHandle;  // cudnn_graph.h

struct CudnnAttentionShape {
    int64_t batch = 1, length = 0, heads = 0, kv_heads = 0, head_dim = 0;
    bool lse = false;  // the forward writes it
};

// bf16 and 16-byte aligned; lse float32.
struct CudnnAttentionOperands {
    const std::byte* q = nullptr;  // [B, T, heads, head_dim]
    const std::byte* k = nullptr;  // [B, T, kv_heads, head_dim]
    const std::byte* v = nullptr;  // [B, T, kv_heads, head_dim]
    std::byte* out = nullptr;      // [B, T, heads, head_dim]
    std::byte* lse = nullptr;      // [B, heads, T], where the shape says so
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

// As above; delta and d_q_sums are memory for what lies between.
struct CudnnAttentionBackwardOperands {
    const std::byte *q = nullptr, *k = nullptr, *v = nullptr, *out = nullptr, *lse = nullptr;
    const std::byte* d_out = nullptr;          // [B, T, heads, head_dim]
    std::byte* d_q = nullptr;                  // [B, T, heads, head_dim]
    std::byte *d_k = nullptr, *d_v = nullptr;  // [B, T, kv_heads, head_dim]
    std::byte* delta = nullptr;                // [B, heads, T] float32
    std::byte* d_q_sums = nullptr;             // [B, heads, T, head_dim] float32
};

class CudnnAttentionBackwardPlan {
  public:
    // Null where cuDNN has no kernel for the shape on this device within that much workspace.
    static std::unique_ptr<CudnnAttentionBackwardPlan> build(const CudnnHandle&, const CudnnAttentionShape&,
                                                             int64_t most_workspace_bytes);
    ~CudnnAttentionBackwardPlan();

    // `workspace` is of the size that build() was given. d_q's sums come in another order each time.
    void run(cudaStream_t, std::byte* workspace, const CudnnAttentionBackwardOperands&) const;

  private:
    struct State;
    explicit CudnnAttentionBackwardPlan(std::unique_ptr<State>);
    std::unique_ptr<State> state_;
};

}  // namespace minipuzzle::cuda
