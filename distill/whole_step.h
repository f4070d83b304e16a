// WholeStep: everything a run keeps on the device besides its models' weights, and one step of it:
// micro-batches, norms, the update, and a single wait at the end.
#pragma once

#include "distill/batch_feed.h"
#include "distill/optimizer.h"
#include "distill/step.h"

namespace minipuzzle::distill {

// The models of a run. Gradients, masters and moments are the optimizer's.
struct RunModels {
    const Architecture& student;
    Weights& weights;                       // trained in place
    const Architecture* teacher = nullptr;  // null where the loss needs none
    std::optional<WeightSource> teacher_weights;
};

struct StepResult {
    LossSums sums;
    double gradient_norm = 0;  // before clipping; where it is not finite nothing was updated
};

class WholeStep {
  public:
    // Allocates all there is to allocate. On a measuring backend and arena, one run() is the dry run.
    WholeStep(Backend& backend, DeviceArena& arena, const RunModels& models, const StepShape& shape,
              const AdamWSettings& settings);

    Optimizer& optimizer() { return optimizer_; }
    BatchFeed& feed() { return feed_; }
    StepPhases& phases() { return phases_; }
    const TrainStep& micro_step() const { return step_; }

    // `update`: how many updates there were, this one included.
    StepResult run(const DeviceBatch& batch, int64_t update, double learning_rate);
    // Accumulates the micro-batches once more, up to the first one whose loss is not finite, so that its
    // streams and gradients can be looked at.
    void rerun_to_fault(const DeviceBatch& batch);

  private:
    MicroBatch micro_batch(const DeviceBatch& batch, int64_t first) const;

    Backend& backend_;
    StepShape shape_;
    Optimizer optimizer_;
    BatchFeed feed_;
    StepReport report_;
    StepPhases phases_;
    TrainStep step_;
};

}  // namespace minipuzzle::distill
