/* Vector micro-kernels of pool2d.pyx: LANES neighbouring windows of one output row at a time.
 *
 * A template. The including file defines, and this one undefines,
 *   REAL, INTEGER   the element type and the signed integer type of its size,
 *   LANES           elements in a vector (2, 4 or 8),
 *   SUFFIX          what is added to each name,
 *   NARROWER        optional: the suffix of an instance with half the lanes, for rows shorter than LANES.
 *
 * The functions named *_columns work on `count` windows of one output row and return how many they did:
 * count, or 0 if there are fewer than the narrowest instance has lanes.
 *
 * Pooling does less than one operation for each byte it reads, so the aim is to touch memory once: the
 * running maximum and its tap stay in registers over the whole window. With stride 2 a vector of windows
 * needs every second column; two loads and one shuffle give it. Compilers do not find that shuffle.
 */
#include <math.h>
#include <stddef.h>

#include "vector.h"

#ifndef MINIGRAD_POOL2D_H
#define MINIGRAD_POOL2D_H

#define POOL2D_PASTE_(a, b) a##b
#define POOL2D_PASTE(a, b) POOL2D_PASTE_(a, b)

/* The taps of LANES neighbouring windows: the part of a window's rows that lies in the input, and all of
   its columns. `corner` is the element under the first window's tap (row_begin, 0). */
typedef struct {
    ptrdiff_t row_begin, row_end, kernel_w;      /* taps i in [row_begin, row_end), j in [0, kernel_w) */
    ptrdiff_t row_step, column_step;             /* elements between neighbouring taps */
    ptrdiff_t stride;                            /* columns between neighbouring windows */
} pool2d_taps;

/* The even elements of 2 * LANES - 1 consecutive ones, out of two vectors of which the second starts
   LANES - 1 elements after the first: reads nothing behind the last one. */
#define POOL2D_EVEN_2 0, 3
#define POOL2D_EVEN_4 0, 2, 5, 7
#define POOL2D_EVEN_8 0, 2, 4, 6, 9, 11, 13, 15
/* The first and the second half of the alternation a0 b0 a1 b1 ... */
#define POOL2D_ZIP_LOW_2 0, 2
#define POOL2D_ZIP_LOW_4 0, 4, 1, 5
#define POOL2D_ZIP_LOW_8 0, 8, 1, 9, 2, 10, 3, 11
#define POOL2D_ZIP_HIGH_2 1, 3
#define POOL2D_ZIP_HIGH_4 2, 6, 3, 7
#define POOL2D_ZIP_HIGH_8 4, 12, 5, 13, 6, 14, 7, 15
#endif

#define NAME(name) POOL2D_PASTE(name, SUFFIX)
#define SHUFFLE(pattern, a, b) __builtin_shufflevector(a, b, POOL2D_PASTE(POOL2D_##pattern##_, LANES))
#define VECTOR NAME(pool2d_vector)
#define MASK NAME(pool2d_mask)
#define BYTES NAME(pool2d_bytes)
#define INTS NAME(pool2d_ints)
#define SELECT(mask, yes, no) ((VECTOR)(((mask) & (MASK)(yes)) | (~(mask) & (MASK)(no))))
#define SELECT_TAP(mask, yes, no) (((mask) & (yes)) | (~(mask) & (no)))

typedef REAL VECTOR __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef INTEGER MASK __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef unsigned char BYTES __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int INTS __attribute__((vector_size(LANES * sizeof(int)), aligned(sizeof(int)), may_alias));

/* x[0], x[stride], x[2 * stride], ... */
ALWAYS_INLINE VECTOR NAME(load_strided)(const REAL *x, ptrdiff_t stride) {
    if (stride == 1) return *(const VECTOR *)x;
    if (stride == 2) return SHUFFLE(EVEN, *(const VECTOR *)x, *(const VECTOR *)(x + LANES - 1));
    VECTOR gathered = {0};
    for (int lane = 0; lane < LANES; lane++) gathered[lane] = x[lane * stride];
    return gathered;
}

ALWAYS_INLINE void NAME(store_taps)(void *taps, ptrdiff_t at, int tap_bytes, MASK tap) {
    if (tap_bytes == 1)
        *(BYTES *)((unsigned char *)taps + at) = __builtin_convertvector(tap, BYTES);
    else
        *(INTS *)((int *)taps + at) = __builtin_convertvector(tap, INTS);
}

