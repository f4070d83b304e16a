// What the stages of `score` have in common: the windows, the state on disk, the progress.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "importance/score_state.h"
#include "runtime/run_control.h"
#include "runtime/work_progress.h"

namespace minipuzzle::importance {

class WidthStatistics;  // importance/width.h

// Everything passed by reference must outlive the run.
class ScoreRun {
  public:
    ScoreRun(Backend& backend, const Architecture& architecture, WeightSource weights, const Corpus& corpus,
             std::vector<Window> windows, ScoreState& state, const RunControl& control);

    const Architecture& architecture() const { return architecture_; }
    const Corpus& corpus() const { return corpus_; }
    const std::vector<Window>& windows() const { return windows_; }
    // Document of each window, for intervals that are clustered by document.
    std::vector<int64_t> documents() const;

    // Announces a sweep of these plans over `windows` windows of the run's usual length to the progress;
    // every stage does so before the first one begins, as far as it knows its work by then.
    void announce(const std::vector<StudentPlan>& plans, int64_t windows);
    // The same of a stage whose plans are a guess yet: what is announced under its name later takes the place
    // of what was.
    void announce(const std::string& stage, const std::vector<StudentPlan>& plans, int64_t windows);

    const Work& announced() const { return progress_.announced(); }

    // Measures the plans on the given windows (indexes into windows()), results in that order. What a stage
    // finished before an interruption is taken from the state, whatever the batches were then. Throws
    // Interrupted. Where `statistics` are given they take in the full model's activations of every window
    // that they do not hold yet.
    SweepResult sweep(const std::string& stage, const std::vector<StudentPlan>& plans,
                      const WidthScores* width_scores, const std::vector<int64_t>& windows,
                      WidthStatistics* statistics = nullptr);
    // The same of losses alone, which is all that is then kept on disk: for stages of thousands of plans.
    SweepResult sweep_losses(const std::string& stage, const std::vector<StudentPlan>& plans,
                             const std::vector<int64_t>& windows);
    // Whether the state holds all of a stage's windows, so that sweep() will run nothing.
    bool finished(const std::string& stage, const std::vector<int64_t>& windows) const;
    // The weights of the stages to come.
    void set_weights(WeightSource weights) { weights_ = weights; }
    // All of windows().
    std::vector<int64_t> all_windows() const;
    // How many live states a sweep may hold so that batches stay large enough to be fast: on the host about a
    // gibibyte of them, on a device half of the free memory.
    int64_t most_states() const;

  private:
    // What of a batch is kept; null: everything.
    using Keep = std::function<SweepResult(SweepResult)>;
    SweepResult sweep_keeping(const std::string& stage, const std::vector<StudentPlan>& plans,
                              const WidthScores* width_scores, const std::vector<int64_t>& windows,
                              WidthStatistics* statistics, const Keep& keep);
    Work work_of(const SweepSchedule& schedule, const std::vector<Window>& windows) const;
    Work work_of_first(const std::vector<StudentPlan>& plans, int64_t windows) const;
    void stop_where_asked() const;

    Backend& backend_;
    const Architecture& architecture_;
    WeightSource weights_;
    const Corpus& corpus_;
    std::vector<Window> windows_;
    ScoreState& state_;
    const RunControl& control_;
    WorkProgress progress_;
    std::map<std::string, Work> of_stage_;  // announced, by name
};

}  // namespace minipuzzle::importance
