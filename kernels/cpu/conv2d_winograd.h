/* Vector kernels of conv2d_winograd.pyx, float32: the transforms of Winograd's convolution and the products
 * between them. `tile` is the number of points on each axis, `kernel` that of the kernel's taps: 6 and 3 for
 * F(4x4, 3x3), 4 and 3 for F(2x2, 3x3), 6 and 5 for F(2x2, 5x5). Sizes and strides count elements.
 *
 * The method (Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for
 * Convolutional Neural Networks", 2016). A short correlation in one dimension,
 *
 *     y[i] = sum over k < r of d[i + k] g[k],   i < m,
 *
 * is the transpose of a product of polynomials, which is found from values of its factors at tile = m + r - 1
 * points, one of them infinity (the leading coefficient). With E_n the values at these points of the
 * polynomials of n coefficients (row p: 1, p, p^2, ...; at infinity 0, ..., 0, 1):
 *
 *     y = A^T [(G g) * (B^T d)],   A^T = E_m^T,   G = E_r / N,
 *
 * where row p of B^T holds the coefficients of the product over the other finite points q of (x - q), the row
 * of infinity those of the product over all of them, and N_p is that product's value at p (1 at infinity). In
 * two dimensions each matrix is applied to columns and then to rows. The gradient for the weight is a
 * correlation too, of the input with a tile of grad_output as the kernel: F(3x3, 4x4) or F(5x5, 2x2), with the
 * same points and the same B^T.
 *
 * The points of six are 0, +-3/4, +-3/2, infinity. The usual 0, +-1, +-2 cost as many operations, since all
 * are fused multiply-adds, but amplify rounding 3.6 times as much (tests/kernels/test_conv2d_winograd_kernels.py
 * computes this from the matrices). All entries of A and B are exact in float32. The points of four are 0,
 * +-1, infinity.
 *
 * Layouts. `lanes` are channels: NR_f32 of them, a panel, fill TILE_VECTORS vectors. So all lanes of a vector
 * are at the same pixel, borders are the same for all of them, and a transform is nothing but arithmetic on
 * whole vectors. Of a panel whose channels fit one vector, the other one is neither computed nor read.
 *
 *     transformed input    values[point][tile][channel]   rows of channels, any stride, for each point
 *     transformed weight   [point][panel][channel][NR]    the right operand of the micro-kernel
 *     products             [point][tile][channel]
 */
#ifndef MINIGRAD_CONV2D_WINOGRAD_H
#define MINIGRAD_CONV2D_WINOGRAD_H

#include "conv2d.h"

enum { MAX_TILE = 6, MAX_COUNT = 5, PANEL = NR_f32 };

/* Values of one transform: points x tiles x channels, or points x channels x channels. */
typedef struct {
    float *data;
    ptrdiff_t point, row; /* strides */
} point_values;

/* The lanes of a panel that are computed, where `channels` are left for it. */
ALWAYS_INLINE int lanes_for(ptrdiff_t channels) { return channels <= F32_LANES ? F32_LANES : PANEL; }

/* ---- the matrices -------------------------------------------------------------------------------------- */

#define POINT_A 0.75f
#define POINT_B 1.5f
#define A2 (POINT_A * POINT_A)
#define B2 (POINT_B * POINT_B)
#define A4 (A2 * A2)
#define B4 (B2 * B2)

/* 1 / N_p for each point p. */
static const float INVERSE_N_6[6] = {
    1 / (A2 * B2), 1 / (2 * A2 * (A2 - B2)), 1 / (2 * A2 * (A2 - B2)),
    1 / (2 * B2 * (B2 - A2)), 1 / (2 * B2 * (B2 - A2)), 1};
static const float INVERSE_N_4[4] = {-1, 0.5f, 0.5f, 1};

ALWAYS_INLINE const float *inverse_n(const int tile) { return tile == 6 ? INVERSE_N_6 : INVERSE_N_4; }

/* v = B^T d: 12 operations for six points, or 4 for four. */
ALWAYS_INLINE void interpolate(const int tile, const f32v *d, f32v *v)
{
    if (tile == 6) {
        const f32v even_a = d[4] - B2 * d[2], odd_a = d[3] - B2 * d[1];
        const f32v even_b = d[4] - A2 * d[2], odd_b = d[3] - A2 * d[1];
        v[0] = d[4] - (A2 + B2) * d[2] + (A2 * B2) * d[0];
        v[1] = even_a + POINT_A * odd_a;
        v[2] = even_a - POINT_A * odd_a;
        v[3] = even_b + POINT_B * odd_b;
        v[4] = even_b - POINT_B * odd_b;
        v[5] = d[5] - (A2 + B2) * d[3] + (A2 * B2) * d[1];
    } else {
        v[0] = d[2] - d[0];
        v[1] = d[2] + d[1];
        v[2] = d[2] - d[1];
        v[3] = d[3] - d[1];
    }
}

