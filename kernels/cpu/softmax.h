/* One row of softmax.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64 (log_f32 is logf).
 *
 * A row is read three times, from cache after the first: its maximum, its sum of exponentials, its results.
 * What does not fill a vector is padded with the element that changes nothing: -inf for the maximum and for
 * the sum of exponentials, 0 for the other sums.
 */

/* The lanes are summed, and compared, by halves: a chain of LANES dependent additions would take longer
   than a short row. */
ALWAYS_INLINE REAL NAME(lane_sum)(VECTOR v) {
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int lane = 0; lane < half; lane++) v[lane] += v[lane + half];
    return v[0];
}

ALWAYS_INLINE REAL NAME(lane_max)(VECTOR v) {
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int lane = 0; lane < half; lane++)
            v[lane] = v[lane] > v[lane + half] ? v[lane] : v[lane + half];
    return v[0];
}

ALWAYS_INLINE REAL NAME(row_max)(const REAL *x, ptrdiff_t n) {
    VECTOR largest = (VECTOR){0} - (REAL)INFINITY;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        VECTOR v = NAME(load)(x + i, n - i, -(REAL)INFINITY);
        largest = NAME(select)(v > largest, v, largest); /* a NaN is passed over here; the sum finds it */
    }
    return NAME(lane_max)(largest);
}

MAYBE_UNUSED void NAME(softmax_row)(REAL *out, const REAL *x, ptrdiff_t n) {
    REAL max = NAME(row_max)(x, n);
    VECTOR sums = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        VECTOR e = NAME(exp_nonpositive)(NAME(load)(x + i, n - i, -(REAL)INFINITY) - max);
        NAME(store)(out + i, n - i, e);
        sums += e;
    }
    REAL scale = 1 / NAME(lane_sum)(sums); /* the sum is at least 1 */
    for (ptrdiff_t i = 0; i < n; i += LANES)
        NAME(store)(out + i, n - i, NAME(load)(out + i, n - i, 0) * scale);
}

MAYBE_UNUSED void NAME(log_softmax_row)(REAL *out, const REAL *x, ptrdiff_t n) {
    REAL max = NAME(row_max)(x, n);
    VECTOR sums = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES)
        sums += NAME(exp_nonpositive)(NAME(load)(x + i, n - i, -(REAL)INFINITY) - max);
    REAL log_sum = NAME(log)(NAME(lane_sum)(sums));
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

#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
