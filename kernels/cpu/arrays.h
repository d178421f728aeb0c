/* Whole arrays at a time, for kernels that are written in Cython, where there are no vectors: loops that the compiler
 * cannot vectorise by itself, as exp is a call, and as it must add in the order that is written.
 *
 * All work on float, or on double if `size` is that of a double; the values that they return are of that type.
 *
 *   exp_array(x, n, size)       x[i] = exp(x[i]); returns their sum
 *   dot_array(x, y, n, size)    the sum of x[i] y[i]
 *   max_array(x, n, size)       the largest x[i]; a NaN is passed over; -infinity if there is none
 *   gemm(M, N, K, a, a_row, a_col, b, b_row, b_col, c, c_row, add, workspace, size)
 *                               C (M, N) = A (M, K) B (K, N), or C += A B if `add`. A's element (i, p) is
 *                               a[i * a_row + p * a_col]; so is B's; the rows of C are contiguous (gemm.h)
 *   gemm_workspace(M, N, K, size)
 *                               the bytes that its workspace must hold, for these sizes and smaller ones
 */
#ifndef MINIGRAD_ARRAYS_H
#define MINIGRAD_ARRAYS_H

#include "gemm.h"
#include "vector_math.h"

#define REAL float
#define VECTOR f32v
#define LANES F32_LANES
#define NAME(f) f##_f32
#include "arrays_template.h"

#define REAL double
#define VECTOR f64v
#define LANES F64_LANES
#define NAME(f) f##_f64
#include "arrays_template.h"

MAYBE_UNUSED double exp_array(void *x, ptrdiff_t n, size_t size) {
    return size == sizeof(float) ? exp_array_f32(x, n) : exp_array_f64(x, n);
}

MAYBE_UNUSED double dot_array(const void *x, const void *y, ptrdiff_t n, size_t size) {
    return size == sizeof(float) ? dot_array_f32(x, y, n) : dot_array_f64(x, y, n);
}

MAYBE_UNUSED double max_array(const void *x, ptrdiff_t n, size_t size) {
    return size == sizeof(float) ? row_max_f32(x, n) : row_max_f64(x, n);
}

MAYBE_UNUSED ptrdiff_t gemm_workspace(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, size_t size) {
    return (ptrdiff_t)size * (size == sizeof(float) ? gemm_workspace_f32(M, N, K) : gemm_workspace_f64(M, N, K));
}

MAYBE_UNUSED void gemm(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const void *a, ptrdiff_t a_row, ptrdiff_t a_col,
                       const void *b, ptrdiff_t b_row, ptrdiff_t b_col, void *c, ptrdiff_t c_row, int add,
                       void *workspace, size_t size) {
    if (size == sizeof(float))
        gemm_f32(M, N, K, a, a_row, a_col, b, b_row, b_col, c, c_row, add, workspace);
    else
        gemm_f64(M, N, K, a, a_row, a_col, b, b_row, b_col, c, c_row, add, workspace);
}

#endif
