// What a training step computes at least.
#pragma once

#include "distill/step_shape.h"

namespace minipuzzle::distill {

// FLOPs of one step: the teacher's forward (`teacher` may be null) and three times the student's, forward and
// the two products of each backward; what a recompute policy repeats is not counted.
double step_flops(const Architecture& student, const Architecture* teacher, const StepShape& shape);

}  // namespace minipuzzle::distill
