#include "kernels/cuda/attention.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/cuda/attention_plain.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/operations.h"

namespace minipuzzle::cuda {

namespace {

// Shorter rows do not fill cuDNN's blocks, and launching them one sequence at a time would leave most of the
// device idle; documents in a row are a mask it does not have.
constexpr int64_t kShortestRow = 1024;

bool suits_cudnn(const AttentionForward& args) {
    return args.head_dim % 8 == 0 && args.head_dim <= 128 && args.q.size(1) >= kShortestRow && !args.document;
}

// The sequences of a batch run on this many streams in turn, so that one's last blocks share the device with
// the next one's first: alone, 1024 tokens of 32 heads leave two fifths of it idle.
constexpr int kLanes = 4;
constexpr int64_t kLaneWorkspaceBytes = int64_t{16} << 20;

// The streams beside the operations' own, which is lane 0.
class Lanes {
  public:
    Lanes() {
        MP_CUDA(cudaEventCreateWithFlags(&before_, cudaEventDisableTiming));
        for (Lane& lane : lanes_) {
            MP_CUDA(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking));
            MP_CUDA(cudaEventCreateWithFlags(&lane.done, cudaEventDisableTiming));
        }
    }
    ~Lanes() {
        for (Lane& lane : lanes_) {
            cudaStreamDestroy(lane.stream);
            cudaEventDestroy(lane.done);
        }
        cudaEventDestroy(before_);
    }
    Lanes(const Lanes&) = delete;
    Lanes& operator=(const Lanes&) = delete;

    // Calls launch(index, lane, stream) for every index below count; all of it after what `main` was given so
    // far and before what it is given next.
    template <class Launch>
    void run(cudaStream_t main, int64_t count, const Launch& launch) {
        const int used = static_cast<int>(std::min<int64_t>(count, kLanes));
        if (used > 1) MP_CUDA(cudaEventRecord(before_, main));
        for (int i = 1; i < used; ++i) MP_CUDA(cudaStreamWaitEvent(lanes_[i - 1].stream, before_));
        for (int64_t index = 0; index < count; ++index) {
            const int lane = static_cast<int>(index % kLanes);
            launch(index, lane, lane == 0 ? main : lanes_[lane - 1].stream);
        }
        for (int i = 1; i < used; ++i) {
            MP_CUDA(cudaEventRecord(lanes_[i - 1].done, lanes_[i - 1].stream));
            MP_CUDA(cudaStreamWaitEvent(main, lanes_[i - 1].done));
        }
    }

  private:
    struct Lane {
        cudaStream_t stream = nullptr;
        cudaEvent_t done = nullptr;
    };
    cudaEvent_t before_ = nullptr;
    Lane lanes_[kLanes - 1];
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
        const CudnnAttentionShape shape{args.q.size(1), args.heads, args.kv_heads, args.head_dim,
                                        static_cast<bool>(args.lse)};
        const Key key{shape.length, shape.heads, shape.kv_heads, shape.head_dim, shape.lse};
        const auto known = plans.find(key);
        if (known != plans.end()) return known->second.get();
        if (!library) library = std::make_unique<Library>();
        return plans.emplace(key, CudnnAttentionPlan::build(library->handle, shape, kLaneWorkspaceBytes))
            .first->second.get();
    }

    // What is made when the first plan is.
    struct Library {
        CudnnHandle handle;
        Lanes lanes;
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
    state_->library->lanes.run(context.stream, args.q.size(0), [&](int64_t b, int lane, cudaStream_t stream) {
        plan->run(stream, context.scratch + lane * kLaneWorkspaceBytes,
                  {.q = sequence(args.q, b),
                   .k = sequence(args.k, b),
                   .v = sequence(args.v, b),
                   .out = sequence(args.out, b),
                   .lse = sequence(args.lse, b)});
    });
}

void run(const Context& context, Attention& attention, const AttentionForward& args) {
    attention.run(context, args);
}

int64_t scratch_bytes(const AttentionForward& args) {
    return suits_cudnn(args) ? kLanes * kLaneWorkspaceBytes : 0;
}

}  // namespace minipuzzle::cuda
