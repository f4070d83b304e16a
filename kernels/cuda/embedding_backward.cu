// Embedding, backward: rows of d_out added to those rows of d_weight that their tokens name. Places are
// sorted by token first (a stable sort: a token's places stay in order), then cut into pieces of a fixed
// number of places, so that neither a frequent token nor many rare ones leave the device idle.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kPiece = 32;  // sorted places of a block
constexpr int kThreads = 256;
constexpr int kGroup = 4;  // rows under way at once
constexpr int kHeads = 8;  // sums of pieces, likewise

// ---- sorting

// Places by token. Tokens outside the vocabulary sort last, as token V.
struct Sorted {
    uint32_t* tokens;
    int32_t* places;
};

__global__ void __launch_bounds__(kThreads)
    number_places(const int32_t* tokens, int64_t count, uint32_t vocabulary, const Sorted out) {
    const int64_t step = int64_t{gridDim.x} * kThreads;
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
        out.tokens[i] = min(static_cast<uint32_t>(tokens[i]), vocabulary);
        out.places[i] = static_cast<int32_t>(i);
    }
}

cudaError_t sort_pairs(void* memory, std::size_t& bytes, cub::DoubleBuffer<uint32_t>& tokens,
                       cub::DoubleBuffer<int32_t>& places, int count, uint32_t vocabulary,
                       cudaStream_t stream) {
    return cub::DeviceRadixSort::SortPairs(memory, bytes, tokens, places, count, 0,
                                           static_cast<int>(std::bit_width(vocabulary)), stream);
}

// ---- sums

struct Rows {
    const bf16* d_out;
    float* d_weight;
    float* heads;  // [pieces, width]: of a token that began in an earlier piece, this piece's part
    Sorted sorted;
    int64_t count, width;
    uint32_t vocabulary;
    unsigned shares;  // blocks of a piece, each with its own columns

    // Neighbouring blocks take the columns of one piece, so that rows are read and written whole.
    __device__ int64_t piece() const { return blockIdx.x / shares; }
    __device__ int64_t column(int vector) const {
        return (int64_t{blockIdx.x % shares} * blockDim.x + threadIdx.x) * vector;
    }
};

template <int W>
__device__ void add(Values<W>& sum, const Values<W>& c) {
#pragma unroll
    for (int j = 0; j < W; ++j) sum.v[j] += c.v[j];
}

// A block takes a piece and W columns a thread. A token that begins in the piece is added to
// d_weight, as far as its places lie here; the part of one that began earlier is left in `heads`.
template <int W>
__global__ void __launch_bounds__(kThreads) add_pieces(const Rows rows) {
    __shared__ uint32_t tokens[kPiece];
    __shared__ int32_t places[kPiece];
    const int64_t begin = rows.piece() * kPiece;
    const int count = static_cast<int>(min(rows.count - begin, int64_t{kPiece}));
    if (static_cast<int>(threadIdx.x) < count) {
        tokens[threadIdx.x] = rows.sorted.tokens[begin + threadIdx.x];
        places[threadIdx.x] = rows.sorted.places[begin + threadIdx.x];
    }
    const uint32_t before = begin > 0 ? rows.sorted.tokens[begin - 1] : rows.vocabulary;
    __syncthreads();
    const int64_t column = rows.column(W);
    if (column >= rows.width) return;
    float* d_weight = rows.d_weight + column;
    Values<W> sum = {};
    for (int first = 0; first < count; first += kGroup) {
        // All that the group reads, before anything is added.
        Packed<W> d_out[kGroup] = {};
        Values<W> old[kGroup] = {};
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
            const int i = first + k;
            if (i >= count || tokens[i] >= rows.vocabulary) continue;
            d_out[k] = load<W>(rows.d_out + places[i] * rows.width + column);
            if (tokens[i] != (i > 0 ? tokens[i - 1] : before))
                old[k] = load<W>(d_weight + tokens[i] * rows.width);
        }
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
            const int i = first + k;
            if (i >= count || tokens[i] >= rows.vocabulary) continue;
            if (i == 0 || tokens[i] != tokens[i - 1]) sum = old[k];
            Values<W> c;
            unpack(d_out[k], c.v);
            add(sum, c);
            if (i + 1 < count && tokens[i + 1] == tokens[i]) continue;
            if (tokens[i] == before)
                store<W, Reuse::again>(rows.heads + rows.piece() * rows.width + column, sum);
            else
                store<W>(d_weight + tokens[i] * rows.width, sum);
        }
    }
}

