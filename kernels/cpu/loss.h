/* Losses and their gradients for loss.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64,
 * and has included softmax.h, and with it lanes.h, for them.
 */

/* ---- several classes: rows of logits, or of their log-softmax, and one class for each ---- */

ALWAYS_INLINE REAL NAME(class_weight)(const ClassLoss *p, ptrdiff_t class) {
    return p->weight ? ((const REAL *)p->weight)[class] : 1;
}

/* sum(weight (x - max)) over all classes */
ALWAYS_INLINE REAL NAME(weighted_row_sum)(const ClassLoss *p, const REAL *x, REAL max) {
    const REAL *weight = p->weight;
    VECTOR sums = {0};
    for (ptrdiff_t i = 0; i < p->classes; i += LANES) {
        VECTOR v = NAME(load)(x + i, p->classes - i, max) - max;
        sums += weight ? v * NAME(load)(weight + i, p->classes - i, 0) : v;
    }
    return NAME(lane_sum)(sums);
}

/* A target's loss is (1 - smoothing) weight[target] nll[target] + smoothing / classes sum(weight nll), with
   nll = log(sum(exp(x))) - x. */
MAYBE_UNUSED void NAME(class_losses)(const ClassLoss *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    const ptrdiff_t n = p->classes;
    const REAL kept = (REAL)(1 - p->smoothing), spread = (REAL)(p->smoothing / (double)n);
    REAL max[MAX_WIDTH] __attribute__((aligned(VECTOR_BYTES))) = {0};
    REAL log_sums[MAX_WIDTH] __attribute__((aligned(VECTOR_BYTES))) = {0};
    double losses = 0, weights = 0;
    for (ptrdiff_t first = begin; first < end; first += TILE_ROWS) {
        const ptrdiff_t rows = end - first < TILE_ROWS ? end - first : TILE_ROWS;
        const REAL *x = (const REAL *)p->x + first * n;
        if (!p->is_log) NAME(log_sums_of_rows)(max, log_sums, x, n, rows);
        for (ptrdiff_t row = 0; row < rows; row++, x += n) {
            const int64_t target = p->target[first + row];
            REAL loss = 0;
            if (target != p->ignore_index) {
                const REAL weight = NAME(class_weight)(p, target);
                loss = kept * weight * (log_sums[row] - (x[target] - max[row]));
                if (spread != 0)
                    loss += spread * ((REAL)p->weight_sum * log_sums[row] - NAME(weighted_row_sum)(p, x, max[row]));
                losses += loss;
                weights += weight;
            }
            if (p->each) ((REAL *)p->out)[first + row] = loss;
        }
    }
    p->sums[2 * part] = losses;
    p->sums[2 * part + 1] = weights;
}

/* g ((1 - smoothing) weight[target] (p - onehot) + smoothing / classes (sum(weight) p - weight)), with
   p = softmax(x); of a log-softmax only the onehot's part. Of short rows the softmax is computed for some
   together, of a long one what it is to be multiplied by is taken into its scale. */
MAYBE_UNUSED void NAME(class_loss_grads)(const ClassLoss *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    const ptrdiff_t n = p->classes;
    const REAL *class_weight = p->weight, spread = (REAL)(p->smoothing / (double)n);
    const VECTOR zero = {0};
    for (ptrdiff_t row = begin; row < end; row++) {
        REAL *out = (REAL *)p->out + row * n;
        const REAL *x = (const REAL *)p->x + row * n;
        if (!p->is_log && n <= SHORT_ROW && (row - begin) % TILE_ROWS == 0)
            NAME(softmax_lines)(out, x, NULL, n, 1, 0, end - row < TILE_ROWS ? end - row : TILE_ROWS);
        const int64_t target = p->target[row];
        if (target == p->ignore_index || p->is_log)
            for (ptrdiff_t i = 0; i < n; i += LANES) NAME(store)(out + i, n - i, zero);
        if (target == p->ignore_index) continue;
        const REAL g = (REAL)(((const REAL *)p->grad)[p->each ? row : 0] / p->divisor);
        const REAL own = g * (REAL)(1 - p->smoothing) * NAME(class_weight)(p, target);
        if (!p->is_log) {
            const REAL sum = n <= SHORT_ROW ? 1 : NAME(row_exponentials)(out, x, n);
            const REAL all = (own + g * spread * (REAL)p->weight_sum) / sum, less = g * spread;
            for (ptrdiff_t i = 0; i < n; i += LANES) {
                VECTOR v = NAME(load)(out + i, n - i, 0) * all;
                if (less != 0) v -= class_weight ? less * NAME(load)(class_weight + i, n - i, 0) : zero + less;
                NAME(store)(out + i, n - i, v);
            }
        }
        out[target] -= own;
    }
}

