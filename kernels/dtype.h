// Element types, their names and sizes, and the conversions that every floor needs.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include "kernels/check.h"

namespace minipuzzle {

enum class DType { f64, f32, f16, bf16, f8_e4m3, f8_e5m2, i64, i32, i16, i8, u64, u32, u16, u8, boolean };

struct DTypeInfo {
    DType dtype;
    std::string_view name;  // as safetensors spells it
    int bytes;
};

inline constexpr DTypeInfo kDTypes[] = {
    {DType::f64, "F64", 8},   {DType::f32, "F32", 4},         {DType::f16, "F16", 2},
    {DType::bf16, "BF16", 2}, {DType::f8_e4m3, "F8_E4M3", 1}, {DType::f8_e5m2, "F8_E5M2", 1},
    {DType::i64, "I64", 8},   {DType::i32, "I32", 4},         {DType::i16, "I16", 2},
    {DType::i8, "I8", 1},     {DType::u64, "U64", 8},         {DType::u32, "U32", 4},
    {DType::u16, "U16", 2},   {DType::u8, "U8", 1},           {DType::boolean, "BOOL", 1}};

inline constexpr const DTypeInfo& info(DType dtype) { return kDTypes[static_cast<int>(dtype)]; }
inline constexpr int bytes_of(DType dtype) { return info(dtype).bytes; }

// The type of what must not be rounded to the compute type: statistics, states, decays, norm weights.
inline constexpr DType precise_type(DType compute) { return compute == DType::f64 ? DType::f64 : DType::f32; }

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
    static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
    static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<int32_t> {
    static constexpr DType value = DType::i32;
};

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Round to nearest even; NaN stays NaN.
inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE half precision to float, subnormals included.
inline float f16_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu;
    const uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float subnormal = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -subnormal : subnormal;
}

// Round to nearest even through the bits; overflow becomes infinity.
inline uint16_t float_to_f16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {  // subnormal half: let the float adder round at 2^-24
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// The largest E4M3 value, and what rows are scaled to.
inline constexpr float kLargestE4m3 = 448;

// E4M3 (Micikevicius et al. 2022): 4 bits of exponent with bias 7, 3 of mantissa, subnormals down to 2^-9, no
// infinities; 0x7f and 0xff are NaN.
inline float e4m3_to_float(uint8_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
    const uint32_t magnitude = bits & 0x7fu;
    if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
    if (magnitude >= 8) return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-9f;
    return sign ? -subnormal : subnormal;
}

// Round to nearest even; beyond 448 it is 448 (infinity too), NaN stays NaN. T is float or double, rounded in
// one step.
template <class T>
uint8_t to_e4m3(T value) {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    constexpr int kMantissa = std::numeric_limits<T>::digits - 1, kDropped = kMantissa - 3;
    constexpr Bits kSign = Bits{1} << (8 * sizeof(T) - 1);
    const Bits bits = std::bit_cast<Bits>(value), magnitude = bits & ~kSign;
    const uint8_t sign = bits & kSign ? 0x80 : 0;
    if (magnitude > std::bit_cast<Bits>(std::numeric_limits<T>::infinity())) return sign | 0x7f;
    if (magnitude >= std::bit_cast<Bits>(T{kLargestE4m3})) return sign | 0x7e;
    if (magnitude < std::bit_cast<Bits>(T{0x1p-6})) {  // subnormal: let the adder round at 2^-9
        const T unit = std::bit_cast<T>(
            static_cast<Bits>(std::bit_cast<Bits>(T{0x1p-9}) + (Bits{kMantissa} << kMantissa)));
        const T shifted = std::bit_cast<T>(magnitude) + unit;
        return static_cast<uint8_t>(sign | (std::bit_cast<Bits>(shifted) - std::bit_cast<Bits>(unit)));
    }
    const Bits rounded = magnitude + (Bits{1} << (kDropped - 1)) - 1 + ((magnitude >> kDropped) & 1);
    const Bits rebased = rounded - (std::bit_cast<Bits>(T{0x1p-7}));
    return static_cast<uint8_t>(sign | (rebased >> kDropped));
}

}  // namespace minipuzzle
