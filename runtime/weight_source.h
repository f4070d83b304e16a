// WeightSource: what runs a model sees of its weights, whether they lie on the device or are streamed to it.
#pragma once

#include "runtime/weight_stream.h"
#include "runtime/weights.h"

namespace minipuzzle {

// A cheap view; what it was made from must outlive it.
class WeightSource {
  public:
    WeightSource(const Weights& resident) : weights_(&resident) {}
    WeightSource(StreamedWeights& streamed) : weights_(&streamed.weights()), streamed_(&streamed) {}

    // Embeddings, norm_f and lm_head are always on the device; a layer's tensors from use(layer) until the
    // use of another layer.
    const Weights* operator->() const { return weights_; }
    const Weights& operator*() const { return *weights_; }
    // Operations given to the backend from here on may read the layer.
    void use(int64_t layer) const {
        if (streamed_) streamed_->use(layer);
    }

  private:
    const Weights* weights_;
    StreamedWeights* streamed_ = nullptr;
};

}  // namespace minipuzzle
