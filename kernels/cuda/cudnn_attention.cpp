#include "kernels/cuda/cudnn_attention.h"

#include <cmath>
#include <limits>

#include "kernels/cuda/cudnn_graph.h"

namespace minipuzzle::cuda {

namespace {

// Names of the operands that a launch supplies; what lies inside the graphs is numbered from kInner on.
enum Operand : int64_t {
    kQ = 1,
    kK,
    kV,
    kOut,
    kLse,
    kScale,
    kMasked,
    kOne,
    kDOut,
    kDQ,
    kDK,
    kDV,
    kDelta,
    kDQSums,
    kInner
};

// Tensors that both directions share.
class AttentionGraph : public CudnnGraph {
  protected:
    AttentionGraph(const CudnnAttentionShape& shape)
        : CudnnGraph(kInner),
          shape_(shape),
          q_row_(shape.heads * shape.head_dim),
          kv_row_(shape.kv_heads * shape.head_dim) {}

    // [B, T, heads, head_dim] in memory, q's way and k's.
    Descriptor like_q(Operand id) const {
        return operand(id, CUDNN_DATA_BFLOAT16, {shape_.batch, shape_.heads, shape_.length, shape_.head_dim},
                       {shape_.length * q_row_, shape_.head_dim, q_row_, 1});
    }
    Descriptor like_k(Operand id) const {
        return operand(id, CUDNN_DATA_BFLOAT16,
                       {shape_.batch, shape_.kv_heads, shape_.length, shape_.head_dim},
                       {shape_.length * kv_row_, shape_.head_dim, kv_row_, 1});
    }
    Descriptor like_k_transposed(Operand id) const {
        return operand(id, CUDNN_DATA_BFLOAT16,
                       {shape_.batch, shape_.kv_heads, shape_.head_dim, shape_.length},
                       {shape_.length * kv_row_, shape_.head_dim, 1, kv_row_});
    }
    // A float per query. A sequence's lse starts wherever that of the one before ends.
    Descriptor rows(Operand id) const { return operand(id, CUDNN_DATA_FLOAT, per_row(), row_strides(), 4); }

    // Between operations: a value per (query, key) pair, or per query.
    Descriptor pairs(cudnnDataType_t type = CUDNN_DATA_FLOAT) {
        const int64_t heads = shape_.heads, length = shape_.length;
        return inner(type, {shape_.batch, heads, length, length},
                     {heads * length * length, length * length, length, 1});
    }
    Descriptor inner_row() { return inner(CUDNN_DATA_FLOAT, per_row(), row_strides()); }

    Four per_row() const { return {shape_.batch, shape_.heads, shape_.length, 1}; }
    Four row_strides() const { return {shape_.heads * shape_.length, shape_.length, 1, 1}; }

    // scores where the key is not later than the query, else `masked`.
    Descriptor mask(const Descriptor& scores, const Descriptor& masked) {
        const Descriptor row = pairs(CUDNN_DATA_INT32), column = pairs(CUDNN_DATA_INT32);
        index(2, scores, row);
        index(3, scores, column);
        const Descriptor visible = pairs(CUDNN_DATA_BOOLEAN);
        pointwise(CUDNN_POINTWISE_CMP_GE, row, &column, nullptr, visible, CUDNN_DATA_BOOLEAN);
        Descriptor result = pairs();
        pointwise(CUDNN_POINTWISE_BINARY_SELECT, scores, &masked, &visible, result);
        return result;
    }

