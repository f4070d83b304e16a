// The device memory of a training run, measured by a dry run of the step itself.
#pragma once

#include <string>

#include "distill/step.h"
#include "kernels/backend.h"

namespace minipuzzle::distill {

struct MemoryPlan {
    int64_t weights = 0, teacher = 0, gradients = 0, moments = 0, activations = 0;  // bytes
    std::string activation_table;  // the live buffers at the peak

    int64_t total() const { return weights + teacher + gradients + moments + activations; }
    // A line a part, then the activations' own table.
    std::string table() const;
};

// `student` and `teacher` (may be null) as the run will use them; nothing is computed.
MemoryPlan measure_step(const Backend& backend, const Architecture& student, const Architecture* teacher,
                        const StepShape& shape);

}  // namespace minipuzzle::distill
