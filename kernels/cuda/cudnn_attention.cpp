#include "kernels/cuda/cudnn_attention.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cuda/libraries.h"

namespace minipuzzle::cuda {

namespace {

// One object of the backend interface: created, given attributes, made final, destroyed.
class Descriptor {
  public:
    explicit Descriptor(cudnnBackendDescriptorType_t type) {
        MP_CUDNN(cudnn().backend_create(type, &descriptor_));
    }
    ~Descriptor() {
        if (descriptor_) cudnn().backend_destroy(descriptor_);
    }
    Descriptor(Descriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
    Descriptor& operator=(Descriptor&&) = delete;

    cudnnBackendDescriptor_t get() const { return descriptor_; }

    void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
             const void* values) {
        MP_CUDNN(cudnn().backend_set(descriptor_, name, type, count, values));
    }
    void set(cudnnBackendAttributeName_t name, cudnnDataType_t value) {
        set(name, CUDNN_TYPE_DATA_TYPE, 1, &value);
    }
    void set(cudnnBackendAttributeName_t name, int64_t value) { set(name, CUDNN_TYPE_INT64, 1, &value); }
    void set(cudnnBackendAttributeName_t name, bool value) { set(name, CUDNN_TYPE_BOOLEAN, 1, &value); }
    void set(cudnnBackendAttributeName_t name, cudnnPointwiseMode_t value) {
        set(name, CUDNN_TYPE_POINTWISE_MODE, 1, &value);
    }
    void set(cudnnBackendAttributeName_t name, cudnnReduceTensorOp_t value) {
        set(name, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &value);
    }
    void set(cudnnBackendAttributeName_t name, cudnnBackendHeurMode_t value) {
        set(name, CUDNN_TYPE_HEUR_MODE, 1, &value);
    }
    void set(cudnnBackendAttributeName_t name, cudnnHandle_t value) {
        set(name, CUDNN_TYPE_HANDLE, 1, &value);
    }
    void set(cudnnBackendAttributeName_t name, const Descriptor& value) {
        set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value.descriptor_);
    }

    int64_t get_count(cudnnBackendAttributeName_t name) const {
        int64_t count = 0;
        MP_CUDNN(cudnn().backend_get(descriptor_, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count, nullptr));
        return count;
    }
    int64_t get_int64(cudnnBackendAttributeName_t name) const {
        int64_t value = 0, count = 0;
        MP_CUDNN(cudnn().backend_get(descriptor_, name, CUDNN_TYPE_INT64, 1, &count, &value));
        return value;
    }

    void finalize() { MP_CUDNN(cudnn().backend_finalize(descriptor_)); }
    // False where the library says that it does not support this.
    bool finalize_if_supported() {
        const cudnnStatus_t status = cudnn().backend_finalize(descriptor_);
        if (status / 1000 * 1000 == CUDNN_STATUS_NOT_SUPPORTED) return false;
        MP_CUDNN(status);
        return true;
    }

  private:
    cudnnBackendDescriptor_t descriptor_ = nullptr;
};

using Four = std::array<int64_t, 4>;

// Names of the operands that a launch supplies. Tensors inside the graph are numbered from kInner on.
enum Operand : int64_t { kQ = 1, kK, kV, kOut, kLse, kScale, kMasked, kInner };

// The operations of out = softmax(mask(scale * q k^T)) v in the form that cuDNN's fused kernels are
// recognised by: every step of the softmax spelled out, everything between q, k, v and out virtual.
class AttentionGraph {
  public:
    AttentionGraph(const CudnnHandle& handle, const CudnnAttentionShape& shape)
        : shape_(shape), graph_(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {
        add_operations();
        std::vector<cudnnBackendDescriptor_t> list;
        for (const Descriptor& operation : operations_) list.push_back(operation.get());
        graph_.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle.get());
        graph_.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::ssize(list),
                   list.data());
        supported_ = graph_.finalize_if_supported();
    }

    bool supported() const { return supported_; }
    const Descriptor& get() const { return graph_; }

