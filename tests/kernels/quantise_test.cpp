// Rows as E4M3 codes with a scale each, the operations that end in them, and products of them.
#include "tests/kernels/testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

template <class T>
struct Codes {
    Codes(int64_t rows, int64_t width) : codes(rows * width, 0x55), scale(rows, T(-1)) {}
    Tensor view(std::initializer_list<int64_t> extents) const {
        return Tensor(const_cast<uint8_t*>(codes.data()), DType::f8_e4m3, extents);
    }
    Tensor scales() const { return tensor(scale, {static_cast<int64_t>(scale.size())}); }
    std::vector<double> values() const {
        std::vector<double> all(codes.size());
        const size_t width = codes.size() / scale.size();
        for (size_t i = 0; i < all.size(); ++i) all[i] = e4m3_to_float(codes[i]) * double{scale[i / width]};
        return all;
    }
    bool operator==(const Codes&) const = default;

    std::vector<uint8_t> codes;
    std::vector<T> scale;
};

template <class T>
std::unique_ptr<Backend> backend() {
    return make_cpu_backend(DTypeOf<T>::value, 2);
}

template <class T>
Codes<T> quantised(const std::vector<T>& values, int64_t rows) {
    const int64_t width = static_cast<int64_t>(values.size()) / rows;
    Codes<T> out(rows, width);
    backend<T>()->run(QuantizeRows{tensor(values, {rows, width}), out.view({rows, width}), out.scales()});
    return out;
}

}  // namespace

TEMPLATE_TEST_CASE("rows are scaled to the largest code, each by itself", "", float, double) {
    using T = TestType;
    constexpr int64_t kRows = 40, kWidth = 67;
    auto x = convert<T>(Random(1).normals(kRows * kWidth));
    for (int64_t i = 0; i < kWidth; ++i) {
        x[3 * kWidth + i] = 0;
        x[4 * kWidth + i] *= T(1e-33);
        x[5 * kWidth + i] *= T(1e30);
    }
    const auto out = quantised(x, kRows);
    for (int64_t r = 0; r < kRows; ++r) {
        CAPTURE(r);
        T largest = 0;
        int top = 0;
        double worst = 0;
        for (int64_t i = 0; i < kWidth; ++i) largest = std::max(largest, std::abs(x[r * kWidth + i]));
        REQUIRE(out.scale[r] == (largest == 0 ? 1 : largest / 448));
        for (int64_t i = 0; i < kWidth; ++i) {
            const T value = x[r * kWidth + i];
            const uint8_t code = out.codes[r * kWidth + i];
            top = std::max(top, code & 0x7f);
            REQUIRE(code == to_e4m3(value * (1 / out.scale[r])));
            // A half of the last of four bits, or half of the smallest subnormal.
            const double allowed =
                std::max(std::abs(double{value}) / 16, out.scale[r] * 0x1p-10) * (1 + 1e-6);
            worst = std::max(worst, std::abs(out.values()[r * kWidth + i] - value) / (allowed + 1e-300));
        }
        CHECK(top == (largest == 0 ? 0 : 0x7e));
        CHECK(worst <= 1);
        const std::vector<T> alone(x.begin() + r * kWidth, x.begin() + (r + 1) * kWidth);
        const auto one = quantised(alone, 1);
        CHECK(one.scale[0] == out.scale[r]);
        CHECK(std::equal(one.codes.begin(), one.codes.end(), out.codes.begin() + r * kWidth));
    }
}

TEMPLATE_TEST_CASE("rows that are not finite are NaN throughout, tiny ones have a scale that can be inverted",
                   "", float, double) {
    using T = TestType;
    const T infinity = std::numeric_limits<T>::infinity();
    const std::vector<T> x = {1, T(NAN), 2, 1, infinity, 2, 1, -infinity, 0, T(1e-40), 0, T(-2e-40)};
    const auto out = quantised(x, 4);
    for (int i = 0; i < 9; ++i) CHECK((out.codes[i] & 0x7f) == 0x7f);
    for (int r = 0; r < 3; ++r) CHECK(std::isnan(out.scale[r]));
    CHECK(out.scale[3] == T(0x1p-126));
    for (int i = 9; i < 12; ++i) CHECK((out.codes[i] & 0x7f) != 0x7f);
}

