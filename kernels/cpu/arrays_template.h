/* For arrays.h, a template: the including file defines REAL, VECTOR, LANES and NAME(f), as for lanes.h. */

#include "lanes.h"

/* Nearly always all x allow the shorter formula; to find that out takes a small part of what it saves. */
NEVER_INLINE REAL NAME(exp_array)(REAL *x, ptrdiff_t n) {
    VECTOR sums = {0}, largest = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        VECTOR a = NAME(abs)(NAME(load)(x + i, n - i, 0));
        largest = NAME(max)(a, largest);
    }
    const int usual = NAME(usual_for_exp)(NAME(lane_max)(largest));
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        VECTOR v = NAME(load)(x + i, n - i, 0), e = usual ? NAME(exp_usual)(v) : NAME(exp)(v);
        NAME(store)(x + i, n - i, e);
        if (n - i < LANES) /* what stands past the end is no part of the sum */
            for (int lane = 0; lane < LANES; lane++) e[lane] = lane < n - i ? e[lane] : 0;
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
