// Causal grouped-query attention and its gradients: cuDNN's fused kernels for long rows of common lengths and
// head sizes (the gradients only where sums may come in any order), own kernels for everything else.
#pragma once

#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// Keeps cuDNN's handle and its plans. A plan of the forward is for one (T, heads, kv_heads, head_dim, with
// lse?), always for one sequence, and is launched once per sequence of the batch, so that a sequence's bits
// never depend on the batch; one of the backward is for as many short sequences as share a launch. The first
// run of a shape builds its plan (0.1 to 1.5 s); cuDNN is opened for the first plan.
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
