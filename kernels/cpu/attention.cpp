// Exact softmax attention, one block of query rows at a time: the scores of a block against all keys that it
// may see are formed, never those of the whole sequence. Blocks right of the diagonal are skipped.
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/lanes.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

// One sequence's documents: where the document of token t begins.
class DocumentStarts {
  public:
    DocumentStarts(const Tensor& document, int64_t sequence, int64_t length)
        : document_(document ? document.as<int32_t>() + sequence * length : nullptr) {}

    int64_t of(int64_t t) const {
        if (!document_) return 0;
        return std::lower_bound(document_, document_ + t, document_[t]) - document_;
    }

  private:
    const int32_t* document_;
};

// Turns scores s of a row into exp(scale * s - max) in place; gives the sum and the log-sum-exp of scale * s.
template <class T>
struct RowSoftmax {
    T sum, lse;
    RowSoftmax(T* scores, int64_t n, T scale) {
        const T largest = finite_max(scores, n) * scale;
        sum = sum_lanes<T>(n, [&](int64_t i, auto lanes) -> Lanes<T> {
            const Lanes<T> e =
                (lanes.load(scores + i, std::numeric_limits<T>::lowest()) * scale - largest).exp();
            lanes.store(scores + i, e);
            return e;
        });
        lse = largest + std::log(sum);
    }
};

// The queries of one block and the keys that any of them sees.
struct QueryBlock {
    Block queries, keys;
    QueryBlock(Block block, const DocumentStarts& starts) : queries(block) {
        const int64_t first = starts.of(block.begin);
        keys = {.begin = first, .count = block.end() - first};
    }
};

// Views of one sequence's heads inside [B, T, heads * P].
template <class T>
class HeadRows {
  public:
    HeadRows(const Tensor& tensor, int64_t sequence, int64_t head, int64_t head_dim)
        : data_(tensor.as<T>() + sequence * tensor.size(1) * tensor.columns() + head * head_dim),
          stride_(tensor.columns()),
          head_dim_(head_dim) {}

    T* row(int64_t t) const { return data_ + t * stride_; }
    MatrixMap<T> rows(Block block) const { return matrix(row(block.begin), block.count, head_dim_, stride_); }

  private:
    T* data_;
    int64_t stride_, head_dim_;
};

template <class T>
void forward_block(const AttentionForward& args, int64_t sequence, int64_t head, Block block, T* memory) {
    const int64_t length = args.q.size(1), kv_head = head / (args.heads / args.kv_heads);
    const DocumentStarts starts(args.document, sequence, length);
    const QueryBlock part(block, starts);
    const HeadRows<T> q(args.q, sequence, head, args.head_dim), out(args.out, sequence, head, args.head_dim);
    const HeadRows<T> k(args.k, sequence, kv_head, args.head_dim),
        v(args.v, sequence, kv_head, args.head_dim);
    const T scale = 1 / std::sqrt(static_cast<T>(args.head_dim));

    auto scores = matrix(memory, block.count, part.keys.count, part.keys.count);
    scores.noalias() = q.rows(block) * k.rows(part.keys).transpose();
    T* sums = memory + scores.size();
    for (int64_t i = 0; i < block.count; ++i) {
        const int64_t t = block.begin + i;
        const int64_t first = starts.of(t) - part.keys.begin, end = t + 1 - part.keys.begin;
        T* row = memory + i * part.keys.count;
        const RowSoftmax<T> softmax(row + first, end - first, scale);
        std::fill(row, row + first, T{0});
        std::fill(row + end, row + part.keys.count, T{0});
        sums[i] = softmax.sum;
        if (args.lse) args.lse.as<T>()[(sequence * args.heads + head) * length + t] = softmax.lse;
    }
    out.rows(block).noalias() = scores * v.rows(part.keys);
    for (int64_t i = 0; i < block.count; ++i) {
        T* row = out.row(block.begin + i);
        for (int64_t p = 0; p < args.head_dim; ++p) row[p] /= sums[i];
    }
}

