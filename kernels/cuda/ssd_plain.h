// The selective state space scan, forward and backward, for every device from compute capability 8.0 on and
// every shape.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

// ops.h SsdForward: xbc [B, T, conv_channels], zxbcdt [B, T, projection] and y [B, T, inner] bf16; dt_bias,
// a_log, d [H], initial_state, final_state [B, H, P, N] and chunk_states [B, ceil(T/chunk) * H, P, N]
// float32. args.chunk matters only where chunk_states is given: steps then end where its chunks do.
void ssd_forward_plain(const Context& context, const SsdForward& args);

// Scratch memory of one call, from shapes alone: none for states of up to 256.
int64_t ssd_plain_scratch_bytes(const SsdForward& args);

// ops.h SsdBackward, tensors as above; d_xbc and d_zxbcdt bf16, of the latter only the dt part is written;
// d_final_state, d_initial_state [B, H, P, N] and the gradients of parameters [H], which accumulate, float32.
void ssd_backward_plain(const Context& context, const SsdBackward& args);

// From shapes alone; most of it is two states of bf16 per 64 tokens.
int64_t ssd_backward_plain_scratch_bytes(const SsdBackward& args);

}  // namespace minipuzzle::cuda