    CudnnAttentionShape shape_;
    int64_t q_row_, kv_row_;
};

// The operations of out = softmax(mask(scale * q k^T)) v in the form that cuDNN's fused kernels are
// recognised by: every step of the softmax spelled out, everything between q, k, v and out virtual.
class ForwardGraph : public AttentionGraph {
  public:
    ForwardGraph(const CudnnHandle& handle, const CudnnAttentionShape& shape) : AttentionGraph(shape) {
        const Descriptor q = like_q(kQ), k_transposed = like_k_transposed(kK), v = like_k(kV),
                         out = like_q(kOut);
        const Descriptor lse = shape.lse ? rows(kLse) : inner_row();
        const Descriptor scale = scalar(kScale), masked = scalar(kMasked);

        const Descriptor products = pairs();
        matmul(q, k_transposed, products);
        const Descriptor scaled = pairs();
        pointwise(CUDNN_POINTWISE_MUL, products, &scale, nullptr, scaled);
        const Descriptor scores = mask(scaled, masked);

        const Descriptor highest = inner_row(), shifted = pairs(), powers = pairs(), sum = inner_row();
        reduce(CUDNN_REDUCE_TENSOR_MAX, scores, highest);
        pointwise(CUDNN_POINTWISE_SUB, scores, &highest, nullptr, shifted);
        pointwise(CUDNN_POINTWISE_EXP, shifted, nullptr, nullptr, powers);
        reduce(CUDNN_REDUCE_TENSOR_ADD, powers, sum);
        const Descriptor log_sum = inner_row();
        pointwise(CUDNN_POINTWISE_LOG, sum, nullptr, nullptr, log_sum);
        pointwise(CUDNN_POINTWISE_ADD, highest, &log_sum, nullptr, lse);
        const Descriptor weights = pairs(CUDNN_DATA_BFLOAT16);
        pointwise(CUDNN_POINTWISE_DIV, powers, &sum, nullptr, weights);
        matmul(weights, v, out);
        finish(handle);
    }
};

// The gradients, in the form that cuDNN's fused kernels are recognised by: delta = rowsum(d_out * out) in
// memory; weights = exp(mask(scale q k^T - lse)), d_v = weights^T d_out; d_scores = scale weights (d_out v^T
// - delta), d_k = d_scores^T q, d_q = d_scores k. Where query heads share a kv head, d_k and d_v are formed
// per query head and summed. d_q is summed up in memory by whichever block comes (float32, then rounded).
class BackwardGraph : public AttentionGraph {
  public:
    BackwardGraph(const CudnnHandle& handle, const CudnnAttentionShape& shape) : AttentionGraph(shape) {
        const Descriptor q = like_q(kQ), out = like_q(kOut), d_out = like_q(kDOut);
        const Descriptor k_transposed = like_k_transposed(kK), v_transposed = like_k_transposed(kV);
        const Descriptor lse = rows(kLse), delta = rows(kDelta);
        const Descriptor scale = scalar(kScale), masked = scalar(kMasked), one = scalar(kOne);

        const Descriptor products = like_q_inner(), sums = inner_row();
        pointwise(CUDNN_POINTWISE_MUL, d_out, &out, nullptr, products);
        reduce(CUDNN_REDUCE_TENSOR_ADD, products, sums);
        pointwise(CUDNN_POINTWISE_MUL, sums, &one, nullptr, delta);

        const Descriptor scores = pairs(), scaled = pairs(), shifted = pairs();
        matmul(q, k_transposed, scores);
        pointwise(CUDNN_POINTWISE_MUL, scores, &scale, nullptr, scaled);
        pointwise(CUDNN_POINTWISE_SUB, scaled, &lse, nullptr, shifted);
        const Descriptor visible = mask(shifted, masked);
        const Descriptor weights = pairs();
        pointwise(CUDNN_POINTWISE_EXP, visible, nullptr, nullptr, weights);
        multiply_transposed(weights, d_out, kDV);

        const Descriptor d_weights = pairs(), centred = pairs(), unscaled = pairs(), d_scores = pairs();
        matmul(d_out, v_transposed, d_weights);
        pointwise(CUDNN_POINTWISE_SUB, d_weights, &delta, nullptr, centred);
        pointwise(CUDNN_POINTWISE_MUL, centred, &weights, nullptr, unscaled);
        pointwise(CUDNN_POINTWISE_MUL, unscaled, &scale, nullptr, d_scores);
        multiply_transposed(d_scores, q, kDK);

        const Descriptor k =
            inner(CUDNN_DATA_BFLOAT16, {shape.batch, shape.kv_heads, shape.length, shape.head_dim},
                  {shape.length * kv_row_, shape.head_dim, kv_row_, 1});
        reshape(k_transposed, k);
        const Descriptor d_q_sums = operand(kDQSums, CUDNN_DATA_FLOAT, heads_of_q(), heads_strides());
        matmul(d_scores, k, d_q_sums);
        pointwise(CUDNN_POINTWISE_IDENTITY, d_q_sums, nullptr, nullptr, like_q(kDQ));
        finish(handle);
    }

