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


cdef void apply_rows(
    void *out, const void *x, Py_ssize_t rows, Py_ssize_t columns, int part, int parts, int dtype,
    row_f32 f32, row_f64 f64,
) noexcept nogil:
    cdef Py_ssize_t row
    for row in range(share(rows, part, parts, 1), share(rows, part + 1, parts, 1)):
        if dtype == cnp.NPY_FLOAT32:
            f32(<float *>out + row * columns, <const float *>x + row * columns, columns)
        else:
            f64(<double *>out + row * columns, <const double *>x + row * columns, columns)


cdef void apply_grad_rows(
    void *out, const void *grad, const void *y, Py_ssize_t rows, Py_ssize_t columns, int part, int parts,
    int dtype, grad_row_f32 f32, grad_row_f64 f64,
) noexcept nogil:
    cdef Py_ssize_t row, at
    for row in range(share(rows, part, parts, 1), share(rows, part + 1, parts, 1)):
        at = row * columns
        if dtype == cnp.NPY_FLOAT32:
            f32(<float *>out + at, <const float *>grad + at, <const float *>y + at, columns)
        else:
            f64(<double *>out + at, <const double *>grad + at, <const double *>y + at, columns)


cdef run_rows(cnp.ndarray out, cnp.ndarray x, row_f32 f32, row_f64 f64, int threads):
    cdef int dtype = real_type(x), part, parts
    check_matrices(out, x, dtype)
    cdef Py_ssize_t rows = x.shape[0], columns = x.shape[1]
    cdef void *out_data = cnp.PyArray_DATA(out)
    cdef const void *x_data = cnp.PyArray_DATA(x)
    parts = threads_for(rows * columns, WORK_PER_THREAD, threads)
    with nogil:
        if parts == 1:
            apply_rows(out_data, x_data, rows, columns, 0, 1, dtype, f32, f64)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                apply_rows(out_data, x_data, rows, columns, part, parts, dtype, f32, f64)


cdef run_grad_rows(
    cnp.ndarray out, cnp.ndarray grad, cnp.ndarray y, grad_row_f32 f32, grad_row_f64 f64, int threads
):
    cdef int dtype = real_type(grad), part, parts
    check_matrices(out, grad, dtype)
    check_matrices(out, y, dtype)
    cdef Py_ssize_t rows = out.shape[0], columns = out.shape[1]
    cdef void *out_data = cnp.PyArray_DATA(out)
    cdef const void *grad_data = cnp.PyArray_DATA(grad)
    cdef const void *y_data = cnp.PyArray_DATA(y)
    parts = threads_for(rows * columns, WORK_PER_THREAD, threads)
    with nogil:
        if parts == 1:
            apply_grad_rows(out_data, grad_data, y_data, rows, columns, 0, 1, dtype, f32, f64)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                apply_grad_rows(out_data, grad_data, y_data, rows, columns, part, parts, dtype, f32, f64)


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