// Writes P and dS of one query block and head: P = exp(scale * s - lse); dS = scale * P * (dP - rowsum(dO *
// O)).
template <class T>
void score_gradients(const AttentionBackward& args, int64_t sequence, int64_t head, const QueryBlock& part,
                     const DocumentStarts& starts, T* probabilities, T* d_scores) {
    const int64_t length = args.q.size(1), keys = part.keys.count;
    const HeadRows<T> out(args.out, sequence, head, args.head_dim),
        d_out(args.d_out, sequence, head, args.head_dim);
    const T* lse = args.lse.as<T>() + (sequence * args.heads + head) * length;
    const T scale = 1 / std::sqrt(static_cast<T>(args.head_dim));
    for (int64_t i = 0; i < part.queries.count; ++i) {
        const int64_t t = part.queries.begin + i;
        const int64_t first = starts.of(t) - part.keys.begin, end = t + 1 - part.keys.begin;
        const T inner = dot_lanes(d_out.row(t), out.row(t), args.head_dim);
        T *p_row = probabilities + i * keys, *d_row = d_scores + i * keys;
        for_lanes<T>(end - first, [&](int64_t j, auto lanes) {
            const Lanes<T> p = (lanes.load(p_row + first + j) * scale - lse[t]).exp();
            lanes.store(p_row + first + j, p);
            lanes.store(d_row + first + j, p * (lanes.load(d_row + first + j) - inner) * scale);
        });
        for (T* row : {p_row, d_row}) {
            std::fill(row, row + first, T{0});
            std::fill(row + end, row + keys, T{0});
        }
    }
}

// The gradients of one kv head, summed over its query heads and blocks in order.
template <class T>
void backward_kv_head(const AttentionBackward& args, int64_t sequence, int64_t kv_head, T* memory) {
    const int64_t length = args.q.size(1), group = args.heads / args.kv_heads, dim = args.head_dim;
    const DocumentStarts starts(args.document, sequence, length);
    const HeadRows<T> k(args.k, sequence, kv_head, dim), v(args.v, sequence, kv_head, dim);
    const HeadRows<T> d_k(args.d_k, sequence, kv_head, dim), d_v(args.d_v, sequence, kv_head, dim);
    d_k.rows({0, length}).setZero();
    d_v.rows({0, length}).setZero();
    const Blocks blocks{length, kRowBlock};
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const HeadRows<T> q(args.q, sequence, head, dim), d_q(args.d_q, sequence, head, dim);
        const HeadRows<T> d_out(args.d_out, sequence, head, dim);
        for (int64_t index = 0; index < blocks.count(); ++index) {
            const QueryBlock part(blocks[index], starts);
            const Block queries = part.queries, keys = part.keys;
            auto p = matrix(memory, queries.count, keys.count, keys.count);
            auto d_scores = matrix(memory + p.size(), queries.count, keys.count, keys.count);
            p.noalias() = q.rows(queries) * k.rows(keys).transpose();
            d_scores.noalias() = d_out.rows(queries) * v.rows(keys).transpose();
            score_gradients(args, sequence, head, part, starts, p.data(), d_scores.data());
            d_q.rows(queries).noalias() = d_scores * k.rows(keys);
            d_k.rows(keys).noalias() += d_scores.transpose() * q.rows(queries);
            d_v.rows(keys).noalias() += p.transpose() * d_out.rows(queries);
        }
    }
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const AttentionForward& args) {
    validate(args);
    const int64_t length = args.q.size(1);
    const Blocks blocks{length, kRowBlock};
    const int64_t bytes = kRowBlock * (length + 1) * static_cast<int64_t>(sizeof(T));
    pool_.parallel_for(args.q.size(0) * args.heads * blocks.count(), [&](int64_t task, int worker) {
        const int64_t row = task / blocks.count();
        T* memory = reinterpret_cast<T*>(pool_.scratch(worker, bytes));
        forward_block(args, row / args.heads, row % args.heads, blocks[task % blocks.count()], memory);
    });
}

template <class T>
void CpuBackend<T>::run(const AttentionBackward& args) {
    validate(args);
    const int64_t bytes = 2 * kRowBlock * args.q.size(1) * static_cast<int64_t>(sizeof(T));
    pool_.parallel_for(args.q.size(0) * args.kv_heads, [&](int64_t task, int worker) {
        T* memory = reinterpret_cast<T*>(pool_.scratch(worker, bytes));
        backward_kv_head(args, task / args.kv_heads, task % args.kv_heads, memory);
    });
}

#define MINIPUZZLE_INSTANTIATE(T)                                   \
    template void CpuBackend<T>::run(const AttentionForward& args); \
    template void CpuBackend<T>::run(const AttentionBackward& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