/* ---- elementwise losses: their sum, each of them, and their slopes, times a scale ---- */

#define SUM_CHAINS 2

/* The weights of the elements from i on, where a loss has them: they repeat, and behind the last the first stand. */
ALWAYS_INLINE VECTOR NAME(weights_at)(const ElementLoss *p, ptrdiff_t i) {
    return p->weight ? NAME(load)((const REAL *)p->weight + i % p->period, LANES, 0) : (VECTOR){0};
}

/* `value` and `slope` are of x, t, delta and the weights w. Blocks are summed in vectors, and what they come to in
   double. */
#define ELEMENTWISE(name, value, slope)                                                                    \
    MAYBE_UNUSED double NAME(name##_sum)(const ElementLoss *p, ptrdiff_t begin, ptrdiff_t end) {           \
        const REAL *x_all = p->x, *t_all = p->target, delta = (REAL)p->delta;                              \
        (void)delta;                                                                                       \
        double total = 0;                                                                                  \
        for (ptrdiff_t block = begin; block < end; block += BLOCK) {                                       \
            const ptrdiff_t last = end - block < BLOCK ? end : block + BLOCK;                              \
            VECTOR sums[SUM_CHAINS] = {{0}};                                                               \
            ptrdiff_t i = block;                                                                           \
            for (; i + SUM_CHAINS * LANES <= last; i += SUM_CHAINS * LANES)                                \
                UNROLL for (int chain = 0; chain < SUM_CHAINS; chain++) {                                  \
                    VECTOR x = NAME(load)(x_all + i + chain * LANES, LANES, 0);                            \
                    VECTOR t = NAME(load)(t_all + i + chain * LANES, LANES, 0);                            \
                    VECTOR w = NAME(weights_at)(p, i + chain * LANES);                                     \
                    (void)w;                                                                               \
                    sums[chain] += value;                                                                  \
                }                                                                                          \
            for (; i < last; i += LANES) {                                                                 \
                VECTOR x = NAME(load)(x_all + i, last - i, 0), t = NAME(load)(t_all + i, last - i, 0);     \
                VECTOR w = NAME(weights_at)(p, i);                                                         \
                (void)w;                                                                                   \
                VECTOR v = value;                                                                          \
                for (int lane = 0; lane < LANES; lane++) v[lane] = lane < last - i ? v[lane] : 0;          \
                sums[0] += v;                                                                              \
            }                                                                                              \
            total += NAME(lane_sum)(sums[0] + sums[1]);                                                    \
        }                                                                                                  \
        return total;                                                                                      \
    }                                                                                                      \
    MAYBE_UNUSED void NAME(name##_each)(const ElementLoss *p, ptrdiff_t begin, ptrdiff_t end) {            \
        const REAL *x_all = p->x, *t_all = p->target, delta = (REAL)p->delta, scale = (REAL)p->scale;      \
        (void)delta;                                                                                       \
        for (ptrdiff_t i = begin; i < end; i += LANES) {                                                   \
            VECTOR x = NAME(load)(x_all + i, end - i, 0), t = NAME(load)(t_all + i, end - i, 0);           \
            VECTOR w = NAME(weights_at)(p, i);                                                             \
            (void)w;                                                                                       \
            NAME(store)((REAL *)p->out + i, end - i, scale * (value));                                     \
        }                                                                                                  \
    }                                                                                                      \
    MAYBE_UNUSED void NAME(name##_grad)(const ElementLoss *p, ptrdiff_t begin, ptrdiff_t end) {            \
        const REAL *x_all = p->x, *t_all = p->target, *grad = p->grad, delta = (REAL)p->delta;             \
        const int each = p->each;                                                                          \
        const REAL scale = (REAL)(each ? p->scale : p->scale * grad[0]);                                   \
        (void)delta;                                                                                       \
        for (ptrdiff_t i = begin; i < end; i += LANES) {                                                   \
            VECTOR x = NAME(load)(x_all + i, end - i, 0), t = NAME(load)(t_all + i, end - i, 0);           \
            VECTOR w = NAME(weights_at)(p, i);                                                             \
            (void)x, (void)w;                                                                              \
            VECTOR factor = each ? scale * NAME(load)(grad + i, end - i, 0) : (VECTOR){0} + scale;         \
            NAME(store)((REAL *)p->out + i, end - i, factor * (slope));                                    \
        }                                                                                                  \
    }

/* NaN for NaN. */
ALWAYS_INLINE VECTOR NAME(sign)(VECTOR x) {
    const VECTOR zero = {0}, one = zero + 1;
    return NAME(select)(x > 0, one, NAME(select)(x < 0, -one, x));
}

