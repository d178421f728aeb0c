/* Reductions of reduce.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64,
 *   MASK                  the vector that comparisons give: i32v or i64v,
 *   ROW_VECTORS, COLUMN_VECTORS   the vectors of a strip of rows, and of columns,
 *   SHORT, TOGETHER, APART        the lengths of short rows, of those reduced together, of those read in streams.
 *
 * For each reduction f below
 *   f_columns(out, x, step, rows, columns)   out[j] = the reduction of x[i * step + j] over i < rows,
 *   f_rows(out, x, step, rows, columns)      out[i] = that of x[i * step + j] over j < columns;
 * rows (columns) >= 1. A strip of columns, COLUMN_VECTORS of them side by side, is reduced down all rows in
 * registers, two rows at a time. ROW_VECTORS rows are summed together, as a strip with a vector in each of them: a
 * loop is then begun and ended once for all of them, and their sums across the lanes do not wait for each other. A
 * longer row is reduced by itself, seen as a strip whose vectors lie side by side or, where memory is read quicker in
 * several streams than in one, apart. Their results are reduced to one at the end.
 *
 * Error of sums. Rows are added in pairs, the pairs of BLOCK rows one after another, the sums of blocks in pairs,
 * of pairs again in pairs, as bits are carried in a counter. So an element passes BLOCK / 2 + log2(rows / BLOCK)
 * = 4 + log2(rows) additions. Along a row of n elements, rows is n / STRIP; one addition, of what is left of
 * whole strips, and log2(STRIP) follow: 5 + log2(n) in all. Of rows together, rows is n / LANES; one addition and
 * log2(LANES) follow: as many. reduce.pyx adds the sums of chunks in the same way: fewer than 8 STRIP of them take
 * up to 4 additions more than their logarithm, so 9 + log2(n) along a long row; and 8 + log2(rows) down many rows.
 * The bound of the error is that times the rounding unit and the sum of magnitudes. NumPy's pairwise sum has
 * 11 + log2(n) along a row (blocks of 128 in 8 sums), and rows - 1 down columns.
 */

#include "lanes.h"

#define STRIP (ROW_VECTORS * LANES)
#define COLUMN_STRIP (COLUMN_VECTORS * LANES)

/* How two results become one. Of a number and NaN the extrema are NaN, as in NumPy. */
ALWAYS_INLINE VECTOR NAME(combine)(int kind, VECTOR a, VECTOR b) {
    if (kind == MAX) return NAME(select)((a > b) | (a != a), a, b);
    if (kind == MIN) return NAME(select)((a < b) | (a != a), a, b);
    return kind == PROD ? a * b : a + b;
}

ALWAYS_INLINE REAL NAME(combine_two)(int kind, REAL a, REAL b) {
    if (kind == MAX) return a > b || a != a ? a : b;
    if (kind == MIN) return a < b || a != a ? a : b;
    return kind == PROD ? a * b : a + b;
}

ALWAYS_INLINE REAL NAME(identity)(int kind) {
    return kind == MAX ? -(REAL)INFINITY : kind == MIN ? (REAL)INFINITY : kind == PROD ? 1 : 0;
}

/* The vector that begins at element j of n, filled up with what changes nothing, squared for the sum of
   squares. */
ALWAYS_INLINE VECTOR NAME(take)(int kind, const REAL *x, ptrdiff_t j, ptrdiff_t n) {
    if (j >= n) return (VECTOR){0} + NAME(identity)(kind);
    VECTOR v = NAME(load)(x + j, n - j, NAME(identity)(kind));
    return kind == SUM_OF_SQUARES ? v * v : v;
}

/* A strip: vector k < vectors of row i stands at x + i * step + k * spacing. Of a row `columns` elements are there;
   in a whole strip all that the vectors hold. */
#define ELEMENTS(i, k) \
    NAME(take)(kind, x + (i) * step, (k) * spacing, columns == WHOLE ? (k) * spacing + LANES : columns)
#define WHOLE -1

