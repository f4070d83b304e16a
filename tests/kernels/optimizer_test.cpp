#include "tests/kernels/testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

// The algorithm as published, in double.
struct Reference {
    double rate, beta1, beta2, eps, decay, clip;
    std::vector<double> p, m, v;

    void step(const std::vector<double>& gradient, int64_t number) {
        double norm = 0;
        for (double g : gradient) norm += g * g;
        const double scale = std::min(1.0, clip / std::sqrt(norm));
        for (std::size_t i = 0; i < p.size(); ++i) {
            const double g = gradient[i] * scale;
            m[i] = beta1 * m[i] + (1 - beta1) * g;
            v[i] = beta2 * v[i] + (1 - beta2) * g * g;
            const double m_hat = m[i] / (1 - std::pow(beta1, number));
            const double v_hat = v[i] / (1 - std::pow(beta2, number));
            p[i] -= rate * (m_hat / (std::sqrt(v_hat) + eps) + decay * p[i]);
        }
    }
};

}  // namespace

TEMPLATE_TEST_CASE("AdamW follows Loshchilov and Hutter's algorithm over several steps", "", float, double) {
    constexpr int64_t kCount = 1000;
    Random random(21);
    const auto start = random.normals(kCount);
    Reference reference{.rate = 0.01,
                        .beta1 = 0.9,
                        .beta2 = 0.95,
                        .eps = 1e-8,
                        .decay = 0.1,
                        .clip = 16,
                        .p = start,
                        .m = std::vector(kCount, 0.0),
                        .v = std::vector(kCount, 0.0)};
    auto parameter = convert<TestType>(start);
    std::vector<uint16_t> rounded(kCount, 0);
    std::vector<TestType> moment1(kCount, 0), moment2(kCount, 0);
    std::vector<double> squares(1);
    const auto cpu = make_cpu_backend(DTypeOf<TestType>::value, 2);
    for (int64_t step = 1; step <= 5; ++step) {
        const auto gradient = random.normals(kCount);  // of norm 31.6: clipped to 16
        reference.step(gradient, step);
        const auto g = convert<TestType>(gradient);
        const Tensor gradients = tensor(g, {kCount}), norms(squares.data(), DType::f64, {1});
        cpu->run(GradientNorms{.gradients = {gradients}, .squares = norms});
        cpu->run(AdamW{.tensors = {{.parameter = Tensor(rounded.data(), DType::bf16, {kCount}),
                                    .master = tensor(parameter, {kCount}),
                                    .gradient = gradients,
                                    .moment1 = tensor(moment1, {kCount}),
                                    .moment2 = tensor(moment2, {kCount}),
                                    .decays = true}},
                       .squares = norms,
                       .learning_rate = reference.rate,
                       .beta1 = reference.beta1,
                       .beta2 = reference.beta2,
                       .eps = reference.eps,
                       .weight_decay = reference.decay,
                       .clip = reference.clip,
                       .step = step});
    }
    // A handful of roundings a step, five steps.
    const double tolerance = 32 * std::numeric_limits<TestType>::epsilon();
    CHECK(relative_error(parameter, reference.p) < tolerance);
    CHECK(relative_error(moment1, reference.m) < tolerance);
    CHECK(relative_error(moment2, reference.v) < tolerance);
    for (int64_t i = 0; i < kCount; ++i)
        REQUIRE(rounded[i] == float_to_bf16(static_cast<float>(parameter[i])));
}