TEMPLATE_TEST_CASE("norms and squared ReLU end in the codes of their results", "", float, double) {
    using T = TestType;
    const auto cpu = backend<T>();
    constexpr int64_t kTime = 150;
    const MambaShape s{.heads = 4, .head_dim = 9, .state = 3, .groups = 2, .conv_kernel = 4};
    const int64_t width = s.inner(), rows = 2 * kTime;
    const auto x = convert<T>(Random(2).normals(rows * width)),
               z = convert<T>(Random(3).normals(rows * s.projection(), 0, 2));
    const auto weight = convert<T>(Random(4).normals(width, 1, 0.3));
    const Tensor x_view = tensor(x, {2, kTime, width}), weight_view = tensor(weight, {width}),
                 z_view = tensor(z, {2, kTime, s.projection()});
    std::vector<T> values(x.size());
    const Tensor out = tensor(values, {2, kTime, width});
    Codes<T> codes(rows, width);
    const Tensor code_view = codes.view({2, kTime, width}), scale = codes.scales();

    cpu->run(RmsNormForward{x_view, weight_view, 1e-5, out});
    cpu->run(RmsNormForward{x_view, weight_view, 1e-5, code_view, scale});
    CHECK(codes == quantised(values, rows));
    cpu->run(SquaredReluForward{x_view, out});
    cpu->run(SquaredReluForward{x_view, code_view, scale});
    CHECK(codes == quantised(values, rows));
    cpu->run(GatedNormForward{s, x_view, z_view, weight_view, 1e-5, out});
    cpu->run(GatedNormForward{s, x_view, z_view, weight_view, 1e-5, code_view, scale});
    CHECK(codes == quantised(values, rows));
}

TEMPLATE_TEST_CASE("products of quantised operands are those of their values", "", float, double) {
    using T = TestType;
    constexpr int64_t kTime = 131, kInputs = 75, kOutputs = 140, kRows = 2 * kTime;
    const auto x = quantised(convert<T>(Random(5).normals(kRows * kInputs)), kRows);
    const auto weight = quantised(convert<T>(Random(6).normals(kOutputs * kInputs, 0, 0.1)), kOutputs);
    const auto residual = convert<T>(Random(7).normals(kRows * kOutputs));
    const auto x_values = x.values(), weight_values = weight.values();
    std::vector<double> expected(residual.begin(), residual.end());
    for (int64_t r = 0; r < kRows; ++r)
        for (int64_t o = 0; o < kOutputs; ++o)
            for (int64_t i = 0; i < kInputs; ++i)
                expected[r * kOutputs + o] += x_values[r * kInputs + i] * weight_values[o * kInputs + i];
    std::vector<T> out(residual.size()), in_place = residual;
    LinearForward args{.x = x.view({2, kTime, kInputs}),
                       .weight = weight.view({kOutputs, kInputs}),
                       .residual = tensor(residual, {2, kTime, kOutputs}),
                       .out = tensor(out, {2, kTime, kOutputs}),
                       .x_scale = x.scales(),
                       .weight_scale = weight.scales()};
    const auto cpu = backend<T>();
    cpu->run(args);
    // 64 roundings of the type, as for other sums of a hundred terms of order 1.
    CHECK(relative_error(out, expected) < 64 * std::numeric_limits<T>::epsilon());
    args.residual = args.out = tensor(in_place, {2, kTime, kOutputs});
    cpu->run(args);
    CHECK(in_place == out);
    args.residual = {};
    cpu->run(args);
    for (size_t i = 0; i < out.size(); ++i) expected[i] -= residual[i];
    CHECK(relative_error(in_place, expected) < 64 * std::numeric_limits<T>::epsilon());
}

TEST_CASE("quantised operands need their scales and each other") {
    Codes<float> x(2, 8), weight(3, 8);
    std::vector<float> values(16), out(6), scale(2);
    LinearForward args{.x = x.view({1, 2, 8}),
                       .weight = weight.view({3, 8}),
                       .out = tensor(out, {1, 2, 3}),
                       .x_scale = x.scales(),
                       .weight_scale = weight.scales()};
    CHECK_NOTHROW(validate(args));
    auto broken = args;
    broken.x_scale = {};
    CHECK_THROWS_AS(validate(broken), InternalError);
    broken = args;
    broken.weight_scale = x.scales();
    CHECK_THROWS_AS(validate(broken), InternalError);
    broken = args;
    broken.weight = tensor(values, {2, 8});
    CHECK_THROWS_AS(validate(broken), InternalError);
    broken = args;
    broken.weight = weight.view({4, 6});
    CHECK_THROWS_AS(validate(broken), InternalError);
    const Tensor rows = tensor(values, {2, 8});
    CHECK_NOTHROW(validate(QuantizeRows{rows, x.view({2, 8}), x.scales()}));
    CHECK_THROWS_AS(validate(QuantizeRows{rows, x.view({1, 2, 8}), x.scales()}), InternalError);
    CHECK_THROWS_AS(validate(QuantizeRows{rows, rows, x.scales()}), InternalError);
    CHECK_THROWS_AS(validate(QuantizeRows{rows, x.view({2, 8}), {}}), InternalError);
    CHECK_THROWS_AS(validate(SquaredReluForward{rows, x.view({2, 8})}), InternalError);
}
