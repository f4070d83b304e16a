// One micro-batch: teacher forward, student forward, losses, student backward.
#pragma once

#include <span>
#include <vector>

#include "distill/feature_map.h"
#include "distill/losses.h"
#include "runtime/hybrid_model.h"
#include "runtime/token_source.h"

namespace minipuzzle::distill {

struct StepModels {
    const Architecture& student;
    const Weights& weights;
    Weights& gradients;
    const Architecture* teacher = nullptr;  // null where the loss needs none
    const Weights* teacher_weights = nullptr;
};

struct StepShape {
    int64_t rows = 0;  // at most this many at once
    int64_t seq_len = 0;
    LossWeights loss;
    std::vector<FeaturePair> pairs;  // empty without a feature term
};

// Some rows of a PackedBatch.
struct MicroBatch {
    int64_t rows = 0;
    std::span<const int32_t> tokens, targets, document;  // [rows, T]
};
MicroBatch micro_batch(const PackedBatch& batch, int64_t first, int64_t rows);

// Takes its buffers from the arena once; nothing is allocated afterwards. Run on a measuring arena and
// backend it is its own dry run.
//
// Kept for the backward: the student's stream entering every layer (each layer rebuilds the rest), and the
// teacher's stream at every feature pair. The teacher otherwise runs in place in one stream.
class TrainStep {
  public:
    // All arguments but `shape` must outlive the step.
    TrainStep(Backend& backend, DeviceArena& arena, const StepModels& models, const StepShape& shape);

    // Adds the gradients of `scale` * (weighted sum of the loss terms over the rows' unmasked targets) and
    // returns the unweighted, unscaled sums.
    LossSums accumulate(const MicroBatch& batch, double scale);

    // The student's stream entering layer l of the last micro-batch at [l], leaving the last layer at [L].
    const std::vector<Tensor>& streams() const { return streams_; }

  private:
    struct Inputs {
        Tensor tokens, targets, document;  // [b, T], [b * T], [b, T] i32
        int64_t rows = 0;
    };
    Inputs upload(const MicroBatch& batch);
    void run_teacher(const Inputs& inputs);
    void run_student(const Inputs& inputs);
    void vocabulary_loss(const Inputs& inputs, double scale);
    void run_backward(const Inputs& inputs, double scale);
    double host_sum(const Tensor& per_token);
    LossSums sums(const Inputs& inputs);
    Tensor flat(const Tensor& hidden, int64_t rows) const;  // the first rows of [B, T, D] as [b * T, D]
    Tensor per_token(const Tensor& values, int64_t rows) const;

    Backend& backend_;
    StepModels models_;
    StepShape shape_;
    HybridModel student_;
    std::vector<HybridModel> teacher_;  // one or none
    Tensor tokens_, targets_, document_;
    std::vector<Tensor> streams_, teacher_taps_;
    Tensor teacher_stream_, normed_, d_normed_;
    Tensor ce_, kl_;                      // [B * T]
    std::vector<Tensor> feature_values_;  // per pair [B * T]
    std::vector<std::byte> host_;
};

// All rows of a batch, `rows` at a time, normalised by the whole batch's `targets`: splitting changes the
// rounding only. Stops after a micro-batch whose sums are not finite, so that streams() shows the fault.
LossSums accumulate_batch(TrainStep& step, const PackedBatch& batch, int64_t rows, int64_t targets);

// Unmasked targets.
int64_t count_targets(const PackedBatch& batch);

}  // namespace minipuzzle::distill
