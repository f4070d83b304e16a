#include "runtime/layer_activations.h"

namespace minipuzzle {

namespace {

Tensor take_chunk_states(const LayerContext& context, const Mamba& shape) {
    return context.arena.take(
        "chunk states",
        {context.batch(), div_up(context.length(), kScanChunk) * shape.heads, shape.head_dim, shape.state},
        precise_type(context.backend.compute_type()));
}

Tensor take_lse(const LayerContext& context, const Attention& shape) {
    return context.arena.take("attention lse", {context.batch(), shape.heads, context.length()},
                              precise_type(context.backend.compute_type()));
}

// Fills in what was not given. In a rebuild what was given is left alone.
class Builder {
  public:
    Builder(const LayerContext& context, Pass pass) : context_(context), pass_(pass) {}

    // Takes the memory where there is none; whether the values have to be computed.
    bool needs(Tensor& tensor, const char* name, int64_t columns) const {
        const bool given = static_cast<bool>(tensor);
        if (!given) tensor = context_.take(name, columns);
        return !given || pass_ == Pass::forward;
    }
    // The same of an activation that `matrix` multiplies: it is quantised, with scales, where the matrix is.
    bool needs_operand(Tensor& tensor, Tensor& scale, const char* name, const Tensor& matrix) const {
        if (!is_quantized(matrix)) return needs(tensor, name, matrix.size(1));
        MP_ASSERT(!tensor && pass_ == Pass::forward);  // quantised layers are not trained
        tensor =
            context_.arena.take(name, {context_.batch(), context_.length(), matrix.size(1)}, matrix.dtype);
        scale =
            context_.arena.take("row scales", {tensor.rows()}, precise_type(context_.backend.compute_type()));
        return true;
    }
    void norm(Tensor& normed, Tensor& scale, const Tensor& weight, const Tensor& matrix) const {
        if (!needs_operand(normed, scale, "normed", matrix)) return;
        context_.backend.run(RmsNormForward{.x = context_.in,
                                            .weight = weight,
                                            .eps = context_.architecture.norm_eps,
                                            .out = normed,
                                            .out_scale = scale});
    }
    void project(Tensor& out, const char* name, const Tensor& x, const Tensor& x_scale, const Tensor& weight,
                 const Tensor& weight_scale) const {
        if (!needs(out, name, weight.size(0))) return;
        context_.backend.run(LinearForward{
            .x = x, .weight = weight, .out = out, .x_scale = x_scale, .weight_scale = weight_scale});
    }

