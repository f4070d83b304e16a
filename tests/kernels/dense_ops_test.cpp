// Embedding, norms, products, element-wise operations, feature losses: each against its definition in double
// loops, and its gradient against central differences.
#include "tests/kernels/testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

// 64 roundings of the type: sums of a few hundred terms of order 1 stay well inside.
template <class T>
constexpr double kTolerance = 64 * std::numeric_limits<T>::epsilon();

template <class T>
std::unique_ptr<Backend> backend() {
    return make_cpu_backend(DTypeOf<T>::value, 2);
}

std::vector<double> product(const std::vector<double>& x, const std::vector<double>& weight, int64_t rows,
                            int64_t inputs, int64_t outputs) {
    std::vector<double> out(rows * outputs, 0.0);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t o = 0; o < outputs; ++o) {
            for (int64_t i = 0; i < inputs; ++i)
                out[r * outputs + o] += x[r * inputs + i] * weight[o * inputs + i];
        }
    }
    return out;
}

}  // namespace

TEMPLATE_TEST_CASE("embedding picks rows and adds gradients of repeated tokens", "", float, double) {
    constexpr int64_t kVocab = 9, kWidth = 70;
    Random random(1);
    const auto weight = convert<TestType>(random.normals(kVocab * kWidth));
    const std::vector<int32_t> tokens = {3, 0, 8, 3, 3, 1};
    std::vector<TestType> out(6 * kWidth), gradient(kVocab * kWidth, 1);
    const auto cpu = backend<TestType>();
    cpu->run(EmbeddingForward{.tokens = tensor(tokens, {2, 3}),
                              .weight = tensor(weight, {kVocab, kWidth}),
                              .out = tensor(out, {2, 3, kWidth})});
    cpu->run(EmbeddingBackward{.tokens = tensor(tokens, {2, 3}),
                               .d_out = tensor(out, {2, 3, kWidth}),
                               .d_weight = tensor(gradient, {kVocab, kWidth})});
    std::vector<double> expected(kVocab * kWidth, 1.0);
    for (size_t r = 0; r < tokens.size(); ++r) {
        for (int64_t i = 0; i < kWidth; ++i) {
            REQUIRE(out[r * kWidth + i] == weight[tokens[r] * kWidth + i]);
            expected[tokens[r] * kWidth + i] += out[r * kWidth + i];
        }
    }
    CHECK(relative_error(gradient, expected) < kTolerance<TestType>);
    const std::vector<int32_t> outside = {3, 0, 9, 3, 3, 1};
    CHECK_THROWS_AS(cpu->run(EmbeddingForward{.tokens = tensor(outside, {2, 3}),
                                              .weight = tensor(weight, {kVocab, kWidth}),
                                              .out = tensor(out, {2, 3, kWidth})}),
                    InternalError);
}

TEMPLATE_TEST_CASE("RMS norm follows its definition, also in place", "", float, double) {
    constexpr int64_t kRows = 70, kWidth = 37;
    constexpr double kEps = 0.1;
    Random random(2);
    const auto x = random.normals(kRows * kWidth), weight = random.normals(kWidth);
    std::vector<double> expected(x.size());
    for (int64_t r = 0; r < kRows; ++r) {
        double sum = 0;
        for (int64_t i = 0; i < kWidth; ++i) sum += x[r * kWidth + i] * x[r * kWidth + i];
        for (int64_t i = 0; i < kWidth; ++i) {
            expected[r * kWidth + i] = weight[i] * x[r * kWidth + i] / std::sqrt(sum / kWidth + kEps);
        }
    }
    auto values = convert<TestType>(x);
    const auto scale = convert<TestType>(weight);
    const Tensor view = tensor(values, {2, kRows / 2, kWidth});
    backend<TestType>()->run(
        RmsNormForward{.x = view, .weight = tensor(scale, {kWidth}), .eps = kEps, .out = view});
    CHECK(relative_error(values, expected) < kTolerance<TestType>);
}

