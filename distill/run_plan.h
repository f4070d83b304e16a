// A run before it starts: options checked, sizes settled, its identity for a later resume.
#pragma once

#include <optional>

#include "distill/memory_plan.h"
#include "distill/schedule.h"
#include "distill/snapshot.h"
#include "distill/trainer.h"

namespace minipuzzle::distill {

struct RunPlan {
    int64_t steps = 0, step_tokens = 0;  // step_tokens: predicted positions a step, masked ones included
    StepShape shape;
    Schedule schedule;
    AdamWSettings optimizer;
    const Architecture* teacher = nullptr;  // null where the loss needs none
    const Weights* teacher_weights = nullptr;
};

// Errors as train() lists them.
RunPlan plan_run(const TrainJob& job, const TrainOptions& options);

// Options as the command line spells them, for run.jsonl.
Json options_json(const TrainOptions& options, const RunPlan& plan);

RunIdentity identify(const Backend& backend, const TrainJob& job, const TrainOptions& options,
                     const RunPlan& plan);

}  // namespace minipuzzle::distill
