#include "runtime/layer_activations.h"

namespace minipuzzle {

namespace {

Tensor norm_in(const LayerContext& context, const Tensor& weight) {
    const Tensor normed = context.take("normed", context.architecture.width);
    context.backend.run(RmsNormForward{
        .x = context.in, .weight = weight, .eps = context.architecture.norm_eps, .out = normed});
    return normed;
}

Tensor project(const LayerContext& context, const char* name, const Tensor& x, const Tensor& weight) {
    const Tensor out = context.take(name, weight.size(0));
    context.backend.run(LinearForward{.x = x, .weight = weight, .out = out});
    return out;
}

}  // namespace

MambaActivations mamba_forward(const LayerContext& context, const Mamba& shape, const MambaWeights& weights,
                               KeepForBackward keep) {
    MambaActivations a;
    a.normed = norm_in(context, weights.norm);
    a.zxbcdt = project(context, "zxbcdt", a.normed, weights.in_proj);
    a.xbc = context.take("xbc", shape.conv_channels());
    context.backend.run(ConvForward{.shape = shape,
                                    .zxbcdt = a.zxbcdt,
                                    .weight = weights.conv_weight,
                                    .bias = weights.conv_bias,
                                    .document = context.document,
                                    .xbc = a.xbc});
    a.y = context.take("scan output", shape.inner());
    if (keep == KeepForBackward::yes)
        a.chunk_states =
            context.arena.take("chunk states",
                               {context.batch(), div_up(context.length(), kScanChunk) * shape.heads,
                                shape.head_dim, shape.state},
                               precise_type(context.backend.compute_type()));
    context.backend.run(SsdForward{.shape = shape,
                                   .chunk = kScanChunk,
                                   .dt_min = context.architecture.dt_min,
                                   .dt_max = context.architecture.dt_max,
                                   .xbc = a.xbc,
                                   .zxbcdt = a.zxbcdt,
                                   .dt_bias = weights.dt_bias,
                                   .a_log = weights.a_log,
                                   .d = weights.d,
                                   .document = context.document,
                                   .y = a.y,
                                   .chunk_states = a.chunk_states});
    a.gated = keep == KeepForBackward::yes ? context.take("gated", shape.inner()) : a.y;
    context.backend.run(GatedNormForward{.shape = shape,
                                         .y = a.y,
                                         .zxbcdt = a.zxbcdt,
                                         .weight = weights.gate_norm,
                                         .eps = context.architecture.norm_eps,
                                         .out = a.gated});
    return a;
}

AttentionActivations attention_forward(const LayerContext& context, const Attention& shape,
                                       const AttentionWeights& weights, KeepForBackward keep) {
    AttentionActivations a;
    a.normed = norm_in(context, weights.norm);
    a.q = project(context, "q", a.normed, weights.q_proj);
    a.k = project(context, "k", a.normed, weights.k_proj);
    a.v = project(context, "v", a.normed, weights.v_proj);
    a.out = context.take("attention output", shape.heads * shape.head_dim);
    if (keep == KeepForBackward::yes)
        a.lse = context.arena.take("attention lse", {context.batch(), shape.heads, context.length()},
                                   precise_type(context.backend.compute_type()));
    context.backend.run(AttentionForward{.heads = shape.heads,
                                         .kv_heads = shape.kv_heads,
                                         .head_dim = shape.head_dim,
                                         .q = a.q,
                                         .k = a.k,
                                         .v = a.v,
                                         .document = context.document,
                                         .out = a.out,
                                         .lse = a.lse});
    return a;
}

FfnActivations ffn_forward(const LayerContext& context, const FfnWeights& weights, KeepForBackward keep) {
    FfnActivations a;
    a.normed = norm_in(context, weights.norm);
    a.up = project(context, "ffn pre-activation", a.normed, weights.up_proj);
    a.activated =
        keep == KeepForBackward::yes ? context.take("ffn activation", weights.up_proj.size(0)) : a.up;
    context.backend.run(SquaredReluForward{.x = a.up, .out = a.activated});
    return a;
}

void add_to_residual(const LayerContext& context, const Tensor& branch, const Tensor& projection,
                     const Tensor& out) {
    context.backend.run(LinearForward{.x = branch, .weight = projection, .residual = context.in, .out = out});
}

}  // namespace minipuzzle
