// StreamedWeights: a model larger than the memory given to its weights. Some layers stay on the device, the
// others pass through two slots there, one being filled while the layer in the other runs.
#pragma once

#include <memory>

#include "runtime/weights.h"

namespace minipuzzle {

// Where streamed layers wait: in pinned host memory (random weights, which exist nowhere else), or in the
// checkpoint's mapped files, from which a thread reads ahead into two pinned buffers. Quantised layers travel
// as they are from memory; from files they travel in the compute type and are quantised when they have
// arrived.
enum class StreamFrom { pinned_memory, source };

// What a budget gives, before anything is loaded.
struct StreamPlan {
    int64_t device_bytes = 0, pinned_bytes = 0;
    int64_t streamed_layers = 0, streamed_bytes = 0;  // the latter per pass over the model
};

class StreamedWeights {
  public:
    // `device_bytes` holds embeddings, final norm and head, the two slots (and room to quantise one layer
    // where they arrive unquantised), and as many layers as still fit, spread evenly between the streamed
    // ones so that every transfer has arithmetic to hide behind. Error usage where the budget does not hold
    // what must be there (names the least). `source` must outlive the object.
    StreamedWeights(Backend& backend, const Architecture& architecture, const ParameterSource& source,
                    StreamFrom from, int64_t device_bytes, Precision precision = Precision::bf16);
    // The least that the budget must be.
    static int64_t least_bytes(const Backend& backend, const Architecture& architecture, StreamFrom from,
                               Precision precision);
    ~StreamedWeights();
    // What the constructor would take; the same errors.
    static StreamPlan plan(const Backend& backend, const Architecture& architecture, StreamFrom from,
                           int64_t device_bytes, Precision precision);
    StreamedWeights(const StreamedWeights&) = delete;
    StreamedWeights& operator=(const StreamedWeights&) = delete;

    const Weights& weights() const;
    // See WeightSource::use. Layers are best used in ascending order, over and over.
    void use(int64_t layer);
    // Without overlap a layer's transfer begins when the layer is used: what the overlap is worth.
    void set_overlap(bool overlap);

    int64_t device_bytes() const;  // taken
    int64_t streamed_layers() const;
    int64_t streamed_bytes() const;  // per pass over the model

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace minipuzzle
