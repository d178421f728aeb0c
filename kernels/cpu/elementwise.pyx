"""Activation functions and their gradients, elementwise: the ones that NumPy does badly or not at all.

All arrays of a call are C-contiguous, of one shape and one dtype (float32 or float64); ``out`` may be one of
the inputs. A gradient multiplies the gradient of the result by the derivative, in one pass: ``relu_grad``,
``sigmoid_grad`` and ``tanh_grad`` take the derivative from the saved result y, the others from the input x.

There is one rung, *vectorized*: the vector functions of ``vector_math.h``, whose errors are stated there.
Arithmetic intensity: one operation (ReLU) to about fifty (GELU) for 8 bytes, so that ReLU runs at the speed
of memory, while the others gain from polynomials in vector registers.
"""

from cython.parallel cimport prange

include "arguments.pxi"

ctypedef void (*unary_f32)(float *out, const float *x, Py_ssize_t n) noexcept nogil
ctypedef void (*unary_f64)(double *out, const double *x, Py_ssize_t n) noexcept nogil
ctypedef void (*gradient_f32)(float *out, const float *grad, const float *saved, Py_ssize_t n) noexcept nogil
ctypedef void (*gradient_f64)(
    double *out, const double *grad, const double *saved, Py_ssize_t n
) noexcept nogil

cdef extern from *:
    """
    #include "vector_math.h"

    #define REAL float
    #define VECTOR f32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "elementwise.h"

    #define REAL double
    #define VECTOR f64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "elementwise.h"
    """
    unary_f32 relu_array_f32, exp_array_f32, erf_array_f32, sigmoid_array_f32, tanh_array_f32
    unary_f32 silu_array_f32, gelu_array_f32, gelu_tanh_array_f32
    unary_f64 relu_array_f64, exp_array_f64, erf_array_f64, sigmoid_array_f64, tanh_array_f64
    unary_f64 silu_array_f64, gelu_array_f64, gelu_tanh_array_f64
    gradient_f32 relu_grad_array_f32, sigmoid_grad_array_f32, tanh_grad_array_f32
    gradient_f32 silu_grad_array_f32, gelu_grad_array_f32, gelu_tanh_grad_array_f32
    gradient_f64 relu_grad_array_f64, sigmoid_grad_array_f64, tanh_grad_array_f64
    gradient_f64 silu_grad_array_f64, gelu_grad_array_f64, gelu_tanh_grad_array_f64

# Elements below which another thread costs more than it saves: a few microseconds of work. A cheap function
# is bound by memory, a costly one by its polynomial.
cdef enum:
    CHEAP = 32768
    COSTLY = 16384
    LINE = 16  # threads begin at multiples of it: whole vectors, whole cache lines


cdef inline void apply_unary(
    void *out, const void *x, Py_ssize_t n, int part, int parts, int dtype, unary_f32 f32, unary_f64 f64
) noexcept nogil:
    cdef Py_ssize_t begin = share(n, part, parts, LINE), end = share(n, part + 1, parts, LINE)
    if dtype == cnp.NPY_FLOAT32:
        f32(<float *>out + begin, <const float *>x + begin, end - begin)
    else:
        f64(<double *>out + begin, <const double *>x + begin, end - begin)


cdef inline void apply_gradient(
    void *out, const void *grad, const void *saved, Py_ssize_t n, int part, int parts, int dtype,
    gradient_f32 f32, gradient_f64 f64,
) noexcept nogil:
    cdef Py_ssize_t begin = share(n, part, parts, LINE), end = share(n, part + 1, parts, LINE)
    if dtype == cnp.NPY_FLOAT32:
        f32(<float *>out + begin, <const float *>grad + begin, <const float *>saved + begin, end - begin)
    else:
        f64(<double *>out + begin, <const double *>grad + begin, <const double *>saved + begin, end - begin)


cdef run_unary(
    cnp.ndarray out, cnp.ndarray x, unary_f32 f32, unary_f64 f64, Py_ssize_t work_per_thread, int threads
):
    cdef int dtype = real_type(x), part, parts
    check_input(x, dtype)
    check_output(out, dtype)
    check_same_shape(out, x)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef void *out_data = cnp.PyArray_DATA(out)
    cdef const void *x_data = cnp.PyArray_DATA(x)
    parts = threads_for(n, work_per_thread, threads)
    with nogil:
        if parts == 1:
            apply_unary(out_data, x_data, n, 0, 1, dtype, f32, f64)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                apply_unary(out_data, x_data, n, part, parts, dtype, f32, f64)


