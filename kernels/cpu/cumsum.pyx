"""Cumulative sums along any axis of a contiguous array.

Called as ``cumsum(out, x, axis, reverse, threads)``: out[i] = x[0] + ... + x[i] along the axis, with
``reverse`` the sum from i to the end. ``out`` may be ``x``. Sums are carried in float64, for float32 too,
whose results so are rounded once.

There is one rung, *together*. A sum waits for the one before it, three or four cycles; so ``TOGETHER`` of
them, which do not depend on each other, are formed at a time: of neighbouring rows where the axis is the last
one, otherwise of neighbouring columns, by vectors. Arithmetic intensity: one addition for 8 bytes, the speed
of memory. Threads share the groups of rows and columns; their number changes no bit.
"""

from cython.parallel cimport prange

include "arguments.pxi"

cdef enum:
    TOGETHER = 8  # sums in registers, and streams that are read and written at a time
    WIDTH = 64  # columns, whose sums stay in the first-level cache
    WORK_PER_THREAD = 32768  # elements below which it is not worth waking another


cdef void sum_rows(
    real *out, const real *x, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t step
) noexcept nogil:
    """``rows`` rows of n elements, which follow each other; a row is walked along by ``step``, 1 or -1."""
    cdef double sums[TOGETHER]
    cdef Py_ssize_t i, at
    cdef int row
    for row in range(TOGETHER):
        sums[row] = 0
    at = 0 if step == 1 else n - 1
    if rows == TOGETHER:
        for i in range(n):
            for row in range(TOGETHER):
                sums[row] += x[row * n + at]
                out[row * n + at] = <real>sums[row]
            at += step
        return
    for row in range(<int>rows):
        at = 0 if step == 1 else n - 1
        for i in range(n):
            sums[row] += x[row * n + at]
            out[row * n + at] = <real>sums[row]
            at += step


cdef void sum_columns(
    real *out, const real *x, Py_ssize_t columns, Py_ssize_t n, Py_ssize_t step
) noexcept nogil:
    """``columns`` columns of n elements; ``step`` leads from one element of a column to the next."""
    cdef double sums[WIDTH]
    cdef Py_ssize_t i, j, at = 0 if step > 0 else (n - 1) * -step
    for j in range(WIDTH):
        sums[j] = 0
    for i in range(n):
        for j in range(columns):
            sums[j] += x[at + j]
            out[at + j] = <real>sums[j]
        at += step


cdef void run_groups(
    real *out, const real *x, Py_ssize_t A, Py_ssize_t n, Py_ssize_t B, bint reverse, Py_ssize_t begin,
    Py_ssize_t end,
) noexcept nogil:
    """The groups ``begin`` to ``end``, of rows if B is 1, else of columns."""
    cdef Py_ssize_t group, first, offset, strips = ceil_divide(B, WIDTH)
    for group in range(begin, end):
        if B == 1:
            first = group * TOGETHER
            sum_rows(
                out + first * n, x + first * n, min(<Py_ssize_t>TOGETHER, A - first), n, -1 if reverse else 1
            )
        else:
            first = group % strips * WIDTH
            offset = group // strips * n * B + first
            sum_columns(
                out + offset, x + offset, min(<Py_ssize_t>WIDTH, B - first), n, -B if reverse else B
            )


cdef void run(
    real *out, const real *x, Py_ssize_t A, Py_ssize_t n, Py_ssize_t B, bint reverse, int threads
) noexcept nogil:
    cdef Py_ssize_t groups
    groups = ceil_divide(A, TOGETHER) if B == 1 else A * ceil_divide(B, WIDTH)
    cdef int part, parts = <int>min(groups, <Py_ssize_t>threads_for(A * n * B, WORK_PER_THREAD, threads))
    if parts == 1:
        run_groups(out, x, A, n, B, reverse, 0, groups)
        return
    for part in prange(parts, num_threads=parts, schedule="static"):
        run_groups(
            out, x, A, n, B, reverse, share(groups, part, parts, 1), share(groups, part + 1, parts, 1)
        )


def cumsum(cnp.ndarray out, cnp.ndarray x, int axis, bint reverse, int threads):
    """Cumulative sums: several rows or columns together, as each sum waits for the one before."""
    cdef int dtype = real_type(x), d
    check_input(x, dtype)
    check_output(out, dtype)
    check_same_shape(out, x)
    if not 0 <= axis < cnp.PyArray_NDIM(x):
        raise ValueError(f"cumsum: axis {axis} is out of range for {cnp.PyArray_NDIM(x)} dimensions")
    if cnp.PyArray_SIZE(x) == 0:
        return
    cdef Py_ssize_t A = 1, B = 1, n = cnp.PyArray_DIM(x, axis)
    for d in range(axis):
        A *= cnp.PyArray_DIM(x, d)
    for d in range(axis + 1, cnp.PyArray_NDIM(x)):
        B *= cnp.PyArray_DIM(x, d)
    cdef void *to = cnp.PyArray_DATA(out)
    cdef const void *source = cnp.PyArray_DATA(x)
    with nogil:
        if dtype == cnp.NPY_FLOAT32:
            run[float](<float *>to, <const float *>source, A, n, B, reverse, threads)
        else:
            run[double](<double *>to, <const double *>source, A, n, B, reverse, threads)
