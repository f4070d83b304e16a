// Activation sums and sums of their powers: each against its definition in double loops.
#include "tests/kernels/statistics_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

TEMPLATE_TEST_CASE("activation sums are taken per sequence and unit", "", float, double) {
    for (const UnitCase& units : unit_cases()) {
        const auto x = convert<TestType>(Random(6).normals(units.elements()));
        std::vector<TestType> out(units.batch * units.units, 5);
        make_cpu_backend(DTypeOf<TestType>::value, 2)
            ->run(units.sums(tensor(x, {units.batch, units.time, units.columns}),
                             tensor(out, {units.batch, units.units})));
        INFO(units.describe());
        // Summed in double and rounded once; `x` is the type's already.
        CHECK(relative_error(out, units.expected(convert<double>(x))) <
              4 * std::numeric_limits<TestType>::epsilon());
    }
}

TEMPLATE_TEST_CASE("powers accumulate in the order of sequences, however they are batched", "", float,
                   double) {
    constexpr int64_t kBatch = 7, kUnits = 5000;
    auto x = convert<TestType>(Random(7).normals(kBatch * kUnits));
    for (TestType& value : x) value = std::abs(value);
    const auto cpu = make_cpu_backend(DTypeOf<TestType>::value, 2);
    for (const double power : {0.5, 1.0, 2.0}) {
        std::vector<double> total(kUnits, 0.25), parts = total, expected = total;
        const auto add = [&](int64_t first, int64_t count, std::vector<double>& into) {
            cpu->run(AccumulatePowers{.x = tensor(x, {kBatch, kUnits}).slice(first, count),
                                      .scale = 0.3,
                                      .power = power,
                                      .total = tensor(into, {kUnits})});
        };
        add(0, kBatch, total);
        add(0, 2, parts);
        add(2, 1, parts);
        add(3, 4, parts);
        for (int64_t i = 0; i < kBatch * kUnits; ++i)
            expected[i % kUnits] += std::pow(0.3 * static_cast<double>(x[i]), power);
        CHECK(parts == total);
        // Eight terms in double.
        CHECK(relative_error(total, expected) < 16 * std::numeric_limits<double>::epsilon());
    }
}

TEST_CASE("statistics refuse units outside the channels and powers they do not know") {
    std::vector<float> x(24, 1), out(4);
    std::vector<double> total(4);
    const auto cpu = make_cpu_backend(DType::f32, 1);
    CHECK_THROWS_AS(cpu->run(ActivationSums{
                        .x = tensor(x, {1, 3, 8}), .first = 1, .channels = 2, .out = tensor(out, {1, 4})}),
                    InternalError);
    CHECK_THROWS_AS(
        cpu->run(AccumulatePowers{.x = tensor(out, {1, 4}), .power = 3, .total = tensor(total, {4})}),
        InternalError);
}
