/* Elementwise kernels of elementwise.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64.
 *
 * Each function works on n contiguous elements, a vector at a time. `out` may be an input.
 */

#define FOR_VECTORS(i, count, n) for (ptrdiff_t i = 0, count = (n); count > 0; i += LANES, count -= LANES)

#define UNARY(name, formula)                                                      \
    MAYBE_UNUSED void NAME(name)(REAL *out, const REAL *input, ptrdiff_t n) {     \
        FOR_VECTORS(i, count, n) {                                                \
            VECTOR x = NAME(load)(input + i, count, 0);                           \
            NAME(store)(out + i, count, formula);                                 \
        }                                                                         \
    }

/* A gradient: g is the gradient of the result, v the saved result or input. */
#define GRADIENT(name, formula)                                                                   \
    MAYBE_UNUSED void NAME(name)(REAL *out, const REAL *grad, const REAL *saved, ptrdiff_t n) {   \
        FOR_VECTORS(i, count, n) {                                                                \
            VECTOR g = NAME(load)(grad + i, count, 0);                                            \
            VECTOR v = NAME(load)(saved + i, count, 0);                                           \
            NAME(store)(out + i, count, formula);                                                 \
        }                                                                                         \
    }

/* 1 / (1 + exp(-x)): exp of what is not positive cannot overflow, and one division serves both signs. */
ALWAYS_INLINE VECTOR NAME(logistic)(VECTOR x) {
    VECTOR e = NAME(exp_nonpositive)(-NAME(abs)(x));
    return NAME(select)(x < 0, e, (VECTOR){0} + 1) / (1 + e);
}

/* The same with its derivative s (1 - s), as e / (1 + e)^2: where s is near 1, 1 - s has lost its digits. */
ALWAYS_INLINE VECTOR NAME(logistic_and_slope)(VECTOR x, VECTOR *slope) {
    VECTOR e = NAME(exp_nonpositive)(-NAME(abs)(x));
    VECTOR larger = 1 / (1 + e); /* the larger of s and 1 - s */
    *slope = e * larger * larger;
    return NAME(select)(x < 0, e * larger, larger);
}

/* Phi(x), given e = exp(-x^2 / 2). */
ALWAYS_INLINE VECTOR NAME(normal_cdf)(VECTOR x, VECTOR e) {
    VECTOR tail = NAME(normal_tail)(NAME(abs)(x), e);
    return NAME(select)(x < 0, tail, 1 - tail);
}

ALWAYS_INLINE VECTOR NAME(gelu_formula)(VECTOR x) {
    return x * NAME(normal_cdf)(x, NAME(exp_nonpositive)(x * x * (REAL)-0.5));
}

/* d/dx x Phi(x) = Phi(x) + x phi(x) */
ALWAYS_INLINE VECTOR NAME(gelu_derivative)(VECTOR x) {
    const REAL inv_sqrt_2pi = (REAL)0.39894228040143267794;
    VECTOR e = NAME(exp_nonpositive)(x * x * (REAL)-0.5);
    return NAME(normal_cdf)(x, e) + x * e * inv_sqrt_2pi;
}

/* 0.5 (1 + tanh(u)) is the logistic function of 2 u, which keeps its digits where tanh(u) is near -1. */
#define GELU_SCALE (REAL)1.5957691216057307117 /* 2 sqrt(2 / pi) */
#define GELU_CUBIC (REAL)0.044715

ALWAYS_INLINE VECTOR NAME(gelu_tanh_formula)(VECTOR x) {
    return x * NAME(logistic)(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
}

ALWAYS_INLINE VECTOR NAME(gelu_tanh_derivative)(VECTOR x) {
    /* Where x^2 passes 1e8 the logistic function is 0 or 1; bounded, it is never 0 * infinity. */
    VECTOR square = x * x;
    square = NAME(select)(square < 1e8f, square, (VECTOR){0} + 1e8f);
    VECTOR slope, s = NAME(logistic_and_slope)(GELU_SCALE * (x + GELU_CUBIC * x * square), &slope);
    return s + x * slope * (GELU_SCALE * (1 + 3 * GELU_CUBIC * square));
}

ALWAYS_INLINE VECTOR NAME(silu_derivative)(VECTOR x) {
    VECTOR slope, s = NAME(logistic_and_slope)(x, &slope);
    return s + x * slope;
}

UNARY(relu_array, NAME(select)(x < 0, (VECTOR){0}, x)) /* NaN stays */
UNARY(exp_array, NAME(exp)(x))
UNARY(erf_array, NAME(erf)(x))
UNARY(sigmoid_array, NAME(logistic)(x))
UNARY(tanh_array, NAME(tanh)(x))
UNARY(silu_array, x * NAME(logistic)(x))
UNARY(gelu_array, NAME(gelu_formula)(x))
UNARY(gelu_tanh_array, NAME(gelu_tanh_formula)(x))

GRADIENT(relu_grad_array, NAME(select)(v > 0, g, (VECTOR){0}))
GRADIENT(sigmoid_grad_array, g * v * (1 - v))
GRADIENT(tanh_grad_array, g * (1 - v * v))
GRADIENT(silu_grad_array, g * NAME(silu_derivative)(v))
GRADIENT(gelu_grad_array, g * NAME(gelu_derivative)(v))
GRADIENT(gelu_tanh_grad_array, g * NAME(gelu_tanh_derivative)(v))

#undef FOR_VECTORS
#undef UNARY
#undef GRADIENT
#undef GELU_SCALE
#undef GELU_CUBIC
#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
