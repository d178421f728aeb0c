/* Over the lanes of one vector, and of the vectors of a row. A template: the including file defines REAL, VECTOR,
 * LANES and NAME(f).
 *
 * Lanes are combined by halves, whole vectors at a time: a chain of LANES dependent operations would take longer
 * than a short row.
 */

/* Lane k of the result is lane k ^ distance: one shuffle. */
ALWAYS_INLINE VECTOR NAME(exchange)(VECTOR v, int distance) {
    VECTOR exchanged;
    UNROLL for (int lane = 0; lane < LANES; lane++) exchanged[lane] = v[lane ^ distance];
    return exchanged;
}

ALWAYS_INLINE REAL NAME(lane_sum)(VECTOR v) {
    UNROLL for (int half = LANES / 2; half > 0; half /= 2) v += NAME(exchange)(v, half);
    return v[0];
}

ALWAYS_INLINE REAL NAME(lane_max)(VECTOR v) {
    UNROLL for (int half = LANES / 2; half > 0; half /= 2) v = NAME(max)(v, NAME(exchange)(v, half));
    return v[0];
}

/* The largest of n elements; a NaN is passed over. */
ALWAYS_INLINE REAL NAME(row_max)(const REAL *x, ptrdiff_t n) {
    VECTOR largest = (VECTOR){0} - (REAL)INFINITY;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        VECTOR v = NAME(load)(x + i, n - i, -(REAL)INFINITY);
        largest = NAME(max)(v, largest);
    }
    return NAME(lane_max)(largest);
}
