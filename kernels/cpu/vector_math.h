/* exp, tanh, erf and the normal distribution, on the vectors of vector.h.
 *
 * float32 is computed by polynomials, fitted with a relative error below 4e-8, so that float32's own
 * rounding decides; float64 calls the C library lane by lane. Largest errors measured against float64: exp
 * 1.2 ulp, tanh 1.5 ulp, erf 2.5 ulp, the normal tail 4 + a^2 / 2 ulp (the second term is the rounding of
 * a^2). Denormals, signed zeros, infinities and NaN are those of the C library.
 */
#ifndef MINIGRAD_VECTOR_MATH_H
#define MINIGRAD_VECTOR_MATH_H

#include <math.h>

#include "vector.h"

typedef int i32v __attribute__((vector_size(VECTOR_BYTES)));
typedef long long i64v __attribute__((vector_size(VECTOR_BYTES)));

#define BROADCAST_F32(x) ((f32v){0} + (x))
#define BROADCAST_F64(x) ((f64v){0} + (x))

ALWAYS_INLINE f32v select_f32(i32v mask, f32v yes, f32v no) {
    return (f32v)((mask & (i32v)yes) | (~mask & (i32v)no));
}

ALWAYS_INLINE f64v select_f64(i64v mask, f64v yes, f64v no) {
    return (f64v)((mask & (i64v)yes) | (~mask & (i64v)no));
}

ALWAYS_INLINE f32v abs_f32(f32v x) { return (f32v)((i32v)x & 0x7fffffff); }
ALWAYS_INLINE f64v abs_f64(f64v x) { return (f64v)((i64v)x & 0x7fffffffffffffffLL); }

/* The magnitude of one, which is not negative, with the sign of the other. */
ALWAYS_INLINE f32v with_sign_f32(f32v magnitude, f32v sign) {
    return (f32v)((i32v)magnitude | ((i32v)sign & ~0x7fffffff));
}

/* exp(x) = 2^n exp(r), with n = round(x / ln 2) and |r| <= ln(2) / 2 (Cody and Waite). Adding 1.5 * 2^23
   rounds to an integer, which then stands in the low bits of the sum. ln 2 is split in two: n times its
   first part, of 10 bits, is exact. */
#define ROUND_TO_INTEGER 12582912.0f

ALWAYS_INLINE f32v exp_reduced_f32(f32v x, f32v n) {
    f32v r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    f32v p = r * 0.0013813147f + 0.0083694188f;
    p = p * r + 0.041668456f;
    p = p * r + 0.16666515f;
    p = p * r + 0.49999994f;
    p = p * r + 1.0f;
    return p * r + 1.0f;
}

/* 2^n is multiplied in two halves: for the largest results it is infinite by itself, for the smallest no
   normal number. */
ALWAYS_INLINE f32v exp_f32(f32v x) {
    x = select_f32(x < -105.0f, BROADCAST_F32(-105.0f), x); /* 0 from there on */
    x = select_f32(x > 89.0f, BROADCAST_F32(89.0f), x);     /* infinite from there on; NaN passes both */
    f32v shifted = x * 1.44269504088896341f + ROUND_TO_INTEGER;
    i32v n = (i32v)shifted - (i32v)BROADCAST_F32(ROUND_TO_INTEGER), half = n >> 1;
    f32v p = exp_reduced_f32(x, shifted - ROUND_TO_INTEGER);
    return p * (f32v)((half + 127) << 23) * (f32v)((n - half + 127) << 23);
}

/* exp(x) for x <= 0, which is what most functions need: 2^n as 2^(n + 64) and 2^-64, with fewer instructions.
   The shift drops all of `shifted` but n. */
ALWAYS_INLINE f32v exp_nonpositive_f32(f32v x) {
    x = select_f32(x < -105.0f, BROADCAST_F32(-105.0f), x);
    f32v shifted = x * 1.44269504088896341f + ROUND_TO_INTEGER;
    f32v scale = (f32v)(((i32v)shifted << 23) + ((127 + 64) << 23));
    return exp_reduced_f32(x, shifted - ROUND_TO_INTEGER) * scale * 0x1p-64f;
}

/* Odd polynomial below 0.625; above, (1 - e) / (1 + e) with e = exp(-2 |x|), where nothing cancels. */
ALWAYS_INLINE f32v tanh_f32(f32v x) {
    f32v a = abs_f32(x), z = a * a;
    f32v p = z * -0.0056935186f + 0.020630410f;
    p = p * z - 0.053737614f;
    p = p * z + 0.13331425f;
    p = p * z - 0.33333281f;
    f32v small = a + a * (z * p);
    f32v e = exp_nonpositive_f32(a * -2.0f);
    return with_sign_f32(select_f32(a < 0.625f, small, (1.0f - e) / (1.0f + e)), x);
}

