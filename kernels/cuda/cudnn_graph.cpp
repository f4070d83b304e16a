#include "kernels/cuda/cudnn_graph.h"

namespace minipuzzle::cuda {

namespace {

CudnnDescriptor tensor(int64_t id, cudnnDataType_t type, const CudnnGraph::Four& extents,
                       const CudnnGraph::Four& strides, int64_t alignment, bool is_virtual, bool by_value) {
    CudnnDescriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
    tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, extents.data());
    tensor.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
    tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, alignment);
    tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual);
    tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, by_value);
    tensor.finalize();
    return tensor;
}

// The engine configurations that the library proposes, best first, by rules on the shape alone: nothing is
// timed.
std::vector<CudnnDescriptor> propose(const CudnnGraph& graph, cudnnBackendHeurMode_t mode) {
    CudnnDescriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph.get());
    heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, mode);
    std::vector<CudnnDescriptor> configurations;
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

void CudnnGraph::finish(const CudnnHandle& handle) {
    std::vector<cudnnBackendDescriptor_t> list;
    for (const Descriptor& operation : operations_) list.push_back(operation.get());
    graph_.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle.get());
    graph_.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::ssize(list), list.data());
    supported_ = graph_.finalize_if_supported();
}

CudnnDescriptor CudnnGraph::operand(int64_t id, cudnnDataType_t type, const Four& extents,
                                    const Four& strides, int64_t alignment) {
    return tensor(id, type, extents, strides, alignment, false, false);
}
CudnnDescriptor CudnnGraph::scalar(int64_t id) {
    return tensor(id, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, 16, false, true);
}
CudnnDescriptor CudnnGraph::inner(cudnnDataType_t type, const Four& extents, const Four& strides) {
    return tensor(next_++, type, extents, strides, 16, true, false);
}

void CudnnGraph::matmul(const Descriptor& a, const Descriptor& b, const Descriptor& c) {
    CudnnDescriptor kind(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    kind.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    kind.finalize();
    CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, kind);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    add(std::move(operation));
}

void CudnnGraph::pointwise(cudnnPointwiseMode_t mode, const Descriptor& x, const Descriptor* b,
                           const Descriptor* t, const Descriptor& y, cudnnDataType_t precision) {
    CudnnDescriptor kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    kind.set(CUDNN_ATTR_POINTWISE_MODE, mode);
    kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, precision);
    kind.finalize();
    add_pointwise(kind, x, b, t, y);
}
void CudnnGraph::index(int64_t axis, const Descriptor& x, const Descriptor& y) {
    CudnnDescriptor kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    kind.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_POINTWISE_GEN_INDEX);
    kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
    kind.set(CUDNN_ATTR_POINTWISE_AXIS, axis);
    kind.finalize();
    add_pointwise(kind, x, nullptr, nullptr, y);
}
void CudnnGraph::add_pointwise(const Descriptor& kind, const Descriptor& x, const Descriptor* b,
                               const Descriptor* t, const Descriptor& y) {
    CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b);
    if (t) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, *t);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add(std::move(operation));
}

void CudnnGraph::reduce(cudnnReduceTensorOp_t over, const Descriptor& x, const Descriptor& y) {
    CudnnDescriptor kind(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    kind.set(CUDNN_ATTR_REDUCTION_OPERATOR, over);
    kind.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    kind.finalize();
    CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind);
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    add(std::move(operation));
}

void CudnnGraph::reshape(const Descriptor& x, const Descriptor& y) {
    CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    add(std::move(operation));
}

void CudnnGraph::add(Descriptor&& operation) {
    operation.finalize();
    operations_.push_back(std::move(operation));
}

std::optional<CudnnPlan> CudnnPlan::build(const CudnnHandle& handle, const CudnnGraph& graph,
                                          int64_t most_workspace_bytes) {
    if (!graph.supported()) return std::nullopt;
    for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
        for (const CudnnDescriptor& configuration : propose(graph, mode)) {
            CudnnDescriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
            plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle.get());
            plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
            if (!plan.finalize_if_supported()) continue;
            const int64_t bytes = plan.get_int64(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
            if (bytes <= most_workspace_bytes) return CudnnPlan(handle.get(), std::move(plan));
        }
    return std::nullopt;
}

void CudnnPlan::run(cudaStream_t stream, std::byte* workspace_memory,
                    const std::vector<std::pair<int64_t, const void*>>& operands) const {
    std::vector<int64_t> ids;
    std::vector<const void*> memory;
    for (const auto& [id, pointer] : operands) {
        ids.push_back(id);
        memory.push_back(pointer);
    }
    void* const workspace = workspace_memory;
    CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, std::ssize(ids), ids.data());
    pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, std::ssize(memory), memory.data());
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    pack.finalize();
    MP_CUDNN(cudnn().set_stream(handle_, stream));
    MP_CUDNN(cudnn().backend_execute(handle_, plan_.get(), pack.get()));
}

}  // namespace minipuzzle::cuda
