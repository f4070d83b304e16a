// One pass over the layers for many variants of a model (DESIGN.md, "One idea carries the speed").
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "runtime/hybrid_model.h"
#include "runtime/run_control.h"
#include "runtime/score_table.h"
#include "runtime/student_plan.h"
#include "runtime/token_source.h"
#include "runtime/work.h"

namespace minipuzzle {

// Means over each window's predicted tokens, in window order (definitions: DESIGN.md, "Files that people can
// read").
struct SequenceMetrics {
    std::vector<double> loss, accuracy, kl, top1_agreement, hidden_mse, logit_nmse, cosine;
};

struct SweepResult {
    std::vector<int64_t> tokens;            // predicted tokens of each window
    SequenceMetrics base;                   // loss and accuracy only
    std::vector<SequenceMetrics> variants;  // in the order of the plans
    double multiply_adds = 0;               // done
    double separate_multiply_adds = 0;      // what one pass per plan, and the base's, would have done
};

// Token-weighted mean over windows.
double mean(const std::vector<double>& per_window, const std::vector<int64_t>& tokens);

// The order of work: at each layer, which live states the layer is applied to. Plans that share a prefix of
// kept layers (and widths) share one state; a state splits only where its plans part, and the old buffer goes
// to those that drop the layer. States never merge, so slots = distinct students (base included).
struct SweepSchedule {
    struct Step {
        int64_t from = 0, to = 0;  // slots; equal: in place
        int64_t ffn_width = -1;    // -1: the layer as it is
        bool base = false;         // the state is the full model's
    };
    std::vector<std::vector<Step>> layers;
    int64_t slots = 1;
    int64_t base_slot = 0;
    std::vector<int64_t> plan_slot;
};
// Whether a sweep can measure the plan: it narrows FFNs, but applies Mamba layers with all their heads.
bool can_sweep(const Architecture& architecture, const StudentPlan& plan);
// All plans such that can_sweep.
SweepSchedule make_schedule(const Architecture& architecture, const std::vector<StudentPlan>& plans);
// What one application of a step takes, the head of all slots, and the whole schedule, on `tokens` tokens in
// sequences of `length`.
Work step_work(const Architecture&, int64_t layer, const SweepSchedule::Step&, int64_t tokens,
               int64_t length);
Work head_work(const Architecture&, const SweepSchedule&, int64_t tokens);
Work schedule_work(const Architecture&, const SweepSchedule&, int64_t tokens, int64_t length);
// Multiply-adds of the schedule, and of separate passes, on `tokens` tokens in sequences of `length`.
double shared_multiply_adds(const Architecture&, const SweepSchedule&, int64_t tokens, int64_t length);
double separate_multiply_adds(const Architecture&, const std::vector<StudentPlan>&, int64_t tokens,
                              int64_t length);

// What a sweep takes of memory, found by dry runs.
struct SweepMemory {
    int64_t batch = 0, length = 0;        // of the batch it holds for
    int64_t states = 0, state_bytes = 0;  // live states at most, bytes of each
    int64_t host_states = 0;              // of these: in pinned host memory
    int64_t device_bytes = 0;             // arena and scratch of operations
    std::string table;                    // what the arena holds at its peak

    int64_t pinned_bytes() const { return host_states * state_bytes; }
};

// Work done since the last call, while a batch is under way; nothing when its first layer begins. May throw,
// which ends the batch.
using SweepProgress = std::function<void(const Work& done)>;

// Measures the full model and every plan. A leave-one-layer-out sweep is the special case of plans {drop:
// [l]}. Weights of a layer are read once per batch. States lie on the device as far as its memory goes and
// pass through it from pinned host memory otherwise (LiveStates); a dry run decides, and no figure depends on
// it. `width_scores` (which neurons a narrower FFN keeps) may be null where no plan has a width. Everything
// passed by reference must outlive the object.
class VariantSweep {
  public:
    VariantSweep(Backend& backend, const Architecture& architecture, WeightSource weights,
                 std::vector<StudentPlan> plans, const WidthScores* width_scores);
    ~VariantSweep();

    // The most that the sweep may take of the device and of pinned host memory. Without it: what is free at
    // the first question or run.
    void limit_memory(int64_t device_bytes, int64_t host_bytes);

    // Who sees the full model's activations in every batch from here on (dry runs too); null: nobody.
    void observe(LayerObserver* observer);
    // One batch; a window's figures depend on that window alone, never on company. Error where a loss is not
    // finite; out_of_memory where states fit neither the device nor the host.
    SweepResult run(const WindowBatch& batch, const SweepProgress& progress = {});
    // Tokens a batch of these windows should hold. On the host so many that the live states take about a
    // gibibyte, between 512 and 4096 (what an interrupted run loses at most); on a device as many as keep it
    // busy and leave all states there, at least one window.
    int64_t batch_tokens(const std::vector<Window>& windows);
    // The dry run of a batch. Errors as run().
    SweepMemory plan(int64_t batch, int64_t length);
    // Bytes of arena and scratch that the largest batch took, and the last one's by name.
    int64_t memory_bytes() const;
    const std::string& memory_table() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

// run() over all windows, results in window order; progress in multiply-adds; Interrupted when asked to stop.
SweepResult sweep(Backend& backend, const Architecture& architecture, WeightSource weights,
                  const std::vector<StudentPlan>& plans, const WidthScores* width_scores,
                  const Corpus& corpus, const std::vector<Window>& windows, const RunControl& control);

// Puts a batch's per-window figures where the batch's windows stand in the whole (all vectors sized on first
// use).
void scatter(const SweepResult& from, const std::vector<int64_t>& windows, int64_t total_windows,
             SweepResult& into);

}  // namespace minipuzzle
