/* Softmax, its logarithm and their gradients for softmax.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64.
 *
 * An array is (outer, n, inner), and what is normalised are the n elements of each of its outer * inner
 * *lines*. Where inner is 1, a line is a row in memory. All functions take (out, a, b, ...): a softmax reads
 * the input a, a gradient reads a, the gradient of the result, and b, the result. out may be an input.
 *
 * A line is read three times, from cache after the first: its maximum, its sum of exponentials, its results.
 * What does not fill a vector is padded with the element that changes nothing: -inf for the maximum and for
 * the sum of exponentials, 0 for the other sums.
 */

#include "lanes.h"

#ifndef MAX_WIDTH
#define scalar_log_f32 logf
#define scalar_log_f64 log

/* Lines done together, of a block of columns and of transposed short rows. */
#define MAX_WIDTH 512
#define MIN_WIDTH 64
#define CACHED_BYTES 16384
#define TILE_ROWS 16
#define SHORT_ROW 32
#endif

/* ---- long rows: a vector holds neighbours of one row ---- */

/* out = exp(x - max); their sum, which is at least 1, is returned. */
ALWAYS_INLINE REAL NAME(row_exponentials)(REAL *out, const REAL *x, ptrdiff_t n) {
    REAL max = NAME(row_max)(x, n); /* if there is a NaN, the sum finds it */
    VECTOR sums = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        VECTOR e = NAME(exp_nonpositive)(NAME(load)(x + i, n - i, -(REAL)INFINITY) - max);
        NAME(store)(out + i, n - i, e);
        sums += e;
    }
    return NAME(lane_sum)(sums);
}

MAYBE_UNUSED void NAME(softmax_row)(REAL *out, const REAL *x, const REAL *unused, ptrdiff_t n) {
    (void)unused;
    const REAL scale = 1 / NAME(row_exponentials)(out, x, n);
    for (ptrdiff_t i = 0; i < n; i += LANES)
        NAME(store)(out + i, n - i, NAME(load)(out + i, n - i, 0) * scale);
}

/* The logarithm of sum(exp(x - max)). */
ALWAYS_INLINE REAL NAME(row_log_sum)(const REAL *x, ptrdiff_t n, REAL max) {
    VECTOR sums = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES)
        sums += NAME(exp_nonpositive)(NAME(load)(x + i, n - i, -(REAL)INFINITY) - max);
    return NAME(scalar_log)(NAME(lane_sum)(sums));
}

MAYBE_UNUSED void NAME(log_softmax_row)(REAL *out, const REAL *x, const REAL *unused, ptrdiff_t n) {
    (void)unused;
    REAL max = NAME(row_max)(x, n), log_sum = NAME(row_log_sum)(x, n, max);
    for (ptrdiff_t i = 0; i < n; i += LANES)
        NAME(store)(out + i, n - i, NAME(load)(x + i, n - i, 0) - max - log_sum);
}

/* The gradient of the input is y * (g - sum(g * y)). */
MAYBE_UNUSED void NAME(softmax_grad_row)(REAL *out, const REAL *grad, const REAL *y, ptrdiff_t n) {
    VECTOR sums = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES)
        sums += NAME(load)(grad + i, n - i, 0) * NAME(load)(y + i, n - i, 0);
    REAL sum = NAME(lane_sum)(sums);
    for (ptrdiff_t i = 0; i < n; i += LANES)
        NAME(store)(out + i, n - i, (NAME(load)(grad + i, n - i, 0) - sum) * NAME(load)(y + i, n - i, 0));
}

/* The gradient of the input is g - exp(y) * sum(g). */
MAYBE_UNUSED void NAME(log_softmax_grad_row)(REAL *out, const REAL *grad, const REAL *y, ptrdiff_t n) {
    VECTOR sums = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) sums += NAME(load)(grad + i, n - i, 0);
    REAL sum = NAME(lane_sum)(sums);
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        VECTOR p = NAME(exp_nonpositive)(NAME(load)(y + i, n - i, 0));
        NAME(store)(out + i, n - i, NAME(load)(grad + i, n - i, 0) - p * sum);
    }
}

/* ---- columns: a vector holds elements of LANES lines ----
 *
 * Element i of line j stands at i * stride + j, for j < width, at most MAX_WIDTH: memory is walked along the
 * rows, and the maxima and sums of all lines are kept in arrays beside, in the L1 cache. */

