#include "kernels/cpu/blocks.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

template <class T>
void CpuBackend<T>::run(const LinearForward& args) {
    validate(args);
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
