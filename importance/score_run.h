// What the stages of `score` have in common: the windows, the state on disk, the progress.
#pragma once

#include <string>
#include <vector>

#include "importance/score_state.h"
#include "runtime/run_control.h"

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

    // Measures the plans on the given windows (indexes into windows()), results in that order. What a stage
    // finished before an interruption is taken from the state, whatever the batches were then. Throws
    // Interrupted. Where `statistics` are given they take in the full model's activations of every window
    // that they do not hold yet.
    SweepResult sweep(const std::string& stage, const std::vector<StudentPlan>& plans,
                      const WidthScores* width_scores, const std::vector<int64_t>& windows,
                      WidthStatistics* statistics = nullptr);
    // All of windows().
    std::vector<int64_t> all_windows() const;

  private:
    double work_of(const SweepSchedule& schedule, const std::vector<Window>& windows) const;
    void report() const;

    Backend& backend_;
    const Architecture& architecture_;
    WeightSource weights_;
    const Corpus& corpus_;
    std::vector<Window> windows_;
    ScoreState& state_;
    const RunControl& control_;
    double announced_ = 0, done_ = 0;  // multiply-adds
};

}  // namespace minipuzzle::importance