  private:
    void add_operations() {
        const auto [length, heads, kv_heads, dim, with_lse] = shape_;
        const int64_t q_row = heads * dim, kv_row = kv_heads * dim;
        const Descriptor q =
            operand(kQ, CUDNN_DATA_BFLOAT16, {1, heads, length, dim}, {length * q_row, dim, q_row, 1});
        const Descriptor k_transposed =
            operand(kK, CUDNN_DATA_BFLOAT16, {1, kv_heads, dim, length}, {length * kv_row, dim, 1, kv_row});
        const Descriptor v =
            operand(kV, CUDNN_DATA_BFLOAT16, {1, kv_heads, length, dim}, {length * kv_row, dim, kv_row, 1});
        const Descriptor out =
            operand(kOut, CUDNN_DATA_BFLOAT16, {1, heads, length, dim}, {length * q_row, dim, q_row, 1});
        const Descriptor lse =
            with_lse ? operand(kLse, CUDNN_DATA_FLOAT, per_row(), row_strides()) : inner_row();
        const Descriptor scale = scalar(kScale), masked = scalar(kMasked);

        const Descriptor products = inner();
        matmul(q, k_transposed, products);
        const Descriptor scaled = inner();
        pointwise(CUDNN_POINTWISE_MUL, products, &scale, nullptr, scaled);

        const Descriptor row = inner(CUDNN_DATA_INT32), column = inner(CUDNN_DATA_INT32);
        index(2, scaled, row);
        index(3, scaled, column);
        const Descriptor visible = inner(CUDNN_DATA_BOOLEAN);
        pointwise(CUDNN_POINTWISE_CMP_GE, row, &column, nullptr, visible, CUDNN_DATA_BOOLEAN);
        const Descriptor scores = inner();
        pointwise(CUDNN_POINTWISE_BINARY_SELECT, scaled, &masked, &visible, scores);

        const Descriptor highest = inner_row(), shifted = inner(), powers = inner(), sum = inner_row();
        reduce(CUDNN_REDUCE_TENSOR_MAX, scores, highest);
        pointwise(CUDNN_POINTWISE_SUB, scores, &highest, nullptr, shifted);
        pointwise(CUDNN_POINTWISE_EXP, shifted, nullptr, nullptr, powers);
        reduce(CUDNN_REDUCE_TENSOR_ADD, powers, sum);
        const Descriptor log_sum = inner_row();
        pointwise(CUDNN_POINTWISE_LOG, sum, nullptr, nullptr, log_sum);
        pointwise(CUDNN_POINTWISE_ADD, highest, &log_sum, nullptr, lse);
        const Descriptor weights = inner(CUDNN_DATA_BFLOAT16);
        pointwise(CUDNN_POINTWISE_DIV, powers, &sum, nullptr, weights);
        matmul(weights, v, out);
    }

    Four per_row() const { return {1, shape_.heads, shape_.length, 1}; }
    Four row_strides() const { return {shape_.heads * shape_.length, shape_.length, 1, 1}; }

    static Descriptor tensor(int64_t id, cudnnDataType_t type, const Four& extents, const Four& strides,
                             bool is_virtual, bool by_value) {
        Descriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
        tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
        tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
        tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, extents.data());
        tensor.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
        // A sequence's lse starts wherever that of the one before ends; everything else is 16-byte aligned.
        tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int64_t{id == kLse ? 4 : 16});
        tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual);
        tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, by_value);
        tensor.finalize();
        return tensor;
    }
    static Descriptor operand(Operand id, cudnnDataType_t type, const Four& extents, const Four& strides) {
        return tensor(id, type, extents, strides, false, false);
    }
    static Descriptor scalar(Operand id) {
        return tensor(id, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
    }
    // Between operations: a value per (query, key) pair, or per query.
    Descriptor inner(cudnnDataType_t type = CUDNN_DATA_FLOAT) {
        const int64_t heads = shape_.heads, length = shape_.length;
        return tensor(next_++, type, {1, heads, length, length},
                      {heads * length * length, length * length, length, 1}, true, false);
    }
    Descriptor inner_row() {
        return tensor(next_++, CUDNN_DATA_FLOAT, per_row(), row_strides(), true, false);
    }

    void matmul(const Descriptor& a, const Descriptor& b, const Descriptor& c) {
        Descriptor kind(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
        kind.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
        kind.finalize();
        Descriptor operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
        operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, kind);
        operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
        operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
        operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
        add(std::move(operation));
    }

    // y = mode(x), mode(x, b), or t ? x : b.
    void pointwise(cudnnPointwiseMode_t mode, const Descriptor& x, const Descriptor* b, const Descriptor* t,
                   const Descriptor& y, cudnnDataType_t precision = CUDNN_DATA_FLOAT) {
        Descriptor kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
        kind.set(CUDNN_ATTR_POINTWISE_MODE, mode);
        kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, precision);
        kind.finalize();
        add_pointwise(kind, x, b, t, y);
    }
    // y = position along the axis; x gives only its extents.
    void index(int64_t axis, const Descriptor& x, const Descriptor& y) {
        Descriptor kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
        kind.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_POINTWISE_GEN_INDEX);
        kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
        kind.set(CUDNN_ATTR_POINTWISE_AXIS, axis);
        kind.finalize();
        add_pointwise(kind, x, nullptr, nullptr, y);
    }
    void add_pointwise(const Descriptor& kind, const Descriptor& x, const Descriptor* b, const Descriptor* t,
                       const Descriptor& y) {
        Descriptor operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
        operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
        operation.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
        if (b) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b);
        if (t) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, *t);
        operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
        add(std::move(operation));
    }

    void reduce(cudnnReduceTensorOp_t over, const Descriptor& x, const Descriptor& y) {
        Descriptor kind(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
        kind.set(CUDNN_ATTR_REDUCTION_OPERATOR, over);
        kind.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
        kind.finalize();
        Descriptor operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
        operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind);
        operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
        operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
        add(std::move(operation));
    }

    void add(Descriptor&& operation) {
        operation.finalize();
        operations_.push_back(std::move(operation));
    }

    CudnnAttentionShape shape_;
    int64_t next_ = kInner;
    std::vector<Descriptor> operations_;
    Descriptor graph_;
    bool supported_ = false;
};

