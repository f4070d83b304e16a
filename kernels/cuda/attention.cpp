#include "kernels/cuda/attention.h"

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
        if (!handle) handle = std::make_unique<CudnnHandle>();
        return plans.emplace(key, CudnnAttentionPlan::build(*handle, shape, kCudnnWorkspaceBytes))
            .first->second.get();
    }

    std::unique_ptr<CudnnHandle> handle;  // outlives the plans
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
    MP_ASSERT(context.scratch_capacity >= plan->workspace_bytes());
    for (int64_t b = 0; b < args.q.size(0); ++b)
        plan->run(context, {.q = sequence(args.q, b),
                            .k = sequence(args.k, b),
                            .v = sequence(args.v, b),
                            .out = sequence(args.out, b),
                            .lse = sequence(args.lse, b)});
}

void run(const Context& context, Attention& attention, const AttentionForward& args) {
    attention.run(context, args);
}

int64_t scratch_bytes(const AttentionForward& args) { return suits_cudnn(args) ? kCudnnWorkspaceBytes : 0; }

}  // namespace minipuzzle::cuda
