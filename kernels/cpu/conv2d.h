/* Vector kernels of conv2d.pyx, for T = f32 and f64. Sizes and strides count elements; NR_T and the register
 * tile are those of gemm.h.
 *
 *   gather_gemm_T(width, rows, row, depth, step, x, b, start, c)
 *       c[row[i].at + j] = start[j] + sum over p < depth of x[row[i].x + step[p].x] * b[step[p].at + j]
 *
 * for i < rows and j < width <= NR; start = NULL adds to c instead. It is a GEMM whose left operand is never
 * packed, nor even laid out as a matrix: its element (i, p) is found by adding two offsets. The im2col matrix
 * of a convolution has just this form, since the input under kernel tap k at output pixel q lies at (offset
 * of q) + (offset of k). Rows may be pixels and steps taps (forward, input gradient), or rows taps and steps
 * pixels (weight gradient): one kernel serves all three. As rows and steps are listed, it may be any subset
 * of them, so that pixels at a border need not multiply by zeros. (Compare Dukhan, "The Indirect Convolution
 * Algorithm", 2019, with a table of pixels times taps where these are pixels plus taps.)
 *
 * Arithmetic intensity: as in gemm.h, each step makes TILE_ROWS * NR multiply-adds of TILE_ROWS broadcast
 * elements and one row of b. The offsets are reloaded each time from the first-level cache, on load ports
 * that are idle otherwise.
 *
 *   gather_lanes_T(width, rows, row, depth, step, x, b, start, c)
 *       c[row[i].at + j] = start[j] + sum over p < depth of x[row[i].x + step[p].x + j] * b[step[p].at + j]
 *
 * for convolutions of each channel by itself, where x has channels in the lanes too. A multiply-add then takes
 * a load of its own.
 *
 *   pack_channels_T(channels, pixels, planes, plane_stride, panel)
 *       panel[pixel * NR + channel] = planes[channel * plane_stride + pixel]; from `channels` to NR, zeros
 *   store_channels_T(channels, pixels, panel, planes, plane_stride)
 *       the way back
 *   dot_T(n, a, b, b_stride)
 *       sum over i < n of a[i] * b[i * b_stride]
 */
#ifndef MINIGRAD_CONV2D_H
#define MINIGRAD_CONV2D_H

#include "gemm.h"

/* A row or a step of gather_gemm: its part of the offset into x, and its place in c or b. */
typedef struct {
    ptrdiff_t x, at;
} place;

/* Steps at a time: GATHER_DEPTH rows of b, or most of them, stay in L1 while all tiles of rows use them. */
enum { GATHER_DEPTH = 320 };

/* Where the rows of a tile find their elements of x: at an offset each; one after the other, as pixels of an image's
 * row do at stride 1; or at an offset each and as many as there are lanes. */
enum { ANYWHERE, SIDE_BY_SIDE, IN_LANES };

/* So many rows side by side pay for tiles of their own. A tile of one vector makes a multiply-add for each element
 * of x, and spends as long with the offsets as with the elements; but a tile of few rows waits for its sums. */
enum { SHORTEST_RUN = TILE_ROWS / 2 };

/* How many rows, from the first on, lie side by side. */
ALWAYS_INLINE ptrdiff_t side_by_side(ptrdiff_t rows, const place *row)
{
    ptrdiff_t run = 1;
    while (run < rows && row[run].x == row[0].x + run) run++;
    return run;
}

#define real float
#define NAME(x) x##_f32
#define vector f32v
#define vector_u f32v_u
#define LANES F32_LANES
#include "conv2d_template.h"
#undef real
#undef NAME
#undef vector
#undef vector_u
#undef LANES

#define real double
#define NAME(x) x##_f64
#define vector f64v
#define vector_u f64v_u
#define LANES F64_LANES
#include "conv2d_template.h"
#undef real
#undef NAME
#undef vector
#undef vector_u
#undef LANES

#endif