TEST_CASE("RMS norm's gradients match central differences and accumulate") {
    constexpr int64_t kRows = 6, kWidth = 19;
    Random random(3);
    auto x = random.normals(kRows * kWidth), weight = random.normals(kWidth);
    const auto d_out = random.normals(x.size());
    std::vector<double> out(x.size()), d_x(x.size(), 0.5), d_weight(kWidth, -2.0);
    const auto cpu = backend<double>();
    const Tensor shape = tensor(x, {2, 3, kWidth});
    const auto loss = [&] {
        cpu->run(RmsNormForward{
            .x = shape, .weight = tensor(weight, {kWidth}), .eps = 0.01, .out = tensor(out, {2, 3, kWidth})});
        return weighted_sum(d_out, out);
    };
    cpu->run(RmsNormBackward{.x = shape,
                             .weight = tensor(weight, {kWidth}),
                             .eps = 0.01,
                             .d_out = tensor(d_out, {2, 3, kWidth}),
                             .d_x = tensor(d_x, {2, 3, kWidth}),
                             .d_weight = tensor(d_weight, {kWidth})});
    for (double& g : d_x) g -= 0.5;
    for (double& g : d_weight) g += 2.0;
    CHECK(gradient_error(x, d_x, loss) < 1e-7);
    CHECK(gradient_error(weight, d_weight, loss) < 1e-7);
}

// Rows 130 and outputs 530 cross a block's edge in both directions; 1 takes the matrix-vector path.
TEMPLATE_TEST_CASE("linear multiplies and accumulates at every size", "", float, double) {
    struct Sizes {
        int64_t batch, time, inputs, outputs;
    };
    const Sizes sizes = GENERATE(Sizes{1, 1, 1, 1}, Sizes{2, 1, 40, 9}, Sizes{2, 3, 5, 4},
                                 Sizes{1, 130, 33, 530}, Sizes{3, 7, 600, 1});
    const auto [b, t, inputs, outputs] = sizes;
    Random random(4);
    const auto x = random.normals(b * t * inputs), weight = random.normals(inputs * outputs);
    auto expected = product(x, weight, b * t, inputs, outputs);
    const auto xs = convert<TestType>(x), ws = convert<TestType>(weight);
    std::vector<TestType> out(b * t * outputs, 7);
    LinearForward args{.x = tensor(xs, {b, t, inputs}),
                       .weight = tensor(ws, {outputs, inputs}),
                       .out = tensor(out, {b, t, outputs})};
    const auto cpu = backend<TestType>();
    cpu->run(args);
    CHECK(relative_error(out, expected) < kTolerance<TestType>);
    args.residual = args.out;
    cpu->run(args);
    for (double& value : expected) value *= 2;
    CHECK(relative_error(out, expected) < kTolerance<TestType>);
}

TEST_CASE("linear's gradients are the transposed products") {
    constexpr int64_t kBatch = 2, kTime = 131, kInputs = 21, kOutputs = 140;
    Random random(5);
    auto x = random.normals(kBatch * kTime * kInputs), weight = random.normals(kInputs * kOutputs);
    const auto d_out = random.normals(kBatch * kTime * kOutputs);
    std::vector<double> out(d_out.size()), d_x(x.size(), 99.0), d_weight(weight.size(), 0.25);
    const auto cpu = backend<double>();
    const auto loss = [&] {
        cpu->run(LinearForward{.x = tensor(x, {kBatch, kTime, kInputs}),
                               .weight = tensor(weight, {kOutputs, kInputs}),
                               .out = tensor(out, {kBatch, kTime, kOutputs})});
        return weighted_sum(d_out, out);
    };
    LinearBackward args{.x = tensor(x, {kBatch, kTime, kInputs}),
                        .weight = tensor(weight, {kOutputs, kInputs}),
                        .d_out = tensor(d_out, {kBatch, kTime, kOutputs}),
                        .d_x = tensor(d_x, {kBatch, kTime, kInputs}),
                        .d_weight = tensor(d_weight, {kOutputs, kInputs})};
    cpu->run(args);
    for (double& g : d_weight) g -= 0.25;
    // The loss is linear, so differences have no truncation error, but it is a sum of 4e4 terms.
    CHECK(gradient_error(x, d_x, loss) < 1e-6);
    CHECK(gradient_error(weight, d_weight, loss) < 1e-6);

    const auto kept = d_weight;
    args.d_weight = {};
    args.x = {};
    cpu->run(args);
    CHECK(d_weight == kept);
}

