// `distill`: train a student on the teacher's logits (and features), or on the tokens alone.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "runtime/checkpoint.h"
#include "runtime/run_control.h"
#include "runtime/token_source.h"
#include "runtime/weights.h"

namespace minipuzzle::distill {

struct LossWeights {
    double kl = 1, ce = 0, feature = 0;
    double temperature = 1;
    FeatureKind feature_kind = FeatureKind::cosine;
};

struct TrainOptions {
    int64_t tokens = 0;       // predicted positions in all; steps = ceil(tokens / (batch * seq_len))
    int64_t batch = 8;        // rows a step
    int64_t micro_batch = 0;  // rows at once (gradient accumulation); 0: what batch is
    int64_t seq_len = 512;
    double learning_rate = 1e-4, min_lr_ratio = 0.1;
    int64_t warmup = 10;  // steps
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip = 1.0;
    LossWeights loss;
    bool isolate = true;
    int64_t save_every = 0;  // steps; 0: at the end only
    uint64_t seed = 0;
    bool resume = false, resume_elsewhere = false;  // the latter: under other library versions or device
    bool dry_run = false;
    RunControl control;
};

// The student's home and where it comes from.
struct Student {
    Architecture architecture;
    WeightMemory* weights = nullptr;
    const Checkpoint* layout =
        nullptr;  // folder whose names, dtypes and other files the result takes; null: ours
    std::vector<int64_t>
        teacher_layers;  // teacher layer of each student layer; empty: unknown, no feature term
};
struct Teacher {
    const Architecture* architecture = nullptr;  // null: cross-entropy alone
    const Weights* weights = nullptr;
};

struct TrainOutcome {
    int64_t steps = 0, tokens = 0;
    double first_loss = 0, last_loss = 0;
};

}  // namespace minipuzzle::distill
