"""An embedding: rows copied by their numbers; and its gradient, rows added up by their numbers.

A matrix is (rows, columns), the rows taken from it or added to it (n, columns), both float32 or both float64;
``indices`` are (n,), int64; all C-contiguous.

Forward, *rows*: out[i] = weight[indices[i]], each a copy of memory; threads divide the indices.

Backward, *by_columns*: ``out[row]`` becomes the sum of g[i] over all i with indices[i] == row, in the order
of i; an index outside of [0, rows) is left out. First ``out`` is cleared, a piece by each thread, as most
rows of a large vocabulary stay 0. Then ``g`` is read once, in its order, and each row is added as a vector.
Threads divide the columns, so that no two write to the same place and any number of them gives the same bits.

Arithmetic intensity: none forward; backward one addition for each 4 bytes of ``g`` read, and 8 of ``out``
read and written, beside the 4 bytes of each element that is cleared.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from minigrad.kernels.cpu.memory import empty

include "arguments.pxi"

# Elements that are added, and bytes that are copied or cleared, below which another thread costs more than it
# saves; the columns and the bytes of a cache line.
cdef enum:
    WORK_PER_THREAD = 32768
    BYTES_PER_THREAD = 131072
    LINE = 16
    LINE_BYTES = 64


cdef Py_ssize_t copy_rows(
    char *out, const char *weight, const int64_t *indices, Py_ssize_t rows, Py_ssize_t row_bytes,
    Py_ssize_t begin, Py_ssize_t end,
) noexcept nogil:
    """Returns how many indices are none of the rows."""
    cdef Py_ssize_t i, wrong = 0
    for i in range(begin, end):
        if 0 <= indices[i] < rows:
            memcpy(out + i * row_bytes, weight + indices[i] * row_bytes, row_bytes)
        else:
            wrong += 1
    return wrong


def gather(cnp.ndarray out, cnp.ndarray weight, cnp.ndarray indices, int threads):
    """The rows of ``weight`` that ``indices`` name; IndexError if one names none."""
    cdef int dtype = real_type(weight)
    check_input(weight, dtype)
    check_input(indices, cnp.NPY_INT64)
    check_output(out, dtype)
    check_rows("gather", weight, out, indices)
    gather_all(out, weight, indices, threads)


cdef int gather_all(cnp.ndarray out, cnp.ndarray weight, cnp.ndarray indices, int threads) except -1:
    cdef int part, parts
    cdef Py_ssize_t n = cnp.PyArray_SIZE(indices), rows = weight.shape[0], wrong = 0
    cdef Py_ssize_t row_bytes = weight.shape[1] * cnp.PyArray_ITEMSIZE(weight)
    cdef char *out_data = <char *>cnp.PyArray_DATA(out)
    cdef const char *weight_data = <const char *>cnp.PyArray_DATA(weight)
    cdef const int64_t *index_data = <const int64_t *>cnp.PyArray_DATA(indices)
    parts = threads_for(n * row_bytes, BYTES_PER_THREAD, threads)
    with nogil:
        if parts == 1:
            wrong = copy_rows(out_data, weight_data, index_data, rows, row_bytes, 0, n)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                wrong += copy_rows(
                    out_data, weight_data, index_data, rows, row_bytes, share(n, part, parts, 1),
                    share(n, part + 1, parts, 1),
                )
    if wrong:
        raise IndexError(f"gather: {wrong} of {n} indices are none of the {rows} rows")
    return 0


def new(weight, indices, int threads):
    """As a new array ``weight[indices]``, indices of any shape; None if they are not contiguous arrays, of
    float32 or float64 and int64, with elements. IndexError as in :func:`gather`."""
    if type(weight) is not cnp.ndarray or type(indices) is not cnp.ndarray:
        return None
    cdef cnp.ndarray matrix = <cnp.ndarray>weight, numbers = <cnp.ndarray>indices, out
    cdef int dtype = cnp.PyArray_TYPE(matrix)
    if (
        (dtype != cnp.NPY_FLOAT32 and dtype != cnp.NPY_FLOAT64)
        or cnp.PyArray_TYPE(numbers) != cnp.NPY_INT64
        or cnp.PyArray_NDIM(matrix) != 2
        or not cnp.PyArray_ISCARRAY_RO(matrix)
        or not cnp.PyArray_ISCARRAY_RO(numbers)
        or cnp.PyArray_SIZE(matrix) == 0
        or cnp.PyArray_SIZE(numbers) == 0
    ):
        return None
    out = empty((<object>numbers).shape + (matrix.shape[1],), matrix.dtype)
    gather_all(out, matrix, numbers, threads)
    return out


cdef int check_rows(str name, cnp.ndarray matrix, cnp.ndarray taken, cnp.ndarray indices) except -1:
    if (
        cnp.PyArray_NDIM(matrix) != 2 or cnp.PyArray_NDIM(indices) != 1
        or (<object>taken).shape != (indices.shape[0], matrix.shape[1])
    ):
        raise ValueError(
            f"{name}: {(<object>indices).shape} indices do not pair the rows of {(<object>taken).shape} with "
            f"those of {(<object>matrix).shape}"
        )
    return 0


cdef void clear(char *out, Py_ssize_t size, int part, int parts) noexcept nogil:
    cdef Py_ssize_t begin = share(size, part, parts, LINE_BYTES)
    cdef Py_ssize_t end = share(size, part + 1, parts, LINE_BYTES)
    memset(out + begin, 0, end - begin)


cdef void add_columns(
    real *out, const real *g, const int64_t *indices, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t n,
    Py_ssize_t begin, Py_ssize_t end,
) noexcept nogil:
    cdef Py_ssize_t i, column
    cdef real *sums
    cdef const real *terms
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
    check_rows("sum_rows", out, g, indices)
    cdef Py_ssize_t n = indices.shape[0], rows = out.shape[0], columns = out.shape[1]
    cdef Py_ssize_t size = cnp.PyArray_NBYTES(out)
    cdef void *out_data = cnp.PyArray_DATA(out)
    cdef const void *g_data = cnp.PyArray_DATA(g)
    cdef const int64_t *index_data = <const int64_t *>cnp.PyArray_DATA(indices)
    parts = <int>min(threads_for(n * columns, WORK_PER_THREAD, threads), max(1, columns // LINE))
    cdef int clearing = threads_for(size, BYTES_PER_THREAD, threads)
    with nogil:
        if clearing == 1:
            clear(<char *>out_data, size, 0, 1)
        else:
            for part in prange(clearing, num_threads=clearing, schedule="static"):
                clear(<char *>out_data, size, part, clearing)
        if parts == 1:
            add_part(out_data, g_data, index_data, rows, columns, n, 0, 1, dtype)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                add_part(out_data, g_data, index_data, rows, columns, n, part, parts, dtype)