ALWAYS_INLINE MASK NAME(load_taps)(const void *taps, ptrdiff_t at, int tap_bytes) {
    if (tap_bytes == 1)
        return __builtin_convertvector(*(const BYTES *)((const unsigned char *)taps + at), MASK);
    return __builtin_convertvector(*(const INTS *)((const int *)taps + at), MASK);
}

#ifdef NARROWER
#define IF_TOO_FEW(name, ...) if (count < LANES) return POOL2D_PASTE(name, NARROWER)(__VA_ARGS__)
#else
#define IF_TOO_FEW(name, ...) if (count < LANES) return 0
#endif

/* Columns [0, count) of an output row are done in blocks of LANES; the last block overlaps the one before
   it, writing the same values again, so count >= LANES is all that is asked. */
#define FOR_BLOCKS(begin, count) \
    for (ptrdiff_t step = 0, begin = 0; step < (count); \
         step += LANES, begin = step + LANES <= (count) ? step : (count) - LANES)

ALWAYS_INLINE void NAME(max_rows)(REAL *out, void *taps, int tap_bytes, const REAL *corner, ptrdiff_t count,
                                  pool2d_taps t) {
    FOR_BLOCKS(column, count) {
        VECTOR best = (VECTOR){0} - (REAL)INFINITY;
        MASK winner = (MASK){0} + (INTEGER)(t.row_begin * t.kernel_w);
        const REAL *row = corner + column * t.stride;
        for (ptrdiff_t i = t.row_begin; i < t.row_end; i++, row += t.row_step)
            for (ptrdiff_t j = 0; j < t.kernel_w; j++) {
                VECTOR value = NAME(load_strided)(row + j * t.column_step, t.stride);
                MASK wins = (value > best) | (value != value);
                best = SELECT(wins, value, best);
                winner = SELECT_TAP(wins, (MASK){0} + (INTEGER)(i * t.kernel_w + j), winner);
            }
        *(VECTOR *)(out + column) = best;
        NAME(store_taps)(taps, column, tap_bytes, winner);
    }
}

/* The common shapes get loops whose bounds the compiler knows, and unrolls. */
static ptrdiff_t NAME(max_pool_columns)(REAL *out, void *taps, int tap_bytes, const REAL *corner,
                                   ptrdiff_t count, pool2d_taps t) {
    IF_TOO_FEW(max_pool_columns, out, taps, tap_bytes, corner, count, t);
    if (t.column_step == 1 && t.row_begin == 0 && t.stride == 2 && t.kernel_w == 3 && t.row_end == 3)
        NAME(max_rows)(out, taps, tap_bytes, corner, count, (pool2d_taps){0, 3, 3, t.row_step, 1, 2});
    else if (t.stride == 1)
        NAME(max_rows)(out, taps, tap_bytes, corner, count,
                       (pool2d_taps){t.row_begin, t.row_end, t.kernel_w, t.row_step, t.column_step, 1});
    else if (t.stride == 2)
        NAME(max_rows)(out, taps, tap_bytes, corner, count,
                       (pool2d_taps){t.row_begin, t.row_end, t.kernel_w, t.row_step, t.column_step, 2});
    else
        NAME(max_rows)(out, taps, tap_bytes, corner, count, t);
    return count;
}

/* A whole plane of 2x2 windows at stride 2 that cover it: with rows of a few vectors, the set-up of each row
   would take longer than its windows. Returns how many columns of each row it did. */
static ptrdiff_t NAME(max_pool_2x2_plane)(REAL *out, void *taps, int tap_bytes, const REAL *x,
                                          ptrdiff_t width, ptrdiff_t out_height, ptrdiff_t count) {
    IF_TOO_FEW(max_pool_2x2_plane, out, taps, tap_bytes, x, width, out_height, count);
    pool2d_taps t = {0, 2, 2, width, 1, 2};
    for (ptrdiff_t oh = 0; oh < out_height; oh++, out += count, x += 2 * width)
        if (tap_bytes == 1)
            NAME(max_rows)(out, (unsigned char *)taps + oh * count, 1, x, count, t);
        else
            NAME(max_rows)(out, (int *)taps + oh * count, 4, x, count, t);
    return count;
}

ALWAYS_INLINE void NAME(sum_rows)(REAL *out, const REAL *corner, ptrdiff_t count, pool2d_taps t,
                                  REAL divisor) {
    FOR_BLOCKS(column, count) {
        VECTOR sum = {0};
        const REAL *row = corner + column * t.stride;
        for (ptrdiff_t i = t.row_begin; i < t.row_end; i++, row += t.row_step)
            for (ptrdiff_t j = 0; j < t.kernel_w; j++)
                sum += NAME(load_strided)(row + j * t.column_step, t.stride);
        *(VECTOR *)(out + column) = sum / divisor;
    }
}

