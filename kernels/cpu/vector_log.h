/* The natural logarithm on the vectors of vector.h.
 *
 * x = 2^e m with m in [sqrt(1/2), sqrt(2)), and log(x) = e log(2) + log(m). log(2) is split in two: e times
 * its first part, of 12 (float32) or 40 bits, is exact. With r = m - 1, float32 takes a polynomial in r;
 * float64 has s = r / (2 + r), log(1 + r) = 2 atanh(s) and a polynomial in s^2, which needs half as many
 * terms. Both leave r itself to the end, so that near 1, where e is 0, the result has all its digits.
 *
 * Largest errors measured: float32 1 ulp, float64 0.9 ulp. log(0) is -infinity; below 0 it is NaN.
 */
#ifndef MINIGRAD_VECTOR_LOG_H
#define MINIGRAD_VECTOR_LOG_H

#include <float.h>

#include "vector_math.h"

/* Whether log_usual takes it: a positive normal number. */
ALWAYS_INLINE int usual_for_log_f32(float x) { return (x >= FLT_MIN) & (x <= FLT_MAX); }
ALWAYS_INLINE int usual_for_log_f64(double x) { return (x >= DBL_MIN) & (x <= DBL_MAX); }

/* log(2^scaled x) */
ALWAYS_INLINE f32v log_scaled_f32(f32v x, f32v scaled) {
    const unsigned sqrt_half = 0x3f3504f3, mantissa = 0x007fffff;
    const float log2_high = 0.693115234375f, log2_low = 3.1946183e-05f;
    u32v bits = (u32v)x - sqrt_half;
    f32v r = (f32v)((bits & mantissa) + sqrt_half) - 1.0f, z = r * r;
    f32v e = __builtin_convertvector((i32v)bits >> 23, f32v) + scaled;
    f32v p = r * -0.07634495f + 0.12761575f;
    p = p * r - 0.13160183f;
    p = p * r + 0.14201759f;
    p = p * r - 0.16623357f;
    p = p * r + 0.20001227f;
    p = p * r - 0.2500082f;
    p = p * r + 0.3333333f;
    p = p * r - 0.5f;
    return e * log2_high + (r + (p * z + e * log2_low));
}

ALWAYS_INLINE f64v log_scaled_f64(f64v x, f64v scaled) {
    const unsigned long long sqrt_half = 0x3fe6a09e667f3bcd, mantissa = 0x000fffffffffffff;
    const double log2_high = 0.6931471805592082, log2_low = 7.371002565167799e-13;
    u64v bits = (u64v)x - sqrt_half;
    f64v r = (f64v)((bits & mantissa) + sqrt_half) - 1.0, half_square = r * r * 0.5;
    /* e + 1023 in the low bits of 2^52: few levels convert 64-bit integers. */
    f64v e = (f64v)(((bits + (1023ULL << 52)) >> 52) + (1075ULL << 52)) - (0x1p52 + 1023.0) + scaled;
    f64v s = r / (2.0 + r), z = s * s;
    f64v p = z * 0.14795472990300068 + 0.15314099044631202;
    p = p * z + 0.181835623973396;
    p = p * z + 0.2222219861092434;
    p = p * z + 0.2857142874201425;
    p = p * z + 0.39999999999416375;
    p = p * z + 0.6666666666666734;
    p = (p * z + half_square) * s + e * log2_low;
    return e * log2_high + (r - (half_square - p));
}

ALWAYS_INLINE f32v log_usual_f32(f32v x) { return log_scaled_f32(x, (f32v){0}); }
ALWAYS_INLINE f64v log_usual_f64(f64v x) { return log_scaled_f64(x, (f64v){0}); }

ALWAYS_INLINE f32v log_f32(f32v x) {
    i32v tiny = x < FLT_MIN; /* denormals are made normal */
    f32v scaled = (f32v)(tiny & (i32v)BROADCAST_F32(-25.0f));
    f32v y = log_scaled_f32(select_f32(tiny, x * 0x1p25f, x), scaled);
    y = select_f32(x < INFINITY, y, x); /* infinity and NaN stay */
    y = select_f32(x == 0.0f, BROADCAST_F32(-INFINITY), y);
    return (f32v)((i32v)y | (x < 0.0f));
}

ALWAYS_INLINE f64v log_f64(f64v x) {
    i64v tiny = x < DBL_MIN;
    f64v scaled = (f64v)(tiny & (i64v)BROADCAST_F64(-54.0));
    f64v y = log_scaled_f64(select_f64(tiny, x * 0x1p54, x), scaled);
    y = select_f64(x < (double)INFINITY, y, x);
    y = select_f64(x == 0.0, BROADCAST_F64(-(double)INFINITY), y);
    return (f64v)((i64v)y | (x < 0.0));
}

#endif
