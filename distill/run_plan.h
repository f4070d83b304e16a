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
    StepShape shape;                     // recompute is settled by the memory plan
    Schedule schedule;
    AdamWSettings optimizer;
    const Architecture* teacher = nullptr;  // null where the loss needs none
    double step_flops = 0;
};

// Errors as train() lists them.
RunPlan plan_run(const TrainJob& job, const TrainOptions& options);

// Settles what the backward computes once more (choose_recompute) within memory_limit().
MemoryPlan settle_memory(const Backend& backend, const TrainJob& job, const TrainOptions& options,
                         RunPlan& plan);

// Options as the command line spells them, for run.jsonl.
Json options_json(const TrainOptions& options, const RunPlan& plan);

RunIdentity identify(const Backend& backend, const TrainJob& job, const TrainOptions& options,
                     const RunPlan& plan);

}  // namespace minipuzzle::distill
