/* Transposes of the blocks that fill 128-bit registers, which every instruction-set level has, and of two such
 * blocks side by side where registers are wider. */
#ifndef MINIGRAD_TRANSPOSE_H
#define MINIGRAD_TRANSPOSE_H

#include <stddef.h>

#include "vector.h"

/* TRANSPOSE_T x TRANSPOSE_T elements: destination rows are the source's columns. */
enum { TRANSPOSE_f32 = 4, TRANSPOSE_f64 = 2 };

ALWAYS_INLINE void transpose_f32(const float *from, ptrdiff_t from_row, float *to, ptrdiff_t to_row)
{
    f32x4 r0 = *(const f32x4_u *)(from), r1 = *(const f32x4_u *)(from + from_row);
    f32x4 r2 = *(const f32x4_u *)(from + 2 * from_row), r3 = *(const f32x4_u *)(from + 3 * from_row);
    f32x4 low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);
    f32x4 low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
    f32x4 high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
    f32x4 high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
    *(f32x4_u *)(to) = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
    *(f32x4_u *)(to + to_row) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
    *(f32x4_u *)(to + 2 * to_row) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
    *(f32x4_u *)(to + 3 * to_row) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}

ALWAYS_INLINE void transpose_f64(const double *from, ptrdiff_t from_row, double *to, ptrdiff_t to_row)
{
    f64x2 r0 = *(const f64x2_u *)(from), r1 = *(const f64x2_u *)(from + from_row);
    *(f64x2_u *)(to) = __builtin_shufflevector(r0, r1, 0, 2);
    *(f64x2_u *)(to + to_row) = __builtin_shufflevector(r0, r1, 1, 3);
}

#ifdef __AVX__
/* Two blocks of 128 bits, one above the other in the source: 8 x 4 floats or 4 x 2 doubles, whose columns fill
 * 256-bit registers. Half the shuffles and half the stores of two blocks apart: the halves meet while they are
 * loaded. */
ALWAYS_INLINE f32x8 both_f32(const float *low, const float *high)
{
    return __builtin_shufflevector(*(const f32x4_u *)low, *(const f32x4_u *)high, 0, 1, 2, 3, 4, 5, 6, 7);
}

ALWAYS_INLINE void transpose_two_f32(const float *from, ptrdiff_t from_row, float *to, ptrdiff_t to_row)
{
    const float *below = from + 4 * from_row;
    f32x8 r0 = both_f32(from, below), r1 = both_f32(from + from_row, below + from_row);
    f32x8 r2 = both_f32(from + 2 * from_row, below + 2 * from_row);
    f32x8 r3 = both_f32(from + 3 * from_row, below + 3 * from_row);
    f32x8 low01 = __builtin_shufflevector(r0, r1, 0, 8, 1, 9, 4, 12, 5, 13);
    f32x8 low23 = __builtin_shufflevector(r2, r3, 0, 8, 1, 9, 4, 12, 5, 13);
    f32x8 high01 = __builtin_shufflevector(r0, r1, 2, 10, 3, 11, 6, 14, 7, 15);
    f32x8 high23 = __builtin_shufflevector(r2, r3, 2, 10, 3, 11, 6, 14, 7, 15);
    *(f32x8_u *)(to) = __builtin_shufflevector(low01, low23, 0, 1, 8, 9, 4, 5, 12, 13);
    *(f32x8_u *)(to + to_row) = __builtin_shufflevector(low01, low23, 2, 3, 10, 11, 6, 7, 14, 15);
    *(f32x8_u *)(to + 2 * to_row) = __builtin_shufflevector(high01, high23, 0, 1, 8, 9, 4, 5, 12, 13);
    *(f32x8_u *)(to + 3 * to_row) = __builtin_shufflevector(high01, high23, 2, 3, 10, 11, 6, 7, 14, 15);
}

ALWAYS_INLINE f64x4 both_f64(const double *low, const double *high)
{
    return __builtin_shufflevector(*(const f64x2_u *)low, *(const f64x2_u *)high, 0, 1, 2, 3);
}

ALWAYS_INLINE void transpose_two_f64(const double *from, ptrdiff_t from_row, double *to, ptrdiff_t to_row)
{
    const double *below = from + 2 * from_row;
    f64x4 r0 = both_f64(from, below), r1 = both_f64(from + from_row, below + from_row);
    *(f64x4_u *)(to) = __builtin_shufflevector(r0, r1, 0, 4, 2, 6);
    *(f64x4_u *)(to + to_row) = __builtin_shufflevector(r0, r1, 1, 5, 3, 7);
}
#else
ALWAYS_INLINE void transpose_two_f32(const float *from, ptrdiff_t from_row, float *to, ptrdiff_t to_row)
{
    transpose_f32(from, from_row, to, to_row);
    transpose_f32(from + 4 * from_row, from_row, to + 4, to_row);
}

ALWAYS_INLINE void transpose_two_f64(const double *from, ptrdiff_t from_row, double *to, ptrdiff_t to_row)
{
    transpose_f64(from, from_row, to, to_row);
    transpose_f64(from + 2 * from_row, from_row, to + 2, to_row);
}
#endif

#endif
