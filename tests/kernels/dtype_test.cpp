#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/dtype.h"
#include "kernels/tensor.h"
#include "tests/catch.h"

using namespace minipuzzle;

TEST_CASE("every element type finds its own entry in the table") {
    for (const DTypeInfo& entry : kDTypes) {
        CHECK(info(entry.dtype).name == entry.name);
        CHECK(bytes_of(entry.dtype) == entry.bytes);
    }
    CHECK(bytes_of(DType::bf16) == 2);
    CHECK(info(DType::boolean).name == "BOOL");
}

TEST_CASE("bf16 values survive the way to float and back") {
    for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
        const float value = bf16_to_float(static_cast<uint16_t>(bits));
        const uint16_t back = float_to_bf16(value);
        if (std::isnan(value)) {
            REQUIRE(std::isnan(bf16_to_float(back)));
        } else {
            REQUIRE(back == bits);
        }
    }
}

TEST_CASE("f16 values survive the way to float and back") {
    for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
        const float value = f16_to_float(static_cast<uint16_t>(bits));
        const uint16_t back = float_to_f16(value);
        if (std::isnan(value)) {
            REQUIRE(std::isnan(f16_to_float(back)));
        } else {
            REQUIRE(back == bits);
        }
    }
    CHECK(f16_to_float(0x3c00) == 1.0f);
    CHECK(f16_to_float(0x7bff) == 65504.0f);
    CHECK(f16_to_float(0x0001) == 0x1p-24f);
    CHECK(f16_to_float(0xfc00) == -std::numeric_limits<float>::infinity());
}

// Between two neighbours the nearer one is taken, and the even one from the middle.
template <class ToFloat, class FromFloat>
void check_rounding(uint16_t last_finite, ToFloat to_float, FromFloat from_float) {
    for (uint32_t bits = 0; bits < last_finite; ++bits) {
        const uint16_t low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
        // The middle needs one bit more than the type has: exact in float, up to bf16's smallest subnormal.
        const double middle = (static_cast<double>(to_float(low)) + to_float(high)) / 2;
        const float exact = static_cast<float>(middle);
        if (exact != middle) continue;
        const float above = std::nextafter(exact, std::numeric_limits<float>::infinity());
        const float below = std::nextafter(exact, 0.0f);
        REQUIRE(from_float(exact) == (bits % 2 == 0 ? low : high));
        REQUIRE(from_float(above) == high);
        REQUIRE(from_float(below) == low);
        REQUIRE(from_float(-above) == (high | 0x8000));
    }
}

TEST_CASE("floats round to the nearest half-size value, ties to even") {
    check_rounding(0x7f7f, bf16_to_float, float_to_bf16);
    check_rounding(0x7bff, f16_to_float, float_to_f16);
}

TEST_CASE("floats beyond the half-size range become infinity and NaN stays NaN") {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    CHECK(float_to_f16(65519.0f) == 0x7bff);
    CHECK(float_to_f16(65520.0f) == 0x7c00);
    CHECK(float_to_f16(-kInfinity) == 0xfc00);
    CHECK(float_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
    CHECK(float_to_bf16(kInfinity) == 0x7f80);
    // A NaN whose only mantissa bit would be cut off must not turn into infinity.
    CHECK(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7f800001u)))));
    CHECK(std::isnan(f16_to_float(float_to_f16(std::numeric_limits<float>::quiet_NaN()))));
}

TEMPLATE_TEST_CASE("every E4M3 code survives the way to a number and back", "", float, double) {
    for (int bits = 0; bits < 256; ++bits) {
        const float value = e4m3_to_float(static_cast<uint8_t>(bits));
        if ((bits & 0x7f) == 0x7f) {
            REQUIRE(std::isnan(value));
        } else {
            // Worked out from the format's definition.
            const int exponent = bits >> 3 & 15, mantissa = bits & 7;
            const double size =
                exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
            REQUIRE(value == (bits < 128 ? size : -size));
        }
        REQUIRE(to_e4m3<TestType>(value) == bits);
    }
    CHECK(e4m3_to_float(0x7e) == kLargestE4m3);
    CHECK(e4m3_to_float(0x01) == 0x1p-9f);
    CHECK(std::signbit(e4m3_to_float(0x80)));
}

TEMPLATE_TEST_CASE("numbers round to the nearest E4M3 value, ties to even", "", float, double) {
    using T = TestType;
    const T infinity = std::numeric_limits<T>::infinity();
    for (int bits = 0; bits < 0x7e; ++bits) {
        const auto low = static_cast<uint8_t>(bits), high = static_cast<uint8_t>(bits + 1);
        const T middle = (T{e4m3_to_float(low)} + T{e4m3_to_float(high)}) / 2;
        REQUIRE(to_e4m3(middle) == (bits % 2 == 0 ? low : high));
        REQUIRE(to_e4m3(std::nextafter(middle, infinity)) == high);
        REQUIRE(to_e4m3(std::nextafter(middle, T{0})) == low);
        REQUIRE(to_e4m3(-std::nextafter(middle, infinity)) == (high | 0x80));
    }
    // Below half of the smallest subnormal everything is zero, whose sign stays.
    CHECK(to_e4m3(std::numeric_limits<T>::denorm_min()) == 0);
    CHECK(to_e4m3(-std::numeric_limits<T>::min()) == 0x80);
    for (const T beyond : {T(449), T(463), T(464), T(1e30), infinity}) {
        CHECK(to_e4m3(beyond) == 0x7e);
        CHECK(to_e4m3(-beyond) == 0xfe);
    }
    CHECK((to_e4m3(std::numeric_limits<T>::quiet_NaN()) & 0x7f) == 0x7f);
}

// By way of float it would round twice: this is above the middle of 1 and 1.125, but its float is the middle.
TEST_CASE("a double becomes E4M3 in one step") {
    CHECK(to_e4m3(1.0625 + 0x1p-40) == 0x39);
    CHECK(to_e4m3(static_cast<float>(1.0625 + 0x1p-40)) == 0x38);
}

TEST_CASE("a tensor's views count elements, bytes, rows and slices") {
    float memory[24];
    const Tensor t(memory, DType::f32, {2, 3, 4});
    CHECK(t.elements() == 24);
    CHECK(t.bytes() == 96);
    CHECK(t.rows() == 6);
    CHECK(t.columns() == 4);
    CHECK(t.slice(1, 1).as<float>() == memory + 12);
    CHECK(t.view({6, 4}).size(0) == 6);
    CHECK_FALSE(Tensor{});
    CHECK(Tensor(nullptr, DType::f32, {2}));
    CHECK_THROWS_AS(t.as<double>(), InternalError);
    CHECK_THROWS_AS(t.slice(1, 2), InternalError);
    CHECK_THROWS_AS(t.view({5, 5}), InternalError);
    CHECK(t.slice(0, 2).same_shape(t));
    CHECK_FALSE(t.view({4, 3, 2}).same_shape(t));
}

TEST_CASE("narrow and div_exact refuse what does not fit") {
    CHECK(narrow<int32_t>(int64_t{7}) == 7);
    CHECK_THROWS_AS(narrow<int32_t>(int64_t{1} << 40), InternalError);
    CHECK_THROWS_AS(narrow<uint8_t>(-1), InternalError);
    CHECK(div_exact(12, 4) == 3);
    CHECK_THROWS_AS(div_exact(13, 4), InternalError);
    CHECK(div_up(13, 4) == 4);
}