/* Phi(-a) for a >= 0, given e = exp(-a^2 / 2): e times a function that falls slowly, from 1/2 to 0.4 / a,
   and is a polynomial in t = 1 / (1 + 0.35 a). Good to the last digits however small Phi(-a) is. */
ALWAYS_INLINE f32v normal_tail_f32(f32v a, f32v e) {
    f32v t = 1.0f / (a * 0.35f + 1.0f);
    f32v p = t * -0.029157877f + 0.14403088f;
    p = p * t - 0.25583893f;
    p = p * t + 0.15931961f;
    p = p * t - 0.023212293f;
    p = p * t + 0.10555248f;
    p = p * t + 0.11982130f;
    p = p * t + 0.13986352f;
    p = p * t + 0.13962130f;
    return p * t * e;
}

ALWAYS_INLINE f64v exp_f64(f64v x) {
    for (int lane = 0; lane < F64_LANES; lane++) x[lane] = exp(x[lane]);
    return x;
}

ALWAYS_INLINE f64v exp_nonpositive_f64(f64v x) { return exp_f64(x); }

ALWAYS_INLINE f64v tanh_f64(f64v x) {
    for (int lane = 0; lane < F64_LANES; lane++) x[lane] = tanh(x[lane]);
    return x;
}

ALWAYS_INLINE f64v normal_tail_f64(f64v a, f64v e) {
    (void)e; /* the C library has what is needed without it */
    for (int lane = 0; lane < F64_LANES; lane++) a[lane] = 0.5 * erfc(a[lane] * 0.70710678118654752);
    return a;
}

/* erf(x) = 1 - 2 Phi(-x sqrt(2)) for x not near 0; there x times a polynomial in x^2. */
ALWAYS_INLINE f32v erf_f32(f32v x) {
    f32v a = abs_f32(x), z = x * x;
    f32v p = z * -0.00062435406f + 0.0050391196f;
    p = p * z - 0.026795605f;
    p = p * z + 0.11282555f;
    p = p * z - 0.37612557f;
    p = p * z + 1.1283791f;
    f32v large = 1.0f - 2.0f * normal_tail_f32(a * 1.41421356f, exp_nonpositive_f32(-z));
    return with_sign_f32(select_f32(a < 0.86f, a * p, large), x);
}

ALWAYS_INLINE f64v erf_f64(f64v x) {
    for (int lane = 0; lane < F64_LANES; lane++) x[lane] = erf(x[lane]);
    return x;
}

/* A vector from or to the first `count` elements at x; where there are fewer than a vector has, the others
   are `fill`, and are not written. So that an element's result does not depend on its place, the rest of
   an array goes through the same vector code. (Loops, not memcpy: around a call all vector registers are
   saved.) */
ALWAYS_INLINE f32v load_f32(const float *x, ptrdiff_t count, float fill) {
    if (count >= F32_LANES) return *(const f32v_u *)x;
    float part[F32_LANES];
    for (int lane = 0; lane < F32_LANES; lane++) part[lane] = lane < count ? x[lane] : fill;
    return *(const f32v_u *)part;
}

ALWAYS_INLINE f64v load_f64(const double *x, ptrdiff_t count, double fill) {
    if (count >= F64_LANES) return *(const f64v_u *)x;
    double part[F64_LANES];
    for (int lane = 0; lane < F64_LANES; lane++) part[lane] = lane < count ? x[lane] : fill;
    return *(const f64v_u *)part;
}

ALWAYS_INLINE void store_f32(float *x, ptrdiff_t count, f32v value) {
    if (count >= F32_LANES) {
        *(f32v_u *)x = value;
        return;
    }
    float part[F32_LANES];
    *(f32v_u *)part = value;
    for (int lane = 0; lane < F32_LANES; lane++)
        if (lane < count) x[lane] = part[lane];
}

ALWAYS_INLINE void store_f64(double *x, ptrdiff_t count, f64v value) {
    if (count >= F64_LANES) {
        *(f64v_u *)x = value;
        return;
    }
    double part[F64_LANES];
    *(f64v_u *)part = value;
    for (int lane = 0; lane < F64_LANES; lane++)
        if (lane < count) x[lane] = part[lane];
}

#endif
