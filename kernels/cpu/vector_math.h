/* exp, tanh, erf and the normal distribution, on the vectors of vector.h.
 *
 * float32, and exp of float64, are computed by polynomials, fitted with a relative error below 4e-8 and
 * 4e-18, so that rounding decides; the rest of float64 calls the C library lane by lane. Largest errors
 * measured: exp 1.2 ulp (float64 1.1), tanh 1.5 ulp, erf 2.5 ulp, the normal tail 4 + a^2 / 2 ulp (the second
 * term is the rounding of a^2). Denormals, signed zeros, infinities and NaN are those of the C library.
 *
 * f_usual is a shorter formula of f, for arguments that usual_for_f accepts, with the same results.
 */
#ifndef MINIGRAD_VECTOR_MATH_H
#define MINIGRAD_VECTOR_MATH_H

#include <math.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "vector.h"

typedef int i32v __attribute__((vector_size(VECTOR_BYTES)));
typedef long long i64v __attribute__((vector_size(VECTOR_BYTES)));
typedef unsigned u32v __attribute__((vector_size(VECTOR_BYTES))); /* where a sum may wrap around */
typedef unsigned long long u64v __attribute__((vector_size(VECTOR_BYTES)));

#define BROADCAST_F32(x) ((f32v){0} + (x))
#define BROADCAST_F64(x) ((f64v){0} + (x))

ALWAYS_INLINE f32v select_f32(i32v mask, f32v yes, f32v no) {
    return (f32v)((mask & (i32v)yes) | (~mask & (i32v)no));
}

ALWAYS_INLINE f64v select_f64(i64v mask, f64v yes, f64v no) {
    return (f64v)((mask & (i64v)yes) | (~mask & (i64v)no));
}

/* The larger (smaller) of two; b where one is NaN. That is one x86 instruction, which GCC makes of scalars, but
   not of select(a > b, a, b). */
#if defined(__AVX512F__)
#define X86(name) _mm512_##name
#elif defined(__AVX__)
#define X86(name) _mm256_##name
#elif defined(__SSE2__)
#define X86(name) _mm_##name
#endif

#ifdef X86
ALWAYS_INLINE f32v max_f32(f32v a, f32v b) { return X86(max_ps)(a, b); }
ALWAYS_INLINE f64v max_f64(f64v a, f64v b) { return X86(max_pd)(a, b); }
ALWAYS_INLINE f32v min_f32(f32v a, f32v b) { return X86(min_ps)(a, b); }
ALWAYS_INLINE f64v min_f64(f64v a, f64v b) { return X86(min_pd)(a, b); }
#undef X86
#else
ALWAYS_INLINE f32v max_f32(f32v a, f32v b) { return select_f32(a > b, a, b); }
ALWAYS_INLINE f64v max_f64(f64v a, f64v b) { return select_f64(a > b, a, b); }
ALWAYS_INLINE f32v min_f32(f32v a, f32v b) { return select_f32(a < b, a, b); }
ALWAYS_INLINE f64v min_f64(f64v a, f64v b) { return select_f64(a < b, a, b); }
#endif