TEST_CASE("AdamW with moments in bf16 stays within their rounding") {
    constexpr int64_t kCount = 1000;
    Random random(22);
    const auto start = random.normals(kCount);
    Reference reference{.rate = 0.01,
                        .beta1 = 0.9,
                        .beta2 = 0.95,
                        .eps = 1e-8,
                        .decay = 0,
                        .clip = 1e9,
                        .p = start,
                        .m = std::vector(kCount, 0.0),
                        .v = std::vector(kCount, 0.0)};
    auto parameter = convert<float>(start);
    std::vector<uint16_t> moment1(kCount, 0), moment2(kCount, 0);
    std::vector<double> squares(1);
    const auto cpu = make_cpu_backend(DType::f32, 2);
    for (int64_t step = 1; step <= 5; ++step) {
        const auto gradient = random.normals(kCount);
        reference.step(gradient, step);
        const auto g = convert<float>(gradient);
        const Tensor gradients = tensor(g, {kCount}), norms(squares.data(), DType::f64, {1});
        cpu->run(GradientNorms{.gradients = {gradients}, .squares = norms});
        cpu->run(AdamW{.tensors = {{.parameter = tensor(parameter, {kCount}),
                                    .master = {},
                                    .gradient = gradients,
                                    .moment1 = Tensor(moment1.data(), DType::bf16, {kCount}),
                                    .moment2 = Tensor(moment2.data(), DType::bf16, {kCount}),
                                    .decays = true}},
                       .squares = norms,
                       .learning_rate = 0.01,
                       .step = step});
    }
    std::vector<float> m(kCount), v(kCount);
    for (int64_t i = 0; i < kCount; ++i) m[i] = bf16_to_float(moment1[i]), v[i] = bf16_to_float(moment2[i]);
    // Each of five stores rounds by up to 2^-9 of the value then, most of which is carried on.
    CHECK(relative_error(m, reference.m) < 5 * 0x1p-9);
    CHECK(relative_error(v, reference.v) < 5 * 0x1p-9);
    double off = 0;
    for (int64_t i = 0; i < kCount; ++i) off = std::max(off, std::abs(parameter[i] - reference.p[i]));
    CHECK(off <
          5 * 0.01 * 0x1p-6);  // a step is at most about lr, and wrong by a few roundings of its moments
}

TEST_CASE("a gradient that is not finite changes nothing") {
    std::vector<float> parameter{1, 2}, moment1{3, 4}, moment2{5, 6}, bad{7, NAN}, good{8};
    std::vector<float> other{9}, other1{1}, other2{1};
    std::vector<double> squares(2);
    const Tensor norms(squares.data(), DType::f64, {2});
    const auto cpu = make_cpu_backend(DType::f32, 2);
    cpu->run(GradientNorms{.gradients = {tensor(good, {1}), tensor(bad, {2})}, .squares = norms});
    CHECK(squares[0] == 64);
    CHECK(std::isnan(squares[1]));
    cpu->run(AdamW{.tensors = {{.parameter = tensor(other, {1}),
                                .master = {},
                                .gradient = tensor(good, {1}),
                                .moment1 = tensor(other1, {1}),
                                .moment2 = tensor(other2, {1})},
                               {.parameter = tensor(parameter, {2}),
                                .master = {},
                                .gradient = tensor(bad, {2}),
                                .moment1 = tensor(moment1, {2}),
                                .moment2 = tensor(moment2, {2})}},
                   .squares = norms,
                   .learning_rate = 0.1,
                   .clip = 1});
    CHECK(other == std::vector<float>{9});
    CHECK(parameter == std::vector<float>{1, 2});
    CHECK(moment1 == std::vector<float>{3, 4});
    CHECK(moment2 == std::vector<float>{5, 6});
}

TEMPLATE_TEST_CASE("the squared norm is summed in double", "", float, double) {
    // More than two blocks; in float the small values would vanish beside the large one.
    std::vector<TestType> x(100003, static_cast<TestType>(0.25));
    x[77777] = 4096;
    double norm = -1;
    make_cpu_backend(DTypeOf<TestType>::value, 2)
        ->run(SquaredNorm{.x = tensor(x, {static_cast<int64_t>(x.size())}), .out = &norm});
    CHECK(norm == 100002 * 0.0625 + 4096.0 * 4096.0);
}
