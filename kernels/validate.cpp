// Shapes and element types of the model's operations. A mismatch is our own wiring bug, so it throws
// InternalError.
#include "kernels/checker.h"

namespace minipuzzle {

namespace {

void check_mamba_shape(const Checker& check, const MambaShape& s) {
    check.require(s.heads > 0 && s.head_dim > 0 && s.state > 0 && s.groups > 0 && s.conv_kernel > 0 &&
                      s.heads % s.groups == 0,
                  [&] {
                      return fmt::format(
                          "heads {}, head_dim {}, state {}, groups {}, conv_kernel {}: expected positive "
                          "numbers and heads divisible by groups",
                          s.heads, s.head_dim, s.state, s.groups, s.conv_kernel);
                  });
}

// What ConvForward and ConvBackward share.
template <class Conv>
void check_conv(Checker& check, const Conv& args) {
    const MambaShape& s = args.shape;
    check_mamba_shape(check, s);
    const Extents x(args.zxbcdt);
    check.floating("zxbcdt", args.zxbcdt, {x.b, x.t, s.projection()});
    check.floating("weight", args.weight, {s.conv_channels(), s.conv_kernel});
    check.optional("bias", args.bias, {s.conv_channels()});
    check.optional_indices("document", args.document, {x.b, x.t});
    check.optional("initial_state", args.initial_state, {x.b, s.conv_channels(), s.conv_kernel - 1});
}

// What SsdForward and SsdBackward share.
template <class Ssd>
void check_ssd(Checker& check, const Ssd& args) {
    const MambaShape& s = args.shape;
    check_mamba_shape(check, s);
    const Extents x(args.zxbcdt);
    check.require(args.chunk > 0,
                  [&] { return fmt::format("chunk is {}, expected a positive number", args.chunk); });
    check.require(args.dt_min >= 0 && args.dt_max >= args.dt_min, [&] {
        return fmt::format("dt_min {} and dt_max {}: expected 0 <= dt_min <= dt_max", args.dt_min,
                           args.dt_max);
    });
    check.floating("zxbcdt", args.zxbcdt, {x.b, x.t, s.projection()});
    check.floating("xbc", args.xbc, {x.b, x.t, s.conv_channels()});
    check.precise("dt_bias", args.dt_bias, {s.heads});
    check.precise("a_log", args.a_log, {s.heads});
    check.precise("d", args.d, {s.heads});
    check.optional_indices("document", args.document, {x.b, x.t});
    check.optional_precise("initial_state", args.initial_state, {x.b, s.heads, s.head_dim, s.state});
}

// What the two attention operations share.
template <class Attention>
void check_attention(Checker& check, const Attention& args) {
    check.require(args.heads > 0 && args.kv_heads > 0 && args.head_dim > 0 && args.heads % args.kv_heads == 0,
                  [&] {
                      return fmt::format(
                          "heads {}, kv_heads {}, head_dim {}: expected positive numbers and heads "
                          "divisible by kv_heads",
                          args.heads, args.kv_heads, args.head_dim);
                  });
    const Extents x(args.q);
    check.floating("q", args.q, {x.b, x.t, args.heads * args.head_dim});
    check.floating("k", args.k, {x.b, x.t, args.kv_heads * args.head_dim});
    check.floating("v", args.v, {x.b, x.t, args.kv_heads * args.head_dim});
    check.optional_indices("document", args.document, {x.b, x.t});
    check.floating("out", args.out, {x.b, x.t, args.heads * args.head_dim});
}

}  // namespace

void validate(const EmbeddingForward& args) {
    Checker check("EmbeddingForward");
    const Extents x(args.out);
    check.indices("tokens", args.tokens, {x.b, x.t});
    check.floating("weight", args.weight, {args.weight.size(0), x.columns});
    check.floating("out", args.out, {x.b, x.t, x.columns});
}

void validate(const EmbeddingBackward& args) {
    Checker check("EmbeddingBackward");
    const Extents x(args.d_out);
    check.indices("tokens", args.tokens, {x.b, x.t});
    check.floating("d_out", args.d_out, {x.b, x.t, x.columns});
    check.precise("d_weight", args.d_weight, {args.d_weight.size(0), x.columns});
}

void validate(const RmsNormForward& args) {
    Checker check("RmsNormForward");
    const Extents x(args.x);
    check.floating("x", args.x, {x.b, x.t, x.columns});
    check.precise("weight", args.weight, {x.columns});
    check.result_like(args.x, "out", args.out, "out_scale", args.out_scale);
}

void validate(const RmsNormBackward& args) {
    Checker check("RmsNormBackward");
    const Extents x(args.x);
    check.floating("x", args.x, {x.b, x.t, x.columns});
    check.precise("weight", args.weight, {x.columns});
    check.floating("d_out", args.d_out, {x.b, x.t, x.columns});
    check.floating("d_x", args.d_x, {x.b, x.t, x.columns});
    check.optional_precise("d_weight", args.d_weight, {x.columns});
}

void validate(const QuantizeRows& args) {
    Checker check("QuantizeRows");
    check.require(args.x.rank >= 2, [&] { return fmt::format("x is {}, expected rows", describe(args.x)); });
    check.same("x", args.x, args.x);
    check.result_like(args.x, "out", args.out, "scale", args.scale);
    check.quantised("out", args.out, "scale", args.scale);
}

void validate(const LinearForward& args) {
    Checker check("LinearForward");
    const Extents x(args.x);
    const int64_t outputs = args.weight.size(0);
    if (args.x.dtype == DType::f8_e4m3) {
        check.floating("out", args.out, {x.b, x.t, outputs});
        check.optional("residual", args.residual, {x.b, x.t, outputs});
        check.quantised("x", args.x, "x_scale", args.x_scale);
        check.quantised("weight", args.weight, "weight_scale", args.weight_scale);
        check.require(args.weight.rank == 2 && args.weight.size(1) == x.columns, [&] {
            return fmt::format("weight is {}, expected [{}, {}]", describe(args.weight), outputs, x.columns);
        });
        return;
    }
    check.floating("x", args.x, {x.b, x.t, x.columns});
    check.floating("weight", args.weight, {outputs, x.columns});
    check.optional("residual", args.residual, {x.b, x.t, outputs});
    if (args.out.dtype == args.x.dtype)
        check.floating("out", args.out, {x.b, x.t, outputs});
    else
        check.precise("out", args.out, {x.b, x.t, outputs});
}

void validate(const LinearBackward& args) {
    Checker check("LinearBackward");
    const Extents y(args.d_out);
    check.floating("d_out", args.d_out, {y.b, y.t, y.columns});
    if (args.d_x) {
        const int64_t inputs = args.weight.size(1);
        check.floating("weight", args.weight, {y.columns, inputs});
        check.floating("d_x", args.d_x, {y.b, y.t, inputs});
    }
    if (args.d_weight) {
        const int64_t inputs = args.d_weight.size(1);
        check.floating("x", args.x, {y.b, y.t, inputs});
        check.precise("d_weight", args.d_weight, {y.columns, inputs});
    }
}

void validate(const SquaredReluForward& args) {
    Checker check("SquaredReluForward");
    check.same("x", args.x, args.x);
    check.result_like(args.x, "out", args.out, "out_scale", args.out_scale);
}

void validate(const SquaredReluBackward& args) {
    Checker check("SquaredReluBackward");
    check.same("x", args.x, args.x);
    check.same("d_out", args.d_out, args.x);
    check.same("d_x", args.d_x, args.x);
}

void validate(const Add& args) {
    Checker check("Add");
    check.same("a", args.a, args.a);
    check.same("b", args.b, args.a);
    check.same("out", args.out, args.a);
}

void validate(const ConvForward& args) {
    Checker check("ConvForward");
    check_conv(check, args);
    const MambaShape& s = args.shape;
    const Extents x(args.zxbcdt);
    check.floating("xbc", args.xbc, {x.b, x.t, s.conv_channels()});
    check.optional("final_state", args.final_state, {x.b, s.conv_channels(), s.conv_kernel - 1});
}

void validate(const ConvBackward& args) {
    Checker check("ConvBackward");
    check_conv(check, args);
    const MambaShape& s = args.shape;
    const Extents x(args.zxbcdt);
    check.floating("d_xbc", args.d_xbc, {x.b, x.t, s.conv_channels()});
    check.floating("d_zxbcdt", args.d_zxbcdt, {x.b, x.t, s.projection()});
    check.precise("d_weight", args.d_weight, {s.conv_channels(), s.conv_kernel});
    check.optional_precise("d_bias", args.d_bias, {s.conv_channels()});
    check.optional("d_initial_state", args.d_initial_state, {x.b, s.conv_channels(), s.conv_kernel - 1});
}

void validate(const SsdForward& args) {
    Checker check("SsdForward");
    check_ssd(check, args);
    const MambaShape& s = args.shape;
    const Extents x(args.zxbcdt);
    check.floating("y", args.y, {x.b, x.t, s.inner()});
    check.optional_precise("final_state", args.final_state, {x.b, s.heads, s.head_dim, s.state});
    check.optional_precise("chunk_states", args.chunk_states,
                           {x.b, div_up(x.t, args.chunk) * s.heads, s.head_dim, s.state});
}

void validate(const SsdBackward& args) {
    Checker check("SsdBackward");
    check_ssd(check, args);
    const MambaShape& s = args.shape;
    const Extents x(args.zxbcdt);
    check.precise("chunk_states", args.chunk_states,
                  {x.b, div_up(x.t, args.chunk) * s.heads, s.head_dim, s.state});
    check.floating("d_y", args.d_y, {x.b, x.t, s.inner()});
    check.optional_precise("d_final_state", args.d_final_state, {x.b, s.heads, s.head_dim, s.state});
    check.floating("d_xbc", args.d_xbc, {x.b, x.t, s.conv_channels()});
    check.floating("d_zxbcdt", args.d_zxbcdt, {x.b, x.t, s.projection()});
    check.precise("d_dt_bias", args.d_dt_bias, {s.heads});
    check.precise("d_a_log", args.d_a_log, {s.heads});
    check.precise("d_d", args.d_d, {s.heads});
    check.optional_precise("d_initial_state", args.d_initial_state, {x.b, s.heads, s.head_dim, s.state});
}

void validate(const GatedNormForward& args) {
    Checker check("GatedNormForward");
    const MambaShape& s = args.shape;
    check_mamba_shape(check, s);
    const Extents x(args.y);
    check.floating("y", args.y, {x.b, x.t, s.inner()});
    check.floating("zxbcdt", args.zxbcdt, {x.b, x.t, s.projection()});
    check.precise("weight", args.weight, {s.inner()});
    check.result_like(args.y, "out", args.out, "out_scale", args.out_scale);
}

void validate(const GatedNormBackward& args) {
    Checker check("GatedNormBackward");
    const MambaShape& s = args.shape;
    check_mamba_shape(check, s);
    const Extents x(args.y);
    check.floating("y", args.y, {x.b, x.t, s.inner()});
    check.floating("zxbcdt", args.zxbcdt, {x.b, x.t, s.projection()});
    check.precise("weight", args.weight, {s.inner()});
    check.floating("d_out", args.d_out, {x.b, x.t, s.inner()});
    check.floating("d_y", args.d_y, {x.b, x.t, s.inner()});
    check.floating("d_zxbcdt", args.d_zxbcdt, {x.b, x.t, s.projection()});
    check.precise("d_weight", args.d_weight, {s.inner()});
}

void validate(const AttentionForward& args) {
    Checker check("AttentionForward");
    check_attention(check, args);
    const Extents x(args.q);
    check.optional_precise("lse", args.lse, {x.b, args.heads, x.t});
}

void validate(const AttentionBackward& args) {
    Checker check("AttentionBackward");
    check_attention(check, args);
    const Extents x(args.q);
    check.precise("lse", args.lse, {x.b, args.heads, x.t});
    check.floating("d_out", args.d_out, {x.b, x.t, args.heads * args.head_dim});
    check.floating("d_q", args.d_q, {x.b, x.t, args.heads * args.head_dim});
    check.floating("d_k", args.d_k, {x.b, x.t, args.kv_heads * args.head_dim});
    check.floating("d_v", args.d_v, {x.b, x.t, args.kv_heads * args.head_dim});
}

}  // namespace minipuzzle
