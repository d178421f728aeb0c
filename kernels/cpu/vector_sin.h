/* sin and cos on the vectors of vector.h.
 *
 * An angle is brought to |r| <= pi / 4 by whole quarter turns (Cody and Waite): r = x - n pi / 2, with pi / 2
 * in parts. n is below 2^15 and the first parts have 38 bits, so that n times a part is exact in float64, and
 * what is left of two that nearly cancel has all its digits. float32 has no room for such products, but a fused
 * multiply-add does not round them: where there is one, float32 does for float32. Bit 0 of n chooses between
 * sin(r) and cos(r), both computed by polynomials; bit 1 is the sign. cos(x) is sin one quarter turn on. Larger
 * angles are left to the C library, lane by lane.
 *
 * Largest errors measured: float32 1.6 ulp, float64 1.5 ulp. NaN stays NaN, and -0 stays -0.
 */
#ifndef MINIGRAD_VECTOR_SIN_H
#define MINIGRAD_VECTOR_SIN_H

#include "vector_math.h"

#define QUARTER_TURNS 0.63661977236758134 /* 2 / pi: of one radian */
#define QUARTER_HIGH 1.5707963267923333   /* pi / 2 = high + middle + low */
#define QUARTER_MIDDLE 2.5633441515839558e-12
#define QUARTER_LOW 1.0562999066987428e-23
#define QUARTER_HIGH_F32 1.57079637f /* the same in parts of float32 */
#define QUARTER_MIDDLE_F32 -4.37113883e-8f
#define QUARTER_LOW_F32 -1.71512451e-15f

/* As many float64 as there are float32 in a vector. */
typedef double f64_wide __attribute__((vector_size(2 * VECTOR_BYTES)));

/* Whether sin_usual and cos_usual take it. */
ALWAYS_INLINE int usual_for_sin_f32(float x) { return fabsf(x) < 32768.0f; }
ALWAYS_INLINE int usual_for_sin_f64(double x) { return fabs(x) < 32768.0; }

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
/* a - x y, rounded once whatever the compiler's options are; GCC makes one instruction of the lanes at -O2. */
ALWAYS_INLINE f32v less_product_f32(f32v a, f32v x, float y) {
    UNROLL for (int lane = 0; lane < F32_LANES; lane++) a[lane] = __builtin_fmaf(-x[lane], y, a[lane]);
    return a;
}
#endif

/* a - turns pi / 2, with the digits of float32. */
ALWAYS_INLINE f32v less_quarter_turns_f32(f32v a, f32v turns) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    a = less_product_f32(less_product_f32(a, turns, QUARTER_HIGH_F32), turns, QUARTER_MIDDLE_F32);
    return less_product_f32(a, turns, QUARTER_LOW_F32);
#else /* in float64, where two parts are enough */
    f64_wide n = __builtin_convertvector(turns, f64_wide);
    f64_wide wide = __builtin_convertvector(a, f64_wide) - n * QUARTER_HIGH;
    return __builtin_convertvector(wide - n * QUARTER_MIDDLE, f32v);
#endif
}

/* sin(x + ahead pi / 2), ahead = 0 or 1. */
ALWAYS_INLINE f32v sin_ahead_f32(f32v x, unsigned ahead) {
    f32v a = abs_f32(x), shifted = a * (float)QUARTER_TURNS + ROUND_TO_INTEGER;
    f32v r = less_quarter_turns_f32(a, shifted - ROUND_TO_INTEGER), z = r * r;
    f32v s = z * -1.9511959e-4f + 8.332137e-3f;
    s = s * z - 0.16666654f;
    s = s * z * r + r;
    f32v c = z * 2.4429359e-5f - 1.3887284e-3f;
    c = c * z + 0.041666646f;
    c = c * z - 0.5f;
    c = c * z + 1.0f;
    u32v turns = (u32v)shifted + ahead, sign = turns << 30;
    if (!ahead) sign ^= (u32v)x;
    return (f32v)((u32v)select_f32((i32v)(-(turns & 1)), c, s) ^ (sign & 0x80000000));
}

ALWAYS_INLINE f64v sin_ahead_f64(f64v x, unsigned ahead) {
    f64v a = abs_f64(x), shifted = a * QUARTER_TURNS + ROUND_TO_INTEGER_F64;
    f64v n = shifted - ROUND_TO_INTEGER_F64;
    f64v r = ((a - n * QUARTER_HIGH) - n * QUARTER_MIDDLE) - n * QUARTER_LOW, z = r * r;
    f64v s = z * 1.5894569432071495e-10 - 2.5050719809077203e-08;
    s = s * z + 2.755731344763183e-06;
    s = s * z - 1.9841269829103586e-04;
    s = s * z + 8.333333333321532e-03;
    s = s * z - 0.1666666666666663;
    s = s * z * r + r;
    f64v c = z * -1.1357382807119303e-11 + 2.0875678959215155e-09;
    c = c * z - 2.7557314021422705e-07;
    c = c * z + 2.480158728831666e-05;
    c = c * z - 1.3888888888872219e-03;
    c = c * z + 0.04166666666666659;
    c = c * z - 0.5;
    c = c * z + 1.0;
    u64v turns = (u64v)shifted + ahead, sign = turns << 62;
    if (!ahead) sign ^= (u64v)x;
    return (f64v)((u64v)select_f64((i64v)(-(turns & 1)), c, s) ^ (sign & (1ULL << 63)));
}

ALWAYS_INLINE f32v sin_usual_f32(f32v x) { return sin_ahead_f32(x, 0); }
ALWAYS_INLINE f32v cos_usual_f32(f32v x) { return sin_ahead_f32(x, 1); }
ALWAYS_INLINE f64v sin_usual_f64(f64v x) { return sin_ahead_f64(x, 0); }
ALWAYS_INLINE f64v cos_usual_f64(f64v x) { return sin_ahead_f64(x, 1); }

#define WITH_LARGE_ANGLES(f, VECTOR, LANES, type)                          \
    ALWAYS_INLINE VECTOR f##_##type(VECTOR x) {                            \
        VECTOR y = f##_usual_##type(x);                                    \
        for (int lane = 0; lane < LANES; lane++)                           \
            if (!usual_for_sin_##type(x[lane])) y[lane] = f(x[lane]);      \
        return y;                                                          \
    }

WITH_LARGE_ANGLES(sin, f32v, F32_LANES, f32)
WITH_LARGE_ANGLES(cos, f32v, F32_LANES, f32)
WITH_LARGE_ANGLES(sin, f64v, F64_LANES, f64)
WITH_LARGE_ANGLES(cos, f64v, F64_LANES, f64)

#undef WITH_LARGE_ANGLES

#endif
