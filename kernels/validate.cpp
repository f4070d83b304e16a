// Shapes and element types of every operation. A mismatch is our own wiring bug, so it throws InternalError.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace minipuzzle {

namespace {

bool is_floating(DType dtype) {
    return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

std::string describe(const Tensor& tensor) {
    const std::vector<int64_t> extents(tensor.shape.begin(), tensor.shape.begin() + tensor.rank);
    return fmt::format("{} {}", info(tensor.dtype).name, extents);
}

// The checks of one call of one operation: exact extents, one floating type (and the precise one that goes
// with it), one device.
class Checker {
  public:
    explicit Checker(const char* operation) : operation_(operation) {}

    // `expected` is the text, or a function that makes it: every operation is checked, hardly any fails.
    template <class Expected>
    void require(bool condition, const Expected& expected) const {
        if (condition) return;
        if constexpr (std::is_invocable_v<Expected>)
            fail(expected());
        else
            fail(expected);
    }

    void floating(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        shape(name, tensor, extents);
        if (!seen_floating_) {
            seen_floating_ = true;
            floating_type_ = tensor.dtype;
        }
        require(is_floating(tensor.dtype) && tensor.dtype == floating_type_, [&] {
            return fmt::format("{} is {}, expected {}", name, describe(tensor),
                               is_floating(floating_type_) ? info(floating_type_).name : "a floating type");
        });
    }
    void optional(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        if (tensor) floating(name, tensor, extents);
    }

    // After the operation's first floating tensor.
    void precise(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        shape(name, tensor, extents);
        require(tensor.dtype == precise_type(floating_type_), [&] {
            return fmt::format("{} is {}, expected {}", name, describe(tensor),
                               info(precise_type(floating_type_)).name);
        });
    }
    void optional_precise(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        if (tensor) precise(name, tensor, extents);
    }

    void indices(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        shape(name, tensor, extents);
        require(tensor.dtype == DType::i32,
                [&] { return fmt::format("{} is {}, expected I32", name, describe(tensor)); });
    }
    void optional_indices(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        if (tensor) indices(name, tensor, extents);
    }

    // Floating, of any rank, the same extents as `like`.
    void same(const char* name, const Tensor& tensor, const Tensor& like) {
        require(static_cast<bool>(tensor), [&] { return fmt::format("{} is not given", name); });
        require(tensor.same_shape(like), [&] {
            return fmt::format("{} is {}, expected the extents of {}", name, describe(tensor),
                               describe(like));
        });
        const auto& e = tensor.shape;
        if (tensor.rank == 1) floating(name, tensor, {e[0]});
        if (tensor.rank == 2) floating(name, tensor, {e[0], e[1]});
        if (tensor.rank == 3) floating(name, tensor, {e[0], e[1], e[2]});
        if (tensor.rank == 4) floating(name, tensor, {e[0], e[1], e[2], e[3]});
    }

    // On the device of the operation's first tensor.
    void same_device(const char* name, const Tensor& tensor) {
        if (!seen_device_) {
            seen_device_ = true;
            device_ = tensor.device;
        }
        require(tensor.device == device_, [&] { return fmt::format("{} lies on another device", name); });
    }

  private:
    [[noreturn]] void fail(const std::string& expected) const {
        throw InternalError(fmt::format("internal error: {}: {}", operation_, expected));
    }

    void shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> extents) {
        require(static_cast<bool>(tensor), [&] { return fmt::format("{} is not given", name); });
        const bool fits = tensor.rank == static_cast<int>(extents.size()) &&
                          std::equal(extents.begin(), extents.end(), tensor.shape.begin());
        require(fits, [&] {
            return fmt::format("{} is {}, expected {}", name, describe(tensor),
                               std::vector<int64_t>(extents));
        });
        same_device(name, tensor);
    }

    const char* operation_;
    bool seen_floating_ = false, seen_device_ = false;
    DType floating_type_ = DType::f32;
    DeviceKind device_ = DeviceKind::cpu;
};

// B, T and the last extent of a [B, T, .] tensor; zeros where it has another rank, which the shape check then
// reports.
struct Extents {
    explicit Extents(const Tensor& tensor)
        : b(tensor.size(0)), t(tensor.size(1)), columns(tensor.rank == 3 ? tensor.size(2) : 0) {}
    int64_t b, t, columns;
};

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

struct LmHeadNames {
    const char *hidden, *head;
};

// `rows` and `vocabulary` are those of the first head.
void check_lm_head(Checker& check, const LmHeadNames& names, const LmHead& lm, int64_t rows,
                   int64_t vocabulary) {
    check.floating(names.hidden, lm.hidden, {rows, lm.hidden.size(1)});
    check.floating(names.head, lm.head, {vocabulary, lm.hidden.size(1)});
}

void check_sequence_length(const Checker& check, int64_t length, int64_t rows) {
    check.require(length >= 0 && (length == 0 || rows % length == 0), [&] {
        return fmt::format("sequence_length is {}, expected 0 or a divisor of {} rows", length, rows);
    });
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
    check.floating("out", args.out, {x.b, x.t, x.columns});
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

void validate(const LinearForward& args) {
    Checker check("LinearForward");
    const Extents x(args.x);
    const int64_t outputs = args.weight.size(0);
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
    check.same("out", args.out, args.x);
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
    check.floating("out", args.out, {x.b, x.t, s.inner()});
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

void validate(const VocabularyLoss& args) {
    Checker check("VocabularyLoss");
    const int64_t rows = args.student.hidden.size(0), vocabulary = args.student.head.size(0);
    check_lm_head(check, {"student.hidden", "student.head"}, args.student, rows, vocabulary);
    if (args.teacher.hidden || args.teacher.head) {
        check_lm_head(check, {"teacher.hidden", "teacher.head"}, args.teacher, rows, vocabulary);
    } else {
        check.require(args.kl_weight == 0 && args.reverse_kl_weight == 0,
                      "kl_weight or reverse_kl_weight is not 0 without a teacher");
    }
    check.indices("targets", args.targets, {rows});
    check_sequence_length(check, args.sequence_length, rows);
    check.require(args.temperature > 0,
                  [&] { return fmt::format("temperature is {}, expected > 0", args.temperature); });
    check.optional_precise("ce", args.ce, {rows});
    check.require(args.top_k >= 0, [&] { return fmt::format("top_k is {}, expected >= 0", args.top_k); });
    check.require(args.top_k == 0 || args.reverse_kl_weight == 0,
                  "reverse_kl_weight is not 0 with top_k: the teacher gives the other tokens no probability");
    check.optional_precise("kl", args.kl, {rows});
    check.optional_precise("reverse_kl", args.reverse_kl, {rows});
    check.optional("d_hidden", args.d_hidden, {rows, args.student.hidden.size(1)});
    check.optional_precise("d_head", args.d_head, {vocabulary, args.student.hidden.size(1)});
}

void validate(const CompareLogits& args) {
    Checker check("CompareLogits");
    const int64_t rows = args.base.hidden.size(0), width = args.base.hidden.size(1);
    const int64_t vocabulary = args.base.head.size(0);
    check_lm_head(check, {"base.hidden", "base.head"}, args.base, rows, vocabulary);
    check.indices("targets", args.targets, {rows});
    check_sequence_length(check, args.sequence_length, rows);
    check.optional_precise("base_loss", args.base_loss, {rows});
    check.optional_precise("base_correct", args.base_correct, {rows});
    check.optional_precise("base_power", args.base_power, {rows});
    for (const LogitsComparison& comparison : args.variants) {
        check_lm_head(check, {"variant.hidden", "variant.head"}, comparison.variant, rows, vocabulary);
        check.optional_precise("loss", comparison.loss, {rows});
        check.optional_precise("correct", comparison.correct, {rows});
        check.optional_precise("kl", comparison.kl, {rows});
        check.optional_precise("agrees", comparison.agrees, {rows});
        check.optional_precise("error", comparison.error, {rows});
        check.optional_precise("hidden_mse", comparison.hidden_mse, {rows});
        check.optional_precise("cosine", comparison.cosine, {rows});
        check.require(
            (!comparison.hidden_mse && !comparison.cosine) || comparison.variant.hidden.size(1) == width,
            "hidden_mse and cosine need a variant as wide as the base");
    }
}

void validate(const FeatureLoss& args) {
    Checker check("FeatureLoss");
    const int64_t rows = args.student.size(0), width = args.student.size(1);
    check.floating("student", args.student, {rows, width});
    check.floating("teacher", args.teacher, {rows, width});
    check.optional_indices("targets", args.targets, {rows});
    check.optional_precise("value", args.value, {rows});
    check.optional("d_student", args.d_student, {rows, width});
}

void validate(const AbsoluteColumnSums& args) {
    Checker check("AbsoluteColumnSums");
    const Extents x(args.x);
    check.floating("x", args.x, {x.b, x.t, x.columns});
    check.precise("out", args.out, {x.b, x.columns});
}

void validate(const SquaredNorm& args) {
    Checker check("SquaredNorm");
    check.same("x", args.x, args.x);
    check.require(args.out != nullptr, "out is not given");
}

void validate(const RandomNormal& args) {
    Checker check("RandomNormal");
    check.same("out", args.out, args.out);
}

namespace {

// float32 or double, as the first one.
void check_gradient(Checker& check, const Tensor& gradient, const Tensor& first) {
    check.require(gradient && (gradient.dtype == DType::f32 || gradient.dtype == DType::f64),
                  [&] { return fmt::format("a gradient is {}, expected F32 or F64", describe(gradient)); });
    check.require(gradient.dtype == first.dtype, [&] {
        return fmt::format("gradients are {} and {}, expected one type", describe(first), describe(gradient));
    });
    check.same_device("a gradient", gradient);
}

void check_squares(Checker& check, const Tensor& squares, std::size_t tensors) {
    check.require(
        squares && squares.dtype == DType::f64 && squares.rank == 1 &&
            squares.elements() == static_cast<int64_t>(tensors),
        [&] { return fmt::format("squares is {}, expected F64 [{}]", describe(squares), tensors); });
    check.same_device("squares", squares);
}

// One tensor under training, beside its gradient.
void check_trained(Checker& check, const TrainedTensor& t) {
    const bool own_master = !t.master;
    check.require(own_master ? t.parameter.dtype == t.gradient.dtype : t.master.dtype == t.gradient.dtype,
                  [&] {
                      return fmt::format("{} is {}, expected the type of the gradient",
                                         own_master ? "parameter without a master" : "master",
                                         describe(own_master ? t.parameter : t.master));
                  });
    check.require(t.parameter.dtype == t.gradient.dtype || t.parameter.dtype == DType::bf16, [&] {
        return fmt::format("parameter is {}, expected BF16 or the gradient's type", describe(t.parameter));
    });
    check.require(t.moment1.dtype == t.moment2.dtype &&
                      (t.moment1.dtype == t.gradient.dtype || t.moment1.dtype == DType::bf16),
                  [&] {
                      return fmt::format("moments are {} and {}, expected both BF16 or the gradient's type",
                                         describe(t.moment1), describe(t.moment2));
                  });
    const std::pair<const char*, const Tensor&> beside[] = {
        {"parameter", t.parameter}, {"moment1", t.moment1}, {"moment2", t.moment2}, {"master", t.master}};
    for (const auto& [name, tensor] : beside) {
        if (own_master && &tensor == &t.master) continue;
        check.require(tensor.same_shape(t.gradient), [&] {
            return fmt::format("{} is {} beside a gradient {}", name, describe(tensor), describe(t.gradient));
        });
        check.same_device(name, tensor);
    }
}

}  // namespace

void validate(const GradientNorms& args) {
    Checker check("GradientNorms");
    for (const Tensor& gradient : args.gradients) check_gradient(check, gradient, args.gradients[0]);
    check_squares(check, args.squares, args.gradients.size());
}

void validate(const AdamW& args) {
    Checker check("AdamW");
    for (const TrainedTensor& t : args.tensors) {
        check_gradient(check, t.gradient, args.tensors[0].gradient);
        check_trained(check, t);
    }
    check_squares(check, args.squares, args.tensors.size());
    for (const double beta : {args.beta1, args.beta2})
        check.require(beta >= 0 && beta < 1,
                      [&] { return fmt::format("beta is {}, expected 0 <= beta < 1", beta); });
    check.require(args.eps >= 0, [&] { return fmt::format("eps is {}, expected >= 0", args.eps); });
    check.require(args.clip >= 0, [&] { return fmt::format("clip is {}, expected >= 0", args.clip); });
    check.require(args.step >= 1, [&] { return fmt::format("step is {}, expected 1 or more", args.step); });
}

}  // namespace minipuzzle