/* v = E_count c: the values at the points of a polynomial of 2 to 5 coefficients (of four points: 2 or 3). */
ALWAYS_INLINE void evaluate(const int tile, const int count, const f32v *c, f32v *v)
{
    if (tile == 6) {
        f32v even_a = c[0], odd_a = c[1], even_b = c[0], odd_b = c[1];
        if (count == 5) even_a += A4 * c[4], even_b += B4 * c[4];
        if (count >= 4) odd_a += A2 * c[3], odd_b += B2 * c[3];
        if (count >= 3) even_a += A2 * c[2], even_b += B2 * c[2];
        v[1] = even_a + POINT_A * odd_a;
        v[2] = even_a - POINT_A * odd_a;
        v[3] = even_b + POINT_B * odd_b;
        v[4] = even_b - POINT_B * odd_b;
    } else {
        f32v even = count == 3 ? c[0] + c[2] : c[0];
        v[1] = even + c[1];
        v[2] = even - c[1];
    }
    v[0] = c[0];
    v[tile - 1] = c[count - 1];
}

/* c = E_count^T v */
ALWAYS_INLINE void evaluate_transposed(const int tile, const int count, const f32v *v, f32v *c)
{
    if (tile == 6) {
        const f32v even_a = v[1] + v[2], odd_a = v[1] - v[2], even_b = v[3] + v[4], odd_b = v[3] - v[4];
        c[0] = v[0] + even_a + even_b;
        c[1] = POINT_A * odd_a + POINT_B * odd_b;
        if (count >= 3) c[2] = A2 * even_a + B2 * even_b;
        if (count >= 4) c[3] = (POINT_A * A2) * odd_a + (POINT_B * B2) * odd_b;
        if (count == 5) c[4] = A4 * even_a + B4 * even_b;
    } else {
        c[0] = v[0] + v[1] + v[2];
        c[1] = v[1] - v[2];
        if (count == 3) c[2] = v[1] + v[2];
    }
    c[count - 1] += v[tile - 1];
}

/* A window of the image becomes values at points: B^T if it is as large as the tile, else E. */
ALWAYS_INLINE void to_points(const int tile, const int window, const f32v *from, f32v *to)
{
    if (window == tile)
        interpolate(tile, from, to);
    else
        evaluate(tile, window, from, to);
}

/* ---- images to points ---------------------------------------------------------------------------------- */

/* One row of tiles. Pixel (i, j) of tile t's window is the image's (first_row + i, first_column + step t +
 * j). What lies outside the image is zero. */
typedef struct {
    ptrdiff_t height, width, first_row, first_column, step, tiles;
} tile_row;

/* Elements of scratch for windows_to_points. */
MAYBE_UNUSED ptrdiff_t windows_scratch(ptrdiff_t width, ptrdiff_t tiles)
{
    return PANEL * ((MAX_TILE + 1) * width + MAX_TILE * (4 * tiles + MAX_TILE));
}

/* Values at points of the windows of one row of tiles, for one panel of at most NR channels (planes of the
 * image, plane_stride apart).
 *
 * Pixels are first transposed to rows of channels; columns are transformed next, once for all tiles that they
 * belong to; and rows of each tile last. */