// The first piece that holds a token's places from its start on adds the heads of all pieces that follow.
template <int W>
__global__ void __launch_bounds__(kThreads) add_heads(const Rows rows) {
    const uint32_t* tokens = rows.sorted.tokens;
    const int64_t piece = rows.piece() + 1, begin = piece * kPiece;
    const uint32_t token = tokens[begin];
    if (token >= rows.vocabulary || tokens[begin - 1] != token) return;
    // Began before the piece before this one: that one's block adds this head.
    if (piece > 1 && tokens[begin - kPiece] == token && tokens[begin - kPiece - 1] == token) return;
    const int64_t column = rows.column(W);
    if (column >= rows.width) return;
    // Pieces from here on that the token enters: its places end within the last of them.
    int64_t low = 1, high = (rows.count - begin + kPiece - 1) / kPiece + 1;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (tokens[begin + (middle - 1) * kPiece] == token)
            low = middle;
        else
            high = middle;
    }
    const float* heads = rows.heads + piece * rows.width + column;
    float* d_weight = rows.d_weight + token * rows.width + column;
    Values<W> sum = load<W>(d_weight);
    int64_t next = 0;
    for (; next + kHeads <= low; next += kHeads) {
        Values<W> held[kHeads];
#pragma unroll
        for (int k = 0; k < kHeads; ++k) held[k] = load<W, Reuse::again>(heads + (next + k) * rows.width);
#pragma unroll
        for (int k = 0; k < kHeads; ++k) add(sum, held[k]);
    }
    for (; next < low; ++next) add(sum, load<W, Reuse::again>(heads + next * rows.width));
    store<W>(d_weight, sum);
}

template <int W>
void add_rows(const Context& context, Rows rows) {
    // As few blocks as hold the columns, of equal shares.
    const int64_t vectors = div_up(rows.width, W), pieces = div_up(rows.count, kPiece);
    rows.shares = narrow<unsigned>(div_up(vectors, kThreads));
    const auto threads = static_cast<unsigned>(div_up(div_up(vectors, rows.shares), kWarp) * kWarp);
    const auto blocks = [&](int64_t of_pieces) { return narrow<unsigned>(of_pieces * rows.shares); };
    add_pieces<W><<<blocks(pieces), threads, 0, context.stream>>>(rows);
    MP_CUDA_LAUNCHED();
    if (pieces < 2) return;
    add_heads<W><<<blocks(pieces - 1), threads, 0, context.stream>>>(rows);
    MP_CUDA_LAUNCHED();
}

// Where everything lies in the scratch memory.
struct Layout {
    int64_t pairs, heads, sorting, sorting_bytes, bytes;  // offsets, and sizes

    explicit Layout(const EmbeddingBackward& args) {
        const int64_t count = args.tokens.elements(), width = args.d_weight.columns();
        cub::DoubleBuffer<uint32_t> tokens;
        cub::DoubleBuffer<int32_t> places;
        std::size_t needed = 0;
        MP_CUDA(sort_pairs(nullptr, needed, tokens, places, narrow<int>(count),
                           narrow<uint32_t>(args.d_weight.size(0)), nullptr));
        pairs = aligned(count * 4);
        heads = 4 * pairs;
        sorting = heads + aligned(div_up(count, kPiece) * width * 4);
        sorting_bytes = static_cast<int64_t>(needed);
        bytes = sorting + sorting_bytes;
    }
};

}  // namespace

// Tokens and places, twice, for sorting; the pieces' heads (a 16th of d_out); what the sort asks for.
int64_t scratch_bytes(const EmbeddingBackward& args) {
    if (args.tokens.elements() == 0) return 0;
    return Layout(args).bytes;
}

// 8B: 2 * D of d_out per token (8 KiB at D 4096), and each row of d_weight that occurs read and written,
// 8 * D (32 KiB); 1 FLOP per element.
void run(const Context& context, const EmbeddingBackward& args) {
    const int64_t count = args.tokens.elements(), width = args.d_weight.columns();
    if (count == 0 || width == 0) return;
    const Layout layout(args);
    MP_ASSERT(context.scratch_capacity >= layout.bytes);
    const auto vocabulary = narrow<uint32_t>(args.d_weight.size(0));
    const auto at = [&](int64_t offset) { return context.scratch + offset; };
    cub::DoubleBuffer<uint32_t> tokens(reinterpret_cast<uint32_t*>(at(0)),
                                       reinterpret_cast<uint32_t*>(at(layout.pairs)));
    cub::DoubleBuffer<int32_t> places(reinterpret_cast<int32_t*>(at(2 * layout.pairs)),
                                      reinterpret_cast<int32_t*>(at(3 * layout.pairs)));
    number_places<<<grid_size(div_up(count, kThreads)), kThreads, 0, context.stream>>>(
        args.tokens.as<int32_t>(), count, vocabulary, {tokens.Current(), places.Current()});
    MP_CUDA_LAUNCHED();
    auto sorting_bytes = static_cast<std::size_t>(layout.sorting_bytes);
    MP_CUDA(sort_pairs(at(layout.sorting), sorting_bytes, tokens, places, narrow<int>(count), vocabulary,
                       context.stream));
    const Rows rows{.d_out = bf16_data(args.d_out),
                    .d_weight = args.d_weight.as<float>(),
                    .heads = reinterpret_cast<float*>(at(layout.heads)),
                    .sorted = {tokens.Current(), places.Current()},
                    .count = count,
                    .width = width,
                    .vocabulary = vocabulary,
                    .shares = 1};
    if (vectors_fit(rows.d_out, width) && vectors_fit(rows.d_weight, width))
        add_rows<4>(context, rows);
    else
        add_rows<1>(context, rows);
}

}  // namespace minipuzzle::cuda
