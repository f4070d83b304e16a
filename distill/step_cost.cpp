#include "distill/step_cost.h"

#include "runtime/hybrid_model.h"

namespace minipuzzle::distill {
namespace {

double forward_multiply_adds(const Architecture& architecture, const StepShape& shape, bool with_head) {
    double sum = with_head ? head_multiply_adds(architecture, shape.tokens()) : 0;
    for (const Layer& layer : architecture.layers)
        sum += multiply_adds(architecture, layer, shape.tokens(), shape.seq_len);
    return sum;
}

}  // namespace

double step_flops(const Architecture& student, const Architecture* teacher, const StepShape& shape) {
    const LossWeights& loss = shape.loss;
    const bool student_head = loss.ce > 0 || loss.needs_teacher_logits();
    double sum = 3 * forward_multiply_adds(student, shape, student_head);
    if (teacher) sum += forward_multiply_adds(*teacher, shape, loss.needs_teacher_logits());
    return 2 * sum;
}

}  // namespace minipuzzle::distill
