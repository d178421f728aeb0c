// The 16-bit floats of CUDA C++: what __half (cuda_fp16.h) and __nv_bfloat16 (cuda_bf16.h) share.
//
// A value is kept as its 16 bits. Arithmetic is done in double and rounded once, to nearest with ties to even,
// as the card does. Where double itself must round, it rounds to odd: an inexact result ends in a bit that is
// set, so that it is never taken for a tie, and rounding it again gives what rounding the exact result gives.
//
// As on the card, a 16-bit float and a number of another type have no common operators: convert one of them.
#pragma once
#include <math.h>
#include <stdint.h>

#include <concepts>
#include <type_traits>

#include "device_math.h"
#include "vector_types.h"

namespace sim {

// a + b, rounded to odd.
__forceinline__ double add_to_odd(double a, double b) {
    const double sum = a + b, part = sum - a;
    const double error = (a - (sum - part)) + (b - part);  // exact (Knuth's two-sum)
    if (!(fabs(error) > 0) || isinf(error)) return sum;
    const uint64_t pattern = bits<uint64_t>(sum);
    return bits<double>(pattern & 1 ? pattern : (error > 0) == (sum > 0) ? pattern + 1 : pattern - 1);
}

// x as a float, rounded to odd.
__forceinline__ float narrow_to_odd(double x) {
    const float nearest = float(x);
    if (double(nearest) == x || isnan(x)) return nearest;
    const uint32_t pattern = bits<uint32_t>(nearest);
    return bits<float>((fabs(double(nearest)) > fabs(x) ? pattern - 1 : pattern) | 1);
}

// 1 sign bit, 5 of exponent, 10 of mantissa: from 2^-24 to 65504.
struct Half {
    static constexpr uint16_t INFINITE = 0x7C00, CANONICAL_NAN = 0x7FFF;

    static __forceinline__ float widen(uint16_t value) {
        const uint32_t sign = (value & 0x8000u) << 16, rest = value & 0x7FFFu;
        if (rest >= INFINITE) return bits<float>(sign | 0x7F800000 | (rest & 0x3FF) << 13);
        if (rest < 0x400) return bits<float>(sign | bits<uint32_t>(rest * 0x1p-24f));  // subnormal
        return bits<float>(sign | ((rest << 13) + 0x38000000));                       // the difference of the biases
    }

    static __forceinline__ uint16_t round(float x) {
        const uint32_t pattern = bits<uint32_t>(x), sign = pattern >> 16 & 0x8000, rest = pattern & 0x7FFFFFFF;
        if (rest > 0x7F800000) return CANONICAL_NAN;
        if (rest >= 0x477FF000) return sign | INFINITE;  // 65520, half-way between the largest and the next
        if (rest < 0x38800000)  // subnormal: the last bit of a number near 0.5 is worth 2^-24
            return sign | (bits<uint32_t>(bits<float>(rest) + 0.5f) - bits<uint32_t>(0.5f));
        return sign | (rest + 0xFFF + (rest >> 13 & 1) - 0x38000000) >> 13;
    }
};

// The upper half of a float: 8 bits of exponent, 7 of mantissa.
struct Bfloat16 {
    static constexpr uint16_t INFINITE = 0x7F80, CANONICAL_NAN = 0x7FFF;

    static __forceinline__ float widen(uint16_t value) { return bits<float>(uint32_t(value) << 16); }

    static __forceinline__ uint16_t round(float x) {
        const uint32_t pattern = bits<uint32_t>(x);
        if ((pattern & 0x7FFFFFFF) > 0x7F800000) return CANONICAL_NAN;
        return (pattern + 0x7FFF + (pattern >> 16 & 1)) >> 16;
    }
};

template <class T>
concept Number = std::is_arithmetic_v<T>;

template <class Format>
struct Float16 {
    uint16_t pattern;

    Float16() = default;
    template <Number N>
    __forceinline__ Float16(N x) {
        if constexpr (std::is_same_v<N, float>)
            pattern = Format::round(x);
        else
            pattern = Format::round(narrow_to_odd(double(x)));
    }

    static __forceinline__ Float16 of_bits(uint16_t pattern) {
        Float16 made;
        made.pattern = pattern;
        return made;
    }

    template <Number N>
    __forceinline__ operator N() const {
        const float value = Format::widen(pattern);
        if constexpr (std::is_same_v<N, bool>)
            return value != 0;
        else if constexpr (std::is_integral_v<N>)
            return saturate<N>(truncf(value));
        else
            return value;
    }

