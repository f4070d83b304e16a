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

// The rows of `tensor` as [1, rows, columns].
Tensor as_sequence(Twin& twin, const Tensor& tensor, Range rows) {
    return tensor ? twin.rows(tensor, rows, {1, rows.count, tensor.columns()}) : Tensor();
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
    twin.backend().run(
        RmsNormForward{as_sequence(twin, args.x, rows), twin.whole(args.weight), args.eps, out});
    return compare_rows(twin, args.out, rows, out);
}

Check check_linear(Twin& twin, const LinearForward& args) {
    const Range rows = last(args.x.rows(), kCheckedRows), columns = last(args.out.columns(), kCheckedColumns);
    const Tensor out = twin.empty({1, rows.count, columns.count});
    LinearForward own{.x = as_sequence(twin, args.x, rows),
                      .weight = twin.rows(args.weight, columns, {columns.count, args.x.columns()}),
                      .residual = {},
                      .out = out};
    if (args.residual)
        own.residual = twin.part(args.residual, rows, {columns}, {1, rows.count, columns.count});
    twin.backend().run(own);
    return twin.compare(part(rows, columns), args.out, rows, {columns}, out, Rounding::once);
}

Check check_squared_relu(Twin& twin, const SquaredReluForward& args) {
    const Range rows = last(args.x.rows(), kCheckedRows);
    const Tensor out = twin.empty({1, rows.count, args.x.columns()});
    twin.backend().run(SquaredReluForward{as_sequence(twin, args.x, rows), out});
    return compare_rows(twin, args.out, rows, out);
}

Check check_add(Twin& twin, const Add& args) {
    const Range rows = last(args.out.rows(), kCheckedRows);
    const Tensor out = twin.empty({1, rows.count, args.out.columns()});
    twin.backend().run(Add{as_sequence(twin, args.a, rows), as_sequence(twin, args.b, rows), out});
    return compare_rows(twin, args.out, rows, out);
}

Check check_column_sums(Twin& twin, const AbsoluteColumnSums& args) {
    const int64_t length = args.x.size(1), sequence = args.x.size(0) - 1;
    const Range columns = last(args.x.columns(), kCheckedColumns);
    const Tensor out = twin.empty({1, columns.count});
    twin.backend().run(AbsoluteColumnSums{
        twin.part(args.x, {sequence * length, length}, {columns}, {1, length, columns.count}), out});
    return twin.compare(fmt::format("sequence {}, {}", sequence, part({0, length}, columns)), args.out,
                        {sequence, 1}, {columns}, out, Rounding::precise);
}

struct ProductShape {
    std::string name;
    int64_t inputs, outputs;
    bool residual;
};

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

}  // namespace

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
    const MambaShape& mamba = model.mamba;
    add_product(list, model.name, {"in_proj", model.width, mamba.projection(), false}, batch);
    add_product(list, model.name, {"out_proj", mamba.inner(), model.width, true}, batch);
    add_product(list, model.name, {"up", model.width, model.ffn, false}, batch);
    add_product(list, model.name, {"down", model.ffn, model.width, true}, batch);
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

void add_column_sums(Operations& list, const ModelSizes& model, Batch batch) {
    add<AbsoluteColumnSums>(
        list, "column_sums", describe(model.name, batch),
        [=](Memory& memory) {
            return AbsoluteColumnSums{memory.normal({batch.sequences, batch.length, model.ffn}),
                                      memory.empty_precise({batch.sequences, model.ffn})};
        },
        check_column_sums);
}

}  // namespace minipuzzle::cli::bench