TEMPLATE_TEST_CASE("squared ReLU, its gradient, and addition", "", float, double) {
    const std::vector<TestType> x = {-2, -0.0f, 0, 0.5, 3, -1e-3f};
    std::vector<TestType> out(6), gradient = {1, 1, 1, 2, -1, 1};
    const auto cpu = backend<TestType>();
    cpu->run(SquaredReluForward{.x = tensor(x, {1, 2, 3}), .out = tensor(out, {1, 2, 3})});
    CHECK(out == std::vector<TestType>{0, 0, 0, 0.25, 9, 0});
    const Tensor in_place = tensor(gradient, {1, 2, 3});
    cpu->run(SquaredReluBackward{.x = tensor(x, {1, 2, 3}), .d_out = in_place, .d_x = in_place});
    CHECK(gradient == std::vector<TestType>{0, 0, 0, 2, -6, 0});
    cpu->run(Add{.a = in_place, .b = tensor(out, {1, 2, 3}), .out = in_place});
    CHECK(gradient == std::vector<TestType>{0, 0, 0, 2.25, 3, 0});

    std::vector<TestType> broken = {std::numeric_limits<TestType>::quiet_NaN()};
    cpu->run(SquaredReluForward{.x = tensor(broken, {1}), .out = tensor(broken, {1})});
    CHECK(std::isnan(broken[0]));
}

TEST_CASE("feature losses match their definitions, gradients and masks") {
    constexpr int64_t kRows = 5, kWidth = 23, kMasked = 2;
    const FeatureKind kind = GENERATE(FeatureKind::cosine, FeatureKind::mse);
    Random random(7);
    auto student = random.normals(kRows * kWidth);
    const auto teacher = random.normals(kRows * kWidth, 0.3);
    std::vector<int32_t> targets = {0, 4, -1, 7, 1};
    std::vector<double> value(kRows, 9.0), d_student(student.size(), 1.5);
    const auto cpu = backend<double>();
    FeatureLoss args{.kind = kind,
                     .student = tensor(student, {kRows, kWidth}),
                     .teacher = tensor(teacher, {kRows, kWidth}),
                     .targets = tensor(targets, {kRows}),
                     .scale = 3,
                     .value = tensor(value, {kRows}),
                     .d_student = tensor(d_student, {kRows, kWidth})};
    cpu->run(args);
    for (int64_t r = 0; r < kRows; ++r) {
        double inner = 0, ss = 0, tt = 0, dd = 0;
        for (int64_t i = r * kWidth; i < (r + 1) * kWidth; ++i) {
            inner += student[i] * teacher[i];
            ss += student[i] * student[i];
            tt += teacher[i] * teacher[i];
            dd += (student[i] - teacher[i]) * (student[i] - teacher[i]);
        }
        const double term = kind == FeatureKind::cosine ? 1 - inner / std::sqrt(ss * tt) : dd / tt;
        CHECK(value[r] == Approx(r == kMasked ? 0 : term).epsilon(1e-12));
    }
    for (double& g : d_student) g -= 1.5;
    args.d_student = {};
    const auto loss = [&] {
        cpu->run(args);
        double sum = 0;
        for (const double term : value) sum += 3 * term;
        return sum;
    };
    CHECK(gradient_error(student, d_student, loss, 200) < 1e-7);
    CHECK(std::all_of(d_student.begin() + kMasked * kWidth, d_student.begin() + (kMasked + 1) * kWidth,
                      [](double g) { return g == 0; }));
}

TEST_CASE("feature losses of zero vectors are finite") {
    const std::vector<double> zero(4, 0.0), one(4, 1.0);
    std::vector<double> value(1), gradient(4, 0.0);
    const auto cpu = backend<double>();
    for (const FeatureKind kind : {FeatureKind::cosine, FeatureKind::mse}) {
        cpu->run(FeatureLoss{.kind = kind,
                             .student = tensor(one, {1, 4}),
                             .teacher = tensor(zero, {1, 4}),
                             .targets = {},
                             .value = tensor(value, {1}),
                             .d_student = tensor(gradient, {1, 4})});
        CHECK(value[0] == (kind == FeatureKind::cosine ? 1 : 0));
        CHECK(gradient == zero);
    }
}
