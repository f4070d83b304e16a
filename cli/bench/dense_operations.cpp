// Embedding, norms, products and what is element-wise. Their checks take the last rows: offsets are largest
// there.
#include <cmath>

#include "cli/bench/shapes.h"

namespace minipuzzle::cli::bench {
namespace {

constexpr int64_t kCheckedRows = 8, kCheckedColumns = 64;

std::string part(Range rows, Range columns) {
    return fmt::format("rows {}..{}, columns {}..{}", rows.begin, rows.begin + rows.count - 1, columns.begin,
                       columns.begin + columns.count - 1);
}

Check compare_rows(Twin& twin, const Tensor& result, Range rows, const Tensor& expected) {
    const Range all{0, result.columns()};
    return twin.compare(part(rows, all), result, rows, {all}, expected, Rounding::once);
}

// The last rows' tokens, and those rows of the table as a table of their own.
Check check_embedding(Twin& twin, const EmbeddingForward& args) {
    const Range rows = last(args.out.rows(), kCheckedRows);
    const Tensor tokens =
        twin.part(args.tokens.view({args.tokens.elements(), 1}), rows, {{0, 1}}, {rows.count});
    const int64_t width = args.weight.columns();
    const Tensor table = twin.empty({rows.count, width}), out = twin.empty({1, rows.count, width});
    std::vector<int32_t> order;
    for (int64_t i = 0; i < rows.count; ++i) {
        const Tensor row = twin.rows(args.weight, {tokens.as<int32_t>()[i], 1}, {width});
        std::copy(row.data, row.data + row.bytes(), table.slice(i, 1).data);
        order.push_back(narrow<int32_t>(i));
    }
    twin.backend().run(EmbeddingForward{twin.indices(order).view({1, rows.count}), table, out});
    return compare_rows(twin, args.out, rows, out);
}

Check check_rms_norm(Twin& twin, const RmsNormForward& args) {
    const Range rows = last(args.x.rows(), kCheckedRows);
    const Tensor out = twin.empty({1, rows.count, args.x.columns()});
    twin.backend().run(RmsNormForward{twin.sequence(args.x, rows), twin.whole(args.weight), args.eps, out});
    return compare_rows(twin, args.out, rows, out);
}

Check check_linear(Twin& twin, const LinearForward& args) {
    const Range rows = last(args.x.rows(), kCheckedRows), columns = last(args.out.columns(), kCheckedColumns);
    const Tensor out = twin.empty({1, rows.count, columns.count});
    LinearForward own{.x = twin.sequence(args.x, rows),
                      .weight = twin.rows(args.weight, columns, {columns.count, args.x.columns()}),
                      .residual = {},
                      .out = out};
    if (args.residual)
        own.residual = twin.part(args.residual, rows, {columns}, {1, rows.count, columns.count});
    twin.backend().run(own);
    return twin.compare(part(rows, columns), args.out, rows, {columns}, out, Rounding::once);
}

// Some columns of d_x for the last rows, and some outputs of d_weight over all tokens; the worse of both
// counts.
Check check_linear_backward(Twin& twin, const LinearBackward& args) {
    twin.device().zero(args.d_weight);
    twin.device().run(args);
    const Range rows = last(args.d_x.rows(), kCheckedRows),
                columns = last(args.d_x.columns(), kCheckedColumns);
    const int64_t tokens = args.d_out.rows(), output_count = args.d_out.columns();
    const Tensor d_x = twin.empty({1, rows.count, columns.count});
    LinearBackward own;
    own.weight = twin.part(args.weight, {0, output_count}, {columns}, {output_count, columns.count});
    own.d_out = twin.sequence(args.d_out, rows);
    own.d_x = d_x;
    twin.backend().run(own);
    const Check input = twin.compare(part(rows, columns), args.d_x, rows, {columns}, d_x, Rounding::once);

    const Range outputs = last(output_count, kCheckedRows);
    const Tensor d_weight = twin.empty({outputs.count, args.d_weight.columns()});
    twin.backend().zero(d_weight);
    own = LinearBackward();
    own.x = twin.sequence(args.x, {0, tokens});
    own.d_out = twin.part(args.d_out, {0, tokens}, {outputs}, {1, tokens, outputs.count});
    own.d_weight = d_weight;
    twin.backend().run(own);
    const Check weight = twin.compare(part(outputs, {0, d_weight.columns()}), args.d_weight, outputs,
                                      {{0, d_weight.columns()}}, d_weight, Rounding::precise);
    return weight.passed() ? input : weight;
}

Check check_squared_relu(Twin& twin, const SquaredReluForward& args) {
    const Range rows = last(args.x.rows(), kCheckedRows);
    const Tensor out = twin.empty({1, rows.count, args.x.columns()});
    twin.backend().run(SquaredReluForward{twin.sequence(args.x, rows), out});
    return compare_rows(twin, args.out, rows, out);
}

Check check_add(Twin& twin, const Add& args) {
    const Range rows = last(args.out.rows(), kCheckedRows);
    const Tensor out = twin.empty({1, rows.count, args.out.columns()});
    twin.backend().run(Add{twin.sequence(args.a, rows), twin.sequence(args.b, rows), out});
    return compare_rows(twin, args.out, rows, out);
}

Check check_activation_sums(Twin& twin, const ActivationSums& args) {
    const int64_t length = args.x.size(1), sequence = args.x.size(0) - 1;
    const Range units = last(args.out.columns(), std::max<int64_t>(1, kCheckedColumns / args.channels));
    const Range columns{args.first + units.begin * args.channels, units.count * args.channels};
    const Tensor out = twin.empty({1, units.count});
    twin.backend().run(ActivationSums{
        .x = twin.part(args.x, {sequence * length, length}, {columns}, {1, length, columns.count}),
        .channels = args.channels,
        .squared = args.squared,
        .out = out});
    return twin.compare(fmt::format("sequence {}, {}", sequence, part({0, length}, columns)), args.out,
                        {sequence, 1}, {units}, out, Rounding::precise);
}

// Of totals that begin at zero.
Check check_accumulate_powers(Twin& twin, const AccumulatePowers& args) {
    twin.device().zero(args.total);
    twin.device().run(args);
    std::vector<double> totals(args.total.elements());
    AccumulatePowers own = args;
    own.x = twin.whole(args.x);
    own.total = Tensor(totals.data(), DType::f64, {args.total.elements()});
    twin.backend().run(own);
    const Range all{0, args.total.elements()};
    return twin.compare("all", args.total, {0, 1}, {all}, own.total, Rounding::precise);
}

void add_product(Operations& list, const std::string& model, const ProductShape& product, Batch batch) {
    add<LinearForward>(
        list, "linear", fmt::format("{} {} B{} T{}", model, product.name, batch.sequences, batch.length),
        [=](Memory& memory) {
            const int64_t b = batch.sequences, t = batch.length;
            return LinearForward{
                .x = memory.normal({b, t, product.inputs}),
                .weight = memory.normal({product.outputs, product.inputs},
                                        1 / std::sqrt(static_cast<double>(product.inputs))),
                .residual = product.residual ? memory.normal({b, t, product.outputs}) : Tensor(),
                .out = memory.empty({b, t, product.outputs})};
        },
        check_linear);
}

void add_gradients(Operations& list, const std::string& model, const ProductShape& product, Batch batch) {
    add<LinearBackward>(
        list, "linear_backward",
        fmt::format("{} {} B{} T{}", model, product.name, batch.sequences, batch.length),
        [=](Memory& memory) {
            const int64_t b = batch.sequences, t = batch.length;
            return LinearBackward{
                .x = memory.normal({b, t, product.inputs}),
                .weight = memory.normal({product.outputs, product.inputs},
                                        1 / std::sqrt(static_cast<double>(product.outputs))),
                .d_out = memory.normal({b, t, product.outputs}),
                .d_x = memory.empty({b, t, product.inputs}),
                .d_weight = memory.empty_precise({product.outputs, product.inputs})};
        },
        check_linear_backward);
}

}  // namespace

std::vector<ProductShape> product_shapes(const ModelSizes& model) {
    const MambaShape& mamba = model.mamba;
    return {{"in_proj", model.width, mamba.projection(), false},
            {"out_proj", mamba.inner(), model.width, true},
            {"up", model.width, model.ffn, false},
            {"down", model.ffn, model.width, true}};
}

void add_embedding(Operations& list, const ModelSizes& model, Batch batch) {
    add<EmbeddingForward>(
        list, "embedding", describe(model.name, batch),
        [=](Memory& memory) {
            return EmbeddingForward{memory.indices({batch.sequences, batch.length}, model.vocabulary),
                                    memory.normal({model.vocabulary, model.width}),
                                    memory.empty({batch.sequences, batch.length, model.width})};
        },
        check_embedding);
}

void add_rms_norm(Operations& list, const ModelSizes& model, Batch batch) {
    add<RmsNormForward>(
        list, "rms_norm", describe(model.name, batch),
        [=](Memory& memory) {
            std::vector<double> weight(model.width);
            for (std::size_t i = 0; i < weight.size(); ++i)
                weight[i] = 0.5 + static_cast<double>(i % 16) / 16;
            return RmsNormForward{.x = memory.normal({batch.sequences, batch.length, model.width}),
                                  .weight = memory.precise(weight),
                                  .out = memory.empty({batch.sequences, batch.length, model.width})};
        },
        check_rms_norm);
}

void add_products(Operations& list, const ModelSizes& model, Batch batch) {
    for (const ProductShape& product : product_shapes(model)) add_product(list, model.name, product, batch);
}

void add_product_gradients(Operations& list, const ModelSizes& model, Batch batch) {
    for (const ProductShape& product : product_shapes(model)) add_gradients(list, model.name, product, batch);
}

void add_squared_relu(Operations& list, const ModelSizes& model, Batch batch) {
    add<SquaredReluForward>(
        list, "squared_relu", describe(model.name, batch),
        [=](Memory& memory) {
            return SquaredReluForward{memory.normal({batch.sequences, batch.length, model.ffn}),
                                      memory.empty({batch.sequences, batch.length, model.ffn})};
        },
        check_squared_relu);
}

void add_add(Operations& list, const ModelSizes& model, Batch batch) {
    add<Add>(
        list, "add", describe(model.name, batch),
        [=](Memory& memory) {
            const auto state = {batch.sequences, batch.length, model.width};
            return Add{memory.normal(state), memory.normal(state), memory.empty(state)};
        },
        check_add);
}

void add_activation_sums(Operations& list, const ModelSizes& model, Batch batch) {
    const auto add_units = [&](const std::string& what, int64_t columns, int64_t first, int64_t channels,
                               int64_t units) {
        add<ActivationSums>(
            list, "activation_sums", describe(model.name + " " + what, batch),
            [=](Memory& memory) {
                return ActivationSums{.x = memory.normal({batch.sequences, batch.length, columns}),
                                      .first = first,
                                      .channels = channels,
                                      .out = memory.empty_precise({batch.sequences, units})};
            },
            check_activation_sums);
    };
    const MambaShape& mamba = model.mamba;
    add_units("neurons", model.ffn, 0, 1, model.ffn);
    add_units("x channels", mamba.projection(), mamba.inner(), 1, mamba.inner());
    add_units("KV heads", model.heads * model.head_dim, 0, model.heads / model.kv_heads * model.head_dim,
              model.kv_heads);
}

void add_accumulate_powers(Operations& list, const ModelSizes& model, Batch batch) {
    add<AccumulatePowers>(
        list, "accumulate_powers", describe(model.name + " neurons", batch),
        [=](Memory& memory) {
            return AccumulatePowers{.x = memory.empty_precise({batch.sequences, model.ffn}),
                                    .scale = 1 / static_cast<double>(batch.length),
                                    .power = 2,
                                    .total = memory.zeros(DType::f64, {model.ffn})};
        },
        check_accumulate_powers);
}

}  // namespace minipuzzle::cli::bench