/* q (d - q / 2), where q is d = |x - t| limited to delta: a square below it, a line above. */
ALWAYS_INLINE VECTOR NAME(huber)(VECTOR x, VECTOR t, REAL delta) {
    const VECTOR distance = NAME(abs)(x - t), limit = (VECTOR){0} + delta;
    const VECTOR limited = NAME(select)(distance > limit, limit, distance);
    return limited * (distance - limited * (REAL)0.5);
}

/* x - t limited to delta on either side; NaN for NaN. */
ALWAYS_INLINE VECTOR NAME(huber_slope)(VECTOR x, VECTOR t, REAL delta) {
    const VECTOR difference = x - t, limit = (VECTOR){0} + delta;
    return NAME(select)(difference > limit, limit, NAME(select)(difference < -limit, -limit, difference));
}

/* max(x, 0) - x t + log(1 + exp(-|x|)) */
ALWAYS_INLINE VECTOR NAME(logit_loss)(VECTOR x, VECTOR t) {
    VECTOR e = NAME(exp_nonpositive)(-NAME(abs)(x));
    return NAME(max)((VECTOR){0}, x) - x * t + NAME(log1p_unit)(e);
}

/* 1 / (1 + exp(-x)) - t */
ALWAYS_INLINE VECTOR NAME(logit_slope)(VECTOR x, VECTOR t) {
    VECTOR e = NAME(exp_nonpositive)(-NAME(abs)(x));
    return NAME(select)(x < 0, e, (VECTOR){0} + 1) / (1 + e) - t;
}

/* (1 - t) x + (1 + (w - 1) t) log(1 + exp(-x)) */
ALWAYS_INLINE VECTOR NAME(weighted_logit_loss)(VECTOR x, VECTOR t, VECTOR w) {
    VECTOR e = NAME(exp_nonpositive)(-NAME(abs)(x));
    return (1 - t) * x + (1 + (w - 1) * t) * (NAME(max)((VECTOR){0}, -x) + NAME(log1p_unit)(e));
}

/* 1 - t - (1 + (w - 1) t) / (1 + exp(x)) */
ALWAYS_INLINE VECTOR NAME(weighted_logit_slope)(VECTOR x, VECTOR t, VECTOR w) {
    VECTOR e = NAME(exp_nonpositive)(-NAME(abs)(x));
    return 1 - t - (1 + (w - 1) * t) * NAME(select)(x < 0, (VECTOR){0} + 1, e) / (1 + e);
}

/* -(t log(x) + (1 - t) log(1 - x)), with logarithms of at least SMALLEST_LOG. Where 1 - x is rounded, its
   logarithm takes that back: log(1 - x) = log(u) x / (1 - u), u being 1 - x as it is rounded. */
ALWAYS_INLINE VECTOR NAME(probability_loss)(VECTOR x, VECTOR t) {
    const VECTOR least = (VECTOR){0} + SMALLEST_LOG, u = 1 - x, taken = 1 - u;
    VECTOR log_x = NAME(log)(x), log_other = NAME(select)(taken == 0, -x, NAME(log)(u) * (x / taken));
    log_x = NAME(select)(log_x < least, least, log_x);
    log_other = NAME(select)(log_other < least, least, log_other);
    return -(t * log_x + (1 - t) * log_other);
}

/* (x - t) / (x (1 - x)), whose divisor is at least 1e-12 */
ALWAYS_INLINE VECTOR NAME(probability_slope)(VECTOR x, VECTOR t) {
    const VECTOR least = (VECTOR){0} + (REAL)1e-12, variance = x * (1 - x);
    return (x - t) / NAME(select)(variance < least, least, variance);
}

/* t (log(t) - x), and -t x where t is 0 */
ALWAYS_INLINE VECTOR NAME(divergence)(VECTOR x, VECTOR t) {
    return NAME(select)(t == 0, t, t * NAME(log)(t)) - t * x;
}

ELEMENTWISE(mse_loss, (x - t) * (x - t), 2 * (x - t))
ELEMENTWISE(l1_loss, NAME(abs)(x - t), NAME(sign)(x - t))
ELEMENTWISE(huber_loss, NAME(huber)(x, t, delta), NAME(huber_slope)(x, t, delta))
ELEMENTWISE(binary_cross_entropy, NAME(probability_loss)(x, t), NAME(probability_slope)(x, t))
ELEMENTWISE(binary_cross_entropy_with_logits, NAME(logit_loss)(x, t), NAME(logit_slope)(x, t))
ELEMENTWISE(kl_div, NAME(divergence)(x, t), -t)
ELEMENTWISE(kl_div_of_logs, NAME(exp)(t) * (t - x), -NAME(exp)(t))
ELEMENTWISE(weighted_logits_loss, NAME(weighted_logit_loss)(x, t, w), NAME(weighted_logit_slope)(x, t, w))

#undef ELEMENTWISE
#undef SUM_CHAINS
#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
