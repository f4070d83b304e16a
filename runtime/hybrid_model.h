// HybridModel: a hybrid model's layers over a backend, forward and backward, one layer at a time.
#pragma once

#include "runtime/arena.h"
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
    void apply_ffn(const FfnWeights& weights, const Tensor& in, const Tensor& out,
                   const Tensor& activation_sums = {});
    // out = rms_norm(in) with norm_f; `out` may be `in`.
    void final_norm(const Tensor& in, const Tensor& out);

    // Backward of apply: d_hidden is the gradient of `out` on entry, of `in` on exit (in place). Parameter
    // gradients accumulate into `gradients`. Rebuilds the layer's activations from `in`.
    void apply_backward(int64_t layer, const Tensor& in, const Tensor& d_hidden, Weights& gradients,
                        const Tensor& document = {});
    // d_in accumulates.
    void final_norm_backward(const Tensor& in, const Tensor& d_out, const Tensor& d_in, Weights& gradients);
    void embed_backward(const Tensor& tokens, const Tensor& d_hidden, Weights& gradients);

    // The layer's weights, for operations given from here on until another layer's use.
    const LayerWeights& use(int64_t layer);

  private:
    Backend& backend_;
    DeviceArena& arena_;
    const Architecture& architecture_;
    WeightSource weights_;
};

// Multiply-adds of one layer, of the LM head, for `tokens` tokens in sequences of `length` (attention and
// scan depend on it): what progress, ETA and the sharing figures count.
double multiply_adds(const Architecture& architecture, const Layer& layer, int64_t tokens, int64_t length);
double head_multiply_adds(const Architecture& architecture, int64_t tokens);

}  // namespace minipuzzle
