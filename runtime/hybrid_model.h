// HybridModel: a hybrid model's layers over a backend, forward and backward, one layer at a time.
#pragma once

#include "runtime/arena.h"
#include "runtime/layer_activations.h"
#include "runtime/weight_source.h"

namespace minipuzzle {

// Stateless over its tensors: neither owns weights nor memory. All hidden states are [B, T, D].
class HybridModel {
  public:
    // `arena` gives the temporaries inside a layer. Both must outlive the model.
    HybridModel(Backend& backend, DeviceArena& arena, const Architecture& architecture, WeightSource weights);

    const Architecture& architecture() const { return architecture_; }
    const Weights& weights() const { return *weights_; }

    // hidden = embeddings[tokens]; tokens [B, T] i32.
    void embed(const Tensor& tokens, const Tensor& hidden);
    // out = in + mixer(norm(in)); `out` may be `in`. `document` as in ops.h, may be empty.
    void apply(int64_t layer, const Tensor& in, const Tensor& out, const Tensor& document = {});
    // The same with an FFN of other weights in the layer's place (a narrower variant).
    void apply_ffn(const FfnWeights& weights, const Tensor& in, const Tensor& out);
    // Who sees the activations of every layer that apply() runs from here on; null: nobody.
    void set_observer(LayerObserver* observer) { observer_ = observer; }
    // out = rms_norm(in) with norm_f; `out` may be `in`.
    void final_norm(const Tensor& in, const Tensor& out);

    // apply() that leaves for the backward what `policy` keeps, in memory taken from the arena: whoever calls
    // it marks the arena before and releases the mark after the layer's backward.
    LayerActivations apply_keeping(int64_t layer, const Tensor& in, const Tensor& out, const Tensor& document,
                                   Recompute policy);
    // Backward of apply: d_hidden is the gradient of `out` on entry, of `in` on exit (in place). Parameter
    // gradients accumulate into `gradients`. Rebuilds from `in` whatever of the layer's activations was not
    // kept.
    void apply_backward(int64_t layer, const Tensor& in, const Tensor& d_hidden, Weights& gradients,
                        const Tensor& document = {}, const LayerActivations& kept = {});
    // d_in accumulates.
    void final_norm_backward(const Tensor& in, const Tensor& d_out, const Tensor& d_in, Weights& gradients);
    void embed_backward(const Tensor& tokens, const Tensor& d_hidden, Weights& gradients);

    // Whether attention's backward sums in one order always (the default); false: where another is faster.
    void set_deterministic(bool deterministic) { deterministic_ = deterministic; }

    // The layer's weights, for operations given from here on until another layer's use.
    const LayerWeights& use(int64_t layer);

  private:
    void run_layer(const LayerContext& context, int64_t layer, const Tensor& out,
                   const LayerActivations& kept);
    void observe(const LayerContext& context, int64_t layer, LayerActivations activations);

    Backend& backend_;
    DeviceArena& arena_;
    const Architecture& architecture_;
    WeightSource weights_;
    LayerObserver* observer_ = nullptr;
    bool deterministic_ = true;
};

// Multiply-adds of one layer, of the LM head, for `tokens` tokens in sequences of `length` (attention and
// scan depend on it): what progress, ETA and the sharing figures count.
double multiply_adds(const Architecture& architecture, const Layer& layer, int64_t tokens, int64_t length);
double head_multiply_adds(const Architecture& architecture, int64_t tokens);

}  // namespace minipuzzle
