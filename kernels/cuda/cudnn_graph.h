// A cuDNN execution plan of a graph of operations, through the library's backend ("graph") interface.
#pragma once

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/libraries.h"

namespace minipuzzle::cuda {

class CudnnHandle {
  public:
    CudnnHandle();
    ~CudnnHandle();
    CudnnHandle(const CudnnHandle&) = delete;
    CudnnHandle& operator=(const CudnnHandle&) = delete;

    cudnnContext* get() const { return handle_; }

  private:
    cudnnContext* handle_ = nullptr;
};

// One object of the backend interface: created, given attributes, made final, destroyed.
class CudnnDescriptor {
  public:
    explicit CudnnDescriptor(cudnnBackendDescriptorType_t type) {
        MP_CUDNN(cudnn().backend_create(type, &descriptor_));
    }
    ~CudnnDescriptor() {
        if (descriptor_) cudnn().backend_destroy(descriptor_);
    }
    CudnnDescriptor(CudnnDescriptor&& other) noexcept
        : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
    CudnnDescriptor& operator=(CudnnDescriptor&&) = delete;

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
    void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value) {
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

// The operations of one fused kernel, in the form that the library recognises it by. Whoever derives from it
// adds them and calls finish().
class CudnnGraph {
  public:
    using Descriptor = CudnnDescriptor;
    using Four = std::array<int64_t, 4>;

    // False where the library has no such kernel.
    bool supported() const { return supported_; }
    const Descriptor& get() const { return graph_; }

  protected:
    // Tensors inside the graph are numbered from `inner` on, those that a launch supplies below it.
    explicit CudnnGraph(int64_t inner) : next_(inner), graph_(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {}

    void finish(const CudnnHandle& handle);

    // Memory that a launch supplies.
    static Descriptor operand(int64_t id, cudnnDataType_t type, const Four& extents, const Four& strides,
                              int64_t alignment = 16);
    // A float that a launch supplies by value.
    static Descriptor scalar(int64_t id);
    // What lies between operations only.
    Descriptor inner(cudnnDataType_t type, const Four& extents, const Four& strides);

    void matmul(const Descriptor& a, const Descriptor& b, const Descriptor& c);
    // y = mode(x), mode(x, b), or t ? x : b.
    void pointwise(cudnnPointwiseMode_t mode, const Descriptor& x, const Descriptor* b, const Descriptor* t,
                   const Descriptor& y, cudnnDataType_t precision = CUDNN_DATA_FLOAT);
    // y = position along the axis; x gives only its extents.
    void index(int64_t axis, const Descriptor& x, const Descriptor& y);
    void reduce(cudnnReduceTensorOp_t over, const Descriptor& x, const Descriptor& y);
    // y: the elements of x under other extents and strides.
    void reshape(const Descriptor& x, const Descriptor& y);

  private:
    void add_pointwise(const Descriptor& kind, const Descriptor& x, const Descriptor* b, const Descriptor* t,
                       const Descriptor& y);
    void add(Descriptor&& operation);

    int64_t next_;
    std::vector<Descriptor> operations_;
    Descriptor graph_;
    bool supported_ = false;
};

class CudnnPlan {
  public:
    // The first of the library's proposals that it supports on this device within that much workspace.
    static std::optional<CudnnPlan> build(const CudnnHandle&, const CudnnGraph&,
                                          int64_t most_workspace_bytes);

    // Operands by the numbers that the graph gave them.
    void run(cudaStream_t, std::byte* workspace,
             const std::vector<std::pair<int64_t, const void*>>& operands) const;

  private:
    CudnnPlan(cudnnContext* handle, CudnnDescriptor&& plan) : handle_(handle), plan_(std::move(plan)) {}

    cudnnContext* handle_;
    CudnnDescriptor plan_;
};

}  // namespace minipuzzle::cuda