  private:
    const LayerContext& context_;
    Pass pass_;
};

MambaActivations take_kept(const LayerContext& context, const Mamba& shape, Recompute policy) {
    MambaActivations kept;
    if (policy == Recompute::full) return kept;
    kept.zxbcdt = context.take("kept zxbcdt", shape.projection());
    if (policy == Recompute::selective) return kept;
    kept.normed = context.take("kept normed", context.architecture.width);
    kept.xbc = context.take("kept xbc", shape.conv_channels());
    kept.y = context.take("kept scan output", shape.inner());
    kept.chunk_states = take_chunk_states(context, shape);
    kept.gated = context.take("kept gated", shape.inner());
    return kept;
}

AttentionActivations take_kept(const LayerContext& context, const Attention& shape, Recompute policy) {
    AttentionActivations kept;
    kept.lse = take_lse(context, shape);  // always, it is small: with it the forward's bits are the rebuild's
    if (policy == Recompute::full) return kept;
    kept.q = context.take("kept q", shape.heads * shape.head_dim);
    kept.k = context.take("kept k", shape.kv_heads * shape.head_dim);
    kept.v = context.take("kept v", shape.kv_heads * shape.head_dim);
    kept.out = context.take("kept attention output", shape.heads * shape.head_dim);
    if (policy == Recompute::none) kept.normed = context.take("kept normed", context.architecture.width);
    return kept;
}

FfnActivations take_kept(const LayerContext& context, const Ffn& shape, Recompute policy) {
    FfnActivations kept;
    if (policy == Recompute::full) return kept;
    kept.up = context.take("kept ffn pre-activation", shape.width);
    if (policy == Recompute::selective) return kept;
    kept.normed = context.take("kept normed", context.architecture.width);
    kept.activated = context.take("kept ffn activation", shape.width);
    return kept;
}

}  // namespace

std::string_view name(Recompute policy) {
    constexpr std::string_view kNames[] = {"none", "selective", "full"};
    return kNames[static_cast<int>(policy)];
}

LayerActivations take_kept(const LayerContext& context, const Layer& layer, Recompute policy) {
    LayerActivations kept;
    if (auto* mamba = std::get_if<Mamba>(&layer))
        kept.mamba = take_kept(context, *mamba, policy);
    else if (auto* attention = std::get_if<Attention>(&layer))
        kept.attention = take_kept(context, *attention, policy);
    else
        kept.ffn = take_kept(context, std::get<Ffn>(layer), policy);
    return kept;
}

MambaActivations mamba_activations(const LayerContext& context, const Mamba& shape,
                                   const MambaWeights& weights, Pass pass, MambaActivations a) {
    const Builder builder(context, pass);
    builder.norm(a.normed, a.normed_scale, weights.norm, weights.in_proj);
    builder.project(a.zxbcdt, "zxbcdt", a.normed, a.normed_scale, weights.in_proj, weights.in_proj_scale);
    if (builder.needs(a.xbc, "xbc", shape.conv_channels()))
        context.backend.run(ConvForward{.shape = shape,
                                        .zxbcdt = a.zxbcdt,
                                        .weight = weights.conv_weight,
                                        .bias = weights.conv_bias,
                                        .document = context.document,
                                        .xbc = a.xbc});
    if (builder.needs(a.y, "scan output", shape.inner())) {
        if (pass == Pass::rebuild) a.chunk_states = take_chunk_states(context, shape);
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
    }
    if (!a.gated && pass == Pass::forward && !is_quantized(weights.out_proj)) a.gated = a.y;
    if (builder.needs_operand(a.gated, a.gated_scale, "gated", weights.out_proj))
        context.backend.run(GatedNormForward{.shape = shape,
                                             .y = a.y,
                                             .zxbcdt = a.zxbcdt,
                                             .weight = weights.gate_norm,
                                             .eps = context.architecture.norm_eps,
                                             .out = a.gated,
                                             .out_scale = a.gated_scale});
    return a;
}

AttentionActivations attention_activations(const LayerContext& context, const Attention& shape,
                                           const AttentionWeights& weights, Pass pass,
                                           AttentionActivations a) {
    const Builder builder(context, pass);
    builder.norm(a.normed, a.normed_scale, weights.norm, weights.q_proj);
    builder.project(a.q, "q", a.normed, a.normed_scale, weights.q_proj, weights.q_proj_scale);
    builder.project(a.k, "k", a.normed, a.normed_scale, weights.k_proj, weights.k_proj_scale);
    builder.project(a.v, "v", a.normed, a.normed_scale, weights.v_proj, weights.v_proj_scale);
    if (builder.needs(a.out, "attention output", shape.heads * shape.head_dim)) {
        if (pass == Pass::rebuild && !a.lse) a.lse = take_lse(context, shape);
        context.backend.run(AttentionForward{.heads = shape.heads,
                                             .kv_heads = shape.kv_heads,
                                             .head_dim = shape.head_dim,
                                             .q = a.q,
                                             .k = a.k,
                                             .v = a.v,
                                             .document = context.document,
                                             .out = a.out,
                                             .lse = a.lse});
    }
    if (is_quantized(weights.o_proj) && builder.needs_operand(a.quantized_out, a.quantized_out_scale,
                                                              "quantized attention output", weights.o_proj))
        context.backend.run(QuantizeRows{.x = a.out, .out = a.quantized_out, .scale = a.quantized_out_scale});
    return a;
}

FfnActivations ffn_activations(const LayerContext& context, const FfnWeights& weights, Pass pass,
                               FfnActivations a) {
    const Builder builder(context, pass);
    const bool keeps_up = static_cast<bool>(a.up);
    builder.norm(a.normed, a.normed_scale, weights.norm, weights.up_proj);
    builder.project(a.up, "ffn pre-activation", a.normed, a.normed_scale, weights.up_proj,
                    weights.up_proj_scale);
    if (!a.activated && pass == Pass::forward && !keeps_up && !is_quantized(weights.down_proj))
        a.activated = a.up;
    if (builder.needs_operand(a.activated, a.activated_scale, "ffn activation", weights.down_proj))
        context.backend.run(
            SquaredReluForward{.x = a.up, .out = a.activated, .out_scale = a.activated_scale});
    return a;
}

void add_to_residual(const LayerContext& context, const ResidualBranch& branch, const Tensor& out) {
    context.backend.run(LinearForward{.x = branch.activation,
                                      .weight = branch.projection,
                                      .residual = context.in,
                                      .out = out,
                                      .x_scale = branch.activation_scale,
                                      .weight_scale = branch.projection_scale});
}

}  // namespace minipuzzle