/* result = the sum (product) of `rows` rows of a strip. */
ALWAYS_INLINE void NAME(strip_sums)(
    int kind, int vectors, VECTOR *result, const REAL *x, ptrdiff_t step, ptrdiff_t spacing, ptrdiff_t rows,
    ptrdiff_t columns
) {
    enum { BLOCK = 16, LEVELS = 60 };
    VECTOR waiting[LEVELS][MOST_VECTORS]; /* level k: the result of 2^k blocks, until there is a second */
    VECTOR v[MOST_VECTORS];
    ptrdiff_t blocks = 0; /* that wait; bit k: whether level k is taken */
    for (ptrdiff_t i = 0;; blocks++) {
        const ptrdiff_t end = i + BLOCK < rows ? i + BLOCK : rows;
        UNROLL for (int k = 0; k < vectors; k++) v[k] = (VECTOR){0} + NAME(identity)(kind);
        for (; i + 2 <= end; i += 2)
            UNROLL for (int k = 0; k < vectors; k++)
                v[k] = NAME(combine)(kind, v[k], NAME(combine)(kind, ELEMENTS(i, k), ELEMENTS(i + 1, k)));
        for (; i < end; i++)
            UNROLL for (int k = 0; k < vectors; k++) v[k] = NAME(combine)(kind, v[k], ELEMENTS(i, k));
        if (i == rows) break; /* the last block, for most rows the only one, stays in registers */
        int level = 0;
        for (; blocks >> level & 1; level++)
            UNROLL for (int k = 0; k < vectors; k++) v[k] = NAME(combine)(kind, waiting[level][k], v[k]);
        UNROLL for (int k = 0; k < vectors; k++) waiting[level][k] = v[k];
    }
    for (int level = 0; blocks >> level; level++)
        if (blocks >> level & 1)
            UNROLL for (int k = 0; k < vectors; k++) v[k] = NAME(combine)(kind, waiting[level][k], v[k]);
    UNROLL for (int k = 0; k < vectors; k++) result[k] = v[k];
}

ALWAYS_INLINE VECTOR NAME(extreme)(int kind, VECTOR a, VECTOR b) {
    return kind == MAX ? NAME(max)(a, b) : NAME(min)(a, b);
}

/* Whether a comparison holds in any lane: all its bits are set there, and that is a NaN. */
ALWAYS_INLINE int NAME(any)(MASK mask) {
    const REAL found = NAME(lane_sum)((VECTOR)mask);
    return found != found;
}

/* result = the extremum of `rows` rows of a strip. Whether there is a NaN at all is kept apart, and where it is, is
   looked for only then: to keep it in the extremum takes four more instructions. */
ALWAYS_INLINE void NAME(strip_extrema)(
    int kind, int vectors, VECTOR *result, const REAL *x, ptrdiff_t step, ptrdiff_t spacing, ptrdiff_t rows,
    ptrdiff_t columns
) {
    VECTOR v[MOST_VECTORS];
    MASK has_nan = {0};
    UNROLL for (int k = 0; k < vectors; k++) v[k] = (VECTOR){0} + NAME(identity)(kind);
    ptrdiff_t i = 0;
    for (; i + 2 <= rows; i += 2)
        UNROLL for (int k = 0; k < vectors; k++) {
            VECTOR a = ELEMENTS(i, k), b = ELEMENTS(i + 1, k);
            HOLD(a);
            HOLD(b);
            v[k] = NAME(extreme)(kind, v[k], NAME(extreme)(kind, a, b));
            has_nan |= NAME(unordered)(a, b);
        }
    for (; i < rows; i++)
        UNROLL for (int k = 0; k < vectors; k++) {
            VECTOR a = ELEMENTS(i, k);
            v[k] = NAME(extreme)(kind, v[k], a);
            has_nan |= a != a;
        }
    if (NAME(any)(has_nan))
        UNROLL for (int k = 0; k < vectors; k++) {
            MASK is_nan = {0};
            for (i = 0; i < rows; i++) is_nan |= ELEMENTS(i, k) != ELEMENTS(i, k);
            v[k] = NAME(select)(is_nan, (VECTOR){0} + (REAL)NAN, v[k]);
        }
    UNROLL for (int k = 0; k < vectors; k++) result[k] = v[k];
}

ALWAYS_INLINE void NAME(strip)(
    int kind, int vectors, VECTOR *result, const REAL *x, ptrdiff_t step, ptrdiff_t spacing, ptrdiff_t rows,
    ptrdiff_t columns
) {
    if (kind == MAX || kind == MIN)
        NAME(strip_extrema)(kind, vectors, result, x, step, spacing, rows, columns);
    else
        NAME(strip_sums)(kind, vectors, result, x, step, spacing, rows, columns);
}

ALWAYS_INLINE void NAME(columns_of)(int kind, REAL *out, const REAL *x, ptrdiff_t step, ptrdiff_t rows,
                                    ptrdiff_t columns) {
    VECTOR v[COLUMN_VECTORS];
    ptrdiff_t j = 0;
    for (; j + COLUMN_STRIP <= columns; j += COLUMN_STRIP) {
        NAME(strip)(kind, COLUMN_VECTORS, v, x + j, step, LANES, rows, WHOLE);
        UNROLL for (int k = 0; k < COLUMN_VECTORS; k++) NAME(store)(out + j + k * LANES, LANES, v[k]);
    }
    if (j < columns) {
        NAME(strip)(kind, COLUMN_VECTORS, v, x + j, step, LANES, rows, columns - j);
        for (int k = 0; j < columns; k++, j += LANES) NAME(store)(out + j, columns - j, v[k]);
    }
}

