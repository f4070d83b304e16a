#include "kernels/cuda/cuda_backend.h"

#include <fmt/format.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/products.h"
#include "kernels/measuring_backend.h"

namespace minipuzzle::cuda {

void fail_cuda(cudaError_t error, const char* expression, const char* file, int line) {
    cudaGetLastError();  // an error that is not sticky must not be reported twice
    const ErrorKind kind = error == cudaErrorMemoryAllocation ? ErrorKind::out_of_memory : ErrorKind::other;
    throw Error(kind, fmt::format("CUDA: {} ({}) from {} at {}:{}", cudaGetErrorString(error),
                                  cudaGetErrorName(error), expression, file, line));
}

namespace {

constexpr int kOldestArchitecture = 80;

double mebibytes(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// The dry run: what each operation would take of the scratch memory.
class CudaMeasuringBackend final : public MeasuringBackend {
  public:
    CudaMeasuringBackend() : MeasuringBackend(DType::bf16, DeviceKind::cuda) {}
    std::unique_ptr<Backend> measuring() const override { return std::make_unique<CudaMeasuringBackend>(); }

    using MeasuringBackend::run;
    void run(const SsdForward& args) override { count(args); }
    void run(const AttentionForward& args) override { count(args); }
    void run(const CompareLogits& args) override { count(args); }
    void run(const SquaredNorm& args) override {
        MeasuringBackend::run(args);
        need_scratch(cuda::scratch_bytes(args));
    }
    void run(const EmbeddingBackward& args) override { count(args); }
    void run(const RmsNormBackward& args) override { count(args); }
    void run(const ConvBackward& args) override { count(args); }
    void run(const SsdBackward& args) override { count(args); }
    void run(const GatedNormBackward& args) override { count(args); }
    void run(const AttentionBackward& args) override { count(args); }
    void run(const VocabularyLoss& args) override { count(args); }
    void run(const GradientNorms& args) override { count(args); }
    void run(const AdamW& args) override { count(args); }

  private:
    template <class Args>
    void count(const Args& args) {
        validate(args);
        need_scratch(cuda::scratch_bytes(args));
    }
};

// A stream of copies, each followed by an event.
class CopyStream {
  public:
    explicit CopyStream(cudaMemcpyKind kind) : kind_(kind) {
        MP_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
        for (cudaEvent_t& event : done_) MP_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    }
    ~CopyStream() {
        cudaStreamSynchronize(stream_);
        for (cudaEvent_t event : done_) cudaEventDestroy(event);
        cudaStreamDestroy(stream_);
    }
    CopyStream(const CopyStream&) = delete;
    CopyStream& operator=(const CopyStream&) = delete;

    cudaStream_t stream() const { return stream_; }
    // The copy's number on this stream.
    int64_t copy(std::byte* to, const std::byte* from, int64_t bytes) {
        MP_CUDA(cudaMemcpyAsync(to, from, bytes, kind_, stream_));
        MP_CUDA(cudaEventRecord(done(next_), stream_));
        return next_++;
    }
    // A later copy's event says more than an older one's, so a ring that has come round only waits longer.
    cudaEvent_t done(int64_t copy) const { return done_[copy % std::ssize(done_)]; }

  private:
    cudaMemcpyKind kind_;
    cudaStream_t stream_ = nullptr;
    cudaEvent_t done_[64] = {};
    int64_t next_ = 0;
};

// A stream a direction, ordered against the compute stream by events. An even ticket is a copy to the device.
class StreamCopies final : public CopyQueue {
  public:
    explicit StreamCopies(cudaStream_t operations) : operations_(operations) {
        MP_CUDA(cudaEventCreateWithFlags(&operations_so_far_, cudaEventDisableTiming));
    }
    ~StreamCopies() override { cudaEventDestroy(operations_so_far_); }

    Ticket copy(std::byte* to, const std::byte* from, int64_t bytes) override {
        wait_for_operations(to_device_);
        return 2 * to_device_.copy(to, from, bytes);
    }
    Ticket copy_back(std::byte* to, const std::byte* from, int64_t bytes) override {
        wait_for_operations(to_host_);
        return 2 * to_host_.copy(to, from, bytes) + 1;
    }
    void copies_wait(Ticket ticket) override {
        MP_CUDA(cudaStreamWaitEvent(to_device_.stream(), event_of(ticket)));
    }
    void operations_wait(Ticket ticket) override {
        MP_CUDA(cudaStreamWaitEvent(operations_, event_of(ticket)));
    }
    void host_wait(Ticket ticket) override { MP_CUDA(cudaEventSynchronize(event_of(ticket))); }

  private:
    void wait_for_operations(const CopyStream& copies) {
        MP_CUDA(cudaEventRecord(operations_so_far_, operations_));
        MP_CUDA(cudaStreamWaitEvent(copies.stream(), operations_so_far_));
    }
    cudaEvent_t event_of(Ticket ticket) const {
        return (ticket % 2 == 0 ? to_device_ : to_host_).done(ticket / 2);
    }

    cudaStream_t operations_;
    cudaEvent_t operations_so_far_ = nullptr;
    CopyStream to_device_{cudaMemcpyHostToDevice}, to_host_{cudaMemcpyDeviceToHost};
};

class CudaBackend final : public Backend {
  public:
    explicit CudaBackend(int index) : index_(index) {
        MP_CUDA(cudaSetDevice(index));
        cudaDeviceProp properties{};
        MP_CUDA(cudaGetDeviceProperties(&properties, index));
        device_name_ = properties.name;
        context_.architecture = properties.major * 10 + properties.minor;
        context_.multiprocessors = properties.multiProcessorCount;
        context_.shared_memory_per_block = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
        MP_CUDA(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking));
        context_.hopper_code = runs_hopper_code(context_.stream);
    }
    ~CudaBackend() override {
        cudaStreamSynchronize(context_.stream);
        cudaFree(context_.scratch);
        for (cudaEvent_t event : marks_)
            if (event) cudaEventDestroy(event);
        cudaStreamDestroy(context_.stream);
    }

    std::string name() const override { return fmt::format("cuda:{} ({})", index_, device_name_); }
    DeviceKind device() const override { return DeviceKind::cuda; }
    DType compute_type() const override { return DType::bf16; }

    std::byte* allocate(int64_t bytes) override {
        void* memory = nullptr;
        const cudaError_t error = cudaMalloc(&memory, std::max<int64_t>(bytes, 1));
        if (error == cudaErrorMemoryAllocation) {
            cudaGetLastError();
            throw Error(ErrorKind::out_of_memory,
                        fmt::format("{} has {:.0f} MiB of memory free, {:.0f} MiB are needed: use a smaller "
                                    "batch or sequence length, or stream the weights with --weight-memory",
                                    name(), mebibytes(available()), mebibytes(bytes)));
        }
        MP_CUDA(error);
        return static_cast<std::byte*>(memory);
    }
    void free(std::byte* memory) noexcept override {
        cudaStreamSynchronize(context_.stream);
        cudaFree(memory);
    }
    int64_t available() const override {
        std::size_t free = 0, total = 0;
        MP_CUDA(cudaMemGetInfo(&free, &total));
        return static_cast<int64_t>(free);
    }
    std::byte* allocate_pinned(int64_t bytes) override {
        void* memory = nullptr;
        const cudaError_t error = cudaMallocHost(&memory, std::max<int64_t>(bytes, 1));
        if (error == cudaErrorMemoryAllocation) {
            cudaGetLastError();
            throw Error(
                ErrorKind::out_of_memory,
                fmt::format("the host cannot pin {:.0f} MiB of memory for what is streamed to the device",
                            mebibytes(bytes)));
        }
        MP_CUDA(error);
        return static_cast<std::byte*>(memory);
    }
    void free_pinned(std::byte* memory) noexcept override { cudaFreeHost(memory); }

    void copy(std::byte* to, const std::byte* from, int64_t bytes) override {
        if (bytes == 0) return;
        MP_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, context_.stream));
        if (!on_device(to) || !on_device(from)) MP_CUDA(cudaStreamSynchronize(context_.stream));
    }
    std::unique_ptr<CopyQueue> make_copy_queue() override {
        return std::make_unique<StreamCopies>(context_.stream);
    }
    void zero(const Tensor& tensor) override {
        if (tensor.bytes() > 0) MP_CUDA(cudaMemsetAsync(tensor.data, 0, tensor.bytes(), context_.stream));
    }
    void synchronize() override { MP_CUDA(cudaStreamSynchronize(context_.stream)); }
    double elapsed_ms(const std::function<void()>& operations) override {
        for (cudaEvent_t& event : marks_)
            if (!event) MP_CUDA(cudaEventCreate(&event));
        MP_CUDA(cudaEventRecord(marks_[0], context_.stream));
        operations();
        MP_CUDA(cudaEventRecord(marks_[1], context_.stream));
        MP_CUDA(cudaEventSynchronize(marks_[1]));
        float milliseconds = 0;
        MP_CUDA(cudaEventElapsedTime(&milliseconds, marks_[0], marks_[1]));
        return milliseconds;
    }

