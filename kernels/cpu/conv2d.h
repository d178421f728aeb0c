/* Vector kernels of conv2d.pyx, for float (_f32) and double (_f64): the micro-kernel of the implicit-GEMM rung,
 * and two helpers. Sizes and strides count elements.
 *
 *   gather_kernel_T(width, depth, x, row, step, b, base, base_row, c)
 *       c[i, j] = base[i, j] + sum over p < depth of x[row[i] + step[p]] * b[p, j],   i < MR, j < width
 *
 * is a GEMM tile whose left operand is never packed, nor even laid out as a matrix: element (i, p) is found by
 * adding two offsets. The im2col matrix of a convolution has just this form, since the input element under
 * kernel tap k at output pixel q lies at pixel[q] + tap[k]. Rows may be pixels and steps taps (forward, input
 * gradient), or rows taps and steps pixels (weight gradient): one kernel serves all three. (Compare Dukhan, "The
 * Indirect Convolution Algorithm", 2019, with a table of pixels times taps instead of pixels plus taps.)
 *
 * b and c have rows of NR elements, of which the first `width` (LANES or NR) are used. For each p, MR broadcast
 * loads and one or two vector loads feed MR * NV multiply-adds, as in gemm.h; the MR offsets are reloaded from the
 * first-level cache, on load ports that are idle otherwise.
 *
 *   store_channels_T(pixels, channels, panel, out, out_row)
 *       out[channel * out_row + pixel] = panel[pixel * NR + channel]
 *   dot_T(n, a, b, b_stride)
 *       sum over i < n of a[i] * b[i * b_stride]
 */
#ifndef MINIGRAD_CONV2D_H
#define MINIGRAD_CONV2D_H

#include "gemm.h"

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