cdef run_gradient(
    cnp.ndarray out, cnp.ndarray grad, cnp.ndarray saved, gradient_f32 f32, gradient_f64 f64,
    Py_ssize_t work_per_thread, int threads,
):
    cdef int dtype = real_type(grad), part, parts
    check_input(grad, dtype)
    check_input(saved, dtype)
    check_output(out, dtype)
    check_same_shape(out, grad)
    check_same_shape(out, saved)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out)
    cdef void *out_data = cnp.PyArray_DATA(out)
    cdef const void *grad_data = cnp.PyArray_DATA(grad)
    cdef const void *saved_data = cnp.PyArray_DATA(saved)
    parts = threads_for(n, work_per_thread, threads)
    with nogil:
        if parts == 1:
            apply_gradient(out_data, grad_data, saved_data, n, 0, 1, dtype, f32, f64)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                apply_gradient(out_data, grad_data, saved_data, n, part, parts, dtype, f32, f64)


def relu(cnp.ndarray out, cnp.ndarray x, int threads):
    """max(x, 0); NaN stays NaN."""
    run_unary(out, x, relu_array_f32, relu_array_f64, CHEAP, threads)


def exp(cnp.ndarray out, cnp.ndarray x, int threads):
    """e to the power of x."""
    run_unary(out, x, exp_array_f32, exp_array_f64, COSTLY, threads)


def erf(cnp.ndarray out, cnp.ndarray x, int threads):
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    run_unary(out, x, erf_array_f32, erf_array_f64, COSTLY, threads)


def sigmoid(cnp.ndarray out, cnp.ndarray x, int threads):
    """1 / (1 + exp(-x)), without overflow."""
    run_unary(out, x, sigmoid_array_f32, sigmoid_array_f64, COSTLY, threads)


def tanh(cnp.ndarray out, cnp.ndarray x, int threads):
    """The hyperbolic tangent."""
    run_unary(out, x, tanh_array_f32, tanh_array_f64, COSTLY, threads)


def silu(cnp.ndarray out, cnp.ndarray x, int threads):
    """x sigmoid(x)."""
    run_unary(out, x, silu_array_f32, silu_array_f64, COSTLY, threads)


def gelu(cnp.ndarray out, cnp.ndarray x, int threads):
    """x Phi(x), Phi being the normal distribution function; far out on the left it keeps its digits."""
    run_unary(out, x, gelu_array_f32, gelu_array_f64, COSTLY, threads)


def gelu_tanh(cnp.ndarray out, cnp.ndarray x, int threads):
    """GELU by the approximation 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    run_unary(out, x, gelu_tanh_array_f32, gelu_tanh_array_f64, COSTLY, threads)


def relu_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray y, int threads):
    """``grad`` where y > 0, else 0."""
    run_gradient(out, grad, y, relu_grad_array_f32, relu_grad_array_f64, CHEAP, threads)


def sigmoid_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray y, int threads):
    """grad y (1 - y), with y = sigmoid(x)."""
    run_gradient(out, grad, y, sigmoid_grad_array_f32, sigmoid_grad_array_f64, CHEAP, threads)


def tanh_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray y, int threads):
    """grad (1 - y^2), with y = tanh(x)."""
    run_gradient(out, grad, y, tanh_grad_array_f32, tanh_grad_array_f64, CHEAP, threads)


def silu_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray x, int threads):
    """grad (s + x s (1 - s)), with s = sigmoid(x)."""
    run_gradient(out, grad, x, silu_grad_array_f32, silu_grad_array_f64, COSTLY, threads)


def gelu_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray x, int threads):
    """grad (Phi(x) + x phi(x)), with the normal distribution function and density."""
    run_gradient(out, grad, x, gelu_grad_array_f32, gelu_grad_array_f64, COSTLY, threads)


def gelu_tanh_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray x, int threads):
    """grad times the derivative of ``gelu_tanh`` at x."""
    run_gradient(out, grad, x, gelu_tanh_grad_array_f32, gelu_tanh_grad_array_f64, COSTLY, threads)