ALWAYS_INLINE void windows_to_points(const int tile, const int window, const tile_row *at,
                                     ptrdiff_t channels, const float *planes, ptrdiff_t plane_stride,
                                     float *values, ptrdiff_t point, ptrdiff_t row, float *scratch)
{
    const int lanes = lanes_for(channels);
    const ptrdiff_t width = at->width, columns = at->step * (at->tiles - 1) + window;
    const ptrdiff_t above = at->first_row < 0 ? -at->first_row : 0; /* rows of the window before the image */
    const ptrdiff_t below = at->height - at->first_row;             /* the first one behind it */
    const ptrdiff_t left = at->first_column < 0 ? smaller_f32(-at->first_column, columns) : 0;
    ptrdiff_t right = smaller_f32(width - at->first_column, columns);
    float *zeros = scratch, *pixels = zeros + PANEL * width, *transformed = pixels + MAX_TILE * PANEL * width;

    const ptrdiff_t rows = smaller_f32(below, window) - above;
    if (rows > 0)
        pack_channels_f32(channels, rows * width, planes + (at->first_row + above) * width, plane_stride,
                          pixels);
    if (above > 0 || below < window) memset(zeros, 0, PANEL * width * sizeof(float));
    if (right < left) right = left;
    memset(transformed, 0, left * tile * PANEL * sizeof(float));
    memset(transformed + right * tile * PANEL, 0, (columns - right) * tile * PANEL * sizeof(float));

    const float *source[MAX_TILE];
    for (int i = 0; i < window; i++)
        source[i] = i >= above && i < below ? pixels + (i - above) * PANEL * width : zeros;
    for (ptrdiff_t column = left; column < right; column++)
        for (int lane = 0; lane < lanes; lane += F32_LANES) {
            f32v from[MAX_TILE], to[MAX_TILE];
            UNROLL for (int i = 0; i < window; i++)
                from[i] = *(const f32v_u *)(source[i] + (at->first_column + column) * PANEL + lane);
            to_points(tile, window, from, to);
            UNROLL for (int i = 0; i < tile; i++)
                *(f32v_u *)(transformed + (column * tile + i) * PANEL + lane) = to[i];
        }
    for (ptrdiff_t t = 0; t < at->tiles; t++)
        for (int i = 0; i < tile; i++)
            for (int lane = 0; lane < lanes; lane += F32_LANES) {
                const float *first = transformed + (t * at->step * tile + i) * PANEL + lane;
                float *target = values + i * tile * point + t * row + lane;
                f32v from[MAX_TILE], to[MAX_TILE];
                UNROLL for (int j = 0; j < window; j++) from[j] = *(const f32v_u *)(first + j * tile * PANEL);
                to_points(tile, window, from, to);
                UNROLL for (int j = 0; j < tile; j++) *(f32v_u *)(target + j * point) = to[j];
            }
}

NEVER_INLINE void input_to_points(int tile, const tile_row *at, ptrdiff_t channels, const float *planes,
                                  ptrdiff_t plane_stride, float *values, ptrdiff_t point, ptrdiff_t row,
                                  float *scratch)
{
    if (tile == 6)
        windows_to_points(6, 6, at, channels, planes, plane_stride, values, point, row, scratch);
    else
        windows_to_points(4, 4, at, channels, planes, plane_stride, values, point, row, scratch);
}

NEVER_INLINE void grad_output_to_points(int tile, int kernel, const tile_row *at, ptrdiff_t channels,
                                        const float *planes, ptrdiff_t plane_stride, float *values,
                                        ptrdiff_t point, ptrdiff_t row, float *scratch)
{
    if (kernel == 5)
        windows_to_points(6, 2, at, channels, planes, plane_stride, values, point, row, scratch);
    else if (tile == 6)
        windows_to_points(6, 4, at, channels, planes, plane_stride, values, point, row, scratch);
    else
        windows_to_points(4, 2, at, channels, planes, plane_stride, values, point, row, scratch);
}

/* ---- products ------------------------------------------------------------------------------------------ */

/* Some rows of a product, in a panel for which `channels` are left. */
ALWAYS_INLINE void panel_rows(int rows, ptrdiff_t channels, ptrdiff_t depth, const float *a, ptrdiff_t a_row,
                              ptrdiff_t a_col, const float *b, ptrdiff_t b_row, float *c, ptrdiff_t c_row,
                              const float *d)
{
    if (lanes_for(channels) == F32_LANES)
        tile_rows_f32(rows, 1, depth, a, a_row, a_col, b, b_row, c, c_row, adding_f32(d, c_row));
    else
        tile_rows_f32(rows, TILE_VECTORS, depth, a, a_row, a_col, b, b_row, c, c_row, adding_f32(d, c_row));
}

/* A panel of the weight (DEPTH x NR, 16 KB on x86-64-v3) stays in L1 while all tiles use it. */
enum { DEPTH = 256 };

