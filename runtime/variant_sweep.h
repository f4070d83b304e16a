// One pass over the layers for many variants of a model (DESIGN.md, "One idea carries the speed").
#pragma once

#include <functional>
#include <vector>

#include "runtime/hybrid_model.h"
#include "runtime/run_control.h"
#include "runtime/score_table.h"
#include "runtime/student_plan.h"
#include "runtime/token_source.h"

namespace minipuzzle {

// Per-window means of one variant, in window order.
struct SequenceMetrics {
    std::vector<double> loss, accuracy, kl, top1_agreement, hidden_mse, hidden_mse_pre_norm, logit_nmse,
        cosine;
};

struct SweepResult {
    std::vector<int64_t> tokens;  // predicted tokens of each window
    SequenceMetrics base;         // loss and accuracy only
    std::vector<SequenceMetrics> variants;
    double multiply_adds = 0;           // done
    double separate_multiply_adds = 0;  // what one pass per variant, and the base's, would have done
};

// Token-weighted mean over windows.
double mean(const std::vector<double>& per_window, const std::vector<int64_t>& tokens);

// Measures the full model and every plan on the windows. Plans that share a prefix of kept layers (and
// widths) share its work: at each layer the live states are grouped by what was done so far, and a state
// splits only where its plans part. A leave-one-out sweep is the special case of plans {drop: [l]}. Weights
// of a layer are read once per batch. `width_scores` is needed when a plan has a width. Resumable: `finished`
// batches are skipped and `on_batch` is called with each batch's result in order.
struct SweepOptions {
    int64_t batch_tokens =
        4096;  // tokens a batch; states live at once = batch_tokens * D * (live variants + 2)
    const WidthScores* width_scores = nullptr;
    RunControl control;
};
class VariantSweep {
  public:
    VariantSweep(Backend& backend, const Architecture& architecture, const Weights& weights,
                 std::vector<StudentPlan> plans, const SweepOptions& options);
    // One batch's per-window metrics; bits depend on the window alone, never on company.
    SweepResult run(const WindowBatch& batch);
    double multiply_adds(const WindowBatch& batch) const;
    double separate_multiply_adds(const WindowBatch& batch) const;
    int64_t peak_bytes() const;

  private:
    struct State;
    std::shared_ptr<State> state_;
};

// run() over all batches, results put back into window order; progress in multiply-adds.
SweepResult sweep(Backend& backend, const Architecture& architecture, const Weights& weights,
                  const std::vector<StudentPlan>& plans, const Corpus& corpus,
                  const std::vector<Window>& windows, const SweepOptions& options);

}  // namespace minipuzzle
