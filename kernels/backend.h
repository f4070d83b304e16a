// Backend: one virtual function per operation of ops.h, plus memory. Chosen at run time.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/ops.h"

namespace minipuzzle {

// Copies between pinned host memory (Backend::allocate_pinned) and the device that run beside the operations.
// Those of one direction run in the order they were given, the two directions beside each other. What a copy
// reads stays untouched until it is done.
class CopyQueue {
  public:
    virtual ~CopyQueue() = default;
    using Ticket = int64_t;

    // Host to device; starts once the operations given to the backend so far are done.
    virtual Ticket copy(std::byte* to, const std::byte* from, int64_t bytes) = 0;
    // Device to host; starts once the operations given to the backend so far are done.
    virtual Ticket copy_back(std::byte* to, const std::byte* from, int64_t bytes) = 0;
    // Copies to the device given from here on start once that copy is done.
    virtual void copies_wait(Ticket ticket) = 0;
    // Operations given to the backend from here on start once that copy is done.
    virtual void operations_wait(Ticket ticket) = 0;
    // The host waits for that copy.
    virtual void host_wait(Ticket ticket) = 0;
};

class Backend {
  public:
    virtual ~Backend() = default;

    // "cpu (x86-64-v3)", "cuda:0 (NVIDIA H200)", "measuring".
    virtual std::string name() const = 0;
    virtual DeviceKind device() const = 0;
    // The element type of activations and matrices; precise_type() of it is that of statistics, states and
    // norm weights (ops.h, "Element types").
    virtual DType compute_type() const = 0;

    // `bytes` of device memory, 256-byte aligned; Error out_of_memory.
    virtual std::byte* allocate(int64_t bytes) = 0;
    virtual void free(std::byte* memory) noexcept = 0;
    // Bytes that allocate() could still give, about; int64 max where the device is the host.
    virtual int64_t available() const = 0;
    // Host memory that a CopyQueue copies from and to while operations run; Error out_of_memory.
    virtual std::byte* allocate_pinned(int64_t bytes) = 0;
    virtual void free_pinned(std::byte* memory) noexcept = 0;
    // Host to device, device to host, device to device; ordered with the operations. Host memory may be
    // reused, and is filled, on return.
    virtual void copy(std::byte* to, const std::byte* from, int64_t bytes) = 0;
    virtual std::unique_ptr<CopyQueue> make_copy_queue() = 0;
    virtual void zero(const Tensor& tensor) = 0;
    virtual void synchronize() = 0;
    // What the device takes for the operations that `operations` gives it, in milliseconds; they are done on
    // return.
    virtual double elapsed_ms(const std::function<void()>& operations) = 0;

    // A backend that validates every operation, counts the scratch memory it would take, and does nothing
    // else: the dry run of the real wiring code (runtime/arena.h).
    virtual std::unique_ptr<Backend> measuring() const = 0;
    // Of a measuring backend: the most scratch bytes one operation asked for so far.
    virtual int64_t scratch_bytes() const { return 0; }
    // Makes room for operations of that much scratch memory, so that none allocates; Error out_of_memory.
    virtual void reserve_scratch(int64_t bytes) = 0;
    // A named span on the profiler's time line (NVTX), closed by end_range.
    virtual void begin_range(const char* name) { (void)name; }
    virtual void end_range() {}

    virtual void run(const EmbeddingForward&) = 0;
    virtual void run(const EmbeddingBackward&) = 0;
    virtual void run(const RmsNormForward&) = 0;
    virtual void run(const RmsNormBackward&) = 0;
    virtual void run(const QuantizeRows&) = 0;
    virtual void run(const LinearForward&) = 0;
    virtual void run(const LinearBackward&) = 0;
    virtual void run(const SquaredReluForward&) = 0;
    virtual void run(const SquaredReluBackward&) = 0;
    virtual void run(const Add&) = 0;
    virtual void run(const ConvForward&) = 0;
    virtual void run(const ConvBackward&) = 0;
    virtual void run(const SsdForward&) = 0;
    virtual void run(const SsdBackward&) = 0;
    virtual void run(const GatedNormForward&) = 0;
    virtual void run(const GatedNormBackward&) = 0;
    virtual void run(const AttentionForward&) = 0;
    virtual void run(const AttentionBackward&) = 0;
    virtual void run(const VocabularyLoss&) = 0;
    virtual void run(const CompareLogits&) = 0;
    virtual void run(const FeatureLoss&) = 0;
    virtual void run(const ActivationSums&) = 0;
    virtual void run(const AccumulatePowers&) = 0;
    virtual void run(const SquaredNorm&) = 0;
    virtual void run(const RandomNormal&) = 0;
    virtual void run(const GradientNorms&) = 0;
    virtual void run(const AdamW&) = 0;
};

// How a device is asked for: "auto", "cpu", "cuda" or "cuda:i". `threads` 0 means every core the process may
// use (CPU). Error usage where the device is not in this build or not on this machine; auto takes the first
// CUDA device that is, else the CPU.
std::unique_ptr<Backend> make_backend(const std::string& device, int threads);

// The CPU reference in the given compute type (f32 or f64).
std::unique_ptr<Backend> make_cpu_backend(DType compute_type, int threads);

// The dry run of any backend whose operations need no scratch memory of the device.
std::unique_ptr<Backend> make_measuring_backend(DType compute_type, DeviceKind device);

}  // namespace minipuzzle