/* For each point: products (tiles, channels) = values (tiles, depth) times panels of weights (depth, NR). */
NEVER_INLINE void multiply_weights(ptrdiff_t points, ptrdiff_t tiles, ptrdiff_t depth, ptrdiff_t channels,
                                   const point_values *values, const point_values *weights,
                                   const point_values *products)
{
    const ptrdiff_t tile_blocks = (tiles + TILE_ROWS - 1) / TILE_ROWS;
    const ptrdiff_t depth_blocks = depth > DEPTH ? (depth + DEPTH - 1) / DEPTH : 1; /* for no channel, too */
    for (ptrdiff_t point = 0; point < points; point++)
        for (ptrdiff_t depth_block = 0; depth_block < depth_blocks; depth_block++) {
            const ptrdiff_t k = depth_block * depth / depth_blocks;
            const ptrdiff_t block_depth = (depth_block + 1) * depth / depth_blocks - k;
            for (ptrdiff_t o = 0; o < channels; o += PANEL) {
                const float *a = values->data + point * values->point + k;
                const float *b = weights->data + point * weights->point + o / PANEL * weights->row + k * PANEL;
                float *c = products->data + point * products->point + o;
                for (ptrdiff_t block = 0; block < tile_blocks; block++) { /* of nearly equal height */
                    const ptrdiff_t first = block * tiles / tile_blocks;
                    const int rows = (int)((block + 1) * tiles / tile_blocks - first);
                    float *result = c + first * products->row;
                    panel_rows(rows, channels - o, block_depth, a + first * values->row, values->row, 1, b,
                               PANEL, result, products->row, k > 0 ? result : NULL);
                }
            }
        }
}

/* For each point: sums (depth, channels) += values (tiles, depth)^T gradients (tiles, channels). */
NEVER_INLINE void multiply_gradients(ptrdiff_t points, ptrdiff_t tiles, ptrdiff_t depth, ptrdiff_t channels,
                                     const point_values *values, const point_values *gradients,
                                     const point_values *sums)
{
    for (ptrdiff_t point = 0; point < points; point++)
        for (ptrdiff_t o = 0; o < channels; o += PANEL)
            for (ptrdiff_t c = 0; c < depth; c += TILE_ROWS) {
                float *sum = sums->data + point * sums->point + c * sums->row + o;
                panel_rows((int)smaller_f32(TILE_ROWS, depth - c), channels - o, tiles,
                           values->data + point * values->point + c, 1, values->row,
                           gradients->data + point * gradients->point + o, gradients->row, sum, sums->row, sum);
            }
}

/* ---- points to images ---------------------------------------------------------------------------------- */

/* c = E_count^T v E_count for `tile` x `tile` vectors, which lie `point` apart. */
ALWAYS_INLINE void from_points(const int tile, const int count, const float *v, ptrdiff_t point,
                               f32v c[MAX_COUNT][MAX_COUNT])
{
    f32v half[MAX_TILE][MAX_COUNT];
    UNROLL for (int i = 0; i < tile; i++) {
        f32v row[MAX_TILE];
        UNROLL for (int j = 0; j < tile; j++) row[j] = *(const f32v_u *)(v + (i * tile + j) * point);
        evaluate_transposed(tile, count, row, half[i]);
    }
    UNROLL for (int j = 0; j < count; j++) {
        f32v column[MAX_TILE], result[MAX_COUNT];
        UNROLL for (int i = 0; i < tile; i++) column[i] = half[i][j];
        evaluate_transposed(tile, count, column, result);
        UNROLL for (int i = 0; i < count; i++) c[i][j] = result[i];
    }
}

/* One row of tiles of the output, `rows` <= count rows of `width` pixels, for one panel of channels: goes to
 * planes + channel * plane_stride. `bias` has NR elements. Scratch: count * width * NR elements. */
ALWAYS_INLINE void points_to_rows(const int tile, const int count, ptrdiff_t tiles, ptrdiff_t rows,
                                  ptrdiff_t width, ptrdiff_t channels, const float *products, ptrdiff_t point,
                                  ptrdiff_t row, const float *bias, float *planes, ptrdiff_t plane_stride,
                                  float *scratch)
{
    const int lanes = lanes_for(channels);
    for (ptrdiff_t t = 0; t < tiles; t++) {
        const ptrdiff_t columns = smaller_f32(width - t * count, count);
        for (int lane = 0; lane < lanes; lane += F32_LANES) {
            f32v y[MAX_COUNT][MAX_COUNT], start = *(const f32v_u *)(bias + lane);
            from_points(tile, count, products + t * row + lane, point, y);
            UNROLL for (int i = 0; i < count; i++) {
                float *pixel = scratch + (i * width + t * count) * PANEL + lane;
                UNROLL for (int j = 0; j < count; j++)
                    if (i < rows && j < columns) *(f32v_u *)(pixel + j * PANEL) = y[i][j] + start;
            }
        }
    }
    store_channels_f32(channels, rows * width, scratch, planes, plane_stride);
}

