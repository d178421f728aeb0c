"""Rows added up by their numbers: the gradient of an embedding.

``out`` is (rows, columns), ``g`` (n, columns), both float32 or both float64; ``indices`` are (n,), int64; all
C-contiguous. ``out[row]`` becomes the sum of g[i] over all i with indices[i] == row, in the order of i; an
index outside of [0, rows) is left out.

There is one rung, *by_columns*: ``g`` is read once, in its order, and each row is added as a vector. Threads
divide the columns, so that no two write to the same place and any number of them gives the same bits.
Arithmetic intensity: one addition for each 4 bytes of ``g`` read, and 8 of ``out`` read and written.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t

include "arguments.pxi"

# Elements of g below which another thread costs more than it saves, and the columns of a cache line.
cdef enum:
    WORK_PER_THREAD = 32768
    LINE = 16


cdef void add_columns(
    real *out, const real *g, const int64_t *indices, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t n,
    Py_ssize_t begin, Py_ssize_t end,
) noexcept nogil:
    cdef Py_ssize_t i, column
    cdef real *sums
    cdef const real *terms
    for i in range(rows):
        for column in range(begin, end):
            out[i * columns + column] = 0
    for i in range(n):
        if 0 <= indices[i] < rows:
            sums = out + indices[i] * columns
            terms = g + i * columns
            for column in range(begin, end):
                sums[column] += terms[column]


cdef void add_part(
    void *out, const void *g, const int64_t *indices, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t n,
    int part, int parts, int dtype,
) noexcept nogil:
    cdef Py_ssize_t begin = share(columns, part, parts, LINE), end = share(columns, part + 1, parts, LINE)
    if dtype == cnp.NPY_FLOAT32:
        add_columns(<float *>out, <const float *>g, indices, rows, columns, n, begin, end)
    else:
        add_columns(<double *>out, <const double *>g, indices, rows, columns, n, begin, end)


def sum_rows(cnp.ndarray out, cnp.ndarray g, cnp.ndarray indices, int threads):
    """The rows of ``g`` added to those of ``out`` that ``indices`` name, in their order."""
    cdef int dtype = real_type(g), part, parts
    check_input(g, dtype)
    check_input(indices, cnp.NPY_INT64)
    check_output(out, dtype)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(indices)
    if cnp.PyArray_NDIM(out) != 2 or cnp.PyArray_NDIM(indices) != 1 or (<object>g).shape != (n, out.shape[1]):
        raise ValueError(
            f"sum_rows: {(<object>indices).shape} indices cannot add the rows of {(<object>g).shape} to "
            f"those of {(<object>out).shape}"
        )
    cdef Py_ssize_t rows = out.shape[0], columns = out.shape[1]
    cdef void *out_data = cnp.PyArray_DATA(out)
    cdef const void *g_data = cnp.PyArray_DATA(g)
    cdef const int64_t *index_data = <const int64_t *>cnp.PyArray_DATA(indices)
    parts = <int>min(threads_for(n * columns, WORK_PER_THREAD, threads), max(1, columns // LINE))
    with nogil:
        if parts == 1:
            add_part(out_data, g_data, index_data, rows, columns, n, 0, 1, dtype)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                add_part(out_data, g_data, index_data, rows, columns, n, part, parts, dtype)
