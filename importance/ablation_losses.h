// The losses of a model with sets of layers switched off, each set measured once.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "importance/score_run.h"

namespace minipuzzle::importance {

using LayerSet = std::vector<int64_t>;  // layers of the model, ascending, each once

// Multiply-adds of a stage: done, and what one pass for every set it asked for would have done.
struct SweepWork {
    double multiply_adds = 0, separate_multiply_adds = 0;
};

struct PairedMean {
    double mean = 0;
    std::optional<std::array<double, 2>> interval;  // 95 %, null with too few sequences
};

// Pairs and steps of removal ask for sets that other stages have measured already (single layers, and pairs
// for the second step); those are not measured again. Everything passed by reference must outlive the object.
class AblationLosses {
  public:
    // Begins with what the stage "layers" measured over all windows of the run. A sweep holds at most
    // `most_states` live states, at least three.
    AblationLosses(ScoreRun& run, const SweepResult& layers, int64_t most_states);
    AblationLosses(ScoreRun& run, const SweepResult& layers)
        : AblationLosses(run, layers, run.most_states()) {}

    const Architecture& architecture() const { return run_.architecture(); }
    int64_t layers() const { return static_cast<int64_t>(architecture().layers.size()); }
    int64_t windows() const { return static_cast<int64_t>(tokens_.size()); }

    // Measures those of `sets` (ascending) that are not known over the first `windows` windows of the run, in
    // shared-prefix sweeps of stages that `stage` begins the name of. Throws Interrupted.
    void measure(const std::string& stage, const std::vector<LayerSet>& sets, int64_t windows,
                 SweepWork& work);
    // Loss per window with the set off; the empty set is the full model. It must have been measured.
    const std::vector<double>& of(const LayerSet& off) const;
    // Over the first `differences.size()` windows: token-weighted, paired per sequence.
    PairedMean paired_mean(const std::vector<double>& differences) const;
    // loss(off) - loss(reference) of the first `windows` windows.
    std::vector<double> differences(const LayerSet& off, const LayerSet& reference, int64_t windows) const;

  private:
    bool knows(const LayerSet& off, int64_t windows) const;

    ScoreRun& run_;
    int64_t most_states_;
    std::vector<int64_t> tokens_;
    std::map<LayerSet, std::vector<double>> losses_;
};

// The plans that drop these layers and nothing else.
std::vector<StudentPlan> plans_of(const std::vector<LayerSet>& sets);

// `count` of the layers, as a guess at which ones a stage will ask for.
LayerSet evenly_spread(int64_t count, int64_t layers);

// Cuts an ascending list of sets into pieces for sweeps of at most `most_states` states, the full model's
// among them: where the first layer of the sets changes as long as that can be, so that each prefix is walked
// in one sweep.
std::vector<std::vector<LayerSet>> cut_into_sweeps(const std::vector<LayerSet>& sets, int64_t most_states);

}  // namespace minipuzzle::importance
