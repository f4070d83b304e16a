// Backward of one layer: what was not kept of its activations is rebuilt, then all are walked in reverse. The
// gradient of the residual stream is passed through in place, each norm adding its branch's share.

#include "runtime/hybrid_model.h"
#include "runtime/layer_activations.h"
#include "runtime/profiler_range.h"

namespace minipuzzle {

namespace {

// d_x = d_out * weight, d_weight += d_out^T x; the gradient of `x` is taken from the arena.
Tensor linear_backward(const LayerContext& context, const char* name, const Tensor& x, const Tensor& weight,
                       const Tensor& d_out, const Tensor& d_weight) {
    const Tensor d_x = context.take(name, x.columns());
    context.backend.run(
        LinearBackward{.x = x, .weight = weight, .d_out = d_out, .d_x = d_x, .d_weight = d_weight});
    return d_x;
}

void norm_backward(const LayerContext& context, const Tensor& weight, const Tensor& d_normed,
                   const Tensor& d_hidden, const Tensor& d_weight) {
    context.backend.run(RmsNormBackward{.x = context.in,
                                        .weight = weight,
                                        .eps = context.architecture.norm_eps,
                                        .d_out = d_normed,
                                        .d_x = d_hidden,
                                        .d_weight = d_weight});
}

void mamba_backward(const LayerContext& context, const Mamba& shape, const MambaWeights& weights,
                    const Tensor& d_hidden, MambaWeights& gradients, const MambaActivations& kept) {
    const MambaActivations a = mamba_activations(context, shape, weights, Pass::rebuild, kept);
    const Tensor d_y =
        linear_backward(context, "d gated", a.gated, weights.out_proj, d_hidden, gradients.out_proj);
    const Tensor d_zxbcdt = context.take("d zxbcdt", shape.projection());
    context.backend.run(GatedNormBackward{.shape = shape,
                                          .y = a.y,
                                          .zxbcdt = a.zxbcdt,
                                          .weight = weights.gate_norm,
                                          .eps = context.architecture.norm_eps,
                                          .d_out = d_y,
                                          .d_y = d_y,
                                          .d_zxbcdt = d_zxbcdt,
                                          .d_weight = gradients.gate_norm});
    const Tensor d_xbc = context.take("d xbc", shape.conv_channels());
    context.backend.run(SsdBackward{.shape = shape,
                                    .chunk = kScanChunk,
                                    .dt_min = context.architecture.dt_min,
                                    .dt_max = context.architecture.dt_max,
                                    .xbc = a.xbc,
                                    .zxbcdt = a.zxbcdt,
                                    .dt_bias = weights.dt_bias,
                                    .a_log = weights.a_log,
                                    .d = weights.d,
                                    .document = context.document,
                                    .chunk_states = a.chunk_states,
                                    .d_y = d_y,
                                    .d_xbc = d_xbc,
                                    .d_zxbcdt = d_zxbcdt,
                                    .d_dt_bias = gradients.dt_bias,
                                    .d_a_log = gradients.a_log,
                                    .d_d = gradients.d});
    context.backend.run(ConvBackward{.shape = shape,
                                     .zxbcdt = a.zxbcdt,
                                     .weight = weights.conv_weight,
                                     .bias = weights.conv_bias,
                                     .document = context.document,
                                     .d_xbc = d_xbc,
                                     .d_zxbcdt = d_zxbcdt,
                                     .d_weight = gradients.conv_weight,
                                     .d_bias = gradients.conv_bias});
    const Tensor d_normed =
        linear_backward(context, "d normed", a.normed, weights.in_proj, d_zxbcdt, gradients.in_proj);
    norm_backward(context, weights.norm, d_normed, d_hidden, gradients.norm);
}

void attention_backward(const LayerContext& context, const Attention& shape, const AttentionWeights& weights,
                        const Tensor& d_hidden, AttentionWeights& gradients, const AttentionActivations& kept,
                        bool deterministic) {
    const AttentionActivations a = attention_activations(context, shape, weights, Pass::rebuild, kept);
    const Tensor d_out =
        linear_backward(context, "d attention output", a.out, weights.o_proj, d_hidden, gradients.o_proj);
    const Tensor d_q = context.take("d q", a.q.columns());
    const Tensor d_k = context.take("d k", a.k.columns());
    const Tensor d_v = context.take("d v", a.v.columns());
    context.backend.run(AttentionBackward{.heads = shape.heads,
                                          .kv_heads = shape.kv_heads,
                                          .head_dim = shape.head_dim,
                                          .deterministic = deterministic,
                                          .q = a.q,
                                          .k = a.k,
                                          .v = a.v,
                                          .document = context.document,
                                          .out = a.out,
                                          .lse = a.lse,
                                          .d_out = d_out,
                                          .d_q = d_q,
                                          .d_k = d_k,
                                          .d_v = d_v});
    const Tensor d_normed =
        linear_backward(context, "d normed", a.normed, weights.q_proj, d_q, gradients.q_proj);
    for (const auto& [weight, d_part, d_weight] : {std::tuple{weights.k_proj, d_k, gradients.k_proj},
                                                   std::tuple{weights.v_proj, d_v, gradients.v_proj}})
        context.backend.run(LinearBackward{.x = a.normed,
                                           .weight = weight,
                                           .d_out = d_part,
                                           .d_x = d_normed,
                                           .d_x_accumulates = true,
                                           .d_weight = d_weight});
    norm_backward(context, weights.norm, d_normed, d_hidden, gradients.norm);
}

void ffn_backward(const LayerContext& context, const FfnWeights& weights, const Tensor& d_hidden,
                  FfnWeights& gradients, const FfnActivations& kept) {
    const FfnActivations a = ffn_activations(context, weights, Pass::rebuild, kept);
    const Tensor d_up = linear_backward(context, "d ffn activation", a.activated, weights.down_proj, d_hidden,
                                        gradients.down_proj);
    context.backend.run(SquaredReluBackward{.x = a.up, .d_out = d_up, .d_x = d_up});
    const Tensor d_normed =
        linear_backward(context, "d normed", a.normed, weights.up_proj, d_up, gradients.up_proj);
    norm_backward(context, weights.norm, d_normed, d_hidden, gradients.norm);
}

}  // namespace

void HybridModel::apply_backward(int64_t layer, const Tensor& in, const Tensor& d_hidden, Weights& gradients,
                                 const Tensor& document, const LayerActivations& kept) {
    ArenaScope scope(arena_);
    const ProfilerRange range(backend_, "layer backward");
    const LayerContext context{backend_, arena_, architecture_, in, document};
    const Layer& sizes = architecture_.layers.at(layer);
    const LayerWeights& weights = use(layer);
    LayerWeights& layer_gradients = gradients.layers.at(layer);
    if (auto* mamba = std::get_if<MambaWeights>(&weights))
        mamba_backward(context, std::get<Mamba>(sizes), *mamba, d_hidden,
                       std::get<MambaWeights>(layer_gradients), kept.mamba);
    else if (auto* attention = std::get_if<AttentionWeights>(&weights))
        attention_backward(context, std::get<Attention>(sizes), *attention, d_hidden,
                           std::get<AttentionWeights>(layer_gradients), kept.attention, deterministic_);
    else
        ffn_backward(context, std::get<FfnWeights>(weights), d_hidden, std::get<FfnWeights>(layer_gradients),
                     kept.ffn);
}

void HybridModel::final_norm_backward(const Tensor& in, const Tensor& d_out, const Tensor& d_in,
                                      Weights& gradients) {
    backend_.run(RmsNormBackward{.x = in,
                                 .weight = weights_->norm_f,
                                 .eps = architecture_.norm_eps,
                                 .d_out = d_out,
                                 .d_x = d_in,
                                 .d_weight = gradients.norm_f});
}

void HybridModel::embed_backward(const Tensor& tokens, const Tensor& d_hidden, Weights& gradients) {
    backend_.run(EmbeddingBackward{.tokens = tokens, .d_out = d_hidden, .d_weight = gradients.embeddings});
}

}  // namespace minipuzzle
