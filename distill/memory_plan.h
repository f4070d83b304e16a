// The device memory of a training run, measured by a dry run of the step itself, and what of the activations
// is kept within it.
#pragma once

#include <optional>
#include <string>

#include "distill/whole_step.h"
#include "kernels/backend.h"

namespace minipuzzle::distill {

struct MemoryPlan {
    int64_t weights = 0, teacher = 0, masters = 0, gradients = 0, moments = 0, activations = 0,
            scratch = 0;           // bytes
    std::string activation_table;  // the live buffers at the peak
    std::string recompute;         // "mamba none, ffn selective in 3 of 8 and full in 5 of 8"

    int64_t total() const {
        return weights + teacher + masters + gradients + moments + activations + scratch;
    }
    // A line a part, then the activations' own table.
    std::string table() const;
};

// What a run's memory is measured for.
struct MemoryQuestion {
    const Architecture& student;
    const Architecture* teacher = nullptr;  // may be null
    StepShape shape;
    AdamWSettings optimizer;
    int64_t teacher_weight_memory = 0;  // bytes the teacher's weights may take; 0: all of them resident
};

// The dry run with shape.recompute as it is; nothing is computed.
MemoryPlan measure_step(const Backend& backend, const MemoryQuestion& question);

// Settles question.shape.recompute: `asked` for every layer or, where that is left open, the least recompute
// whose dry run stays within `limit` bytes: the last layers keep more than the first ones. Error
// out_of_memory where it does not fit: says what is missing and what would help, with the table.
MemoryPlan choose_recompute(const Backend& backend, MemoryQuestion& question, std::optional<Recompute> asked,
                            int64_t limit);

// The most bytes a run may take of the device: `asked` or, where that is 0, what there is but for a rest that
// driver and libraries take for themselves.
int64_t memory_limit(const Backend& backend, int64_t asked);

}  // namespace minipuzzle::distill