    std::unique_ptr<Backend> measuring() const override { return std::make_unique<CudaMeasuringBackend>(); }
    void reserve_scratch(int64_t bytes) override {
        if (bytes <= context_.scratch_capacity) return;
        free(context_.scratch);
        context_.scratch = nullptr;
        context_.scratch_capacity = 0;
        context_.scratch = allocate(bytes);
        context_.scratch_capacity = bytes;
    }
    void begin_range(const char* name) override { nvtxRangePushA(name); }
    void end_range() override { nvtxRangePop(); }

    void run(const EmbeddingForward& args) override { launch(args); }
    void run(const RmsNormForward& args) override { launch(args); }
    void run(const QuantizeRows& args) override { launch(args); }
    void run(const SquaredReluForward& args) override { launch(args); }
    void run(const Add& args) override { launch(args); }
    void run(const ConvForward& args) override { launch(args); }
    void run(const GatedNormForward& args) override { launch(args); }
    void run(const ActivationSums& args) override { launch(args); }
    void run(const AccumulatePowers& args) override { launch(args); }
    void run(const RandomNormal& args) override { launch(args); }
    void run(const SquaredReluBackward& args) override { launch(args); }
    void run(const FeatureLoss& args) override { launch(args); }

    void run(const SsdForward& args) override { launch_with_scratch(args); }
    void run(const SquaredNorm& args) override { launch_with_scratch(args); }
    void run(const EmbeddingBackward& args) override { launch_with_scratch(args); }
    void run(const RmsNormBackward& args) override { launch_with_scratch(args); }
    void run(const ConvBackward& args) override { launch_with_scratch(args); }
    void run(const SsdBackward& args) override { launch_with_scratch(args); }
    void run(const GatedNormBackward& args) override { launch_with_scratch(args); }
    void run(const GradientNorms& args) override { launch_with_scratch(args); }
    void run(const AdamW& args) override { launch_with_scratch(args); }

