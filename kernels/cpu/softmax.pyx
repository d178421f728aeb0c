"""Softmax and its logarithm over the rows of a (rows, columns) array, and their gradients.

The largest element of a row is taken from all of it before the exponentials, so that none overflows:
softmax(x) = exp(x - max) / sum(exp(x - max)). An element of -inf has probability 0; a row with a NaN or
+inf, or of nothing but -inf, becomes NaN, as in PyTorch.

There is one rung, *vectorized*: each row is done whole by one thread, in vectors (``softmax.h``). A row is
read from memory once and then from cache; the exponential's dozen multiply-adds for the 8 bytes of an
element are what is left.
"""

from cython.parallel cimport prange

include "arguments.pxi"

ctypedef void (*row_f32)(float *out, const float *x, Py_ssize_t n) noexcept nogil
ctypedef void (*row_f64)(double *out, const double *x, Py_ssize_t n) noexcept nogil
ctypedef void (*grad_row_f32)(float *out, const float *grad, const float *y, Py_ssize_t n) noexcept nogil
ctypedef void (*grad_row_f64)(double *out, const double *grad, const double *y, Py_ssize_t n) noexcept nogil

cdef extern from *:
    """
    #include "vector_math.h"
    #define log_f32 logf
    #define log_f64 log

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
    row_f32 softmax_row_f32, log_softmax_row_f32
    row_f64 softmax_row_f64, log_softmax_row_f64
    grad_row_f32 softmax_grad_row_f32, log_softmax_grad_row_f32
    grad_row_f64 softmax_grad_row_f64, log_softmax_grad_row_f64

# Elements below which it is not worth waking another thread.
cdef enum:
    WORK_PER_THREAD = 16384


cdef check_matrices(cnp.ndarray out, cnp.ndarray x, int dtype):
    check_input(x, dtype)
    check_output(out, dtype)
    check_same_shape(out, x)
    if cnp.PyArray_NDIM(x) != 2:
        raise ValueError(f"softmax kernels take (rows, columns) arrays, got shape {(<object>x).shape}")


cdef run_rows(cnp.ndarray out, cnp.ndarray x, row_f32 f32, row_f64 f64, int threads):
    cdef int dtype = real_type(x)
    check_matrices(out, x, dtype)
    cdef Py_ssize_t rows = x.shape[0], columns = x.shape[1], row
    cdef float *out_f32 = <float *>cnp.PyArray_DATA(out)
    cdef float *x_f32 = <float *>cnp.PyArray_DATA(x)
    cdef double *out_f64 = <double *>out_f32
    cdef double *x_f64 = <double *>x_f32
    threads = threads_for(rows * columns, WORK_PER_THREAD, threads)
    with nogil:
        for row in prange(rows, num_threads=threads, schedule="static"):
            if dtype == cnp.NPY_FLOAT32:
                f32(out_f32 + row * columns, x_f32 + row * columns, columns)
            else:
                f64(out_f64 + row * columns, x_f64 + row * columns, columns)


cdef run_grad_rows(
    cnp.ndarray out, cnp.ndarray grad, cnp.ndarray y, grad_row_f32 f32, grad_row_f64 f64, int threads
):
    cdef int dtype = real_type(grad)
    check_matrices(out, grad, dtype)
    check_matrices(out, y, dtype)
    cdef Py_ssize_t rows = out.shape[0], columns = out.shape[1], row
    cdef float *out_f32 = <float *>cnp.PyArray_DATA(out)
    cdef float *grad_f32 = <float *>cnp.PyArray_DATA(grad)
    cdef float *y_f32 = <float *>cnp.PyArray_DATA(y)
    cdef double *out_f64 = <double *>out_f32
    cdef double *grad_f64 = <double *>grad_f32
    cdef double *y_f64 = <double *>y_f32
    threads = threads_for(rows * columns, WORK_PER_THREAD, threads)
    with nogil:
        for row in prange(rows, num_threads=threads, schedule="static"):
            if dtype == cnp.NPY_FLOAT32:
                f32(out_f32 + row * columns, grad_f32 + row * columns, y_f32 + row * columns, columns)
            else:
                f64(out_f64 + row * columns, grad_f64 + row * columns, y_f64 + row * columns, columns)


def softmax(cnp.ndarray out, cnp.ndarray x, int threads):
    """exp(x) / sum(exp(x)) of each row."""
    run_rows(out, x, softmax_row_f32, softmax_row_f64, threads)


def log_softmax(cnp.ndarray out, cnp.ndarray x, int threads):
    """x - log(sum(exp(x))) of each row: exact where the softmax itself would be rounded to 0."""
    run_rows(out, x, log_softmax_row_f32, log_softmax_row_f64, threads)


def softmax_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray y, int threads):
    """y (grad - sum(grad y)) of each row, with y = softmax(x)."""
    run_grad_rows(out, grad, y, softmax_grad_row_f32, softmax_grad_row_f64, threads)


def log_softmax_grad(cnp.ndarray out, cnp.ndarray grad, cnp.ndarray y, int threads):
    """grad - exp(y) sum(grad) of each row, with y = log_softmax(x)."""
    run_grad_rows(out, grad, y, log_softmax_grad_row_f32, log_softmax_grad_row_f64, threads)
