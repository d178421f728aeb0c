/* Functions of elementwise.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64 (fabs_f32 is fabsf).
 *
 * Each works on n contiguous elements: name_array(out, inputs, numbers, n), where `inputs` points to the
 * addresses of up to four arrays; x, y, z and w below are their elements. `out` may be one of the inputs.
 */

#include <stdint.h>

#include "vector_log.h"
#include "vector_sin.h"

/* A cheap function, an expression in x, y, z and w: the compiler makes vectors of it. The pragma tells it that
   no element depends on the one before, wherever `out` lies. In a long array the elements before the first multiple
   of a vector's bytes are computed first, so that no vector is written across two cache lines: into NumPy's arrays,
   which begin in the middle of one, -x then takes 9 % less. */
#define fabs_f32 fabsf
#define fabs_f64 fabs
#define sqrt_f32 sqrtf
#define sqrt_f64 sqrt
#define LONG 1024
#define UNALIGNED (n < LONG ? 0 : (-(uintptr_t)to & 31) / sizeof *to)
#define EACH                                                          \
    for (ptrdiff_t i = 0, end = UNALIGNED; i < n; end = n)            \
        _Pragma("GCC ivdep") for (; i < end; i++)

/* The same in fewer, longer steps: the end of a row of some hundred elements does not come as a surprise then, which
   takes as long as dozens of them. */
#define EACH_OF_ROW                                                   \
    for (ptrdiff_t i = 0, end = UNALIGNED; i < n; end = n)            \
        _Pragma("GCC ivdep") _Pragma("GCC unroll 4") for (; i < end; i++)

/* Such a function waits for memory, and does so a little less with vectors of 256 bits: on Zen 4, x * y of 1M
   elements takes 4 % less time than with 512. Nor does it then compare by way of mask registers, in more
   instructions. */
#ifdef __AVX512F__
#define CHEAP_TARGET __attribute__((target("no-avx512f")))
#else
#define CHEAP_TARGET
#endif
#define CHEAP_KERNEL MAYBE_UNUSED CHEAP_TARGET

#define CHEAP_1(name, expression)                                                                          \
    CHEAP_KERNEL void NAME(name##_array)(void *out, const void *const *inputs, int numbers, ptrdiff_t n) { \
        REAL *to = out;                                                                                    \
        const REAL *xs = inputs[0];                                                                        \
        EACH {                                                                                             \
            const REAL x = xs[i];                                                                          \
            to[i] = expression;                                                                            \
        }                                                                                                  \
    }

