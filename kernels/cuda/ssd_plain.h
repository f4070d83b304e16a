// The selective state space scan, forward, for every device from compute capability 8.0 on and every shape.
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

}  // namespace minipuzzle::cuda
