/* Vector kernels of the *planes* rung of conv2d.pyx, for T = f32 and f64. Vectors run along the pixels of a
 * row, and the image is read in place: it was copied into planes with its padding, so that every tap of every
 * output lies at a fixed distance from the output's own place. Sizes and strides count elements.
 *
 *   correlate_planes_T(channels, plane_taps, x, weight, start, y)
 *       y[c][i][j] = start[c] + sum over p < taps of weight[p][c] * x[i * x_row + j + tap[p]]
 *       for c < channels <= PLANE_CHANNELS, i < height, j < width; y's strides are y_plane, y_row and 1.
 *       Rows of x must be readable up to LANES elements.
 *   multiply_planes_T(height, width, taps, tap, x, x_row, g, g_row, sums)
 *       the sum over the lanes of sums[p] += the sum of g[i * g_row + j] * x[i * x_row + j + tap[p]]
 *       over i < height, j < width; p < taps. Rows of g and x must be readable up to LANES elements.
 *   copy_elements_T(n, x, to), split_row_T(n, x, even, odd), join_row_T(n, even, odd, to)
 *       n elements copied; those at even and at odd places parted, and put together again.
 *
 * Arithmetic intensity. A tile of several channels makes channels * vectors multiply-adds for each vector
 * that it loads, as a GEMM tile does. One channel, as in a depthwise convolution, has a tile of 8 rows: a
 * vector of x is loaded once for all taps of a column, so that 3x3 taps make 24 multiply-adds for 10 loads.
 */
#ifndef MINIGRAD_CONV2D_PLANES_H
#define MINIGRAD_CONV2D_PLANES_H

#include "vector_math.h"

enum {
    PLANE_CHANNELS = 6, /* 6 channels: 12 sums + 2 vectors + 1 weight of 16 registers; 4: 12 + 3 + 1 */
    PLANE_VECTORS = 8,  /* 1 channel: 8 sums, whose latencies overlap; its vectors come from memory */
    PLANE_COLUMN = 5,   /* taps in a column: 8 sums + 5 weights + 1 vector */
    PLANE_TAPS = 9,     /* a 3x3 kernel: 9 sums + 1 vector of g */
};

/* What correlate_planes reads where. The taps come in groups of `column` * `row`, u of v: a column is taps
 * that lie x_row apart (column = 1 if none do). `ahead` is memory that is read next, fetched meanwhile. */
typedef struct {
    ptrdiff_t height, width, taps, column, row;
    const ptrdiff_t *tap;
    ptrdiff_t x_row, y_row, y_plane;
    const char *ahead;
    ptrdiff_t ahead_bytes;
} plane_taps;

#define real float
#define NAME(x) x##_f32
#define short_vector f32x4
#define short_vector_u f32x4_u
#define vector f32v
#define vector_u f32v_u
#define vector_mask i32v
#define LANES F32_LANES
#include "conv2d_planes_template.h"
#undef real
#undef NAME
#undef short_vector
#undef short_vector_u
#undef vector
#undef vector_u
#undef vector_mask
#undef LANES

#define real double
#define NAME(x) x##_f64
#define short_vector f64x2
#define short_vector_u f64x2_u
#define vector f64v
#define vector_u f64v_u
#define vector_mask i64v
#define LANES F64_LANES
#include "conv2d_planes_template.h"
#undef real
#undef NAME
#undef short_vector
#undef short_vector_u
#undef vector
#undef vector_u
#undef vector_mask
#undef LANES

#endif
