/* One step of an optimizer for a stretch of one parameter, a template: the including file defines
 *   REAL      the element type,
 *   NAME(f)   the name of f for this type: f_f32 or f_f64.
 *
 * Each function works on the elements [begin, end) of the arrays of a slot (optim.pyx). The compiler makes
 * vectors of the loops; what a hyperparameter switches off is a constant in them.
 */

ALWAYS_INLINE void NAME(adam_loop)(
    const Slot *slot, ptrdiff_t begin, ptrdiff_t end, const Factors *f, int shrinks, int has_l2
) {
    REAL *restrict param = slot->param, *restrict exp_avg = slot->state, *restrict exp_avg_sq = slot->state2;
    const REAL *restrict grad = slot->grad;
    const REAL new1 = (REAL)(1 - f->beta1), beta2 = (REAL)f->beta2, new2 = (REAL)(1 - f->beta2);
    const REAL shrink = (REAL)f->shrink, l2 = (REAL)f->l2, eps = (REAL)f->eps;
    const REAL step_size = (REAL)slot->step_size, sqrt_correction = (REAL)slot->sqrt_correction;
    for (ptrdiff_t i = begin; i < end; i++) {
        const REAL p = shrinks ? shrink * param[i] : param[i];
        const REAL g = has_l2 ? grad[i] + l2 * p : grad[i];
        const REAL m = exp_avg[i] + new1 * (g - exp_avg[i]);
        const REAL v = beta2 * exp_avg_sq[i] + new2 * g * g;
        exp_avg[i] = m;
        exp_avg_sq[i] = v;
        param[i] = p - step_size * m / (NAME(sqrt)(v) / sqrt_correction + eps);
    }
}

/* Without decay nothing is multiplied: an infinite parameter stays one. */
MAYBE_UNUSED void NAME(adam_slot)(const Slot *slot, ptrdiff_t begin, ptrdiff_t end, const Factors *f) {
    if (f->shrink != 1)
        NAME(adam_loop)(slot, begin, end, f, 1, 0);
    else if (f->l2 != 0)
        NAME(adam_loop)(slot, begin, end, f, 0, 1);
    else
        NAME(adam_loop)(slot, begin, end, f, 0, 0);
}

ALWAYS_INLINE void NAME(momentum_loop)(
    const Slot *slot, ptrdiff_t begin, ptrdiff_t end, const Factors *f, int decays, int starts
) {
    REAL *restrict param = slot->param, *restrict velocity = slot->state;
    const REAL *restrict grad = slot->grad;
    const REAL lr = (REAL)f->lr, decay = (REAL)f->l2;
    const REAL momentum = (REAL)f->momentum, new_share = (REAL)f->new_share;
    const int nesterov = f->nesterov;
    for (ptrdiff_t i = begin; i < end; i++) {
        const REAL g = decays ? grad[i] + decay * param[i] : grad[i];
        const REAL v = starts ? g : momentum * velocity[i] + new_share * g;
        velocity[i] = v;
        param[i] -= lr * (nesterov ? g + momentum * v : v);
    }
}

ALWAYS_INLINE void NAME(sgd_loop)(
    const Slot *slot, ptrdiff_t begin, ptrdiff_t end, const Factors *f, int decays
) {
    REAL *restrict param = slot->param;
    const REAL *restrict grad = slot->grad;
    const REAL lr = (REAL)f->lr, decay = (REAL)f->l2;
    for (ptrdiff_t i = begin; i < end; i++) param[i] -= lr * (decays ? grad[i] + decay * param[i] : grad[i]);
}

/* Without a velocity there is no momentum; at the first step it becomes the gradient, whatever it held. */
MAYBE_UNUSED void NAME(sgd_slot)(const Slot *slot, ptrdiff_t begin, ptrdiff_t end, const Factors *f) {
    const int decays = f->l2 != 0;
    if (!slot->state)
        NAME(sgd_loop)(slot, begin, end, f, decays);
    else if (slot->starts)
        NAME(momentum_loop)(slot, begin, end, f, decays, 1);
    else
        NAME(momentum_loop)(slot, begin, end, f, decays, 0);
}

MAYBE_UNUSED void NAME(scale_slot)(const Slot *slot, ptrdiff_t begin, ptrdiff_t end, const Factors *f) {
    REAL *param = slot->param;
    const REAL factor = (REAL)f->lr;
    for (ptrdiff_t i = begin; i < end; i++) param[i] *= factor;
}

/* The squares are added in double, in eight chains. */
MAYBE_UNUSED double NAME(sum_of_squares)(const void *array, ptrdiff_t begin, ptrdiff_t end) {
    const REAL *x = array;
    double chains[8] = {0}, sum = 0;
    ptrdiff_t i = begin;
    for (; i + 8 <= end; i += 8)
        for (int chain = 0; chain < 8; chain++) chains[chain] += (double)x[i + chain] * (double)x[i + chain];
    for (; i < end; i++) sum += (double)x[i] * (double)x[i];
    for (int chain = 0; chain < 8; chain++) sum += chains[chain];
    return sum;
}

#undef REAL
#undef NAME
