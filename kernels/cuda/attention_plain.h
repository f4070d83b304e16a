// Causal grouped-query attention, forward, for every device from compute capability 8.0 on and every shape:
// what serves where the library's kernel does not, packed documents above all.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// The largest head_dim that attention_forward_plain takes.
inline constexpr int64_t kAttentionPlainHeadDim = 256;

// ops.h AttentionForward: q, out [B, T, H*P], k, v [B, T, K*P] bf16; document [B, T] i32 and lse [B, H, T]
// float32 optional. Needs no scratch memory. Error for a head_dim beyond kAttentionPlainHeadDim.
void attention_forward_plain(const Context& context, const AttentionForward& args);

}  // namespace minipuzzle::cuda