// The engine configurations that the library proposes, best first, by rules on the shape alone: nothing is
// timed.
std::vector<Descriptor> propose(const AttentionGraph& graph, cudnnBackendHeurMode_t mode) {
    Descriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph.get());
    heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, mode);
    std::vector<Descriptor> configurations;
    if (!heuristic.finalize_if_supported()) return configurations;
    std::vector<cudnnBackendDescriptor_t> list;
    for (int64_t i = heuristic.get_count(CUDNN_ATTR_ENGINEHEUR_RESULTS); i > 0; --i)
        list.push_back(configurations.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
    int64_t count = 0;
    MP_CUDNN(cudnn().backend_get(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                 CUDNN_TYPE_BACKEND_DESCRIPTOR, std::ssize(list), &count, list.data()));
    while (std::ssize(configurations) > count) configurations.pop_back();
    return configurations;
}

}  // namespace

CudnnHandle::CudnnHandle() { MP_CUDNN(cudnn().create(&handle_)); }
CudnnHandle::~CudnnHandle() { cudnn().destroy(handle_); }

struct CudnnAttentionPlan::State {
    cudnnHandle_t handle;
    CudnnAttentionShape shape;
    Descriptor plan;
};

CudnnAttentionPlan::CudnnAttentionPlan(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudnnAttentionPlan::~CudnnAttentionPlan() = default;

std::unique_ptr<CudnnAttentionPlan> CudnnAttentionPlan::build(const CudnnHandle& handle,
                                                              const CudnnAttentionShape& shape,
                                                              int64_t most_workspace_bytes) {
    const AttentionGraph graph(handle, shape);
    if (!graph.supported()) return nullptr;
    for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
        for (const Descriptor& configuration : propose(graph, mode)) {
            Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
            plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle.get());
            plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
            if (!plan.finalize_if_supported()) continue;
            if (plan.get_int64(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) > most_workspace_bytes) continue;
            return std::unique_ptr<CudnnAttentionPlan>(
                new CudnnAttentionPlan(std::make_unique<State>(handle.get(), shape, std::move(plan))));
        }
    return nullptr;
}

void CudnnAttentionPlan::run(cudaStream_t stream, std::byte* workspace_memory,
                             const CudnnAttentionOperands& operands) const {
    const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(state_->shape.head_dim)));
    const float masked = cudnn().version() < 91000 ? std::numeric_limits<float>::lowest()
                                                   : -std::numeric_limits<float>::infinity();
    const std::array<int64_t, 7> names{kQ, kK, kV, kOut, kScale, kMasked, kLse};
    const std::array<const void*, 7> memory{operands.q, operands.k, operands.v,  operands.out,
                                            &scale,     &masked,    operands.lse};
    const int64_t count = state_->shape.lse ? 7 : 6;  // lse comes last, where there is one
    void* const workspace = workspace_memory;

    Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, names.data());
    pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, memory.data());
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    pack.finalize();
    MP_CUDNN(cudnn().set_stream(state_->handle, stream));
    MP_CUDNN(cudnn().backend_execute(state_->handle, state_->plan.get(), pack.get()));
}

}  // namespace minipuzzle::cuda
