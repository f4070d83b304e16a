#include "distill/whole_step.h"

#include <algorithm>

namespace minipuzzle::distill {

WholeStep::WholeStep(Backend& backend, DeviceArena& arena, const RunModels& models, const StepShape& shape,
                     const AdamWSettings& settings)
    : backend_(backend),
      shape_(shape),
      optimizer_(backend, models.student, models.weights, settings),
      feed_(backend, arena, shape.batch, shape.seq_len),
      report_(backend, arena, shape, optimizer_.count()),
      phases_(backend),
      step_(backend, arena,
            {.student = models.student,
             .weights = models.weights,
             .gradients = optimizer_.gradients(),
             .teacher = models.teacher,
             .teacher_weights = models.teacher_weights},
            shape, report_, phases_) {}

MicroBatch WholeStep::micro_batch(const DeviceBatch& batch, int64_t first) const {
    const int64_t rows = std::min(shape_.rows, shape_.batch - first);
    return {.first = first,
            .rows = rows,
            .tokens = batch.tokens.slice(first, rows),
            .targets = batch.targets.slice(first, rows).view({rows * shape_.seq_len}),
            .document = batch.document.slice(first, rows)};
}

StepResult WholeStep::run(const DeviceBatch& batch, int64_t update, double learning_rate) {
    const double scale = 1.0 / static_cast<double>(batch.target_count);
    optimizer_.zero_gradients();
    for (int64_t first = 0; first < shape_.batch; first += shape_.rows)
        step_.accumulate(micro_batch(batch, first), scale);
    phases_.run("optimizer", [&] {
        optimizer_.measure_norms(report_.squares());
        optimizer_.update(report_.squares(), update, learning_rate);
    });
    report_.fetch();
    return {.sums = report_.sums(shape_.batch), .gradient_norm = report_.gradient_norm()};
}

void WholeStep::rerun_to_fault(const DeviceBatch& batch) {
    const double scale = 1.0 / static_cast<double>(batch.target_count);
    optimizer_.zero_gradients();
    for (int64_t first = 0; first < shape_.batch; first += shape_.rows) {
        const MicroBatch rows = micro_batch(batch, first);
        step_.accumulate(rows, scale);
        report_.fetch();
        if (!report_.sums(first + rows.rows).finite()) return;
    }
}

}  // namespace minipuzzle::distill