    __forceinline__ bool is_nan() const { return (pattern & 0x7FFF) > Format::INFINITE; }
};

template <class Format>
struct alignas(4) Float16x2 {
    Float16<Format> x, y;

    Float16x2() = default;
    __forceinline__ Float16x2(Float16<Format> low, Float16<Format> high) {
        x.pattern = low.pattern;
        y.pattern = high.pattern;
    }
};

template <class Format, class Function>
__forceinline__ Float16x2<Format> each(Float16x2<Format> a, Function f) {
    return {f(a.x), f(a.y)};
}

template <class Format, class Function>
__forceinline__ Float16x2<Format> each(Float16x2<Format> a, Float16x2<Format> b, Function f) {
    return {f(a.x, b.x), f(a.y, b.y)};
}

template <class Format>
__forceinline__ double widen(Float16<Format> x) {
    return Format::widen(x.pattern);
}

// a * b is exact in double.
template <class Format>
__forceinline__ Float16<Format> fused(Float16<Format> a, Float16<Format> b, Float16<Format> c) {
    return add_to_odd(widen(a) * widen(b), widen(c));
}

// ---- operators -------------------------------------------------------------------------------------------

#define SIM_TEMPLATE template <class Format> __forceinline__
#define SIM_ARITHMETIC(op, expression)                                                                  \
    SIM_TEMPLATE Float16<Format> operator op(Float16<Format> a, Float16<Format> b) { return expression; } \
    SIM_TEMPLATE Float16<Format>& operator op##=(Float16<Format>& a, Float16<Format> b) {                \
        a.pattern = (a op b).pattern;                                                                    \
        return a;                                                                                        \
    }                                                                                                    \
    SIM_TEMPLATE Float16x2<Format> operator op(Float16x2<Format> a, Float16x2<Format> b) {               \
        return {a.x op b.x, a.y op b.y};                                                                 \
    }                                                                                                    \
    SIM_TEMPLATE Float16x2<Format>& operator op##=(Float16x2<Format>& a, Float16x2<Format> b) {          \
        a.x op##= b.x, a.y op##= b.y;                                                                    \
        return a;                                                                                        \
    }
SIM_ARITHMETIC(+, add_to_odd(widen(a), widen(b)))
SIM_ARITHMETIC(-, add_to_odd(widen(a), -widen(b)))
SIM_ARITHMETIC(*, widen(a) * widen(b))
SIM_ARITHMETIC(/, widen(a) / widen(b))
#undef SIM_ARITHMETIC

#define SIM_COMPARISON(op)                                                                       \
    SIM_TEMPLATE bool operator op(Float16<Format> a, Float16<Format> b) { return widen(a) op widen(b); } \
    SIM_TEMPLATE bool operator op(Float16x2<Format> a, Float16x2<Format> b) {                    \
        return a.x op b.x && a.y op b.y;                                                         \
    }
SIM_COMPARISON(==)
SIM_COMPARISON(!=)
SIM_COMPARISON(<)
SIM_COMPARISON(<=)
SIM_COMPARISON(>)
SIM_COMPARISON(>=)
#undef SIM_COMPARISON

SIM_TEMPLATE Float16<Format> operator+(Float16<Format> a) { return a; }
SIM_TEMPLATE Float16<Format> operator-(Float16<Format> a) { return a.of_bits(a.pattern ^ 0x8000); }
SIM_TEMPLATE Float16x2<Format> operator+(Float16x2<Format> a) { return a; }
SIM_TEMPLATE Float16x2<Format> operator-(Float16x2<Format> a) { return {-a.x, -a.y}; }
SIM_TEMPLATE Float16<Format>& operator++(Float16<Format>& a) { return a += Float16<Format>(1); }
SIM_TEMPLATE Float16<Format>& operator--(Float16<Format>& a) { return a -= Float16<Format>(1); }

// ---- rounding in other directions ------------------------------------------------------------------------

SIM_TEMPLATE Float16<Format> toward_zero(float x) {
    const Float16<Format> nearest = x;
    return fabs(widen(nearest)) > fabs(x) ? nearest.of_bits(nearest.pattern - 1) : nearest;
}

SIM_TEMPLATE Float16<Format> up(float x) {
    const Float16<Format> nearest = x;
    if (!(widen(nearest) < x)) return nearest;
    if (nearest.pattern == 0x8000) return nearest.of_bits(1);  // -0, and x is above it
    return nearest.of_bits(nearest.pattern & 0x8000 ? nearest.pattern - 1 : nearest.pattern + 1);
}

