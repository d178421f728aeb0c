"""One step of an optimizer, in place, in one loop over the parameters.

All arrays of a call have the parameter's shape and dtype (float32 or float64) and are C-contiguous. The
hyperparameters are doubles; what depends on them alone is computed once, in double, and then rounded.

There is one rung, *fused*: Adam reads four arrays and writes three, about a dozen operations for 28 bytes.
Written as NumPy expressions it goes through memory some ten times more, so one loop that the compiler
vectorises is what there is to gain; nothing stays in a cache between two steps.
"""

from cython.parallel cimport prange
from libc.math cimport pow, sqrt, sqrtf

include "arguments.pxi"

# Elements below which it is not worth waking another thread.
cdef enum:
    WORK_PER_THREAD = 32768
    LINE = 16  # threads begin at multiples of it: whole vectors, whole cache lines


ctypedef struct AdamFactors:
    double beta1, beta2, eps
    double shrink  # 1 - lr * weight_decay in AdamW: parameters are multiplied by it first
    double l2  # weight_decay in Adam: this share of the parameter is added to the gradient
    double step_size  # lr / (1 - beta1^step)
    double sqrt_correction  # sqrt(1 - beta2^step)


ctypedef struct SgdFactors:
    double lr, momentum, new_share, weight_decay  # new_share: 1 - dampening, or 1 at the first step
    bint nesterov


cdef inline real square_root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef void adam_loop(
    real *param, const real *grad, real *exp_avg, real *exp_avg_sq, Py_ssize_t n, AdamFactors f
) noexcept nogil:
    cdef real new1 = <real>(1 - f.beta1), beta2 = <real>f.beta2, new2 = <real>(1 - f.beta2)
    cdef real shrink = <real>f.shrink, l2 = <real>f.l2, eps = <real>f.eps
    cdef real step_size = <real>f.step_size, sqrt_correction = <real>f.sqrt_correction
    cdef real p, g, m, v
    cdef bint shrinks = f.shrink != 1, has_l2 = f.l2 != 0  # without it an infinite parameter stays one
    cdef Py_ssize_t i
    for i in range(n):
        p = shrink * param[i] if shrinks else param[i]
        g = grad[i] + l2 * p if has_l2 else grad[i]
        m = exp_avg[i] + new1 * (g - exp_avg[i])
        v = beta2 * exp_avg_sq[i] + new2 * g * g
        exp_avg[i] = m
        exp_avg_sq[i] = v
        param[i] = p - step_size * m / (square_root(v) / sqrt_correction + eps)


cdef void sgd_loop(real *param, const real *grad, Py_ssize_t n, SgdFactors f) noexcept nogil:
    cdef real lr = <real>f.lr, weight_decay = <real>f.weight_decay
    cdef bint decays = weight_decay != 0
    cdef Py_ssize_t i
    for i in range(n):
        param[i] -= lr * (grad[i] + weight_decay * param[i] if decays else grad[i])


cdef void momentum_loop(
    real *param, const real *grad, real *velocity, Py_ssize_t n, SgdFactors f
) noexcept nogil:
    cdef real lr = <real>f.lr, weight_decay = <real>f.weight_decay
    cdef real momentum = <real>f.momentum, new_share = <real>f.new_share
    cdef bint decays = weight_decay != 0, nesterov = f.nesterov
    cdef real g, v
    cdef Py_ssize_t i
    for i in range(n):
        g = grad[i] + weight_decay * param[i] if decays else grad[i]
        v = momentum * velocity[i] + new_share * g
        velocity[i] = v
        param[i] -= lr * (g + momentum * v if nesterov else v)


cdef void adam_part(
    void *param, const void *grad, void *exp_avg, void *exp_avg_sq, Py_ssize_t n, int part, int parts,
    int dtype, AdamFactors f,
) noexcept nogil:
    cdef Py_ssize_t begin = share(n, part, parts, LINE), end = share(n, part + 1, parts, LINE)
    if dtype == cnp.NPY_FLOAT32:
        adam_loop(
            <float *>param + begin, <const float *>grad + begin, <float *>exp_avg + begin,
            <float *>exp_avg_sq + begin, end - begin, f,
        )
    else:
        adam_loop(
            <double *>param + begin, <const double *>grad + begin, <double *>exp_avg + begin,
            <double *>exp_avg_sq + begin, end - begin, f,
        )