    void run(const LinearForward& args) override { launch(args, products()); }
    void run(const LinearBackward& args) override { launch(args, products()); }
    void run(const AttentionForward& args) override { launch_with_scratch(args, attention_); }
    void run(const AttentionBackward& args) override { launch_with_scratch(args, attention_); }
    void run(const CompareLogits& args) override { launch_with_scratch(args, products()); }
    void run(const VocabularyLoss& args) override { launch_with_scratch(args, products()); }

  private:
    // `library` is what keeps the plans of an operation that goes through one.
    template <class Args, class... Library>
    void launch(const Args& args, Library&... library) {
        validate(args);
        cuda::run(context_, library..., args);
    }
    template <class Args, class... Library>
    void launch_with_scratch(const Args& args, Library&... library) {
        validate(args);
        reserve_scratch(cuda::scratch_bytes(args));
        cuda::run(context_, library..., args);
    }
    Products& products() {
        if (!products_) products_ = std::make_unique<Products>();
        return *products_;
    }
    static bool on_device(const void* memory) {
        cudaPointerAttributes attributes{};
        MP_CUDA(cudaPointerGetAttributes(&attributes, memory));
        return attributes.type == cudaMemoryTypeDevice;
    }

    int index_;
    std::string device_name_;
    Context context_;
    cudaEvent_t marks_[2] = {};  // of elapsed_ms()
    std::unique_ptr<Products> products_;
    Attention attention_;
};

}  // namespace

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();
    return 0;
}

std::unique_ptr<Backend> make_cuda_backend(int index) {
    const int count = device_count();
    if (count == 0) fail_usage("no CUDA device was found (is the NVIDIA driver there?): use --device cpu");
    if (index < 0 || index >= count)
        fail_usage(
            fmt::format("device is cuda:{}, but this machine has cuda:0 to cuda:{}", index, count - 1));
    int major = 0, minor = 0;
    MP_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    MP_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
    if (major * 10 + minor < kOldestArchitecture)
        fail_usage(
            fmt::format("cuda:{} has compute capability {}.{}, this program needs {}.{} or newer: use "
                        "--device cpu",
                        index, major, minor, kOldestArchitecture / 10, kOldestArchitecture % 10));
    return std::make_unique<CudaBackend>(index);
}

}  // namespace minipuzzle::cuda
