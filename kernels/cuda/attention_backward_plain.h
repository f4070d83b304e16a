// Causal grouped-query attention, backward, for every device from compute capability 8.0 on and every shape:
// the twin of attention_plain.h.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// Scratch memory of attention_backward_plain, from shapes alone.
int64_t attention_backward_plain_scratch_bytes(const AttentionBackward& args);

// ops.h AttentionBackward: q, out, d_out, d_q [B, T, H*P], k, v, d_k, d_v [B, T, K*P] bf16; document [B, T]
// i32 optional; lse [B, H, T] float32. The same bits every time. Error for a head_dim beyond
// kAttentionPlainHeadDim.
void attention_backward_plain(const Context& context, const AttentionBackward& args);

}  // namespace minipuzzle::cuda
