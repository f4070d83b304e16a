// Embedding: rows of a table, copied.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kThreads = 128;
constexpr uint32_t kNan = 0x7fff7fffu;

// A token outside the vocabulary gives NaN: the host cannot be told from here, but the loss will show it.
template <int W>
__global__ void __launch_bounds__(kThreads)
    gather_rows(const int32_t* tokens, const bf16* weight, bf16* out, int64_t rows, int64_t width,
                int64_t vocabulary, Reuse reuse) {
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const int64_t token = tokens[row];
        const bool known = token >= 0 && token < vocabulary;
        const bf16* from = weight + (known ? token : 0) * width;
        bf16* to = out + row * width;
#pragma unroll 4
        for (int64_t i = int64_t{threadIdx.x} * W; i < width; i += kThreads * W) {
            Packed<W> v = load<W, Reuse::again>(from + i);
            if (!known) {
                for (uint32_t& pair : v.pairs) pair = kNan;
            }
            store(to + i, v, reuse);
        }
    }
}

}  // namespace

// 8B: 4 bytes of token, 2 * D read and 2 * D written per token (16 KiB at D 4096); no FLOPs.
void run(const Context& context, const EmbeddingForward& args) {
    const int64_t rows = args.tokens.elements(), width = args.weight.columns();
    if (rows == 0 || width == 0) return;
    const bf16* weight = bf16_data(args.weight);
    bf16* out = bf16_data(args.out);
    const bool vectors = vectors_fit(weight, width) && vectors_fit(out, width);
    const auto kernel = vectors ? gather_rows<8> : gather_rows<1>;
    kernel<<<grid_size(rows), kThreads, 0, context.stream>>>(
        args.tokens.as<int32_t>(), weight, out, rows, width, args.weight.size(0), reuse_of(args.out.bytes()));
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda
