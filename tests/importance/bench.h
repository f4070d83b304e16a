// mini-20 on a few short windows, its single layers measured: where pairs and removal begin.
#pragma once

#include "importance/ablation_losses.h"
#include "tests/support/minis.h"

namespace minipuzzle::test {

struct SingleLayers {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 0);
    Mini mini{*backend, "mini-20"};
    const Architecture& architecture = mini.checkpoint.architecture();
    importance::ScoreState state{"", "", false};
    RunControl control;
    importance::ScoreRun run{
        *backend, architecture, mini.weights.weights(), mini.corpus, choose_windows(mini.corpus, 16, 8, 5),
        state,    control};
    SweepResult layers = run.sweep("layers", leave_one_out(architecture), nullptr, run.all_windows());
    importance::AblationLosses losses{run, layers};
};

}  // namespace minipuzzle::test
