#include "runtime/hybrid_model.h"

#include <fmt/format.h>

#include "runtime/layer_activations.h"
#include "runtime/profiler_range.h"

namespace minipuzzle {

namespace {

// "layer 12 mamba" on the profiler's time line.
struct LayerName {
    char text[64];
    LayerName(const Architecture& architecture, int64_t layer) {
        const auto end = fmt::format_to_n(text, sizeof text - 1, "layer {} {}", layer,
                                          name(type_of(architecture.layers.at(layer))));
        *end.out = '\0';
    }
};

}  // namespace

HybridModel::HybridModel(Backend& backend, DeviceArena& arena, const Architecture& architecture,
                         WeightSource weights)
    : backend_(backend), arena_(arena), architecture_(architecture), weights_(weights) {
    MP_ASSERT(architecture.layers.size() == weights->layers.size());
}

const LayerWeights& HybridModel::use(int64_t layer) {
    if (!arena_.is_measuring()) weights_.use(layer);
    return weights_->layers.at(layer);
}

void HybridModel::embed(const Tensor& tokens, const Tensor& hidden) {
    backend_.run(EmbeddingForward{.tokens = tokens, .weight = weights_->embeddings, .out = hidden});
}

void HybridModel::apply(int64_t layer, const Tensor& in, const Tensor& out, const Tensor& document) {
    run_layer({backend_, arena_, architecture_, in, document}, layer, out, {});
}

LayerActivations HybridModel::apply_keeping(int64_t layer, const Tensor& in, const Tensor& out,
                                            const Tensor& document, Recompute policy) {
    const LayerContext context{backend_, arena_, architecture_, in, document};
    const LayerActivations kept = take_kept(context, architecture_.layers.at(layer), policy);
    run_layer(context, layer, out, kept);
    return kept;
}

void HybridModel::run_layer(const LayerContext& context, int64_t layer, const Tensor& out,
                            const LayerActivations& kept) {
    ArenaScope scope(arena_);
    const ProfilerRange range(backend_, LayerName(architecture_, layer).text);
    const Layer& sizes = architecture_.layers.at(layer);
    const LayerWeights& weights = use(layer);
    LayerActivations all = kept;
    ResidualBranch branch;
    if (auto* mamba = std::get_if<MambaWeights>(&weights)) {
        const MambaActivations& a = all.mamba =
            mamba_activations(context, std::get<Mamba>(sizes), *mamba, Pass::forward, kept.mamba);
        branch = {a.gated, mamba->out_proj, a.gated_scale, mamba->out_proj_scale};
    } else if (auto* attention = std::get_if<AttentionWeights>(&weights)) {
        const AttentionActivations& a = all.attention = attention_activations(
            context, std::get<Attention>(sizes), *attention, Pass::forward, kept.attention);
        branch = {a.quantized_out ? a.quantized_out : a.out, attention->o_proj, a.quantized_out_scale,
                  attention->o_proj_scale};
    } else {
        const FfnWeights& ffn = std::get<FfnWeights>(weights);
        const FfnActivations& a = all.ffn = ffn_activations(context, ffn, Pass::forward, kept.ffn);
        branch = {a.activated, ffn.down_proj, a.activated_scale, ffn.down_proj_scale};
    }
    add_to_residual(context, branch, out);
    if (observer_) observe(context, layer, all);
}

// Observers see activations as they are before they are quantised. The layer is done with `up`, so that the
// FFN's are computed once more there.
void HybridModel::observe(const LayerContext& context, int64_t layer, LayerActivations activations) {
    FfnActivations& ffn = activations.ffn;
    if (ffn.activated_scale) {
        backend_.run(SquaredReluForward{.x = ffn.up, .out = ffn.up});
        ffn.activated = ffn.up;
    }
    observer_->observe(context, layer, activations);
}

void HybridModel::apply_ffn(const FfnWeights& weights, const Tensor& in, const Tensor& out) {
    ArenaScope scope(arena_);
    const LayerContext context{backend_, arena_, architecture_, in, {}};
    const FfnActivations a = ffn_activations(context, weights, Pass::forward);
    add_to_residual(context, {a.activated, weights.down_proj, a.activated_scale, weights.down_proj_scale},
                    out);
}

void HybridModel::final_norm(const Tensor& in, const Tensor& out) {
    backend_.run(
        RmsNormForward{.x = in, .weight = weights_->norm_f, .eps = architecture_.norm_eps, .out = out});
}

double multiply_adds(const Architecture& architecture, const Layer& layer, int64_t tokens, int64_t length) {
    const double d = static_cast<double>(architecture.width), n = static_cast<double>(tokens);
    if (auto* mamba = std::get_if<Mamba>(&layer)) {
        const double inner = mamba->inner(), state = mamba->state, groups_state = mamba->groups * state;
        const double projections = d * mamba->projection() + inner * d;
        const double conv = static_cast<double>(mamba->conv_channels()) * mamba->conv_kernel;
        const double scan = 2 * inner * state + (kScanChunk + 1) / 2.0 * (inner + groups_state);
        return n * (projections + conv + scan);
    }
    if (auto* attention = std::get_if<Attention>(&layer)) {
        const double q = attention->heads * attention->head_dim,
                     kv = attention->kv_heads * attention->head_dim;
        return n * (d * (2 * q + 2 * kv) + (length + 1) * q);
    }
    return n * 2 * d * std::get<Ffn>(layer).width;
}

double head_multiply_adds(const Architecture& architecture, int64_t tokens) {
    return static_cast<double>(tokens) * architecture.width * architecture.vocab;
}

}  // namespace minipuzzle
