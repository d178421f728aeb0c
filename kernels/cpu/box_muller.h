/* The transform of Box and Muller for random.h: two words (float32) or four (float64) to two normal numbers.
 *
 * float32 has no branch and no call, so that the compiler can do a vector of pairs at a time. The polynomials
 * are fitted: the relative error of log is below 6e-9, that of sine and cosine below 4e-9, so that float32's
 * own rounding decides. float64 calls the C library.
 */
#ifndef MINIGRAD_BOX_MULLER_H
#define MINIGRAD_BOX_MULLER_H

#include <math.h>
#include <stdint.h>

#include "vector.h"

ALWAYS_INLINE float as_float(int32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

ALWAYS_INLINE int32_t as_bits(float x) {
    int32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* log(x) of a normal number x = 2^n (1 + f), with 1 + f in [sqrt(1/2), sqrt(2)):
   n log(2) + f - f^2 / 2 + f^3 p(f). */
ALWAYS_INLINE float log_normal_number(float x) {
    const int32_t sqrt_half = 0x3F3504F3;
    int32_t n = (as_bits(x) - sqrt_half) >> 23;
    float f = as_float(as_bits(x) - n * (1 << 23)) - 1, p = -0.0785955412f;
    p = p * f + 0.128816351f;
    p = p * f - 0.131287703f;
    p = p * f + 0.141811945f;
    p = p * f - 0.166245527f;
    p = p * f + 0.200022861f;
    p = p * f - 0.250008104f;
    p = p * f + 0.333333167f;
    return (float)n * 0.693147181f + (f + f * f * (f * p - 0.5f));
}

/* The angle is `turns` in [0, 1]. Of its quarters the nearest is taken away, and the sine and the cosine of
   the rest, of at most pi / 4 on either side, change places and signs by the quarter. */
ALWAYS_INLINE void sine_and_cosine(float turns, float *sine, float *cosine) {
    int32_t quarter = (int32_t)(turns * 4 + 0.5f);
    float r = (turns * 4 - (float)quarter) * 1.57079633f, z = r * r;
    float s = r + r * z * ((-0.000195172971f * z + 0.00833217813f) * z - 0.166666549f);
    float c = 1 - 0.5f * z + z * z * ((2.44384489e-05f * z - 0.00138873675f) * z + 0.0416666469f);
    float a = quarter & 1 ? c : s, b = quarter & 1 ? s : c;
    *sine = quarter & 2 ? -a : a;
    *cosine = (quarter + 1) & 2 ? -b : b;
}

ALWAYS_INLINE void box_muller_f32(float *out, const uint32_t *words) {
    float sine, cosine;
    float radius = sqrtf(-2 * log_normal_number((float)words[0] * 0x1p-32f + 0x1p-33f));
    sine_and_cosine((float)words[1] * 0x1p-32f, &sine, &cosine);
    out[0] = radius * cosine;
    out[1] = radius * sine;
}

ALWAYS_INLINE uint64_t pair_of(const uint32_t *words) { return words[0] | (uint64_t)words[1] << 32; }

ALWAYS_INLINE void box_muller_f64(double *out, const uint32_t *words) {
    double radius = sqrt(-2 * log((double)(int64_t)((pair_of(words) >> 11) + 1) * 0x1p-53));
    double angle = 6.28318530717958647693 * ((double)(int64_t)(pair_of(words + 2) >> 11) * 0x1p-53);
    out[0] = radius * cos(angle);
    out[1] = radius * sin(angle);
}

#endif
