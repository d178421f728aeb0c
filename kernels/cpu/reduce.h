/* Reductions of reduce.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64.
 *
 * For each reduction f below
 *   f_columns(out, x, step, rows, columns)   out[j] = the reduction of x[i * step + j] over i < rows,
 *   f_rows(out, x, step, rows, columns)      out[i] = that of x[i * step + j] over j < columns;
 * rows (columns) >= 1. A strip of columns is reduced down all rows in registers. A long row is seen as rows of
 * a strip's width itself, whose results are reduced to one at the end.
 *
 * Error of sums. BLOCK rows are added one after another, the sums of blocks in pairs, of pairs again in pairs,
 * as bits are carried in a counter. So an element passes BLOCK - 1 + log2(rows / BLOCK) = 4 + log2(rows)
 * additions. Along a row of n elements, rows is n / STRIP; one addition, of what is left of whole strips, and
 * log2(STRIP) follow: 5 + log2(n) in all. reduce.pyx adds the sums of chunks in the same way: fewer than STRIP
 * of them take up to 4 additions more than their logarithm, so 9 + log2(n) along a long row; and 8 + log2(rows)
 * down many rows. The bound of the error is that times the rounding unit and the sum of magnitudes. NumPy's
 * pairwise sum has 11 + log2(n) along a row (blocks of 128 in 8 sums), and rows - 1 down columns.
 */

#define VECTORS 8 /* of a strip: with what is read, 9 of 16 registers */
#define STRIP (VECTORS * LANES)

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

/* The reduction of `rows` rows of a strip, of which `columns` are there: VECTORS vectors. */
ALWAYS_INLINE void NAME(strip)(int kind, VECTOR *result, const REAL *x, ptrdiff_t step, ptrdiff_t rows,
                               ptrdiff_t columns) {
    enum { BLOCK = 8, LEVELS = 60 };
    VECTOR waiting[LEVELS][VECTORS]; /* level k: the result of 2^k blocks, until there is a second */
    VECTOR v[VECTORS];
    ptrdiff_t blocks = 0; /* bit k: whether level k is taken */
    for (ptrdiff_t begin = 0; begin < rows; begin += BLOCK, blocks++) {
        const ptrdiff_t end = begin + BLOCK < rows ? begin + BLOCK : rows;
        UNROLL for (int k = 0; k < VECTORS; k++)
            v[k] = NAME(take)(kind, x + begin * step, k * LANES, columns);
        for (ptrdiff_t i = begin + 1; i < end; i++)
            UNROLL for (int k = 0; k < VECTORS; k++)
                v[k] = NAME(combine)(kind, v[k], NAME(take)(kind, x + i * step, k * LANES, columns));
        int level = 0;
        for (; blocks >> level & 1; level++)
            UNROLL for (int k = 0; k < VECTORS; k++) v[k] = NAME(combine)(kind, waiting[level][k], v[k]);
        UNROLL for (int k = 0; k < VECTORS; k++) waiting[level][k] = v[k];
    }
    int level = 0;
    while (!(blocks >> level & 1)) level++;
    UNROLL for (int k = 0; k < VECTORS; k++) result[k] = waiting[level][k];
    for (level++; blocks >> level; level++)
        if (blocks >> level & 1)
            UNROLL for (int k = 0; k < VECTORS; k++)
                result[k] = NAME(combine)(kind, waiting[level][k], result[k]);
}

ALWAYS_INLINE void NAME(columns_of)(int kind, REAL *out, const REAL *x, ptrdiff_t step, ptrdiff_t rows,
                                    ptrdiff_t columns) {
    VECTOR v[VECTORS];
    ptrdiff_t j = 0;
    for (; j + STRIP <= columns; j += STRIP) {
        NAME(strip)(kind, v, x + j, step, rows, STRIP);
        UNROLL for (int k = 0; k < VECTORS; k++) NAME(store)(out + j + k * LANES, LANES, v[k]);
    }
    if (j < columns) {
        NAME(strip)(kind, v, x + j, step, rows, columns - j);
        for (int k = 0; j < columns; k++, j += LANES) NAME(store)(out + j, columns - j, v[k]);
    }
}

/* The lanes by halves. */
ALWAYS_INLINE REAL NAME(across)(int kind, VECTOR v) {
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int lane = 0; lane < half; lane++)
            v[lane] = NAME(combine_two)(kind, v[lane], v[lane + half]);
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
    if (n <= 16) return NAME(short_row)(kind, x, n);
    VECTOR v[VECTORS];
    ptrdiff_t j = n / STRIP * STRIP;
    const int whole = j > 0, left = j < n;
    if (whole) {
        NAME(strip)(kind, v, x, STRIP, n / STRIP, STRIP);
        UNROLL for (int half = VECTORS / 2; half > 0; half /= 2)
            UNROLL for (int k = 0; k < half; k++) v[k] = NAME(combine)(kind, v[k], v[k + half]);
    }
    if (left) {
        VECTOR rest = NAME(take)(kind, x, j, n);
        for (j += LANES; j < n; j += LANES) rest = NAME(combine)(kind, rest, NAME(take)(kind, x, j, n));
        v[0] = whole ? NAME(combine)(kind, v[0], rest) : rest;
    }
    return NAME(across)(kind, v[0]);
}

#define REDUCTION(name, kind)                                                                            \
    MAYBE_UNUSED void NAME(name##_columns)(void *out, const void *x, ptrdiff_t step, ptrdiff_t rows,     \
                                           ptrdiff_t columns) {                                          \
        NAME(columns_of)(kind, out, x, step, rows, columns);                                             \
    }                                                                                                    \
    MAYBE_UNUSED void NAME(name##_rows)(void *out, const void *x, ptrdiff_t step, ptrdiff_t rows,        \
                                        ptrdiff_t columns) {                                             \
        for (ptrdiff_t i = 0; i < rows; i++)                                                             \
            ((REAL *)out)[i] = NAME(row_of)(kind, (const REAL *)x + i * step, columns);                  \
    }

REDUCTION(sum, SUM)
REDUCTION(sum_of_squares, SUM_OF_SQUARES)
REDUCTION(prod, PROD)
REDUCTION(max, MAX)
REDUCTION(min, MIN)

#undef VECTORS
#undef STRIP
#undef REDUCTION
#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
