// Causal grouped-query attention and its gradients: cuDNN's fused kernels for long rows of common lengths and
// head sizes (the gradients only where sums may come in any order), own kernels for everything else.
#pragma once

#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// Keeps cuDNN's handle and one plan per (T, heads, kv_heads, head_dim, with lse?), and of
// the gradients one per (T, heads, kv_heads, head_dim). A plan is always for one
// sequence and is launched once per sequence of the batch, so that a sequence's bits never depend on the
// batch. The first run of a shape builds its plan (up to a second); cuDNN is opened for the first plan.
class Attention {
  public:
    Attention();
    ~Attention();
    Attention(const Attention&) = delete;
    Attention& operator=(const Attention&) = delete;

    void run(const Context&, const AttentionForward&);
    void run(const Context&, const AttentionBackward&);
    // Whether run() goes through cuDNN; builds the plan where there is none yet.
    bool through_cudnn(const AttentionForward&);
    bool through_cudnn(const AttentionBackward&);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace minipuzzle::cuda
