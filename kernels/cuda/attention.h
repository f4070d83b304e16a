// Attention forward through cuDNN's fused kernel where it serves, else the plain tensor-core kernel.
#pragma once

#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// Keeps cuDNN's handle and one plan per (T, heads, kv_heads, head_dim, lse), each for one sequence, so that bits
// never depend on the batch. A plan is built when a shape is first seen.
class Attention {
  public:
    Attention();
    ~Attention();
    Attention(const Attention&) = delete;
    Attention& operator=(const Attention&) = delete;

    void run(const Context&, const AttentionForward&);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace minipuzzle::cuda
