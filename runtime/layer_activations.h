// What lives inside one layer between its input and its residual add; shared by forward and backward.
#pragma once

#include "runtime/arena.h"
#include "runtime/weights.h"

namespace minipuzzle {

// The scan's chunk in this tool (config chunk_size changes rounding only).
inline constexpr int64_t kScanChunk = 128;

// What every mixer needs: `in` is the residual stream [B, T, D].
struct LayerContext {
    Backend& backend;
    DeviceArena& arena;
    const Architecture& architecture;
    Tensor in;
    Tensor document;  // [B, T] i32 or empty

    int64_t batch() const { return in.size(0); }
    int64_t length() const { return in.size(1); }
    Tensor take(const char* name, int64_t columns) const {
        return arena.take(name, {batch(), length(), columns});
    }
};

// `no` lets activations overwrite each other.
enum class KeepForBackward { no, yes };

struct MambaActivations {
    Tensor normed;        // [B, T, D]
    Tensor zxbcdt;        // [B, T, projection]
    Tensor xbc;           // [B, T, conv_channels]
    Tensor y;             // [B, T, inner], before the gate
    Tensor chunk_states;  // see SsdForward; only when kept
    Tensor gated;         // [B, T, inner]; y's memory when not kept
};
struct AttentionActivations {
    Tensor normed, q, k, v, out;
    Tensor lse;  // only when kept
};
struct FfnActivations {
    Tensor normed, up;
    Tensor activated;  // [B, T, F]; up's memory when not kept
};

MambaActivations mamba_forward(const LayerContext&, const Mamba&, const MambaWeights&, KeepForBackward);
AttentionActivations attention_forward(const LayerContext&, const Attention&, const AttentionWeights&,
                                       KeepForBackward);
FfnActivations ffn_forward(const LayerContext&, const FfnWeights&, KeepForBackward);

// out = in + branch * projection^T; `out` may be `in`.
void add_to_residual(const LayerContext&, const Tensor& branch, const Tensor& projection, const Tensor& out);

}  // namespace minipuzzle
