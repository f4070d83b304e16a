// The selective state space scan, backward: which path.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/ssd_plain.h"

namespace minipuzzle::cuda {

int64_t scratch_bytes(const SsdBackward& args) { return ssd_backward_plain_scratch_bytes(args); }

void run(const Context& context, const SsdBackward& args) { ssd_backward_plain(context, args); }

}  // namespace minipuzzle::cuda