NEVER_INLINE void points_to_output(int tile, int kernel, ptrdiff_t tiles, ptrdiff_t rows, ptrdiff_t width,
                                   ptrdiff_t channels, const float *products, ptrdiff_t point, ptrdiff_t row,
                                   const float *bias, float *planes, ptrdiff_t plane_stride, float *scratch)
{
    if (kernel == 5)
        points_to_rows(6, 2, tiles, rows, width, channels, products, point, row, bias, planes, plane_stride,
                       scratch);
    else if (tile == 6)
        points_to_rows(6, 4, tiles, rows, width, channels, products, point, row, bias, planes, plane_stride,
                       scratch);
    else
        points_to_rows(4, 2, tiles, rows, width, channels, products, point, row, bias, planes, plane_stride,
                       scratch);
}

/* ---- weights ------------------------------------------------------------------------------------------- */

/* (E / N) g (E / N)^T, E of `kernel` coefficients, for `depth` kernels of NR lanes each: taps[k][tap][NR] to
 * weights[point][k][NR]. Rotated by half a turn, the kernel is that of the gradient for the input. */
ALWAYS_INLINE void taps_to_points(const int tile, const int kernel, ptrdiff_t depth, const float *taps,
                                  int rotated, float *weights, ptrdiff_t point)
{
    const float *scale = inverse_n(tile);
    const int size = kernel * kernel;
    for (ptrdiff_t k = 0; k < depth; k++)
        UNROLL for (int lane = 0; lane < PANEL; lane += F32_LANES) {
            f32v half[MAX_TILE][MAX_COUNT], column[MAX_COUNT], values[MAX_TILE];
            UNROLL for (int v = 0; v < kernel; v++) {
                UNROLL for (int u = 0; u < kernel; u++) {
                    const int tap = u * kernel + v;
                    column[u] = *(const f32v_u *)(
                        taps + (k * size + (rotated ? size - 1 - tap : tap)) * PANEL + lane);
                }
                evaluate(tile, kernel, column, values);
                UNROLL for (int i = 0; i < tile; i++) half[i][v] = scale[i] * values[i];
            }
            UNROLL for (int i = 0; i < tile; i++) {
                evaluate(tile, kernel, half[i], values);
                UNROLL for (int j = 0; j < tile; j++)
                    *(f32v_u *)(weights + (i * tile + j) * point + k * PANEL + lane) = scale[j] * values[j];
            }
        }
}

NEVER_INLINE void weights_to_points(int tile, int kernel, ptrdiff_t depth, const float *taps, int rotated,
                                    float *weights, ptrdiff_t point)
{
    if (kernel == 5)
        taps_to_points(6, 5, depth, taps, rotated, weights, point);
    else if (tile == 6)
        taps_to_points(6, 3, depth, taps, rotated, weights, point);
    else
        taps_to_points(4, 3, depth, taps, rotated, weights, point);
}

/* The gradient for `depth` kernels: E^T (sums / N N^T) E, from sums[point][k] to taps[k][tap][NR]. */
ALWAYS_INLINE void points_to_taps(const int tile, const int kernel, ptrdiff_t depth, const float *sums,
                                  ptrdiff_t point, ptrdiff_t row, float *taps)
{
    const float *scale = inverse_n(tile);
    float scaled[MAX_TILE * MAX_TILE * F32_LANES];
    for (ptrdiff_t k = 0; k < depth; k++)
        UNROLL for (int lane = 0; lane < PANEL; lane += F32_LANES) {
            f32v grad[MAX_COUNT][MAX_COUNT];
            for (int i = 0; i < tile; i++)
                for (int j = 0; j < tile; j++)
                    *(f32v_u *)(scaled + (i * tile + j) * F32_LANES) =
                        *(const f32v_u *)(sums + (i * tile + j) * point + k * row + lane)
                        * (scale[i] * scale[j]);
            from_points(tile, kernel, scaled, F32_LANES, grad);
            UNROLL for (int u = 0; u < kernel; u++)
                UNROLL for (int v = 0; v < kernel; v++)
                    *(f32v_u *)(taps + ((k * kernel + u) * kernel + v) * PANEL + lane) = grad[u][v];
        }
}

NEVER_INLINE void points_to_weight_grad(int tile, int kernel, ptrdiff_t depth, const float *sums,
                                        ptrdiff_t point, ptrdiff_t row, float *taps)
{
    if (kernel == 5)
        points_to_taps(6, 5, depth, sums, point, row, taps);
    else if (tile == 6)
        points_to_taps(6, 3, depth, sums, point, row, taps);
    else
        points_to_taps(4, 3, depth, sums, point, row, taps);
}

#endif
