// mini-20 on a few short windows, its single layers measured: where pairs and removal begin.
#pragma once

#include "importance/ablation_losses.h"
#include "tests/support/minis.h"

namespace minipuzzle::test {

// The first window of each of eight documents: as few as give an interval.
inline std::vector<Window> eight_documents(const Corpus& corpus) {
    std::vector<Window> windows;
    for (const Window& window : cut_windows(corpus, 16))
        if (window.begin == 0 && windows.size() < 8) windows.push_back(window);
    return windows;
}

struct SingleLayers {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 0);
    Mini mini{*backend, "mini-20"};
    const Architecture& architecture = mini.checkpoint.architecture();
    importance::ScoreState state{"", "", false};
    RunControl control;
    importance::ScoreRun run{
        *backend, architecture, mini.weights.weights(), mini.corpus, eight_documents(mini.corpus),
        state,    control};
    SweepResult layers = run.sweep("layers", leave_one_out(architecture), nullptr, run.all_windows());
    importance::AblationLosses losses{run, layers};
};

}  // namespace minipuzzle::test