#define FOR_ELEMENTS(i, j, at, count)         \
    for (ptrdiff_t i = 0; i < n; i++)         \
        for (ptrdiff_t j = 0, at = i * stride, count = width; count > 0; j += LANES, at += LANES, count -= LANES)

#define FOR_LINES(j) for (ptrdiff_t j = 0; j < width; j += LANES)

#define AS_VECTOR(array, j) (*(VECTOR *)((array) + (j)))

typedef REAL NAME(of_lines)[MAX_WIDTH] __attribute__((aligned(VECTOR_BYTES)));

ALWAYS_INLINE void NAME(column_max)(REAL *max, const REAL *x, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t width) {
    FOR_LINES(j) AS_VECTOR(max, j) = (VECTOR){0} - (REAL)INFINITY;
    FOR_ELEMENTS(i, j, at, count) {
        VECTOR v = NAME(load)(x + at, count, -(REAL)INFINITY);
        AS_VECTOR(max, j) = NAME(max)(v, AS_VECTOR(max, j));
    }
}

MAYBE_UNUSED void NAME(softmax_columns)(
    REAL *out, const REAL *x, const REAL *unused, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t width
) {
    (void)unused;
    NAME(of_lines) max, scale;
    NAME(column_max)(max, x, n, stride, width);
    FOR_LINES(j) AS_VECTOR(scale, j) = (VECTOR){0};
    FOR_ELEMENTS(i, j, at, count) {
        VECTOR e = NAME(exp_nonpositive)(NAME(load)(x + at, count, 0) - AS_VECTOR(max, j));
        NAME(store)(out + at, count, e);
        AS_VECTOR(scale, j) += e;
    }
    FOR_LINES(j) AS_VECTOR(scale, j) = 1 / AS_VECTOR(scale, j);
    FOR_ELEMENTS(i, j, at, count)
        NAME(store)(out + at, count, NAME(load)(out + at, count, 0) * AS_VECTOR(scale, j));
}

ALWAYS_INLINE void NAME(column_log_sums)(
    REAL *sums, const REAL *max, const REAL *x, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t width
) {
    FOR_LINES(j) AS_VECTOR(sums, j) = (VECTOR){0};
    FOR_ELEMENTS(i, j, at, count)
        AS_VECTOR(sums, j) += NAME(exp_nonpositive)(NAME(load)(x + at, count, 0) - AS_VECTOR(max, j));
    for (ptrdiff_t j = 0; j < width; j++) sums[j] = NAME(scalar_log)(sums[j]);
}

MAYBE_UNUSED void NAME(log_softmax_columns)(
    REAL *out, const REAL *x, const REAL *unused, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t width
) {
    (void)unused;
    NAME(of_lines) max, sums;
    NAME(column_max)(max, x, n, stride, width);
    NAME(column_log_sums)(sums, max, x, n, stride, width);
    FOR_ELEMENTS(i, j, at, count) {
        VECTOR shifted = NAME(load)(x + at, count, 0) - AS_VECTOR(max, j);
        NAME(store)(out + at, count, shifted - AS_VECTOR(sums, j));
    }
}

MAYBE_UNUSED void NAME(softmax_grad_columns)(
    REAL *out, const REAL *grad, const REAL *y, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t width
) {
    NAME(of_lines) sums;
    FOR_LINES(j) AS_VECTOR(sums, j) = (VECTOR){0};
    FOR_ELEMENTS(i, j, at, count)
        AS_VECTOR(sums, j) += NAME(load)(grad + at, count, 0) * NAME(load)(y + at, count, 0);
    FOR_ELEMENTS(i, j, at, count) {
        VECTOR centred = NAME(load)(grad + at, count, 0) - AS_VECTOR(sums, j);
        NAME(store)(out + at, count, centred * NAME(load)(y + at, count, 0));
    }
}

MAYBE_UNUSED void NAME(log_softmax_grad_columns)(
    REAL *out, const REAL *grad, const REAL *y, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t width
) {
    NAME(of_lines) sums;
    FOR_LINES(j) AS_VECTOR(sums, j) = (VECTOR){0};
    FOR_ELEMENTS(i, j, at, count) AS_VECTOR(sums, j) += NAME(load)(grad + at, count, 0);
    FOR_ELEMENTS(i, j, at, count) {
        VECTOR p = NAME(exp_nonpositive)(NAME(load)(y + at, count, 0));
        NAME(store)(out + at, count, NAME(load)(grad + at, count, 0) - p * AS_VECTOR(sums, j));
    }
}

/* ---- which of both ---- */

