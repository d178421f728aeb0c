/* For arrays.h, a template: the including file defines REAL, VECTOR, LANES and NAME(f), as for lanes.h. */

#include "lanes.h"

NEVER_INLINE REAL NAME(exp_array)(REAL *x, ptrdiff_t n) {
    VECTOR sums = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        VECTOR e = NAME(exp)(NAME(load)(x + i, n - i, -(REAL)INFINITY));
        NAME(store)(x + i, n - i, e);
        sums += e;
    }
    return NAME(lane_sum)(sums);
}

/* Four sums: each waits for itself alone. */
NEVER_INLINE REAL NAME(dot_array)(const REAL *x, const REAL *y, ptrdiff_t n) {
    VECTOR sums[4] = {0};
    ptrdiff_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        UNROLL for (int k = 0; k < 4; k++)
            sums[k] += NAME(load)(x + i + k * LANES, LANES, 0) * NAME(load)(y + i + k * LANES, LANES, 0);
    for (; i < n; i += LANES) sums[0] += NAME(load)(x + i, n - i, 0) * NAME(load)(y + i, n - i, 0);
    return NAME(lane_sum)((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
