// A model to be measured: a checkpoint, or a published architecture with random weights; on the device or
// streamed.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cli/command.h"
#include "cli/commands.h"
#include "cli/model_loading.h"
#include "runtime/weight_source.h"

namespace minipuzzle::cli {

// A model as the options name it, its values not read yet.
struct ModelSource {
    std::optional<Checkpoint> checkpoint;  // none for random weights
    Architecture architecture;
    std::unique_ptr<ParameterSource> source;
    std::string name;  // the folder, or "nemotron-h-8b (random weights, seed 0)"

    // `folder`, or options.arch with options.random_weights; Error usage otherwise.
    ModelSource(const std::string& folder, const WeightOptions& options, uint64_t seed);
    ModelSource(const ModelSource&) = delete;  // `source` refers to `checkpoint`
    ModelSource& operator=(const ModelSource&) = delete;

    // For its data: with the folder's tokenizer, or for rows of tokens only.
    DataReader reader() const;
    // Where streamed layers come from.
    StreamFrom from() const { return checkpoint ? StreamFrom::source : StreamFrom::pinned_memory; }
};

class OpenedModel {
  public:
    // As ModelSource. Says with -v where the weights lie and, of random
    // ones, a checksum of every layer.
    OpenedModel(Backend& backend, const std::string& folder, const WeightOptions& options,
                const Context& context);
    OpenedModel(const OpenedModel&) = delete;
    OpenedModel& operator=(const OpenedModel&) = delete;

    // Lets go of the weights and loads them once more in the compute type, streamed where they no longer fit:
    // the device, or, by what must be there, --weight-memory.
    WeightSource reload_unquantized(Backend& backend);

    const Architecture& architecture() const { return model_.architecture; }
    // Null with random weights.
    const Checkpoint* checkpoint() const { return model_.checkpoint ? &*model_.checkpoint : nullptr; }
    WeightSource weights() const;
    // The streamed weights; null where all lie on the device.
    StreamedWeights* streamed() const { return streamed_.get(); }
    int64_t device_bytes() const;  // that the weights take
    ModelIdentity identity(bool full_hash = false) const;
    DataReader reader() const { return model_.reader(); }

  private:
    void place(Backend& backend, int64_t weight_memory, Precision precision);
    std::string where() const;

    ModelSource model_;
    int64_t weight_memory_;
    std::unique_ptr<WeightMemory> resident_;
    std::unique_ptr<StreamedWeights> streamed_;
};

}  // namespace minipuzzle::cli