/* Of two inputs, one may be a number: bit k of `numbers` is set if input k is. */
#define PAIR(name, OUT, expression)                                                                        \
    CHEAP_TARGET ALWAYS_INLINE OUT NAME(name##_of)(REAL x, REAL y) { return expression; }                  \
    CHEAP_KERNEL void NAME(name##_array)(void *out, const void *const *inputs, int numbers, ptrdiff_t n) { \
        OUT *to = out;                                                                                     \
        const REAL *xs = inputs[0], *ys = inputs[1];                                                       \
        if (numbers == 1) {                                                                                \
            const REAL x = *xs;                                                                            \
            EACH_OF_ROW to[i] = NAME(name##_of)(x, ys[i]);                                                 \
        } else if (numbers == 2) {                                                                         \
            const REAL y = *ys;                                                                            \
            EACH_OF_ROW to[i] = NAME(name##_of)(xs[i], y);                                                 \
        } else {                                                                                           \
            EACH_OF_ROW to[i] = NAME(name##_of)(xs[i], ys[i]);                                             \
        }                                                                                                  \
    }

#define CHEAP_2(name, expression) PAIR(name, REAL, expression)
#define COMPARISON(name, expression) PAIR(name, unsigned char, expression)

#define CHEAP_3(name, X_TYPE, expression)                                                                  \
    CHEAP_KERNEL void NAME(name##_array)(void *out, const void *const *inputs, int numbers, ptrdiff_t n) { \
        REAL *to = out;                                                                                    \
        const X_TYPE *xs = inputs[0];                                                                      \
        const REAL *ys = inputs[1], *zs = inputs[2];                                                       \
        EACH {                                                                                             \
            const X_TYPE x = xs[i];                                                                        \
            const REAL y = ys[i], z = zs[i];                                                               \
            to[i] = expression;                                                                            \
        }                                                                                                  \
    }

/* Of one or two arrays and two numbers, z and w. */
#define LIMITED_1(name, expression)                                                                        \
    CHEAP_KERNEL void NAME(name##_array)(void *out, const void *const *inputs, int numbers, ptrdiff_t n) { \
        REAL *to = out;                                                                                    \
        const REAL *xs = inputs[0], z = *(const REAL *)inputs[1], w = *(const REAL *)inputs[2];            \
        EACH {                                                                                             \
            const REAL x = xs[i];                                                                          \
            to[i] = expression;                                                                            \
        }                                                                                                  \
    }

#define LIMITED_2(name, expression)                                                                        \
    CHEAP_KERNEL void NAME(name##_array)(void *out, const void *const *inputs, int numbers, ptrdiff_t n) { \
        REAL *to = out;                                                                                    \
        const REAL *xs = inputs[0], *ys = inputs[1];                                                       \
        const REAL z = *(const REAL *)inputs[2], w = *(const REAL *)inputs[3];                             \
        EACH {                                                                                             \
            const REAL x = xs[i], y = ys[i];                                                               \
            to[i] = expression;                                                                            \
        }                                                                                                  \
    }

/* A costly function, an expression in the vectors x, y and z. Its long chain of dependent instructions leaves
   the units idle, so TOGETHER vectors are computed at a time, their instructions interleaved. Each takes three
   or four of 16 registers; the constants come from memory. */
#define TOGETHER 4

#define COSTLY_STEPS(formula, ARGUMENTS, end)                                                       \
    for (; i + TOGETHER * LANES <= end; i += TOGETHER * LANES) {                                    \
        VECTOR v[TOGETHER];                                                                         \
        UNROLL for (int k = 0; k < TOGETHER; k++) v[k] = formula(ARGUMENTS(i + k * LANES, LANES));  \
        UNROLL for (int k = 0; k < TOGETHER; k++) NAME(store)(to + i + k * LANES, LANES, v[k]);     \
    }

#define COSTLY(name, ARGUMENTS)                                                                            \
    MAYBE_UNUSED void NAME(name##_array)(void *out, const void *const *inputs, int numbers, ptrdiff_t n) { \
        REAL *to = out;                                                                                    \
        ptrdiff_t i = 0;                                                                                   \
        COSTLY_STEPS(NAME(name##_formula), ARGUMENTS, n)                                                   \
        for (; i < n; i += LANES) NAME(store)(to + i, n - i, NAME(name##_formula)(ARGUMENTS(i, n - i)));   \
    }

/* A costly function of one input with a shorter formula for usual x, say those for which exp does not overflow.
   A piece of x goes that way if all of it is usual, as it nearly always is. There both give the same bits. */
#define COSTLY_IF_UNUSUAL(name, usual)                                                                     \
    ALWAYS_INLINE VECTOR NAME(name##_formula)(VECTOR x) { return NAME(name)(x); }                          \
    MAYBE_UNUSED void NAME(name##_array)(void *out, const void *const *inputs, int numbers, ptrdiff_t n) { \
        enum { PIECE = 32 * TOGETHER * LANES };                                                            \
        const REAL *xs = inputs[0];                                                                        \
        REAL *to = out;                                                                                    \
        for (ptrdiff_t i = 0; i < n;) {                                                                    \
            const ptrdiff_t end = n - i < PIECE ? n : i + PIECE;                                           \
            int unusual = 0;                                                                               \
            for (ptrdiff_t j = i; j < end; j++) unusual |= !NAME(usual)(xs[j]);                            \
            if (!unusual) {                                                                                \
                COSTLY_STEPS(NAME(name##_usual), ONE, end)                                                 \
            }                                                                                              \
            for (; i < end; i += LANES)                                                                    \
                NAME(store)(to + i, end - i, NAME(name##_formula)(ONE(i, end - i)));                       \
        }                                                                                                  \
    }

#define VECTOR_OF(k, i, count) NAME(load)((const REAL *)inputs[k] + (i), count, 0)
#define ONE(i, count) VECTOR_OF(0, i, count)
#define TWO(i, count) VECTOR_OF(0, i, count), VECTOR_OF(1, i, count)

#define COSTLY_1(name, expression)                                              \
    ALWAYS_INLINE VECTOR NAME(name##_formula)(VECTOR x) { return expression; }  \
    COSTLY(name, ONE)

#define COSTLY_2(name, expression)                                                       \
    ALWAYS_INLINE VECTOR NAME(name##_formula)(VECTOR x, VECTOR y) { return expression; } \
    COSTLY(name, TWO)

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

ALWAYS_INLINE VECTOR NAME(gelu_of)(VECTOR x) {
    return x * NAME(normal_cdf)(x, NAME(exp_nonpositive)(x * x * (REAL)-0.5));
}

/* x Phi(x), and d/dx x Phi(x) = Phi(x) + x phi(x) */
ALWAYS_INLINE VECTOR NAME(gelu_and_slope)(VECTOR x, VECTOR *slope) {
    const REAL inv_sqrt_2pi = (REAL)0.39894228040143267794;
    VECTOR e = NAME(exp_nonpositive)(x * x * (REAL)-0.5), cdf = NAME(normal_cdf)(x, e);
    *slope = cdf + x * e * inv_sqrt_2pi;
    return x * cdf;
}

ALWAYS_INLINE VECTOR NAME(gelu_derivative)(VECTOR x) {
    VECTOR slope;
    NAME(gelu_and_slope)(x, &slope);
    return slope;
}

/* 0.5 (1 + tanh(u)) is the logistic function of 2 u, which keeps its digits where tanh(u) is near -1. */
#define GELU_SCALE (REAL)1.5957691216057307117 /* 2 sqrt(2 / pi) */
#define GELU_CUBIC (REAL)0.044715

ALWAYS_INLINE VECTOR NAME(gelu_tanh_of)(VECTOR x) {
    return x * NAME(logistic)(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
}

ALWAYS_INLINE VECTOR NAME(gelu_tanh_derivative)(VECTOR x) {
    /* Where x^2 passes 1e8 the logistic function is 0 or 1; bounded, it is never 0 * infinity. */
    VECTOR square = x * x;
    square = NAME(min)(square, (VECTOR){0} + 1e8f);
    VECTOR slope, s = NAME(logistic_and_slope)(GELU_SCALE * (x + GELU_CUBIC * x * square), &slope);
    return s + x * slope * (GELU_SCALE * (1 + 3 * GELU_CUBIC * square));
}

ALWAYS_INLINE VECTOR NAME(silu_derivative)(VECTOR x) {
    VECTOR slope, s = NAME(logistic_and_slope)(x, &slope);
    return s + x * slope;
}

/* x, but at least (at most) the bound; NaN stays. Each is one instruction. */
CHEAP_TARGET ALWAYS_INLINE REAL NAME(at_least)(REAL bound, REAL x) { return bound > x ? bound : x; }
CHEAP_TARGET ALWAYS_INLINE REAL NAME(at_most)(REAL bound, REAL x) { return bound < x ? bound : x; }

CHEAP_1(neg, -x)
CHEAP_1(abs, NAME(fabs)(x))
CHEAP_1(square, x * x)
CHEAP_1(cube, x * x * x)
CHEAP_1(sqrt, NAME(sqrt)(x))
CHEAP_1(relu, x < 0 ? 0 : x) /* NaN stays */

CHEAP_2(add, x + y)
CHEAP_2(sub, x - y)
CHEAP_2(mul, x * y)
CHEAP_2(div, x / y)
CHEAP_2(maximum, (x > y) | (x != x) ? x : y) /* of a number and NaN, NaN */
CHEAP_2(minimum, (x < y) | (x != x) ? x : y)
LIMITED_1(clamp, NAME(at_most)(w, NAME(at_least)(z, x))) /* z <= result <= w; NaN stays */
LIMITED_1(leaky_relu, x > 0 ? x * w : x * z)            /* z, w: slopes left and right */
CHEAP_3(where, unsigned char, x ? y : z)

COMPARISON(eq, x == y)
COMPARISON(ne, x != y)
COMPARISON(lt, x < y)
COMPARISON(le, x <= y)
COMPARISON(gt, x > y)
COMPARISON(ge, x >= y)

COSTLY_IF_UNUSUAL(exp, usual_for_exp)
COSTLY_IF_UNUSUAL(log, usual_for_log)
COSTLY_IF_UNUSUAL(sin, usual_for_sin)
COSTLY_IF_UNUSUAL(cos, usual_for_sin)
COSTLY_1(erf, NAME(erf)(x))
COSTLY_1(sigmoid, NAME(logistic)(x))
COSTLY_1(tanh, NAME(tanh)(x))
COSTLY_1(silu, x * NAME(logistic)(x))
COSTLY_1(gelu, NAME(gelu_of)(x))
COSTLY_1(gelu_tanh, NAME(gelu_tanh_of)(x))

/* Gradients: x is the gradient of the result, y (and z) what was saved. */
CHEAP_2(relu_grad, y <= 0 ? 0 : x) /* where y is NaN, x */
CHEAP_2(abs_grad, y > 0 ? x : y < 0 ? -x : x * y)
CHEAP_2(sigmoid_grad, x * y * (1 - y))
CHEAP_2(tanh_grad, x * (1 - y * y))
LIMITED_2(leaky_relu_grad, y > 0 ? x * w : x * z) /* z, w: slopes left and right */
LIMITED_2(clamp_grad, (y >= z) & (y <= w) ? x : 0)
CHEAP_3(larger_share, REAL, y < z ? 0 : y == z ? x / 2 : x) /* where either is NaN, x */
CHEAP_3(divisor_grad, REAL, -x * y / (z * z))

/* Two results for little more than the cost of one. Two vectors at a time fill the registers. */
MAYBE_UNUSED void NAME(gelu_and_slope_array)(REAL *y, REAL *slope, const REAL *x, ptrdiff_t n) {
    enum { PAIRED = 2 };
    ptrdiff_t i = 0;
    for (; i + PAIRED * LANES <= n; i += PAIRED * LANES) {
        VECTOR ys[PAIRED], slopes[PAIRED];
        UNROLL for (int k = 0; k < PAIRED; k++)
            ys[k] = NAME(gelu_and_slope)(NAME(load)(x + i + k * LANES, LANES, 0), &slopes[k]);
        UNROLL for (int k = 0; k < PAIRED; k++) {
            NAME(store)(y + i + k * LANES, LANES, ys[k]);
            NAME(store)(slope + i + k * LANES, LANES, slopes[k]);
        }
    }
    for (; i < n; i += LANES) {
        VECTOR last, value = NAME(gelu_and_slope)(NAME(load)(x + i, n - i, 0), &last);
        NAME(store)(y + i, n - i, value);
        NAME(store)(slope + i, n - i, last);
    }
}

COSTLY_2(silu_grad, x * NAME(silu_derivative)(y))
COSTLY_2(gelu_grad, x * NAME(gelu_derivative)(y))
COSTLY_2(gelu_tanh_grad, x * NAME(gelu_tanh_derivative)(y))

#undef EACH
#undef EACH_OF_ROW
#undef UNALIGNED
#undef LONG
#undef CHEAP_KERNEL
#undef CHEAP_TARGET
#undef PAIR
#undef CHEAP_1
#undef CHEAP_2
#undef CHEAP_3
#undef LIMITED_1
#undef LIMITED_2
#undef COMPARISON
#undef COSTLY
#undef COSTLY_STEPS
#undef TOGETHER
#undef VECTOR_OF
#undef ONE
#undef TWO
#undef COSTLY_1
#undef COSTLY_IF_UNUSUAL
#undef COSTLY_2
#undef GELU_SCALE
#undef GELU_CUBIC
#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
