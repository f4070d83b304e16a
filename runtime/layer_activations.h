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

// Where the layer's projections are quantised, so are the activations that they multiply: normed, and the
// last one of each mixer, with their scales of rows [B*T] beside them.
struct MambaActivations {
    Tensor normed;        // [B, T, D]
    Tensor zxbcdt;        // [B, T, projection]
    Tensor xbc;           // [B, T, conv_channels]
    Tensor y;             // [B, T, inner], before the gate
    Tensor chunk_states;  // see SsdForward; for the backward only
    Tensor gated;         // [B, T, inner]; y's memory where nothing is kept and nothing quantised
    Tensor normed_scale, gated_scale;
};
struct AttentionActivations {
    Tensor normed, q, k, v, out;
    Tensor lse;  // for the backward only
    Tensor normed_scale, quantized_out, quantized_out_scale;
};
struct FfnActivations {
    Tensor normed, up;
    Tensor activated;  // [B, T, F]; up's memory where nothing is kept and nothing quantised
    Tensor normed_scale, activated_scale;
};
// Those of one layer, in the member of its type.
struct LayerActivations {
    MambaActivations mamba;
    AttentionActivations attention;
    FfnActivations ffn;
};

// Sees what a layer computed from a state, before its memory is used again.
class LayerObserver {
  public:
    virtual ~LayerObserver() = default;
    // After the layer: the context's `in` may be overwritten. May give operations to the context's backend
    // and take memory from its arena, which the layer releases; in a dry run (arena.h) both are measuring
    // ones.
    virtual void observe(const LayerContext& context, int64_t layer, const LayerActivations& activations) = 0;
};

// How much of a layer's activations the backward computes once more instead of finding them kept. The values
// are the same bits either way.
//   none       everything is kept
//   selective  what the widest products give is kept (Mamba: zxbcdt; FFN: the pre-activation; attention: q,
//              k, v, its output and lse); norms, conv, scan and gates, which cost little, run again
//   full       nothing is kept but the stream that enters the layer (and attention's lse)
enum class Recompute { none, selective, full };
std::string_view name(Recompute policy);

// Takes from the arena what `policy` keeps of a layer; the other members stay empty.
LayerActivations take_kept(const LayerContext&, const Layer&, Recompute policy);

// What the tensors that a mixer's function is given mean, and what it has to leave.
enum class Pass {
    forward,  // memory that the forward pass fills on its way; the others may overwrite each other
    rebuild   // values that are there already: everything else is computed beside them
};
MambaActivations mamba_activations(const LayerContext&, const Mamba&, const MambaWeights&, Pass,
                                   MambaActivations given = {});
AttentionActivations attention_activations(const LayerContext&, const Attention&, const AttentionWeights&,
                                           Pass, AttentionActivations given = {});
FfnActivations ffn_activations(const LayerContext&, const FfnWeights&, Pass, FfnActivations given = {});

// A mixer's last activation and the matrix that leads from it back into the residual stream.
struct ResidualBranch {
    Tensor activation, projection;
    Tensor activation_scale, projection_scale;  // where both are quantised
};
// out = in + activation * projection^T; `out` may be `in`.
void add_to_residual(const LayerContext&, const ResidualBranch& branch, const Tensor& out);

}  // namespace minipuzzle
