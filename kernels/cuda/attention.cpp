#include "kernels/cuda/attention.h"

#include <map>
#include <tuple>

#include "kernels/cuda/attention_backward_plain.h"
#include "kernels/cuda/attention_plain.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/cudnn_graph.h"
#include "kernels/cuda/operations.h"

namespace minipuzzle::cuda {

namespace {

// Shorter rows do not fill cuDNN's blocks, and launching them one sequence at a time would leave most of the
// device idle; documents in a row are a mask it does not have.
constexpr int64_t kShortestRow = 1024;
// A plan takes up to 0.7 s to build, so only lengths that windows are cut to get one; the tails of documents,
// each of its own length, do not.
constexpr int64_t kLengthStep = 256;

bool suits_cudnn(const AttentionForward& args) {
    const int64_t length = args.q.size(1);
    return args.head_dim % 8 == 0 && args.head_dim <= 128 && length >= kShortestRow &&
           length % kLengthStep == 0 && !args.document;
}

// Of the 64 MiB of scratch memory, for each of two streams. The plans seen so far take 256 bytes.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

// A second stream, which takes every other sequence of a batch, so that one's last blocks share the device
// with the next one's first: alone, 1024 tokens of 32 heads leave two fifths of it idle.
class SideStream {
  public:
    SideStream() {
        MP_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
        MP_CUDA(cudaEventCreateWithFlags(&before_, cudaEventDisableTiming));
        MP_CUDA(cudaEventCreateWithFlags(&after_, cudaEventDisableTiming));
    }
    ~SideStream() {
        cudaEventDestroy(after_);
        cudaEventDestroy(before_);
        cudaStreamDestroy(stream_);
    }
    SideStream(const SideStream&) = delete;
    SideStream& operator=(const SideStream&) = delete;

    cudaStream_t get() const { return stream_; }
    // What it is given from here on starts after everything that `main` was given so far.
    void fork(cudaStream_t main) {
        MP_CUDA(cudaEventRecord(before_, main));
        MP_CUDA(cudaStreamWaitEvent(stream_, before_));
    }
    // What `main` is given from here on starts after everything that it was given so far.
    void join(cudaStream_t main) {
        MP_CUDA(cudaEventRecord(after_, stream_));
        MP_CUDA(cudaStreamWaitEvent(main, after_));
    }

  private:
    cudaStream_t stream_ = nullptr;
    cudaEvent_t before_ = nullptr, after_ = nullptr;
};

std::byte* sequence(const Tensor& tensor, int64_t index) {
    return tensor ? tensor.slice(index, 1).data : nullptr;
}

}  // namespace

struct Attention::State {
    using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;

    // Null where cuDNN has no kernel for the shape on this device.
    CudnnAttentionPlan* plan_of(const AttentionForward& args) {
        if (!suits_cudnn(args)) return nullptr;
        const CudnnAttentionShape shape{.length = args.q.size(1),
                                        .heads = args.heads,
                                        .kv_heads = args.kv_heads,
                                        .head_dim = args.head_dim,
                                        .lse = static_cast<bool>(args.lse)};
        const Key key{shape.length, shape.heads, shape.kv_heads, shape.head_dim, shape.lse};
        const auto known = plans.find(key);
        if (known != plans.end()) return known->second.get();
        if (!library) library = std::make_unique<Library>();
        return plans.emplace(key, CudnnAttentionPlan::build(library->handle, shape, kWorkspaceBytes))
            .first->second.get();
    }

    // What is made when the first plan is.
    struct Library {
        CudnnHandle handle;
        SideStream side;
    };
    std::unique_ptr<Library> library;  // outlives the plans
    std::map<Key, std::unique_ptr<CudnnAttentionPlan>> plans;
};

Attention::Attention() : state_(std::make_unique<State>()) {}
Attention::~Attention() = default;

bool Attention::through_cudnn(const AttentionForward& args) { return state_->plan_of(args) != nullptr; }

// FLOPs of a causal row: 2 * T^2 * P * H (half of the two full products), 5.5e11 for 8192 tokens of the 8B
// model's 32 heads of 128. Ideal bytes: q and out, 2 * T * H * P each, k and v, 2 * T * K * P each: 168e6;
// bound by arithmetic.
void Attention::run(const Context& context, const AttentionForward& args) {
    if (args.q.elements() == 0) return;
    CudnnAttentionPlan* plan = state_->plan_of(args);
    if (!plan) return attention_forward_plain(context, args);
    MP_ASSERT(context.scratch_capacity >= scratch_bytes(args));
    SideStream& side = state_->library->side;
    const int64_t batch = args.q.size(0);
    if (batch > 1) side.fork(context.stream);
    for (int64_t b = 0; b < batch; ++b) {
        const bool aside = b % 2 == 1;
        plan->run(aside ? side.get() : context.stream, context.scratch + (aside ? kWorkspaceBytes : 0),
                  {.q = sequence(args.q, b),
                   .k = sequence(args.k, b),
                   .v = sequence(args.v, b),
                   .out = sequence(args.out, b),
                   .lse = sequence(args.lse, b)});
    }
    if (batch > 1) side.join(context.stream);
}

// FLOPs of a causal row: five products, 5 * T^2 * P * H, 1.37e12 for 8192 tokens of the 8B model. Ideal
// bytes: q, out, d_out and d_q, 2 * T * H * P each, k, v, d_k and d_v, 2 * T * K * P each: 336e6; bound by
// arithmetic.
void Attention::run(const Context& context, const AttentionBackward& args) {
    if (args.q.elements() == 0) return;
    attention_backward_plain(context, args);
}

void run(const Context& context, Attention& attention, const AttentionForward& args) {
    attention.run(context, args);
}
void run(const Context& context, Attention& attention, const AttentionBackward& args) {
    attention.run(context, args);
}

int64_t scratch_bytes(const AttentionForward& args) { return suits_cudnn(args) ? 2 * kWorkspaceBytes : 0; }

int64_t scratch_bytes(const AttentionBackward& args) { return attention_backward_plain_scratch_bytes(args); }

}  // namespace minipuzzle::cuda
