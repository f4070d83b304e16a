#include "distill/step.h"

#include <algorithm>

namespace minipuzzle::distill {
namespace {

// Sums in double and in token order, whatever the element type.
template <class T>
double ordered_sum(const std::byte* values, int64_t count) {
    const T* typed = reinterpret_cast<const T*>(values);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(typed[i]);
    return sum;
}

}  // namespace

MicroBatch micro_batch(const PackedBatch& batch, int64_t first, int64_t rows) {
    const auto part = [&](const std::vector<int32_t>& values) {
        return std::span(values).subspan(static_cast<std::size_t>(first * batch.length),
                                         static_cast<std::size_t>(rows * batch.length));
    };
    return {.rows = rows,
            .tokens = part(batch.tokens),
            .targets = part(batch.targets),
            .document = part(batch.document)};
}

TrainStep::TrainStep(Backend& backend, DeviceArena& arena, const StepModels& models, const StepShape& shape)
    : backend_(backend),
      models_(models),
      shape_(shape),
      student_(backend, arena, models.student, models.weights) {
    const int64_t rows = shape.rows, length = shape.seq_len, width = models.student.width;
    tokens_ = arena.take("tokens", {rows, length}, DType::i32);
    targets_ = arena.take("targets", {rows * length}, DType::i32);
    document_ = arena.take("documents", {rows, length}, DType::i32);
    if (shape.loss.needs_teacher()) {
        MP_ASSERT(models.teacher && models.teacher_weights);
        teacher_.emplace_back(backend, arena, *models.teacher, *models.teacher_weights);
        teacher_stream_ = arena.take("teacher stream", {rows, length, models.teacher->width});
    }
    for (std::size_t i = 0; i < shape.pairs.size(); ++i) {
        teacher_taps_.push_back(arena.take("teacher stream at a feature pair", {rows, length, width}));
        feature_values_.push_back(arena.take("feature loss per token", {rows * length}));
    }
    for (std::size_t i = 0; i <= models.student.layers.size(); ++i)
        streams_.push_back(arena.take("student stream entering a layer", {rows, length, width}));
    normed_ = arena.take("student stream, normed", {rows, length, width});
    d_normed_ = arena.take("gradient of the normed stream", {rows, length, width});
    if (shape.loss.ce > 0) ce_ = arena.take("cross-entropy per token", {rows * length});
    if (shape.loss.kl > 0) kl_ = arena.take("KL per token", {rows * length});
    host_.resize(static_cast<std::size_t>(rows * length * bytes_of(backend.compute_type())));
}

LossSums TrainStep::accumulate(const MicroBatch& batch, double scale) {
    MP_ASSERT(batch.rows > 0 && batch.rows <= shape_.rows);
    const Inputs inputs = upload(batch);
    if (!teacher_.empty()) run_teacher(inputs);
    run_student(inputs);
    vocabulary_loss(inputs, scale);
    run_backward(inputs, scale);
    return sums(inputs);
}

TrainStep::Inputs TrainStep::upload(const MicroBatch& batch) {
    const Inputs inputs{.tokens = tokens_.slice(0, batch.rows),
                        .targets = per_token(targets_, batch.rows),
                        .document = document_.slice(0, batch.rows),
                        .rows = batch.rows};
    const auto copy = [&](const Tensor& to, std::span<const int32_t> from) {
        MP_ASSERT(to.elements() == static_cast<int64_t>(from.size()));
        backend_.copy(to.data, reinterpret_cast<const std::byte*>(from.data()), to.bytes());
    };
    copy(inputs.tokens, batch.tokens);
    copy(inputs.targets, batch.targets);
    copy(inputs.document, batch.document);
    return inputs;
}

void TrainStep::run_teacher(const Inputs& inputs) {
    HybridModel& teacher = teacher_.front();
    const Tensor stream = teacher_stream_.slice(0, inputs.rows);
    teacher.embed(inputs.tokens, stream);
    Tensor in = stream;
    std::size_t pair = 0;
    for (int64_t layer = 0; layer < static_cast<int64_t>(models_.teacher->layers.size()); ++layer) {
        const bool tapped = pair < shape_.pairs.size() && shape_.pairs[pair].teacher_layer == layer;
        const Tensor out = tapped ? teacher_taps_[pair++].slice(0, inputs.rows) : stream;
        teacher.apply(layer, in, out, inputs.document);
        in = out;
    }
    if (shape_.loss.kl > 0) teacher.final_norm(in, stream);
}

void TrainStep::run_student(const Inputs& inputs) {
    student_.embed(inputs.tokens, streams_.front().slice(0, inputs.rows));
    for (std::size_t layer = 0; layer < models_.student.layers.size(); ++layer)
        student_.apply(static_cast<int64_t>(layer), streams_[layer].slice(0, inputs.rows),
                       streams_[layer + 1].slice(0, inputs.rows), inputs.document);
    student_.final_norm(streams_.back().slice(0, inputs.rows), normed_.slice(0, inputs.rows));
}

void TrainStep::vocabulary_loss(const Inputs& inputs, double scale) {
    const LossWeights& loss = shape_.loss;
    if (loss.kl == 0 && loss.ce == 0) {
        backend_.zero(d_normed_);
        return;
    }
    VocabularyLoss run;
    run.student = {.hidden = flat(normed_, inputs.rows), .head = models_.weights.lm_head};
    if (loss.kl > 0) {
        run.teacher = {.hidden = flat(teacher_stream_, inputs.rows),
                       .head = models_.teacher_weights->lm_head};
        run.kl = per_token(kl_, inputs.rows);
    }
    if (loss.ce > 0) run.ce = per_token(ce_, inputs.rows);
    run.targets = inputs.targets;
    run.sequence_length = shape_.seq_len;
    run.ce_weight = loss.ce;
    run.kl_weight = loss.kl;
    run.temperature = loss.temperature;
    run.scale = scale;
    run.d_hidden = flat(d_normed_, inputs.rows);
    run.d_head = models_.gradients.lm_head;
    backend_.run(run);
}

void TrainStep::run_backward(const Inputs& inputs, double scale) {
    // The normed stream has served: its buffer carries the gradient of the stream down through the layers.
    const Tensor d_stream = normed_.slice(0, inputs.rows);
    backend_.zero(d_stream);
    student_.final_norm_backward(streams_.back().slice(0, inputs.rows), d_normed_.slice(0, inputs.rows),
                                 d_stream, models_.gradients);
    std::size_t pair = shape_.pairs.size();
    for (auto layer = static_cast<int64_t>(models_.student.layers.size()) - 1; layer >= 0; --layer) {
        const auto below = static_cast<std::size_t>(layer);
        if (pair > 0 && shape_.pairs[pair - 1].student_layer == layer) {
            --pair;
            backend_.run(FeatureLoss{.kind = shape_.loss.feature_kind,
                                     .student = flat(streams_[below + 1], inputs.rows),
                                     .teacher = flat(teacher_taps_[pair], inputs.rows),
                                     .targets = inputs.targets,
                                     .scale = scale * shape_.loss.feature,
                                     .value = per_token(feature_values_[pair], inputs.rows),
                                     .d_student = flat(d_stream, inputs.rows)});
        }
        student_.apply_backward(layer, streams_[below].slice(0, inputs.rows), d_stream, models_.gradients,
                                inputs.document);
    }
    student_.embed_backward(inputs.tokens, d_stream, models_.gradients);
}

LossSums TrainStep::sums(const Inputs& inputs) {
    LossSums sums;
    if (ce_) sums.ce = host_sum(per_token(ce_, inputs.rows));
    if (kl_) sums.kl = host_sum(per_token(kl_, inputs.rows));
    for (const Tensor& values : feature_values_) sums.feature += host_sum(per_token(values, inputs.rows));
    return sums;
}

double TrainStep::host_sum(const Tensor& per_token) {
    backend_.copy(host_.data(), per_token.data, per_token.bytes());
    backend_.synchronize();
    return per_token.dtype == DType::f64 ? ordered_sum<double>(host_.data(), per_token.elements())
                                         : ordered_sum<float>(host_.data(), per_token.elements());
}

Tensor TrainStep::flat(const Tensor& hidden, int64_t rows) const {
    return hidden.slice(0, rows).view({rows * shape_.seq_len, hidden.columns()});
}

Tensor TrainStep::per_token(const Tensor& values, int64_t rows) const {
    return values.slice(0, rows * shape_.seq_len);
}

LossSums accumulate_batch(TrainStep& step, const PackedBatch& batch, int64_t rows, int64_t targets) {
    LossSums total;
    for (int64_t first = 0; first < batch.batch && total.finite(); first += rows)
        total += step.accumulate(micro_batch(batch, first, std::min(rows, batch.batch - first)),
                                 1.0 / static_cast<double>(targets));
    return total;
}

int64_t count_targets(const PackedBatch& batch) {
    return std::count_if(batch.targets.begin(), batch.targets.end(),
                         [](int32_t target) { return target >= 0; });
}

}  // namespace minipuzzle::distill