  private:
    Four heads_of_q() const { return {shape_.batch, shape_.heads, shape_.length, shape_.head_dim}; }
    Four heads_strides() const {
        return {shape_.heads * shape_.length * shape_.head_dim, shape_.length * shape_.head_dim,
                shape_.head_dim, 1};
    }
    Descriptor like_q_inner() {
        return inner(
            CUDNN_DATA_FLOAT, heads_of_q(),
            {shape_.heads * shape_.length * shape_.head_dim, shape_.length * shape_.head_dim, q_row_, 1});
    }
    // The gradient `id` of keys or values: left^T * right, summed over the query heads of a kv head.
    void multiply_transposed(const Descriptor& left, const Descriptor& right, Operand id) {
        const int64_t heads = shape_.heads, length = shape_.length;
        const Descriptor transposed = inner(CUDNN_DATA_BFLOAT16, {shape_.batch, heads, length, length},
                                            {heads * length * length, length * length, 1, length});
        reshape(left, transposed);
        const Descriptor gradient = like_k(id);
        if (heads == shape_.kv_heads) return matmul(transposed, right, gradient);
        const Descriptor of_heads = inner(CUDNN_DATA_BFLOAT16, heads_of_q(), heads_strides());
        matmul(transposed, right, of_heads);
        reduce(CUDNN_REDUCE_TENSOR_ADD, of_heads, gradient);
    }
};

// What the scores of keys that a query may not see are set to.
float masked_score() {
    return cudnn().version() < 91000 ? std::numeric_limits<float>::lowest()
                                     : -std::numeric_limits<float>::infinity();
}
float scale_of(const CudnnAttentionShape& shape) {
    return static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
}

}  // namespace

struct CudnnAttentionPlan::State {
    CudnnAttentionShape shape;
    CudnnPlan plan;
};

CudnnAttentionPlan::CudnnAttentionPlan(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudnnAttentionPlan::~CudnnAttentionPlan() = default;

std::unique_ptr<CudnnAttentionPlan> CudnnAttentionPlan::build(const CudnnHandle& handle,
                                                              const CudnnAttentionShape& shape,
                                                              int64_t most_workspace_bytes) {
    auto plan = CudnnPlan::build(handle, ForwardGraph(handle, shape), most_workspace_bytes);
    if (!plan) return nullptr;
    return std::unique_ptr<CudnnAttentionPlan>(
        new CudnnAttentionPlan(std::make_unique<State>(shape, std::move(*plan))));
}

void CudnnAttentionPlan::run(cudaStream_t stream, std::byte* workspace,
                             const CudnnAttentionOperands& operands) const {
    const float scale = scale_of(state_->shape), masked = masked_score();
    std::vector<std::pair<int64_t, const void*>> memory{{kQ, operands.q}, {kK, operands.k},
                                                        {kV, operands.v}, {kOut, operands.out},
                                                        {kScale, &scale}, {kMasked, &masked}};
    if (state_->shape.lse) memory.emplace_back(kLse, operands.lse);
    state_->plan.run(stream, workspace, memory);
}

struct CudnnAttentionBackwardPlan::State {
    CudnnAttentionShape shape;
    CudnnPlan plan;
};

CudnnAttentionBackwardPlan::CudnnAttentionBackwardPlan(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
CudnnAttentionBackwardPlan::~CudnnAttentionBackwardPlan() = default;

std::unique_ptr<CudnnAttentionBackwardPlan> CudnnAttentionBackwardPlan::build(
    const CudnnHandle& handle, const CudnnAttentionShape& shape, int64_t most_workspace_bytes) {
    // 9.10.0 and 9.10.1 are known to be wrong here.
    if (cudnn().version() == 91000 || cudnn().version() == 91001) return nullptr;
    auto plan = CudnnPlan::build(handle, BackwardGraph(handle, shape), most_workspace_bytes);
    if (!plan) return nullptr;
    return std::unique_ptr<CudnnAttentionBackwardPlan>(
        new CudnnAttentionBackwardPlan(std::make_unique<State>(shape, std::move(*plan))));
}

void CudnnAttentionBackwardPlan::run(cudaStream_t stream, std::byte* workspace,
                                     const CudnnAttentionBackwardOperands& operands) const {
    const CudnnAttentionShape& s = state_->shape;
    // From 9.6 on the kernels clear the sums themselves.
    if (cudnn().version() < 90600)
        MP_CUDA(cudaMemsetAsync(operands.d_q_sums, 0, s.batch * s.length * s.heads * s.head_dim * 4, stream));
    const float scale = scale_of(s), masked = masked_score(), one = 1;
    state_->plan.run(stream, workspace,
                     {{kQ, operands.q},
                      {kK, operands.k},
                      {kV, operands.v},
                      {kOut, operands.out},
                      {kLse, operands.lse},
                      {kDOut, operands.d_out},
                      {kDQ, operands.d_q},
                      {kDK, operands.d_k},
                      {kDV, operands.d_v},
                      {kDelta, operands.delta},
                      {kDQSums, operands.d_q_sums},
                      {kScale, &scale},
                      {kMasked, &masked},
                      {kOne, &one}});
}

}  // namespace minipuzzle::cuda
