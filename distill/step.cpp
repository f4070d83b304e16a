#include "distill/step.h"

namespace minipuzzle::distill {

TrainStep::TrainStep(Backend& backend, DeviceArena& arena, const StepModels& models, const StepShape& shape,
                     const StepReport& report, StepPhases& phases)
    : backend_(backend),
      arena_(arena),
      models_(models),
      shape_(shape),
      report_(report),
      phases_(phases),
      student_(backend, arena, models.student, models.weights),
      kept_(models.student.layers.size()),
      marks_(models.student.layers.size()) {
    student_.set_deterministic(shape.deterministic);
    const int64_t rows = shape.rows, length = shape.seq_len, width = models.student.width;
    if (shape.loss.needs_teacher()) {
        MP_ASSERT(models.teacher && models.teacher_weights);
        teacher_.emplace(backend, arena, *models.teacher, *models.teacher_weights);
        teacher_stream_ = arena.take("teacher stream", {rows, length, models.teacher->width});
    }
    for (std::size_t i = 0; i < shape.pairs.size(); ++i)
        teacher_taps_.push_back(arena.take("teacher stream at a feature pair", {rows, length, width}));
    for (std::size_t i = 0; i <= models.student.layers.size(); ++i)
        streams_.push_back(arena.take("student stream entering a layer", {rows, length, width}));
    normed_ = arena.take("student stream, normed", {rows, length, width});
    d_normed_ = arena.take("gradient of the normed stream", {rows, length, width});
}

void TrainStep::accumulate(const MicroBatch& batch, double scale) {
    MP_ASSERT(batch.rows > 0 && batch.rows <= shape_.rows);
    if (teacher_) phases_.run("teacher forward", [&] { run_teacher(batch); });
    phases_.run("student forward", [&] { run_student(batch); });
    phases_.run("loss", [&] { vocabulary_loss(batch, scale); });
    phases_.run("student backward", [&] { run_backward(batch, scale); });
}

void TrainStep::run_teacher(const MicroBatch& batch) {
    const Tensor stream = teacher_stream_.slice(0, batch.rows);
    teacher_->embed(batch.tokens, stream);
    Tensor in = stream;
    std::size_t pair = 0;
    for (int64_t layer = 0; layer < std::ssize(models_.teacher->layers); ++layer) {
        const bool tapped = pair < shape_.pairs.size() && shape_.pairs[pair].teacher_layer == layer;
        const Tensor out = tapped ? teacher_taps_[pair++].slice(0, batch.rows) : stream;
        teacher_->apply(layer, in, out, batch.document);
        in = out;
    }
    if (shape_.loss.needs_teacher_logits()) teacher_->final_norm(in, stream);
}

void TrainStep::run_student(const MicroBatch& batch) {
    student_.embed(batch.tokens, streams_.front().slice(0, batch.rows));
    for (std::size_t layer = 0; layer < kept_.size(); ++layer) {
        const auto number = static_cast<int64_t>(layer);
        marks_[layer] = arena_.mark();
        kept_[layer] = student_.apply_keeping(number, streams_[layer].slice(0, batch.rows),
                                              streams_[layer + 1].slice(0, batch.rows), batch.document,
                                              shape_.recompute_of(number));
    }
    student_.final_norm(streams_.back().slice(0, batch.rows), normed_.slice(0, batch.rows));
}

void TrainStep::vocabulary_loss(const MicroBatch& batch, double scale) {
    const LossWeights& loss = shape_.loss;
    if (!loss.needs_teacher_logits() && loss.ce == 0) {
        backend_.zero(d_normed_);
        return;
    }
    VocabularyLoss run;
    run.student = {.hidden = flat(normed_, batch.rows), .head = models_.weights.lm_head};
    if (loss.needs_teacher_logits())
        run.teacher = {.hidden = flat(teacher_stream_, batch.rows),
                       .head = (*models_.teacher_weights)->lm_head};
    run.targets = batch.targets;
    run.sequence_length = shape_.seq_len;
    run.ce_weight = loss.ce;
    run.kl_weight = loss.kl;
    run.reverse_kl_weight = loss.reverse_kl;
    run.temperature = loss.temperature;
    run.top_k = loss.top_k;
    run.scale = scale;
    run.kl = report_.kl(batch.first, batch.rows);
    run.ce = report_.ce(batch.first, batch.rows);
    run.reverse_kl = report_.reverse_kl(batch.first, batch.rows);
    run.d_hidden = flat(d_normed_, batch.rows);
    run.d_head = models_.gradients.lm_head;
    backend_.run(run);
}

void TrainStep::run_backward(const MicroBatch& batch, double scale) {
    // The normed stream has served: its buffer carries the gradient of the stream down through the layers.
    const Tensor d_stream = normed_.slice(0, batch.rows);
    backend_.zero(d_stream);
    student_.final_norm_backward(streams_.back().slice(0, batch.rows), d_normed_.slice(0, batch.rows),
                                 d_stream, models_.gradients);
    std::size_t pair = shape_.pairs.size();
    for (int64_t layer = std::ssize(kept_) - 1; layer >= 0; --layer) {
        const auto below = static_cast<std::size_t>(layer);
        if (pair > 0 && shape_.pairs[pair - 1].student_layer == layer) {
            --pair;
            backend_.run(FeatureLoss{.kind = shape_.loss.feature_kind,
                                     .student = flat(streams_[below + 1], batch.rows),
                                     .teacher = flat(teacher_taps_[pair], batch.rows),
                                     .targets = batch.targets,
                                     .scale = scale * shape_.loss.feature,
                                     .value = report_.feature(pair, batch.first, batch.rows),
                                     .d_student = flat(d_stream, batch.rows)});
        }
        student_.apply_backward(layer, streams_[below].slice(0, batch.rows), d_stream, models_.gradients,
                                batch.document, kept_[below]);
        arena_.release(marks_[below]);
    }
    student_.embed_backward(batch.tokens, d_stream, models_.gradients);
}

Tensor TrainStep::flat(const Tensor& hidden, int64_t rows) const {
    return hidden.slice(0, rows).view({rows * shape_.seq_len, hidden.columns()});
}

}  // namespace minipuzzle::distill
