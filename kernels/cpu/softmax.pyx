"""Softmax and its logarithm over one axis of an array, and their gradients.

The largest element of a line is taken from all of it before the exponentials, so that none overflows:
softmax(x) = exp(x - max) / sum(exp(x - max)). An element of -inf has probability 0; a line with a NaN or
+inf, or of nothing but -inf, becomes NaN, as in PyTorch.

All arrays of a call are C-contiguous, of one shape and one dtype (float32 or float64). ``axis`` divides the
shape into (outer, n, inner): n elements are normalised in each of outer * inner lines.

There is one rung, *vectorized*: each line is done whole by one thread, in vectors (``softmax.h``). Where the
axis is the last, they run along it, or across it if it is short (the rows are transposed, a block at a time);
where it is another, they run across it, so that memory is read as it lies. A line is read from memory once and
then from cache; the exponential's dozen multiply-adds for the 8 bytes of an element are what is left.
"""

from cython.parallel cimport prange

include "arguments.pxi"

ctypedef void (*lines_kernel)(
    void *out, const void *a, const void *b, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil

cdef extern from *:
    """
    #include "vector_math.h"

    #define REAL float
    #define VECTOR f32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "softmax.h"

    #define REAL double
    #define VECTOR f64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "softmax.h"
    """
    lines_kernel softmax_lines_f32, log_softmax_lines_f32, softmax_grad_lines_f32, log_softmax_grad_lines_f32
    lines_kernel softmax_lines_f64, log_softmax_lines_f64, softmax_grad_lines_f64, log_softmax_grad_lines_f64

# Elements below which it is not worth waking another thread, and the lines at whose multiples threads begin.
cdef enum:
    WORK_PER_THREAD = 16384
    LINES = 16


cdef run_lines(
    cnp.ndarray out, cnp.ndarray a, cnp.ndarray b, int axis, lines_kernel f32, lines_kernel f64, int threads
):
    """``b`` is None for what has one input."""
    cdef int dtype = real_type(a), part, parts, ndim = cnp.PyArray_NDIM(a), i
    check_input(a, dtype)
    check_output(out, dtype)
    check_same_shape(out, a)
    cdef const void *b_data = NULL
    if b is not None:
        check_input(b, dtype)
        check_same_shape(out, b)
        b_data = cnp.PyArray_DATA(b)
    if axis < 0:
        axis += ndim
    if not 0 <= axis < ndim:
        raise ValueError(f"softmax kernel: shape {(<object>a).shape} has no such axis")
    cdef Py_ssize_t n = a.shape[axis], inner = 1, lines
    for i in range(axis + 1, ndim):
        inner *= a.shape[i]
    if cnp.PyArray_SIZE(a) == 0:
        return
    lines = cnp.PyArray_SIZE(a) // n
    cdef void *out_data = cnp.PyArray_DATA(out)
    cdef const void *a_data = cnp.PyArray_DATA(a)
    cdef lines_kernel kernel = f32 if dtype == cnp.NPY_FLOAT32 else f64
    parts = <int>min(threads_for(lines * n, WORK_PER_THREAD, threads), lines)
    cdef Py_ssize_t unit = LINES if lines >= parts * LINES else 1
    with nogil:
        if parts == 1:
            kernel(out_data, a_data, b_data, n, inner, 0, lines)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                kernel(
                    out_data, a_data, b_data, n, inner, share(lines, part, parts, unit),
                    share(lines, part + 1, parts, unit),
                )


def softmax(cnp.ndarray out, cnp.ndarray x, int axis, int threads):
    """exp(x) / sum(exp(x)) over ``axis``."""
    run_lines(out, x, None, axis, softmax_lines_f32, softmax_lines_f64, threads)


def log_softmax(cnp.ndarray out, cnp.ndarray x, int axis, int threads):
    """x - log(sum(exp(x))) over ``axis``: exact where the softmax itself would be rounded to 0."""
    run_lines(out, x, None, axis, log_softmax_lines_f32, log_softmax_lines_f64, threads)


def softmax_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray y, int axis, int threads):
    """y (grad - sum(grad y)) over ``axis``, with y = softmax(x)."""
    run_lines(out, grad, y, axis, softmax_grad_lines_f32, softmax_grad_lines_f64, threads)


def log_softmax_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray y, int axis, int threads):
    """grad - exp(y) sum(grad) over ``axis``, with y = log_softmax(x)."""
    run_lines(out, grad, y, axis, log_softmax_grad_lines_f32, log_softmax_grad_lines_f64, threads)
