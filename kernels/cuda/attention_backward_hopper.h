// Gradients of causal grouped-query attention on tensor cores of compute capability 9.0a, in a fixed order of
// summation.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// Whether attention_backward_hopper takes it: head_dim 128, no documents, memory (where given) on 16 bytes.
// Any batch, length and numbers of heads. Only for a context with hopper_code.
bool may_use_hopper_backward(const AttentionBackward& args);

// ops.h AttentionBackward: q, out, d_out, d_q [B, T, H*128], k, v, d_k, d_v [B, T, K*128] bf16; lse [B, H, T]
// float32. Bits repeat, and a sequence's depend on that sequence alone, whatever args.deterministic says.
void attention_backward_hopper(const Context& context, const AttentionBackward& args);

// Scratch memory of a call that may_use_hopper_backward, from shapes alone.
int64_t attention_backward_hopper_scratch_bytes(const AttentionBackward& args);

}  // namespace minipuzzle::cuda