/* The lanes by halves; of extrema without NaN. */
ALWAYS_INLINE REAL NAME(across)(int kind, VECTOR v) {
    const int extremum = kind == MAX || kind == MIN;
    if (extremum && NAME(any)(v != v)) return (REAL)NAN;
    UNROLL for (int half = LANES / 2; half > 0; half /= 2) {
        VECTOR other = NAME(exchange)(v, half);
        v = extremum ? NAME(extreme)(kind, v, other) : NAME(combine)(kind, v, other);
    }
    return v[0];
}

/* A short row in four parts, so that several additions are in flight. */
ALWAYS_INLINE REAL NAME(short_row)(int kind, const REAL *x, ptrdiff_t n) {
    REAL parts[4];
    UNROLL for (int k = 0; k < 4; k++) parts[k] = NAME(identity)(kind);
    for (ptrdiff_t j = 0; j < n; j += 4)
        UNROLL for (int k = 0; k < 4; k++)
            if (j + k < n) {
                const REAL value = x[j + k];
                parts[k] = NAME(combine_two)(kind, parts[k], kind == SUM_OF_SQUARES ? value * value : value);
            }
    return NAME(combine_two)(kind, NAME(combine_two)(kind, parts[0], parts[1]),
                             NAME(combine_two)(kind, parts[2], parts[3]));
}

ALWAYS_INLINE REAL NAME(row_of)(int kind, const REAL *x, ptrdiff_t n) {
    if (n <= SHORT) return NAME(short_row)(kind, x, n);
    VECTOR v[ROW_VECTORS];
    ptrdiff_t j = n / STRIP * STRIP;
    const int whole = j > 0, left = j < n;
    if (whole) {
        const int apart = n >= APART;
        const ptrdiff_t rows = n / STRIP;
        NAME(strip)(kind, ROW_VECTORS, v, x, apart ? LANES : STRIP, apart ? rows * LANES : LANES, rows, WHOLE);
        UNROLL for (int half = ROW_VECTORS / 2; half > 0; half /= 2)
            UNROLL for (int k = 0; k < half; k++) v[k] = NAME(combine)(kind, v[k], v[k + half]);
    }
    if (left) {
        VECTOR rest = NAME(take)(kind, x, j, n);
        for (j += LANES; j < n; j += LANES) rest = NAME(combine)(kind, rest, NAME(take)(kind, x, j, n));
        v[0] = whole ? NAME(combine)(kind, v[0], rest) : rest;
    }
    return NAME(across)(kind, v[0]);
}

/* The reductions of ROW_VECTORS rows. */
ALWAYS_INLINE void NAME(rows_together)(int kind, REAL *out, const REAL *x, ptrdiff_t step, ptrdiff_t n) {
    VECTOR v[ROW_VECTORS];
    const ptrdiff_t whole = n / LANES * LANES;
    NAME(strip)(kind, ROW_VECTORS, v, x, LANES, step, n / LANES, WHOLE);
    if (whole < n)
        UNROLL for (int k = 0; k < ROW_VECTORS; k++)
            v[k] = NAME(combine)(kind, v[k], NAME(take)(kind, x + k * step, whole, n));
    UNROLL for (int k = 0; k < ROW_VECTORS; k++) out[k] = NAME(across)(kind, v[k]);
}

ALWAYS_INLINE void NAME(rows_of)(int kind, REAL *out, const REAL *x, ptrdiff_t step, ptrdiff_t rows,
                                 ptrdiff_t columns) {
    ptrdiff_t i = 0;
    if (SHORT < columns && columns < TOGETHER)
        for (; i + ROW_VECTORS <= rows; i += ROW_VECTORS)
            NAME(rows_together)(kind, out + i, x + i * step, step, columns);
    for (; i < rows; i++) out[i] = NAME(row_of)(kind, x + i * step, columns);
}

#define REDUCTION(name, kind)                                                                            \
    MAYBE_UNUSED void NAME(name##_columns)(void *out, const void *x, ptrdiff_t step, ptrdiff_t rows,     \
                                           ptrdiff_t columns) {                                          \
        NAME(columns_of)(kind, out, x, step, rows, columns);                                             \
    }                                                                                                    \
    MAYBE_UNUSED void NAME(name##_rows)(void *out, const void *x, ptrdiff_t step, ptrdiff_t rows,        \
                                        ptrdiff_t columns) {                                             \
        NAME(rows_of)(kind, out, x, step, rows, columns);                                                \
    }

REDUCTION(sum, SUM)
REDUCTION(sum_of_squares, SUM_OF_SQUARES)
REDUCTION(prod, PROD)
REDUCTION(max, MAX)
REDUCTION(min, MIN)

#undef ELEMENTS
#undef WHOLE
#undef STRIP
#undef COLUMN_STRIP
#undef REDUCTION
#undef REAL
#undef VECTOR
#undef LANES
#undef MASK
#undef NAME
