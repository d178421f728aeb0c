/* Transposes of the blocks that fill 128-bit registers, which every instruction-set level has. */
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

#endif