static ptrdiff_t NAME(avg_pool_columns)(REAL *out, const REAL *corner, ptrdiff_t count, pool2d_taps t,
                                   REAL divisor) {
    IF_TOO_FEW(avg_pool_columns, out, corner, count, t, divisor);
    ptrdiff_t first = t.row_begin, last = t.row_end;
    if (first == 0 && t.stride == 2 && t.kernel_w == 2 && last == 2)
        NAME(sum_rows)(out, corner, count, (pool2d_taps){0, 2, 2, t.row_step, 1, 2}, divisor);
    else if (t.stride == 1)
        NAME(sum_rows)(out, corner, count, (pool2d_taps){first, last, t.kernel_w, t.row_step, 1, 1}, divisor);
    else if (t.stride == 2)
        NAME(sum_rows)(out, corner, count, (pool2d_taps){first, last, t.kernel_w, t.row_step, 1, 2}, divisor);
    else
        NAME(sum_rows)(out, corner, count, t, divisor);
    return count;
}

/* Gradient of 2x2 windows at stride 2: every input element belongs to one window, so each is written
   once: its window's gradient where it is the winning tap, 0 elsewhere. */
static ptrdiff_t NAME(max_pool_2x2_grad_columns)(REAL *upper, REAL *lower, const REAL *grad_output,
                                            const void *taps, int tap_bytes, ptrdiff_t count) {
    IF_TOO_FEW(max_pool_2x2_grad_columns, upper, lower, grad_output, taps, tap_bytes, count);
    FOR_BLOCKS(column, count) {
        MASK grad = (MASK)*(const VECTOR *)(grad_output + column);
        MASK tap = NAME(load_taps)(taps, column, tap_bytes);
        VECTOR at[4];
        for (int k = 0; k < 4; k++) at[k] = (VECTOR)(grad & (tap == k));
        *(VECTOR *)(upper + 2 * column) = SHUFFLE(ZIP_LOW, at[0], at[1]);
        *(VECTOR *)(upper + 2 * column + LANES) = SHUFFLE(ZIP_HIGH, at[0], at[1]);
        *(VECTOR *)(lower + 2 * column) = SHUFFLE(ZIP_LOW, at[2], at[3]);
        *(VECTOR *)(lower + 2 * column + LANES) = SHUFFLE(ZIP_HIGH, at[2], at[3]);
    }
    return count;
}

/* Each element twice in both rows: the gradient of averaging over 2x2 windows at stride 2. */
static ptrdiff_t NAME(avg_pool_2x2_grad_columns)(REAL *upper, REAL *lower, const REAL *grad_output,
                                            ptrdiff_t count, REAL divisor) {
    IF_TOO_FEW(avg_pool_2x2_grad_columns, upper, lower, grad_output, count, divisor);
    FOR_BLOCKS(column, count) {
        VECTOR grad = *(const VECTOR *)(grad_output + column) / divisor;
        VECTOR low = SHUFFLE(ZIP_LOW, grad, grad), high = SHUFFLE(ZIP_HIGH, grad, grad);
        *(VECTOR *)(upper + 2 * column) = low, *(VECTOR *)(upper + 2 * column + LANES) = high;
        *(VECTOR *)(lower + 2 * column) = low, *(VECTOR *)(lower + 2 * column + LANES) = high;
    }
    return count;
}

/* The sum of n consecutive elements, by LANES partial sums, or four times as many. */
static REAL NAME(sum_run)(const REAL *x, ptrdiff_t n) {
    VECTOR partial = {0};
    ptrdiff_t i = 0;
    if (n >= 4 * LANES) {
        VECTOR part[4] = {{0}, {0}, {0}, {0}};
        for (; i + 4 * LANES <= n; i += 4 * LANES)
            for (int v = 0; v < 4; v++) part[v] += *(const VECTOR *)(x + i + v * LANES);
        partial = (part[0] + part[1]) + (part[2] + part[3]);
    }
    for (; i + LANES <= n; i += LANES) partial += *(const VECTOR *)(x + i);
    REAL sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += partial[lane];
    for (; i < n; i++) sum += x[i];
    return sum;
}

#undef NAME
#undef SHUFFLE
#undef VECTOR
#undef MASK
#undef BYTES
#undef INTS
#undef SELECT
#undef SELECT_TAP
#undef IF_TOO_FEW
#undef FOR_BLOCKS
#undef REAL
#undef INTEGER
#undef LANES
#undef SUFFIX
#undef NARROWER
