// Backend: one virtual function per operation of ops.h, plus memory. Chosen at run time.
#pragma once

#include <memory>
#include <string>

#include "kernels/ops.h"

namespace minipuzzle {

class Backend {
  public:
    virtual ~Backend() = default;

    // "cpu (x86-64-v3)", "cuda:0 (NVIDIA H200)", "measuring".
    virtual std::string name() const = 0;
    virtual DeviceKind device() const = 0;
    // The element type of activations, parameters and gradients.
    virtual DType compute_type() const = 0;

    // `bytes` of device memory, 256-byte aligned; Error out_of_memory.
    virtual std::byte* allocate(int64_t bytes) = 0;
    virtual void free(std::byte* memory) noexcept = 0;
    // Host to device, device to host, device to device; ordered with the operations.
    virtual void copy(std::byte* to, const std::byte* from, int64_t bytes) = 0;
    virtual void zero(const Tensor& tensor) = 0;
    virtual void synchronize() = 0;

    virtual void run(const EmbeddingForward&) = 0;
    virtual void run(const EmbeddingBackward&) = 0;
    virtual void run(const RmsNormForward&) = 0;
    virtual void run(const RmsNormBackward&) = 0;
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
    virtual void run(const AbsoluteColumnSums&) = 0;
    virtual void run(const SquaredNorm&) = 0;
    virtual void run(const AdamW&) = 0;
};

// How a device is asked for: "auto", "cpu", "cuda" or "cuda:i". `threads` 0 means every core the process may
// use. Error usage where the device is not in this build or not on this machine (auto then takes the CPU).
std::unique_ptr<Backend> make_backend(const std::string& device, int threads);

// The CPU reference in the given compute type (f32 or f64).
std::unique_ptr<Backend> make_cpu_backend(DType compute_type, int threads);

// Validates every operation and does nothing else: the dry run of the real wiring code (see runtime/arena.h).
std::unique_ptr<Backend> make_measuring_backend(DType compute_type, DeviceKind device);

}  // namespace minipuzzle