/* Where one of two is NaN. */
#if VECTOR_BYTES == 32
ALWAYS_INLINE i32v unordered_f32(f32v a, f32v b) { return (i32v)_mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
ALWAYS_INLINE i64v unordered_f64(f64v a, f64v b) { return (i64v)_mm256_cmp_pd(a, b, _CMP_UNORD_Q); }
#elif defined(__SSE2__) && VECTOR_BYTES == 16
ALWAYS_INLINE i32v unordered_f32(f32v a, f32v b) { return (i32v)_mm_cmpunord_ps(a, b); }
ALWAYS_INLINE i64v unordered_f64(f64v a, f64v b) { return (i64v)_mm_cmpunord_pd(a, b); }
#else
ALWAYS_INLINE i32v unordered_f32(f32v a, f32v b) { return (a != a) | (b != b); }
ALWAYS_INLINE i64v unordered_f64(f64v a, f64v b) { return (a != a) | (b != b); }
#endif

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

/* Where the result is a normal number, 2^n is one. The shift drops all of `shifted` but n. */
ALWAYS_INLINE int usual_for_exp_f32(float x) { return fabsf(x) < 87.0f; }

ALWAYS_INLINE f32v exp_usual_f32(f32v x) {
    f32v shifted = x * 1.44269504088896341f + ROUND_TO_INTEGER;
    f32v scale = (f32v)(((u32v)shifted << 23) + (127U << 23));
    return exp_reduced_f32(x, shifted - ROUND_TO_INTEGER) * scale;
}

/* 2^n is multiplied in two halves: for the largest results it is infinite by itself, for the smallest no
   normal number. */
ALWAYS_INLINE f32v exp_f32(f32v x) {
    x = max_f32(BROADCAST_F32(-105.0f), x); /* 0 from there on */
    x = min_f32(BROADCAST_F32(89.0f), x);  /* infinite from there on; NaN passes both */
    f32v shifted = x * 1.44269504088896341f + ROUND_TO_INTEGER;
    i32v n = (i32v)shifted - (i32v)BROADCAST_F32(ROUND_TO_INTEGER), half = n >> 1;
    f32v p = exp_reduced_f32(x, shifted - ROUND_TO_INTEGER);
    return p * (f32v)((half + 127) << 23) * (f32v)((n - half + 127) << 23);
}

/* exp(x) for x <= 0, which is what most functions need: 2^n as 2^(n + 64) and 2^-64, with fewer instructions. The
   shift drops all of `shifted` but n. AVX-512 multiplies by 2^n in one instruction, to the same bits; Intel's
   processors take some hundred cycles for it where a lane underflows, so it leaves out those that come to 0: what is
   masked or padded by -inf is 0 at once. */
ALWAYS_INLINE f32v exp_nonpositive_f32(f32v x) {
#ifdef __AVX512F__
    const __mmask16 remains = _mm512_cmp_ps_mask(x, BROADCAST_F32(-105.0f), _CMP_NLT_UQ); /* of NaN, too */
    f32v n = x * 1.44269504088896341f + ROUND_TO_INTEGER - ROUND_TO_INTEGER;
    return _mm512_maskz_scalef_ps(remains, exp_reduced_f32(x, n), n);
#else
    x = max_f32(BROADCAST_F32(-105.0f), x);
    f32v shifted = x * 1.44269504088896341f + ROUND_TO_INTEGER;
    f32v p = exp_reduced_f32(x, shifted - ROUND_TO_INTEGER);
    return p * (f32v)(((i32v)shifted << 23) + ((127 + 64) << 23)) * 0x1p-64f;
#endif
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

/* The same in float64; the first part of ln 2 has 40 bits. */
#define ROUND_TO_INTEGER_F64 6755399441055744.0

ALWAYS_INLINE f64v exp_reduced_f64(f64v x, f64v n) {
    f64v r = (x - n * 0.6931471805592082) - n * 7.371002565167799e-13;
    f64v p = r * 2.499996193486001e-08 + 2.763037854765961e-07;
    p = p * r + 2.7557587351527635e-06;
    p = p * r + 2.4801492763043503e-05;
    p = p * r + 1.984126950475702e-04;
    p = p * r + 1.3888888943922354e-03;
    p = p * r + 8.333333333495627e-03;
    p = p * r + 0.04166666666652919;
    p = p * r + 0.1666666666666641;
    p = p * r + 0.5000000000000011;
    return p * (r * r) + r + 1.0;
}

/* 2^(n + bias - 1023), given n + ROUND_TO_INTEGER_F64. */
ALWAYS_INLINE f64v power_of_two_f64(f64v shifted, unsigned long long bias) {
    return (f64v)(((u64v)shifted << 52) + (bias << 52));
}

ALWAYS_INLINE int usual_for_exp_f64(double x) { return fabs(x) < 708.0; }

ALWAYS_INLINE f64v exp_usual_f64(f64v x) {
    f64v shifted = x * 1.4426950408889634 + ROUND_TO_INTEGER_F64;
    return exp_reduced_f64(x, shifted - ROUND_TO_INTEGER_F64) * power_of_two_f64(shifted, 1023);
}

ALWAYS_INLINE f64v exp_f64(f64v x) {
    x = max_f64(BROADCAST_F64(-746.0), x); /* 0 from there on */
    x = min_f64(BROADCAST_F64(710.0), x); /* infinite from there on */
    f64v n = x * 1.4426950408889634 + ROUND_TO_INTEGER_F64 - ROUND_TO_INTEGER_F64;
    f64v half = n * 0.5 + ROUND_TO_INTEGER_F64, rest = n - (half - ROUND_TO_INTEGER_F64);
    return exp_reduced_f64(x, n) * power_of_two_f64(half, 1023) *
           power_of_two_f64(rest + ROUND_TO_INTEGER_F64, 1023);
}

ALWAYS_INLINE f64v exp_nonpositive_f64(f64v x) {
    x = max_f64(BROADCAST_F64(-746.0), x);
    f64v shifted = x * 1.4426950408889634 + ROUND_TO_INTEGER_F64;
    f64v p = exp_reduced_f64(x, shifted - ROUND_TO_INTEGER_F64);
    return p * power_of_two_f64(shifted, 1023 + 128) * 0x1p-128;
}

ALWAYS_INLINE f64v tanh_f64(f64v x) {
    for (int lane = 0; lane < F64_LANES; lane++) x[lane] = tanh(x[lane]);
    return x;
}

ALWAYS_INLINE f64v normal_tail_f64(f64v a, f64v e) {
    (void)e; /* the C library has what is needed without it */
    for (int lane = 0; lane < F64_LANES; lane++) a[lane] = 0.5 * erfc(a[lane] * 0.70710678118654752);
    return a;
}

/* erf(x) for x near 0 as x times a polynomial in x^2; elsewhere as 1 - exp(p), p a polynomial; 1 from 4 on. */
ALWAYS_INLINE f32v erf_f32(f32v x) {
    f32v a = abs_f32(x);
    a = min_f32(BROADCAST_F32(4.0f), a);
    f32v z = a * a;
    f32v s = z * -0.00062705117f + 0.005043684f;
    s = s * z - 0.026798282f;
    s = s * z + 0.11282618f;
    s = s * z - 0.37612563f;
    s = s * z + 1.1283791f;
    f32v p = a * -1.9468462e-05f + 0.00041377012f;
    p = p * a - 0.004062546f;
    p = p * a + 0.024815233f;
    p = p * a - 0.10778749f;
    p = p * a - 0.6338083f;
    p = p * a - 1.1292831f;
    p = p * a + 0.00012636873f;
    return with_sign_f32(select_f32(a < 0.86f, a * s, 1.0f - exp_usual_f32(p)), x);
}

ALWAYS_INLINE f64v erf_f64(f64v x) {
    for (int lane = 0; lane < F64_LANES; lane++) x[lane] = erf(x[lane]);
    return x;
}

/* The first `count` elements at x, fewer than a vector has. AVX2 and AVX-512 read them by one masked instruction,
   and AVX-512 writes them so. Else the vector passes through memory, lane by lane. (By loops, not memcpy: around
   a call all vector registers are saved.) */
#ifdef __AVX512F__
#define FIRST(count) ((1U << (count)) - 1)

ALWAYS_INLINE f32v load_part_f32(const float *x, ptrdiff_t count, float fill) {
    return _mm512_mask_loadu_ps(BROADCAST_F32(fill), FIRST(count), x);
}

ALWAYS_INLINE f64v load_part_f64(const double *x, ptrdiff_t count, double fill) {
    return _mm512_mask_loadu_pd(BROADCAST_F64(fill), FIRST(count), x);
}
#elif defined(__AVX2__)
ALWAYS_INLINE f32v load_part_f32(const float *x, ptrdiff_t count, float fill) {
    const i32v there = (i32v){0, 1, 2, 3, 4, 5, 6, 7} < (int)count;
    return select_f32(there, _mm256_maskload_ps(x, (__m256i)there), BROADCAST_F32(fill));
}

ALWAYS_INLINE f64v load_part_f64(const double *x, ptrdiff_t count, double fill) {
    const i64v there = (i64v){0, 1, 2, 3} < count;
    return select_f64(there, _mm256_maskload_pd(x, (__m256i)there), BROADCAST_F64(fill));
}
#else
ALWAYS_INLINE f32v load_part_f32(const float *x, ptrdiff_t count, float fill) {
    float part[F32_LANES];
    for (int lane = 0; lane < F32_LANES; lane++) part[lane] = lane < count ? x[lane] : fill;
    return *(const f32v_u *)part;
}

ALWAYS_INLINE f64v load_part_f64(const double *x, ptrdiff_t count, double fill) {
    double part[F64_LANES];
    for (int lane = 0; lane < F64_LANES; lane++) part[lane] = lane < count ? x[lane] : fill;
    return *(const f64v_u *)part;
}
#endif

#ifdef __AVX512F__
ALWAYS_INLINE void store_part_f32(float *x, ptrdiff_t count, f32v value) {
    _mm512_mask_storeu_ps(x, FIRST(count), value);
}

ALWAYS_INLINE void store_part_f64(double *x, ptrdiff_t count, f64v value) {
    _mm512_mask_storeu_pd(x, FIRST(count), value);
}
#else
ALWAYS_INLINE void store_part_f32(float *x, ptrdiff_t count, f32v value) {
    float part[F32_LANES];
    *(f32v_u *)part = value;
    for (int lane = 0; lane < F32_LANES; lane++)
        if (lane < count) x[lane] = part[lane];
}

ALWAYS_INLINE void store_part_f64(double *x, ptrdiff_t count, f64v value) {
    double part[F64_LANES];
    *(f64v_u *)part = value;
    for (int lane = 0; lane < F64_LANES; lane++)
        if (lane < count) x[lane] = part[lane];
}
#endif

/* A vector from or to the first `count` elements at x; where there are fewer than a vector has, the others
   are `fill`, and are not written. So that an element's result does not depend on its place, the rest of
   an array goes through the same vector code. */
ALWAYS_INLINE f32v load_f32(const float *x, ptrdiff_t count, float fill) {
    if (count >= F32_LANES) return *(const f32v_u *)x;
    return load_part_f32(x, count, fill);
}

ALWAYS_INLINE f64v load_f64(const double *x, ptrdiff_t count, double fill) {
    if (count >= F64_LANES) return *(const f64v_u *)x;
    return load_part_f64(x, count, fill);
}

ALWAYS_INLINE void store_f32(float *x, ptrdiff_t count, f32v value) {
    if (count >= F32_LANES)
        *(f32v_u *)x = value;
    else
        store_part_f32(x, count, value);
}

ALWAYS_INLINE void store_f64(double *x, ptrdiff_t count, f64v value) {
    if (count >= F64_LANES)
        *(f64v_u *)x = value;
    else
        store_part_f64(x, count, value);
}

#endif
