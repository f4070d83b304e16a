// Rows quantised to E4M3, by themselves and at the end of norms and squared ReLU, and products of them.
#include <cmath>

#include "cli/bench/shapes.h"

namespace minipuzzle::cli::bench {
namespace {

constexpr int64_t kCheckedRows = 8, kCheckedColumns = 64;

// Scales as closely as float32 sums allow. A code is a neighbour of the twin's where the two float32 results
// lie on both sides of a middle, as they may where both operands have few digits and the middle is met
// exactly: one value in a thousand or fewer, each off by up to an eighth.
Check compare_codes(Twin& twin, const Tensor& codes, const Tensor& scale, Range rows, const Codes& expected) {
    const Range all{0, codes.columns()};
    const Check scales =
        twin.compare(fmt::format("scales of rows {}..{}", rows.begin, rows.begin + rows.count - 1),
                     scale.view({scale.elements(), 1}), rows, {{0, 1}}, expected.scale, Rounding::precise);
    if (!scales.passed()) return scales;
    return twin.compare(fmt::format("codes of rows {}..{}", rows.begin, rows.begin + rows.count - 1), codes,
                        rows, {all}, expected.values, Rounding::inside);
}

Check check_quantise(Twin& twin, const QuantizeRows& args) {
    const Range rows = last(args.x.rows(), kCheckedRows);
    const Codes out = twin.empty_codes({1, rows.count, args.x.columns()});
    twin.backend().run(QuantizeRows{twin.sequence(args.x, rows), out.values, out.scale});
    return compare_codes(twin, args.out, args.scale, rows, out);
}

Check check_rms_norm(Twin& twin, const RmsNormForward& args) {
    const Range rows = last(args.x.rows(), kCheckedRows);
    const Codes out = twin.empty_codes({1, rows.count, args.x.columns()});
    twin.backend().run(RmsNormForward{twin.sequence(args.x, rows), twin.whole(args.weight), args.eps,
                                      out.values, out.scale});
    return compare_codes(twin, args.out, args.out_scale, rows, out);
}

Check check_squared_relu(Twin& twin, const SquaredReluForward& args) {
    const Range rows = last(args.x.rows(), kCheckedRows);
    const Codes out = twin.empty_codes({1, rows.count, args.x.columns()});
    twin.backend().run(SquaredReluForward{twin.sequence(args.x, rows), out.values, out.scale});
    return compare_codes(twin, args.out, args.out_scale, rows, out);
}

Check check_gated_norm(Twin& twin, const GatedNormForward& args) {
    const Range rows = last(args.y.rows(), kCheckedRows);
    const Codes out = twin.empty_codes({1, rows.count, args.y.columns()});
    GatedNormForward own = args;
    own.y = twin.sequence(args.y, rows);
    own.zxbcdt = twin.sequence(args.zxbcdt, rows);
    own.weight = twin.whole(args.weight);
    own.out = out.values;
    own.out_scale = out.scale;
    twin.backend().run(own);
    return compare_codes(twin, args.out, args.out_scale, rows, out);
}

// Numbers made of codes: each row times its scale.
void apply_scales(const Tensor& values, const Tensor& scale) {
    const auto apply = [&]<class T>(T* row, const T* factor) {
        for (int64_t r = 0; r < values.rows(); ++r)
            for (int64_t i = 0; i < values.columns(); ++i) *row++ *= factor[r];
    };
    if (values.dtype == DType::f64)
        apply(values.as<double>(), scale.as<double>());
    else
        apply(values.as<float>(), scale.as<float>());
}

// Against the product of the numbers that codes and scales stand for.
Check check_linear(Twin& twin, const LinearForward& args) {
    const Range rows = last(args.x.rows(), kCheckedRows), columns = last(args.out.columns(), kCheckedColumns);
    const auto scales = [&](const Tensor& scale, Range range) {
        return twin.rows(scale.view({scale.elements(), 1}), range, {range.count});
    };
    const Tensor out = twin.empty({1, rows.count, columns.count});
    LinearForward own{.x = twin.sequence(args.x, rows),
                      .weight = twin.rows(args.weight, columns, {columns.count, args.x.columns()}),
                      .residual = {},
                      .out = out};
    apply_scales(own.x, scales(args.x_scale, rows));
    apply_scales(own.weight, scales(args.weight_scale, columns));
    if (args.residual)
        own.residual = twin.part(args.residual, rows, {columns}, {1, rows.count, columns.count});
    twin.backend().run(own);
    return twin.compare(fmt::format("rows {}..{}, columns {}..{}", rows.begin, rows.begin + rows.count - 1,
                                    columns.begin, columns.begin + columns.count - 1),
                        args.out, rows, {columns}, out, Rounding::once);
}

std::vector<double> norm_weight(int64_t width) {
    std::vector<double> weight(width);
    for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = 0.5 + static_cast<double>(i % 16) / 16;
    return weight;
}

void add_rows(Operations& list, const std::string& shape, int64_t width, Batch batch) {
    add<QuantizeRows>(
        list, "quantise", shape,
        [=](Memory& memory) {
            const Codes out = memory.codes({batch.sequences, batch.length, width});
            return QuantizeRows{memory.normal({batch.sequences, batch.length, width}), out.values, out.scale};
        },
        check_quantise);
}

}  // namespace

void add_quantised_rows(Operations& list, const ModelSizes& model, Batch batch) {
    const std::string shape = describe(model.name, batch);
    const auto [b, t] = batch;
    add_rows(list, shape, model.heads * model.head_dim, batch);
    add<RmsNormForward>(
        list, "rms_norm_e4m3", shape,
        [=, b = b, t = t](Memory& memory) {
            const Codes out = memory.codes({b, t, model.width});
            return RmsNormForward{.x = memory.normal({b, t, model.width}),
                                  .weight = memory.precise(norm_weight(model.width)),
                                  .out = out.values,
                                  .out_scale = out.scale};
        },
        check_rms_norm);
    add<SquaredReluForward>(
        list, "squared_relu_e4m3", shape,
        [=, b = b, t = t](Memory& memory) {
            const Codes out = memory.codes({b, t, model.ffn});
            return SquaredReluForward{memory.normal({b, t, model.ffn}), out.values, out.scale};
        },
        check_squared_relu);
    add<GatedNormForward>(
        list, "gated_norm_e4m3", shape,
        [=, b = b, t = t](Memory& memory) {
            const Codes out = memory.codes({b, t, model.mamba.inner()});
            return GatedNormForward{.shape = model.mamba,
                                    .y = memory.normal({b, t, model.mamba.inner()}),
                                    .zxbcdt = memory.normal({b, t, model.mamba.projection()}),
                                    .weight = memory.precise(norm_weight(model.mamba.inner())),
                                    .out = out.values,
                                    .out_scale = out.scale};
        },
        check_gated_norm);
}

void add_quantised_products(Operations& list, const ModelSizes& model, Batch batch) {
    for (const ProductShape& product : product_shapes(model))
        add<LinearForward>(
            list, "linear_e4m3",
            fmt::format("{} {} B{} T{}", model.name, product.name, batch.sequences, batch.length),
            [=](Memory& memory) {
                const int64_t b = batch.sequences, t = batch.length;
                const Codes x = memory.codes({b, t, product.inputs});
                const Codes weight = memory.codes({product.outputs, product.inputs},
                                                  1 / std::sqrt(static_cast<double>(product.inputs)));
                return LinearForward{
                    .x = x.values,
                    .weight = weight.values,
                    .residual = product.residual ? memory.normal({b, t, product.outputs}) : Tensor(),
                    .out = memory.empty({b, t, product.outputs}),
                    .x_scale = x.scale,
                    .weight_scale = weight.scale};
            },
            check_linear);
}

}  // namespace minipuzzle::cli::bench