typedef void (*NAME(row_kernel))(REAL *, const REAL *, const REAL *, ptrdiff_t);
typedef void (*NAME(columns_kernel))(REAL *, const REAL *, const REAL *, ptrdiff_t, ptrdiff_t, ptrdiff_t);

ALWAYS_INLINE void NAME(transpose_rows)(REAL *tile, const REAL *x, ptrdiff_t n, ptrdiff_t rows) {
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t i = 0; i < n; i++) tile[i * TILE_ROWS + row] = x[row * n + i];
}

/* The maxima, and the logarithms of the sums of exp(x - max), of at most TILE_ROWS rows. */
MAYBE_UNUSED void NAME(log_sums_of_rows)(REAL *max, REAL *sums, const REAL *x, ptrdiff_t n, ptrdiff_t rows) {
    if (n > SHORT_ROW) {
        for (ptrdiff_t row = 0; row < rows; row++, x += n) {
            max[row] = NAME(row_max)(x, n);
            sums[row] = NAME(row_log_sum)(x, n, max[row]);
        }
    } else {
        REAL tile[SHORT_ROW * TILE_ROWS];
        NAME(transpose_rows)(tile, x, n, rows);
        NAME(column_max)(max, tile, n, TILE_ROWS, rows);
        NAME(column_log_sums)(sums, max, tile, n, TILE_ROWS, rows);
    }
}

/* Rows too short to fill vectors, transposed so that they are columns: TILE_ROWS at a time. */
ALWAYS_INLINE void NAME(short_rows)(
    NAME(columns_kernel) kernel, REAL *out, const REAL *a, const REAL *b, ptrdiff_t n, ptrdiff_t rows
) {
    REAL tile_a[SHORT_ROW * TILE_ROWS], tile_b[SHORT_ROW * TILE_ROWS];
    for (; rows > 0; rows -= TILE_ROWS) {
        ptrdiff_t count = rows < TILE_ROWS ? rows : TILE_ROWS;
        NAME(transpose_rows)(tile_a, a, n, count);
        if (b) NAME(transpose_rows)(tile_b, b, n, count);
        kernel(tile_a, tile_a, tile_b, n, TILE_ROWS, count);
        for (ptrdiff_t row = 0; row < count; row++)
            for (ptrdiff_t i = 0; i < n; i++) out[row * n + i] = tile_a[i * TILE_ROWS + row];
        out += count * n;
        a += count * n;
        if (b) b += count * n;
    }
}

/* The lines [begin, end). */
ALWAYS_INLINE void NAME(lines)(
    NAME(row_kernel) row_kernel, NAME(columns_kernel) columns_kernel, REAL *out, const REAL *a, const REAL *b,
    ptrdiff_t n, ptrdiff_t inner, ptrdiff_t begin, ptrdiff_t end
) {
    if (inner > 1) {
        /* As many lines as the L1 cache holds, but at least a few cache lines of each row. */
        ptrdiff_t at_once = CACHED_BYTES / (ptrdiff_t)sizeof(REAL) / n / LANES * LANES;
        at_once = at_once < MIN_WIDTH ? MIN_WIDTH : at_once > MAX_WIDTH ? MAX_WIDTH : at_once;
        while (begin < end) {
            ptrdiff_t column = begin % inner, at = begin / inner * inner * n + column, width = inner - column;
            width = width > at_once ? at_once : width;
            width = width > end - begin ? end - begin : width;
            columns_kernel(out + at, a + at, b ? b + at : b, n, inner, width);
            begin += width;
        }
    } else if (n <= SHORT_ROW) {
        ptrdiff_t at = begin * n;
        NAME(short_rows)(columns_kernel, out + at, a + at, b ? b + at : b, n, end - begin);
    } else {
        for (ptrdiff_t at = begin * n; at < end * n; at += n) row_kernel(out + at, a + at, b ? b + at : b, n);
    }
}

#define LINES(name)                                                                                       \
    MAYBE_UNUSED void NAME(name##_lines)(                                                                 \
        void *out, const void *a, const void *b, ptrdiff_t n, ptrdiff_t inner, ptrdiff_t begin, ptrdiff_t end \
    ) {                                                                                                   \
        NAME(lines)(NAME(name##_row), NAME(name##_columns), out, a, b, n, inner, begin, end);             \
    }

LINES(softmax)
LINES(log_softmax)
LINES(softmax_grad)
LINES(log_softmax_grad)

#undef FOR_ELEMENTS
#undef FOR_LINES
#undef AS_VECTOR
#undef LINES
#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
