// One micro-batch: teacher forward, student forward, losses, student backward.
#pragma once

#include <optional>
#include <vector>

#include "distill/step_phases.h"
#include "distill/step_report.h"
#include "runtime/hybrid_model.h"

namespace minipuzzle::distill {

struct StepModels {
    const Architecture& student;
    const Weights& weights;
    Weights& gradients;
    const Architecture* teacher = nullptr;  // null where the loss needs none
    std::optional<WeightSource> teacher_weights;
};

// Rows [first, first + rows) of a step's, on the device.
struct MicroBatch {
    int64_t first = 0, rows = 0;
    Tensor tokens, targets, document;  // [b, T], [b * T], [b, T] i32
};

// Takes its buffers from the arena once; nothing is allocated afterwards. Run on a measuring arena and
// backend it is its own dry run.
//
// Kept for the backward: the student's stream entering every layer, what the recompute policy keeps of the
// layers, and the teacher's stream at every feature pair. The teacher otherwise runs in place in one stream.
// A pair's stream could give way to the pair's gradient once the student has reached it, but that gradient is
// just as large and is needed until the backward comes by as well, so the stream itself is kept.
class TrainStep {
  public:
    // All arguments but `shape` must outlive the step.
    TrainStep(Backend& backend, DeviceArena& arena, const StepModels& models, const StepShape& shape,
              const StepReport& report, StepPhases& phases);

    // Adds the gradients of `scale` * (weighted sum of the loss terms over the rows' unmasked targets); the
    // unscaled terms go to the report. Nothing waits for the device.
    void accumulate(const MicroBatch& batch, double scale);

    // The student's stream entering layer l of the last micro-batch at [l], leaving the last layer at [L].
    const std::vector<Tensor>& streams() const { return streams_; }

  private:
    void run_teacher(const MicroBatch& batch);
    void run_student(const MicroBatch& batch);
    void vocabulary_loss(const MicroBatch& batch, double scale);
    void run_backward(const MicroBatch& batch, double scale);
    Tensor flat(const Tensor& hidden, int64_t rows) const;  // the first rows of [B, T, D] as [b * T, D]

    Backend& backend_;
    DeviceArena& arena_;
    StepModels models_;
    StepShape shape_;
    const StepReport& report_;
    StepPhases& phases_;
    HybridModel student_;
    std::optional<HybridModel> teacher_;
    std::vector<Tensor> streams_, teacher_taps_;
    Tensor teacher_stream_, normed_, d_normed_;
    // Of each student layer, between its forward and its backward: what is kept, and where the arena stood.
    std::vector<LayerActivations> kept_;
    std::vector<DeviceArena::Mark> marks_;
};

}  // namespace minipuzzle::distill
