// Causal grouped-query attention: cuDNN's fused kernel for long rows of common lengths and head sizes, an
// own kernel for everything else.
#pragma once

#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// Keeps cuDNN's handle and one plan per (T, heads, kv_heads, head_dim, with lse?). A plan is always for one
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

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace minipuzzle::cuda
