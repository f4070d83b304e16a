// What an operation must move and compute at least, from its shapes alone: every input read once, every
// output written once, in the types they have; multiplications and additions counted one each. Time over
// max(bytes / bandwidth, flops / rate) says how far an implementation is from the device's limits.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"

namespace minipuzzle {

struct Cost {
    double bytes = 0;
    double flops = 0;  // those of matrix products, which run on the matrix units where there are any
    double quantised_flops = 0;  // the same of products of E4M3 codes, which have a rate of their own
};

namespace costs {

template <class... Tensors>
double bytes_of_all(const Tensors&... tensors) {
    return (static_cast<double>(tensors.bytes()) + ... + 0.0);
}

// Bytes of `columns` columns in every row of a wider tensor.
inline double bytes_of_columns(const Tensor& tensor, int64_t columns) {
    return static_cast<double>(tensor.rows()) * static_cast<double>(columns) * bytes_of(tensor.dtype);
}

inline double product_flops(int64_t rows, int64_t inputs, int64_t outputs) {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(inputs) * static_cast<double>(outputs);
}

}  // namespace costs

// The rows looked up, not the table.
inline Cost cost(const EmbeddingForward& args) {
    return {.bytes = costs::bytes_of_all(args.tokens, args.out, args.out)};
}

inline Cost cost(const RmsNormForward& args) {
    return {.bytes = costs::bytes_of_all(args.x, args.weight, args.out, args.out_scale)};
}

inline Cost cost(const QuantizeRows& args) {
    return {.bytes = costs::bytes_of_all(args.x, args.out, args.scale)};
}

// The rows that uniform draws of tokens touch are read and written: V (1 - (1 - 1/V)^R) of them.
inline Cost cost(const EmbeddingBackward& args) {
    const auto vocabulary = static_cast<double>(args.d_weight.size(0));
    const auto rows = static_cast<double>(args.tokens.elements());
    const double touched = vocabulary > 1 ? -std::expm1(rows * std::log1p(-1 / vocabulary)) : 1;
    return {.bytes = costs::bytes_of_all(args.tokens, args.d_out) +
                     2 * touched * costs::bytes_of_all(args.d_weight)};
}

// d_x is read and written, d_weight likewise.
inline Cost cost(const RmsNormBackward& args) {
    return {.bytes = costs::bytes_of_all(args.x, args.weight, args.d_out, args.d_x, args.d_x, args.d_weight,
                                         args.d_weight)};
}

inline Cost cost(const LinearForward& args) {
    const double flops = costs::product_flops(args.x.rows(), args.x.columns(), args.weight.size(0));
    const bool quantised = args.x.dtype == DType::f8_e4m3;
    return {.bytes = costs::bytes_of_all(args.x, args.weight, args.residual, args.out, args.x_scale,
                                         args.weight_scale),
            .flops = quantised ? 0 : flops,
            .quantised_flops = quantised ? flops : 0};
}

// One product for each gradient; what accumulates is read too.
inline Cost cost(const LinearBackward& args) {
    Cost all{.bytes = costs::bytes_of_all(args.d_out)};
    const int64_t rows = args.d_out.rows(), outputs = args.d_out.columns();
    if (args.d_x) {
        all.bytes += costs::bytes_of_all(args.weight, args.d_x);
        if (args.d_x_accumulates) all.bytes += costs::bytes_of_all(args.d_x);
        all.flops += costs::product_flops(rows, outputs, args.d_x.columns());
    }
    if (args.d_weight) {
        all.bytes += costs::bytes_of_all(args.x, args.d_weight, args.d_weight);
        all.flops += costs::product_flops(outputs, rows, args.d_weight.columns());
    }
    return all;
}

inline Cost cost(const SquaredReluForward& args) {
    return {.bytes = costs::bytes_of_all(args.x, args.out, args.out_scale)};
}

inline Cost cost(const SquaredReluBackward& args) {
    return {.bytes = costs::bytes_of_all(args.x, args.d_out, args.d_x)};
}

inline Cost cost(const Add& args) { return {.bytes = costs::bytes_of_all(args.a, args.b, args.out)}; }

// Of zxbcdt only the x|B|C part is read.
inline Cost cost(const ConvForward& args) {
    return {.bytes = costs::bytes_of_columns(args.zxbcdt, args.shape.conv_channels()) +
                     costs::bytes_of_all(args.weight, args.bias, args.document, args.initial_state, args.xbc,
                                         args.final_state)};
}

// Of zxbcdt only the x|B|C part is read, of its gradient that part written; sums are read and written.
inline Cost cost(const ConvBackward& args) {
    return {.bytes = 2 * costs::bytes_of_columns(args.zxbcdt, args.shape.conv_channels()) +
                     costs::bytes_of_all(args.weight, args.bias, args.document, args.initial_state,
                                         args.d_xbc, args.d_weight, args.d_weight, args.d_bias, args.d_bias,
                                         args.d_initial_state)};
}

// Per token of the chunked algorithm with chunks of Q: states and their use 4 H P N; inside a chunk the
// causal half of C B^T, (Q + 1) G N, and of its product with x, (Q + 1) H P. The states between chunks could
// stay on the chip.
inline Cost cost(const SsdForward& args) {
    const MambaShape& s = args.shape;
    const auto tokens = static_cast<double>(args.xbc.rows());
    const auto inner = static_cast<double>(s.inner()), shared = static_cast<double>(s.groups * s.state);
    const double chunk = static_cast<double>(std::min(args.chunk, args.xbc.size(1)));
    return {.bytes = costs::bytes_of_columns(args.zxbcdt, s.heads) +
                     costs::bytes_of_all(args.xbc, args.dt_bias, args.a_log, args.d, args.document,
                                         args.initial_state, args.y, args.final_state, args.chunk_states),
            .flops = tokens * (4 * inner * static_cast<double>(s.state) + (chunk + 1) * (inner + shared))};
}

// Per token: five products over the states (dB, dC, u, y and the states' own gradients), 10 H P N; inside a
// chunk the causal half of dy x^T and of its use in dx, 2 (Q + 1) H P, and of C B^T and its gradient's two
// products, 3 (Q + 1) G N. Of the states only those entering chunks need cross memory.
inline Cost cost(const SsdBackward& args) {
    const MambaShape& s = args.shape;
    const auto tokens = static_cast<double>(args.xbc.rows());
    const auto inner = static_cast<double>(s.inner()), shared = static_cast<double>(s.groups * s.state);
    const double chunk = static_cast<double>(std::min(args.chunk, args.xbc.size(1)));
    return {.bytes = 2 * costs::bytes_of_columns(args.zxbcdt, s.heads) +
                     costs::bytes_of_all(args.xbc, args.dt_bias, args.a_log, args.d, args.document,
                                         args.chunk_states, args.d_y, args.d_final_state, args.d_xbc,
                                         args.d_initial_state) +
                     2 * costs::bytes_of_all(args.d_dt_bias, args.d_a_log, args.d_d),
            .flops = tokens *
                     (10 * inner * static_cast<double>(s.state) + (chunk + 1) * (2 * inner + 3 * shared))};
}

// Of zxbcdt only the z part is read.
inline Cost cost(const GatedNormForward& args) {
    return {.bytes = costs::bytes_of_columns(args.zxbcdt, args.shape.inner()) +
                     costs::bytes_of_all(args.y, args.weight, args.out, args.out_scale)};
}

// Of zxbcdt only the z part is read, of its gradient that part written.
inline Cost cost(const GatedNormBackward& args) {
    return {.bytes =
                2 * costs::bytes_of_columns(args.zxbcdt, args.shape.inner()) +
                costs::bytes_of_all(args.y, args.weight, args.d_out, args.d_y, args.d_weight, args.d_weight)};
}

// The causal half of q k^T and of its product with v; documents would make it less.
inline Cost cost(const AttentionForward& args) {
    const auto batch = static_cast<double>(args.q.size(0)), length = static_cast<double>(args.q.size(1));
    const auto columns = static_cast<double>(args.heads * args.head_dim);
    return {.bytes = costs::bytes_of_all(args.q, args.k, args.v, args.document, args.out, args.lse),
            .flops = 2 * batch * columns * length * (length + 1)};
}

// The causal half of five products: scores and probabilities' gradients formed again, and three gradients.
inline Cost cost(const AttentionBackward& args) {
    const auto batch = static_cast<double>(args.q.size(0)), length = static_cast<double>(args.q.size(1));
    const auto columns = static_cast<double>(args.heads * args.head_dim);
    return {.bytes = costs::bytes_of_all(args.q, args.k, args.v, args.document, args.out, args.lse,
                                         args.d_out, args.d_q, args.d_k, args.d_v),
            .flops = 5 * batch * columns * length * (length + 1)};
}

// One product a model. Logits need not be stored, so they are no bytes; a tensor that models share is read
// once by each.
inline Cost cost(const CompareLogits& args) {
    const auto of = [](const LmHead& lm) {
        return Cost{.bytes = costs::bytes_of_all(lm.hidden, lm.head),
                    .flops = costs::product_flops(lm.hidden.size(0), lm.hidden.size(1), lm.head.size(0))};
    };
    Cost all = of(args.base);
    all.bytes += costs::bytes_of_all(args.targets, args.base_loss, args.base_correct, args.base_power);
    for (const LogitsComparison& out : args.variants) {
        const Cost one = of(out.variant);
        all.flops += one.flops;
        all.bytes += one.bytes + costs::bytes_of_all(out.loss, out.correct, out.kl, out.agrees, out.error,
                                                     out.hidden_mse, out.cosine);
    }
    return all;
}

// d_student is read and written.
inline Cost cost(const FeatureLoss& args) {
    return {.bytes = costs::bytes_of_all(args.student, args.teacher, args.targets, args.value, args.d_student,
                                         args.d_student)};
}

// One product a model and one for each gradient. Neither logits nor their gradient need be stored.
inline Cost cost(const VocabularyLoss& args) {
    const auto product = [](const LmHead& lm) {
        return costs::product_flops(lm.hidden.size(0), lm.hidden.size(1), lm.head.size(0));
    };
    Cost all{.bytes = costs::bytes_of_all(args.student.hidden, args.student.head, args.targets, args.ce,
                                          args.kl, args.reverse_kl, args.d_hidden, args.d_head, args.d_head),
             .flops = product(args.student)};
    if (args.teacher.head) {
        all.bytes += costs::bytes_of_all(args.teacher.hidden, args.teacher.head);
        all.flops += product(args.teacher);
    }
    if (args.d_hidden) all.flops += product(args.student);
    if (args.d_head) all.flops += product(args.student);
    return all;
}

// The units' channels alone are read.
inline Cost cost(const ActivationSums& args) {
    return {.bytes = costs::bytes_of_columns(args.x, args.out.columns() * args.channels) +
                     costs::bytes_of_all(args.out)};
}

inline Cost cost(const AccumulatePowers& args) {
    return {.bytes = costs::bytes_of_all(args.x, args.total, args.total)};
}

inline Cost cost(const SquaredNorm& args) { return {.bytes = costs::bytes_of_all(args.x)}; }

inline Cost cost(const GradientNorms& args) {
    Cost all;
    for (const Tensor& gradient : args.gradients) all.bytes += costs::bytes_of_all(gradient);
    return all;
}

// Master and moments are read and written, the gradient read, the parameter written.
inline Cost cost(const AdamW& args) {
    Cost all;
    for (const TrainedTensor& t : args.tensors) {
        const Tensor& master = t.master ? t.master : t.parameter;
        all.bytes +=
            costs::bytes_of_all(t.gradient, master, master, t.moment1, t.moment1, t.moment2, t.moment2);
        if (t.master) all.bytes += costs::bytes_of_all(t.parameter);
    }
    return all;
}

inline Cost cost(const RandomNormal& args) { return {.bytes = costs::bytes_of_all(args.out)}; }

}  // namespace minipuzzle
