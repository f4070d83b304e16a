// Shapes and element types of losses, statistics and the optimiser's operations; as validate.cpp.
#include "kernels/checker.h"

namespace minipuzzle {

namespace {

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

void validate(const ActivationSums& args) {
    Checker check("ActivationSums");
    const Extents x(args.x);
    check.floating("x", args.x, {x.b, x.t, x.columns});
    const int64_t units = args.out.columns();
    check.precise("out", args.out, {x.b, units});
    check.require(args.first >= 0 && args.channels > 0 && args.first + units * args.channels <= x.columns,
                  [&] {
                      return fmt::format("{} units of {} channels from channel {} on, expected at most {}",
                                         units, args.channels, args.first, x.columns);
                  });
}

void validate(const AccumulatePowers& args) {
    Checker check("AccumulatePowers");
    check.precise_alone("x", args.x, {args.x.size(0), args.x.columns()});
    check.of_type("total", args.total, DType::f64, {args.x.columns()});
    check.require(args.power == 0.5 || args.power == 1 || args.power == 2, "power is not 1/2, 1 or 2");
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