SIM_TEMPLATE Float16<Format> down(float x) { return -up<Format>(-x); }

// ---- extrema: of a NaN and a number, the number; with `keeping`, the NaN -----------------------------------

SIM_TEMPLATE Float16<Format> larger(Float16<Format> a, Float16<Format> b, bool keeping) {
    if (a.is_nan() || b.is_nan())
        return (a.is_nan() && b.is_nan()) || keeping ? a.of_bits(Format::CANONICAL_NAN) : a.is_nan() ? b : a;
    if (widen(a) == widen(b)) return a.pattern & 0x8000 ? b : a;  // +0 is larger than -0
    return widen(a) > widen(b) ? a : b;
}

SIM_TEMPLATE Float16<Format> smaller(Float16<Format> a, Float16<Format> b, bool keeping) {
    const Float16<Format> found = larger(-a, -b, keeping);
    return found.is_nan() ? found : -found;
}

}  // namespace sim

// ---- intrinsics with one name for both types -----------------------------------------------------------------
//
// Only the first argument tells the type; the others convert to it.

#define SIM_F sim::Float16<Format>
#define SIM_F2 sim::Float16x2<Format>
#define SIM_SECOND std::type_identity_t

// An operation of two numbers, and of two pairs.
#define SIM_BINARY(name, name2, expression)                                                          \
    SIM_TEMPLATE SIM_F name(SIM_F a, SIM_SECOND<SIM_F> b) { return expression; }                      \
    SIM_TEMPLATE SIM_F2 name2(SIM_F2 a, SIM_SECOND<SIM_F2> b) {                                       \
        return sim::each(a, b, [](SIM_F a, SIM_F b) -> SIM_F { return expression; });                 \
    }
SIM_BINARY(__hadd, __hadd2, a + b)
SIM_BINARY(__hsub, __hsub2, a - b)
SIM_BINARY(__hmul, __hmul2, a * b)
SIM_BINARY(__hdiv, __h2div, a / b)
SIM_BINARY(__hadd_rn, __hadd2_rn, a + b)
SIM_BINARY(__hsub_rn, __hsub2_rn, a - b)
SIM_BINARY(__hmul_rn, __hmul2_rn, a * b)
SIM_BINARY(__hmax, __hmax2, sim::larger(a, b, false))
SIM_BINARY(__hmin, __hmin2, sim::smaller(a, b, false))
SIM_BINARY(__hmax_nan, __hmax2_nan, sim::larger(a, b, true))
SIM_BINARY(__hmin_nan, __hmin2_nan, sim::smaller(a, b, true))
#undef SIM_BINARY

SIM_TEMPLATE SIM_F __hfma(SIM_F a, SIM_SECOND<SIM_F> b, SIM_SECOND<SIM_F> c) { return sim::fused(a, b, c); }
SIM_TEMPLATE SIM_F2 __hfma2(SIM_F2 a, SIM_SECOND<SIM_F2> b, SIM_SECOND<SIM_F2> c) {
    return {sim::fused(a.x, b.x, c.x), sim::fused(a.y, b.y, c.y)};
}

// Clamped to [0, 1]; a NaN becomes 0.
SIM_TEMPLATE SIM_F __hadd_sat(SIM_F a, SIM_SECOND<SIM_F> b) { return __saturatef(a + b); }
SIM_TEMPLATE SIM_F __hsub_sat(SIM_F a, SIM_SECOND<SIM_F> b) { return __saturatef(a - b); }
SIM_TEMPLATE SIM_F __hmul_sat(SIM_F a, SIM_SECOND<SIM_F> b) { return __saturatef(a * b); }
SIM_TEMPLATE SIM_F __hfma_sat(SIM_F a, SIM_SECOND<SIM_F> b, SIM_SECOND<SIM_F> c) {
    return __saturatef(sim::fused(a, b, c));
}
SIM_TEMPLATE SIM_F __hfma_relu(SIM_F a, SIM_SECOND<SIM_F> b, SIM_SECOND<SIM_F> c) {
    return sim::larger(sim::fused(a, b, c), SIM_F(0), true);
}

// An operation of one number, and of a pair.
#define SIM_UNARY(name, name2, expression)                                                     \
    SIM_TEMPLATE SIM_F name(SIM_F a) { return expression; }                                     \
    SIM_TEMPLATE SIM_F2 name2(SIM_F2 a) {                                                       \
        return sim::each(a, [](SIM_F a) -> SIM_F { return expression; });                       \
    }
