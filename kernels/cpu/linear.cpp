#include <array>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/scratch.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {
namespace {

// The values of all E4M3 codes.
template <class T>
const std::array<T, 256>& e4m3_values() {
    static const std::array<T, 256> values = [] {
        std::array<T, 256> all{};
        for (int code = 0; code < 256; ++code) all[code] = e4m3_to_float(static_cast<uint8_t>(code));
        return all;
    }();
    return values;
}

template <class T>
void decode(const uint8_t* codes, int64_t count, T* values) {
    const auto& table = e4m3_values<T>();
    for (int64_t i = 0; i < count; ++i) values[i] = table[codes[i]];
}

// One task's blocks of x and weight as numbers, and their product.
struct QuantisedSizes {
    int64_t inputs, columns;
};
template <class T>
struct QuantisedSpace {
    T *x, *weight, *product;
    QuantisedSpace(Carver& carver, const QuantisedSizes& sizes)
        : x(carver.take<T>(kRowBlock * sizes.inputs)),
          weight(carver.take<T>(sizes.columns * sizes.inputs)),
          product(carver.take<T>(kRowBlock * sizes.columns)) {}
};

// Scales are applied to the sums, so that these are of products of codes alone.
template <class T>
void quantised_forward(ThreadPool& pool, const LinearForward& args) {
    const int64_t inputs = args.weight.size(1), outputs = args.weight.size(0);
    const SequenceBlocks row_blocks{args.x.size(0), args.x.size(1), kRowBlock};
    const Blocks column_blocks{outputs, kRowBlock};
    pool.parallel_for(row_blocks.count() * column_blocks.count(), [&](int64_t task, int worker) {
        const Block rows = row_blocks[task / column_blocks.count()];
        const Block columns = column_blocks[task % column_blocks.count()];
        auto space = carve<QuantisedSpace<T>>(pool, worker, QuantisedSizes{inputs, kRowBlock});
        decode(codes_of(args.x) + rows.begin * inputs, rows.count * inputs, space.x);
        decode(codes_of(args.weight) + columns.begin * inputs, columns.count * inputs, space.weight);
        matrix(space.product, rows.count, columns.count, columns.count).noalias() =
            matrix<T>(space.x, rows.count, inputs, inputs) *
            matrix<T>(space.weight, columns.count, inputs, inputs).transpose();
        for (int64_t r = 0; r < rows.count; ++r) {
            const T x_scale = args.x_scale.as<T>()[rows.begin + r];
            const int64_t at = (rows.begin + r) * outputs + columns.begin;
            for (int64_t c = 0; c < columns.count; ++c) {
                const T added = args.residual ? args.residual.as<T>()[at + c] : T{0};
                const T weight_scale = args.weight_scale.as<T>()[columns.begin + c];
                args.out.as<T>()[at + c] =
                    space.product[r * columns.count + c] * x_scale * weight_scale + added;
            }
        }
    });
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const LinearForward& args) {
    validate(args);
    if (is_quantised(args.x)) return quantised_forward<T>(pool_, args);
    const int64_t inputs = args.weight.size(1), outputs = args.weight.size(0);
    const SequenceBlocks row_blocks{args.x.size(0), args.x.size(1), kRowBlock};
    const Blocks column_blocks{outputs, kColumnBlock};
    const T *x = args.x.as<T>(), *weight = args.weight.as<T>();
    T* out = args.out.as<T>();
    pool_.parallel_for(row_blocks.count() * column_blocks.count(), [&](int64_t task, int) {
        const Block rows = row_blocks[task / column_blocks.count()];
        const Block columns = column_blocks[task % column_blocks.count()];
        const auto x_block = matrix(x + rows.begin * inputs, rows.count, inputs, inputs);
        const auto w_block = matrix(weight + columns.begin * inputs, columns.count, inputs, inputs);
        auto out_block =
            matrix(out + rows.begin * outputs + columns.begin, rows.count, columns.count, outputs);
        if (args.residual) {
            if (args.residual.data != args.out.data)
                out_block = matrix<T>(args.residual.as<T>() + rows.begin * outputs + columns.begin,
                                      rows.count, columns.count, outputs);
            out_block.noalias() += x_block * w_block.transpose();
        } else {
            out_block.noalias() = x_block * w_block.transpose();
        }
    });
}

template <class T>
void CpuBackend<T>::run(const LinearBackward& args) {
    validate(args);
    const int64_t outputs = args.d_out.columns(), row_count = args.d_out.rows();
    const T* d_out = args.d_out.as<T>();
    if (args.d_x) {
        const int64_t inputs = args.d_x.columns();
        const SequenceBlocks row_blocks{args.d_out.size(0), args.d_out.size(1), kRowBlock};
        const Blocks column_blocks{inputs, kColumnBlock};
        pool_.parallel_for(row_blocks.count() * column_blocks.count(), [&](int64_t task, int) {
            const Block rows = row_blocks[task / column_blocks.count()];
            const Block columns = column_blocks[task % column_blocks.count()];
            auto d_x = matrix(args.d_x.as<T>() + rows.begin * inputs + columns.begin, rows.count,
                              columns.count, inputs);
            if (!args.d_x_accumulates) d_x.setZero();
            d_x.noalias() += matrix(d_out + rows.begin * outputs, rows.count, outputs, outputs) *
                             matrix<T>(args.weight.as<T>() + columns.begin, outputs, columns.count, inputs);
        });
    }
    if (args.d_weight) {
        // Tasks own blocks of the weight; each sums over all tokens in order.
        const int64_t inputs = args.d_weight.columns();
        const Blocks output_blocks{outputs, kRowBlock}, input_blocks{inputs, kColumnBlock};
        pool_.parallel_for(output_blocks.count() * input_blocks.count(), [&](int64_t task, int) {
            const Block out = output_blocks[task / input_blocks.count()];
            const Block in = input_blocks[task % input_blocks.count()];
            matrix(args.d_weight.as<T>() + out.begin * inputs + in.begin, out.count, in.count, inputs)
                .noalias() += matrix(d_out + out.begin, row_count, out.count, outputs).transpose() *
                              matrix<T>(args.x.as<T>() + in.begin, row_count, in.count, inputs);
        });
    }
}

#define MINIPUZZLE_INSTANTIATE(T)                                \
    template void CpuBackend<T>::run(const LinearForward& args); \
    template void CpuBackend<T>::run(const LinearBackward& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