cdef void sgd_part(
    void *param, const void *grad, void *velocity, Py_ssize_t n, int part, int parts, int dtype, SgdFactors f
) noexcept nogil:
    """``velocity`` is NULL without momentum."""
    cdef Py_ssize_t begin = share(n, part, parts, LINE), count = share(n, part + 1, parts, LINE) - begin
    if dtype == cnp.NPY_FLOAT32:
        if velocity == NULL:
            sgd_loop(<float *>param + begin, <const float *>grad + begin, count, f)
        else:
            momentum_loop(
                <float *>param + begin, <const float *>grad + begin, <float *>velocity + begin, count, f
            )
    else:
        if velocity == NULL:
            sgd_loop(<double *>param + begin, <const double *>grad + begin, count, f)
        else:
            momentum_loop(
                <double *>param + begin, <const double *>grad + begin, <double *>velocity + begin, count, f
            )


cdef int check_state(cnp.ndarray state, cnp.ndarray param, int dtype) except -1:
    check_output(state, dtype)
    check_same_shape(state, param)
    return 0


def adam_step(
    cnp.ndarray param, cnp.ndarray grad, cnp.ndarray exp_avg, cnp.ndarray exp_avg_sq, double lr,
    double beta1, double beta2, double eps, double weight_decay, bint decoupled, Py_ssize_t step, int threads,
):
    """Adam (https://arxiv.org/abs/1412.6980), or AdamW if ``decoupled`` (https://arxiv.org/abs/1711.05101).

    ``param``, ``exp_avg`` and ``exp_avg_sq`` are updated in place; ``step`` counts from 1. The formula is
    PyTorch's: eps is added to the bias-corrected square root.
    """
    cdef int dtype = real_type(param), part, parts
    check_output(param, dtype)
    check_input(grad, dtype)
    check_same_shape(grad, param)
    check_state(exp_avg, param, dtype)
    check_state(exp_avg_sq, param, dtype)
    if step < 1:
        raise ValueError(f"adam_step counts steps from 1, got {step}")
    cdef AdamFactors f
    f.beta1, f.beta2, f.eps = beta1, beta2, eps
    f.shrink = 1 - lr * weight_decay if decoupled else 1
    f.l2 = 0 if decoupled else weight_decay
    f.step_size = lr / (1 - pow(beta1, step))
    f.sqrt_correction = sqrt(1 - pow(beta2, step))
    cdef Py_ssize_t n = cnp.PyArray_SIZE(param)
    cdef void *p = cnp.PyArray_DATA(param)
    cdef const void *g = cnp.PyArray_DATA(grad)
    cdef void *m = cnp.PyArray_DATA(exp_avg)
    cdef void *v = cnp.PyArray_DATA(exp_avg_sq)
    parts = threads_for(n, WORK_PER_THREAD, threads)
    with nogil:
        if parts == 1:
            adam_part(p, g, m, v, n, 0, 1, dtype, f)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                adam_part(p, g, m, v, n, part, parts, dtype, f)


def sgd_step(
    cnp.ndarray param, cnp.ndarray grad, cnp.ndarray momentum_buffer, double lr, double momentum,
    double dampening, double weight_decay, bint nesterov, bint first_step, int threads,
):
    """Stochastic gradient descent with momentum, PyTorch's formula, in place.

    ``momentum_buffer`` is None without momentum. At the ``first_step`` it becomes the gradient itself,
    whatever it held and whatever ``dampening`` is.
    """
    cdef int dtype = real_type(param), part, parts
    check_output(param, dtype)
    check_input(grad, dtype)
    check_same_shape(grad, param)
    cdef SgdFactors f
    f.lr, f.momentum, f.weight_decay, f.nesterov = lr, momentum, weight_decay, nesterov
    f.new_share = 1 if first_step else 1 - dampening
    cdef Py_ssize_t n = cnp.PyArray_SIZE(param)
    cdef void *p = cnp.PyArray_DATA(param)
    cdef const void *g = cnp.PyArray_DATA(grad)
    cdef void *v = NULL
    if momentum_buffer is not None:
        check_state(momentum_buffer, param, dtype)
        v = cnp.PyArray_DATA(momentum_buffer)
        if first_step:
            momentum_buffer.fill(0)
    parts = threads_for(n, WORK_PER_THREAD, threads)
    with nogil:
        if parts == 1:
            sgd_part(p, g, v, n, 0, 1, dtype, f)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                sgd_part(p, g, v, n, part, parts, dtype, f)
