#include "kernels/cuda/attention.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/cuda/attention_backward_hopper.h"
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
// A plan takes up to 1.5 s to build, so only lengths that windows are cut to get one; the tails of documents,
// each of its own length, do not.
constexpr int64_t kLengthStep = 256;

template <class Args>
bool suits_cudnn(const Args& args) {
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

// Where sums may come in any order.
bool suits_cudnn_backward(const AttentionBackward& args) { return !args.deterministic && suits_cudnn(args); }

// Sums in any order promise no bits, so short sequences share a launch of up to this many tokens: 4 of 2048
// tokens take 0.94 ms together and 1.17 alone, 8 of 1024 take 0.65 and 0.96.
constexpr int64_t kTokensOfLaunch = 8192;
int64_t sequences_of_launch(const AttentionBackward& args) {
    return std::clamp<int64_t>(kTokensOfLaunch / args.q.size(1), 1, std::max<int64_t>(args.q.size(0), 1));
}

// Scratch memory of one launch of cuDNN's backward: delta, d_q in float32, and the library's workspace, which
// holds d_k and d_v of every query head in bf16 and little else.
struct BackwardScratch {
    int64_t delta = 0, d_q_sums = 0, workspace = 0, bytes = 0;  // where each begins, and the end

    explicit BackwardScratch(const AttentionBackward& args) {
        const int64_t rows = sequences_of_launch(args) * args.heads * args.q.size(1);
        d_q_sums = aligned(rows * 4);
        workspace = d_q_sums + aligned(rows * args.head_dim * 4);
        bytes = workspace + 2 * aligned(rows * args.head_dim * 2) + kWorkspaceBytes;
    }
};

std::byte* sequence(const Tensor& tensor, int64_t index) {
    return tensor ? tensor.slice(index, 1).data : nullptr;
}

}  // namespace

struct Attention::State {
    using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool>;
    static Key key_of(const CudnnAttentionShape& s) {
        return {s.batch, s.length, s.heads, s.kv_heads, s.head_dim, s.lse};
    }

    // Null where cuDNN has no kernel for the shape on this device.
    CudnnAttentionPlan* plan_of(const AttentionForward& args) {
        if (!suits_cudnn(args)) return nullptr;
        const CudnnAttentionShape shape{.length = args.q.size(1),
                                        .heads = args.heads,
                                        .kv_heads = args.kv_heads,
                                        .head_dim = args.head_dim,
                                        .lse = static_cast<bool>(args.lse)};
        const Key key = key_of(shape);
        const auto known = plans.find(key);
        if (known != plans.end()) return known->second.get();
        return plans.emplace(key, CudnnAttentionPlan::build(opened().handle, shape, kWorkspaceBytes))
            .first->second.get();
    }
    // Of that many sequences.
    CudnnAttentionBackwardPlan* plan_of(const AttentionBackward& args, int64_t sequences) {
        if (!suits_cudnn_backward(args)) return nullptr;
        const CudnnAttentionShape shape{.batch = sequences,
                                        .length = args.q.size(1),
                                        .heads = args.heads,
                                        .kv_heads = args.kv_heads,
                                        .head_dim = args.head_dim};
        const Key key = key_of(shape);
        const auto known = backward_plans.find(key);
        if (known != backward_plans.end()) return known->second.get();
        const BackwardScratch scratch(args);
        return backward_plans
            .emplace(key, CudnnAttentionBackwardPlan::build(opened().handle, shape,
                                                            scratch.bytes - scratch.workspace))
            .first->second.get();
    }

    // What is made when the first plan is.
    struct Library {
        CudnnHandle handle;
        SideStream side;
    };
    const Library& opened() {
        if (!library) library = std::make_unique<Library>();
        return *library;
    }
    std::unique_ptr<Library> library;  // outlives the plans
    std::map<Key, std::unique_ptr<CudnnAttentionPlan>> plans;
    std::map<Key, std::unique_ptr<CudnnAttentionBackwardPlan>> backward_plans;
};

Attention::Attention() : state_(std::make_unique<State>()) {}
Attention::~Attention() = default;

bool Attention::through_cudnn(const AttentionForward& args) { return state_->plan_of(args) != nullptr; }
bool Attention::through_cudnn(const AttentionBackward& args) {
    const int64_t together = sequences_of_launch(args), rest = args.q.size(0) % together;
    return state_->plan_of(args, together) && (rest == 0 || state_->plan_of(args, rest));
}

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
    MP_ASSERT(context.scratch_capacity >= scratch_bytes(args));
    if (!through_cudnn(args))
        return context.hopper_code && may_use_hopper_backward(args) ? attention_backward_hopper(context, args)
                                                                    : attention_backward_plain(context, args);
    const BackwardScratch scratch(args);
    const int64_t batch = args.q.size(0), together = sequences_of_launch(args);
    for (int64_t b = 0; b < batch; b += together) {
        const int64_t count = std::min(together, batch - b);
        const CudnnAttentionBackwardPlan* plan = state_->plan_of(args, count);
        const auto part = [&](const Tensor& tensor) { return tensor.slice(b, count).data; };
        plan->run(context.stream, context.scratch + scratch.workspace,
                  {.q = part(args.q),
                   .k = part(args.k),
                   .v = part(args.v),
                   .out = part(args.out),
                   .lse = part(args.lse),
                   .d_out = part(args.d_out),
                   .d_q = part(args.d_q),
                   .d_k = part(args.d_k),
                   .d_v = part(args.d_v),
                   .delta = context.scratch + scratch.delta,
                   .d_q_sums = context.scratch + scratch.d_q_sums});
    }
}

void run(const Context& context, Attention& attention, const AttentionForward& args) {
    attention.run(context, args);
}
void run(const Context& context, Attention& attention, const AttentionBackward& args) {
    attention.run(context, args);
}

int64_t scratch_bytes(const AttentionForward& args) { return suits_cudnn(args) ? 2 * kWorkspaceBytes : 0; }

int64_t scratch_bytes(const AttentionBackward& args) {
    int64_t bytes = attention_backward_plain_scratch_bytes(args);
    if (may_use_hopper_backward(args)) bytes = std::max(bytes, attention_backward_hopper_scratch_bytes(args));
    if (suits_cudnn_backward(args)) bytes = std::max(bytes, BackwardScratch(args).bytes);
    return bytes;
}

}  // namespace minipuzzle::cuda
