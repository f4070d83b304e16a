#include "tests/kernels/testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

TEMPLATE_TEST_CASE("AdamW follows Loshchilov and Hutter's algorithm over several steps", "", float, double) {
    constexpr int64_t kCount = 1000;
    constexpr double kRate = 0.01, kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kDecay = 0.1, kScale = 0.5;
    Random random(21);
    const auto start = random.normals(kCount);
    auto p = start;
    std::vector<double> m(kCount, 0.0), v(kCount, 0.0);
    auto parameter = convert<TestType>(start);
    std::vector<TestType> moment1(kCount, 0), moment2(kCount, 0);
    const auto cpu = make_cpu_backend(DTypeOf<TestType>::value, 2);
    for (int64_t step = 1; step <= 5; ++step) {
        const auto gradient = random.normals(kCount);
        for (int64_t i = 0; i < kCount; ++i) {
            const double g = gradient[i] * kScale;
            m[i] = kBeta1 * m[i] + (1 - kBeta1) * g;
            v[i] = kBeta2 * v[i] + (1 - kBeta2) * g * g;
            const double m_hat = m[i] / (1 - std::pow(kBeta1, step));
            const double v_hat = v[i] / (1 - std::pow(kBeta2, step));
            p[i] -= kRate * (m_hat / (std::sqrt(v_hat) + kEps) + kDecay * p[i]);
        }
        const auto g = convert<TestType>(gradient);
        cpu->run(AdamW{.parameter = tensor(parameter, {kCount}),
                       .gradient = tensor(g, {kCount}),
                       .moment1 = tensor(moment1, {kCount}),
                       .moment2 = tensor(moment2, {kCount}),
                       .learning_rate = kRate,
                       .beta1 = kBeta1,
                       .beta2 = kBeta2,
                       .eps = kEps,
                       .weight_decay = kDecay,
                       .gradient_scale = kScale,
                       .step = step});
    }
    // A handful of roundings a step, five steps.
    const double tolerance = 32 * std::numeric_limits<TestType>::epsilon();
    CHECK(relative_error(parameter, p) < tolerance);
    CHECK(relative_error(moment1, m) < tolerance);
    CHECK(relative_error(moment2, v) < tolerance);
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
