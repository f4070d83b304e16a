// Backward of embedding, norms and what is element-wise, feature losses and the optimiser. What accumulates
// is zeroed before the launch that is checked, so that what it adds shows whole.
#include <algorithm>

#include "cli/bench/shapes.h"

namespace minipuzzle::cli::bench {
namespace {

constexpr int64_t kCheckedRows = 8, kCheckedColumns = 64, kCheckedElements = 4096;

Check compare_rows(Twin& twin, const Tensor& result, Range rows, const Tensor& expected) {
    return twin.compare(fmt::format("rows {}..{}", rows.begin, rows.begin + rows.count - 1), result, rows,
                        {{0, result.columns()}}, expected, Rounding::once);
}

// All tokens, but only the last columns; compared for the last tokens of the vocabulary.
Check check_embedding(Twin& twin, const EmbeddingBackward& args) {
    twin.device().zero(args.d_weight);
    twin.device().run(args);
    const int64_t rows = args.tokens.elements(), vocabulary = args.d_weight.size(0);
    const Range columns = last(args.d_weight.columns(), kCheckedColumns),
                tokens = last(vocabulary, kCheckedElements);
    const Tensor d_weight = twin.empty({vocabulary, columns.count});
    twin.backend().zero(d_weight);
    twin.backend().run(
        EmbeddingBackward{.tokens = twin.part(args.tokens.view({rows, 1}), {0, rows}, {{0, 1}}, {1, rows}),
                          .d_out = twin.part(args.d_out, {0, rows}, {columns}, {1, rows, columns.count}),
                          .d_weight = d_weight});
    return twin.compare(fmt::format("the last {} tokens and {} columns", tokens.count, columns.count),
                        args.d_weight, tokens, {columns}, d_weight.slice(tokens.begin, tokens.count),
                        Rounding::precise);
}

Check check_rms_norm(Twin& twin, const RmsNormBackward& args) {
    twin.device().zero(args.d_x);
    const Range rows = last(args.x.rows(), kCheckedRows);
    const Tensor d_x = twin.sequence(args.d_x, rows);
    twin.device().run(args);
    twin.backend().run(RmsNormBackward{.x = twin.sequence(args.x, rows),
                                       .weight = twin.whole(args.weight),
                                       .eps = args.eps,
                                       .d_out = twin.sequence(args.d_out, rows),
                                       .d_x = d_x,
                                       .d_weight = {}});
    return compare_rows(twin, args.d_x, rows, d_x);
}

Check check_squared_relu(Twin& twin, const SquaredReluBackward& args) {
    const Range rows = last(args.x.rows(), kCheckedRows);
    const Tensor d_x = twin.empty({1, rows.count, args.x.columns()});
    twin.backend().run(
        SquaredReluBackward{twin.sequence(args.x, rows), twin.sequence(args.d_out, rows), d_x});
    return compare_rows(twin, args.d_x, rows, d_x);
}

Check check_feature_loss(Twin& twin, const FeatureLoss& args) {
    twin.device().zero(args.d_student);
    const Range rows = last(args.student.rows(), kCheckedRows);
    const auto own = [&](const Tensor& tensor) {
        return twin.rows(tensor, rows, {rows.count, tensor.columns()});
    };
    const Tensor d_student = own(args.d_student);
    twin.device().run(args);
    twin.backend().run(FeatureLoss{.kind = args.kind,
                                   .student = own(args.student),
                                   .teacher = own(args.teacher),
                                   .targets = {},
                                   .scale = args.scale,
                                   .value = {},
                                   .d_student = d_student});
    return compare_rows(twin, args.d_student, rows, d_student);
}

// The sizes of some of a model's parameters: embedding, head, and the layers' large and small ones.
std::vector<int64_t> parameter_sizes(const ModelSizes& model) {
    const MambaShape& m = model.mamba;
    const int64_t table = model.vocabulary * model.width, width = model.width;
    std::vector<int64_t> sizes = {table, table};
    for (const int64_t size :
         {width, m.projection() * width, m.conv_channels() * m.conv_kernel, m.conv_channels(), m.heads,
          m.heads, m.heads, m.inner(), width * m.inner(), width, model.ffn * width, width * model.ffn})
        sizes.push_back(size);
    return sizes;
}

std::string parameters(const ModelSizes& model) { return model.name + " embedding, head, 2 layers"; }

// The sum of the last tensor that is small enough.
Check check_gradient_norms(Twin& twin, const GradientNorms& args) {
    int64_t i = static_cast<int64_t>(args.gradients.size()) - 1;
    while (i > 0 && args.gradients[i].elements() > (int64_t{1} << 24)) --i;
    double square = 0;
    twin.backend().run(SquaredNorm{.x = twin.whole(args.gradients[i]), .out = &square});
    const Tensor expected(&square, DType::f64, {1});
    return twin.compare(fmt::format("tensor {}", i), args.squares, {0, 1}, {{i, 1}}, expected,
                        Rounding::precise);
}

// The last elements of the largest tensor.
Check check_adamw(Twin& twin, const AdamW& args) {
    const auto larger = [](const TrainedTensor& a, const TrainedTensor& b) {
        return a.gradient.elements() < b.gradient.elements();
    };
    const TrainedTensor& t = *std::max_element(args.tensors.begin(), args.tensors.end(), larger);
    const Range all{0, 1}, elements = last(t.gradient.elements(), kCheckedElements);
    const auto own = [&](const Tensor& tensor) {
        return twin.part(tensor.view({1, tensor.elements()}), all, {elements}, {elements.count});
    };
    AdamW mine = args;
    mine.tensors = {{.parameter = own(t.master),
                     .master = {},
                     .gradient = own(t.gradient),
                     .moment1 = own(t.moment1),
                     .moment2 = own(t.moment2),
                     .decays = t.decays}};
    double square = 0;  // as all of the device's
    mine.squares = Tensor(&square, DType::f64, {1});
    twin.device().run(args);
    twin.backend().run(mine);
    return twin.compare(fmt::format("the last {} elements", elements.count),
                        t.master.view({1, t.master.elements()}), all, {elements}, mine.tensors[0].parameter,
                        Rounding::precise);
}

}  // namespace

void add_embedding_backward(Operations& list, const ModelSizes& model, Batch batch) {
    add<EmbeddingBackward>(
        list, "embedding_backward", describe(model.name, batch),
        [=](Memory& memory) {
            return EmbeddingBackward{memory.indices({batch.sequences, batch.length}, model.vocabulary),
                                     memory.normal({batch.sequences, batch.length, model.width}),
                                     memory.empty_precise({model.vocabulary, model.width})};
        },
        check_embedding);
}

void add_rms_norm_backward(Operations& list, const ModelSizes& model, Batch batch) {
    add<RmsNormBackward>(
        list, "rms_norm_backward", describe(model.name, batch),
        [=](Memory& memory) {
            const auto state = {batch.sequences, batch.length, model.width};
            return RmsNormBackward{.x = memory.normal(state),
                                   .weight = memory.empty_precise({model.width}),
                                   .d_out = memory.normal(state),
                                   .d_x = memory.empty(state),
                                   .d_weight = memory.empty_precise({model.width})};
        },
        check_rms_norm);
}

void add_squared_relu_backward(Operations& list, const ModelSizes& model, Batch batch) {
    add<SquaredReluBackward>(
        list, "squared_relu_backward", describe(model.name, batch),
        [=](Memory& memory) {
            const auto hidden = {batch.sequences, batch.length, model.ffn};
            return SquaredReluBackward{memory.normal(hidden), memory.normal(hidden), memory.empty(hidden)};
        },
        check_squared_relu);
}

void add_feature_loss(Operations& list, const ModelSizes& model, Batch batch) {
    for (const FeatureKind kind : {FeatureKind::cosine, FeatureKind::mse}) {
        add<FeatureLoss>(
            list, kind == FeatureKind::cosine ? "feature_cosine" : "feature_mse", describe(model.name, batch),
            [=](Memory& memory) {
                const auto state = {batch.rows(), model.width};
                return FeatureLoss{.kind = kind,
                                   .student = memory.normal(state),
                                   .teacher = memory.normal(state),
                                   .targets = memory.indices({batch.rows()}, model.vocabulary),
                                   .scale = 1,
                                   .value = memory.empty_precise({batch.rows()}),
                                   .d_student = memory.empty(state)};
            },
            check_feature_loss);
    }
}

void add_optimizer(Operations& list, const ModelSizes& model) {
    const std::vector<int64_t> sizes = parameter_sizes(model);
    const auto count = static_cast<int64_t>(sizes.size());
    add<GradientNorms>(
        list, "gradient_norms", parameters(model),
        [=](Memory& memory) {
            GradientNorms norms{.gradients = {}, .squares = memory.zeros(DType::f64, {count})};
            for (const int64_t size : sizes) norms.gradients.push_back(memory.empty_precise({size}));
            return norms;
        },
        check_gradient_norms);
    add<AdamW>(
        list, "adamw", parameters(model),
        [=](Memory& memory) {
            AdamW update{.tensors = {},
                         .squares = memory.zeros(DType::f64, {count}),
                         .learning_rate = 1e-3,
                         .weight_decay = 0.1,
                         .clip = 1};
            for (const int64_t size : sizes) {
                const Tensor gradient = memory.empty_precise({size});
                update.tensors.push_back({.parameter = memory.zeros(DType::bf16, {size}),
                                          .master = memory.empty_precise({size}),
                                          .gradient = gradient,
                                          .moment1 = memory.empty_precise({size}),
                                          .moment2 = memory.zeros(gradient.dtype, {size}),
                                          .decays = true});
            }
            return update;
        },
        check_adamw);
}

}  // namespace minipuzzle::cli::bench