SIM_UNARY(__hneg, __hneg2, -a)
SIM_UNARY(__habs, __habs2, a.of_bits(a.pattern & 0x7FFF))
SIM_UNARY(hexp, h2exp, exp(sim::widen(a)))
SIM_UNARY(hexp2, h2exp2, exp2(sim::widen(a)))
SIM_UNARY(hexp10, h2exp10, pow(10, sim::widen(a)))
SIM_UNARY(hlog, h2log, log(sim::widen(a)))
SIM_UNARY(hlog2, h2log2, log2(sim::widen(a)))
SIM_UNARY(hlog10, h2log10, log10(sim::widen(a)))
SIM_UNARY(hsqrt, h2sqrt, sqrt(sim::widen(a)))
SIM_UNARY(hrsqrt, h2rsqrt, 1 / sqrt(sim::widen(a)))
SIM_UNARY(hrcp, h2rcp, 1 / sim::widen(a))
SIM_UNARY(hsin, h2sin, sin(sim::widen(a)))
SIM_UNARY(hcos, h2cos, cos(sim::widen(a)))
SIM_UNARY(htanh, h2tanh, tanh(sim::widen(a)))
SIM_UNARY(hfloor, h2floor, floor(sim::widen(a)))
SIM_UNARY(hceil, h2ceil, ceil(sim::widen(a)))
SIM_UNARY(htrunc, h2trunc, trunc(sim::widen(a)))
SIM_UNARY(hrint, h2rint, rint(sim::widen(a)))
#undef SIM_UNARY

SIM_TEMPLATE bool __hisnan(SIM_F a) { return a.is_nan(); }
SIM_TEMPLATE int __hisinf(SIM_F a) {
    return (a.pattern & 0x7FFF) != Format::INFINITE ? 0 : a.pattern & 0x8000 ? -1 : 1;
}

// A comparison: of two numbers; of two pairs, with 1.0 for true; whether it holds for both. Each is false
// with a NaN, and has a variant, with a u, that is true with one.
#define SIM_COMPARISON(name, op)                                                                             \
    SIM_TEMPLATE bool __h##name(SIM_F a, SIM_SECOND<SIM_F> b) { return sim::widen(a) op sim::widen(b); }      \
    SIM_TEMPLATE bool __h##name##u(SIM_F a, SIM_SECOND<SIM_F> b) {                                            \
        return a.is_nan() || b.is_nan() || __h##name(a, b);                                                   \
    }                                                                                                         \
    SIM_TEMPLATE SIM_F2 __h##name##2(SIM_F2 a, SIM_SECOND<SIM_F2> b) {                                        \
        return {SIM_F(__h##name(a.x, b.x)), SIM_F(__h##name(a.y, b.y))};                                      \
    }                                                                                                         \
    SIM_TEMPLATE bool __hb##name##2(SIM_F2 a, SIM_SECOND<SIM_F2> b) {                                         \
        return __h##name(a.x, b.x) && __h##name(a.y, b.y);                                                    \
    }
SIM_COMPARISON(eq, ==)
SIM_COMPARISON(lt, <)
SIM_COMPARISON(le, <=)
SIM_COMPARISON(gt, >)
SIM_COMPARISON(ge, >=)
#undef SIM_COMPARISON

// Not equal: unlike C++'s operator, false with a NaN.
SIM_TEMPLATE bool __hne(SIM_F a, SIM_SECOND<SIM_F> b) { return !a.is_nan() && !b.is_nan() && a != b; }
SIM_TEMPLATE bool __hneu(SIM_F a, SIM_SECOND<SIM_F> b) { return a != b; }
SIM_TEMPLATE SIM_F2 __hne2(SIM_F2 a, SIM_SECOND<SIM_F2> b) {
    return {SIM_F(__hne(a.x, b.x)), SIM_F(__hne(a.y, b.y))};
}
SIM_TEMPLATE bool __hbne2(SIM_F2 a, SIM_SECOND<SIM_F2> b) { return __hne(a.x, b.x) && __hne(a.y, b.y); }

SIM_TEMPLATE float __low2float(SIM_F2 a) { return a.x; }
SIM_TEMPLATE float __high2float(SIM_F2 a) { return a.y; }
SIM_TEMPLATE SIM_F2 __lowhigh2highlow(SIM_F2 a) { return {a.y, a.x}; }

#undef SIM_TEMPLATE
#undef SIM_F
#undef SIM_F2
#undef SIM_SECOND
