"""Reductions: sums, products and extrema over any axes of a contiguous array.

Each is called as ``function(out, x, axes, threads)``; ``axes`` are sorted. NaN is the maximum, and the minimum,
of what holds one. Neighbouring axes that are both reduced, or both kept, are one. What is left is (A, R, B, C)
with R and C reduced: the rows of C elements are reduced first, then the R rows of B columns.

There is one rung, *vectorized*: some vectors of sums in registers, two rows of them read at a time, blocks of
rows added in pairs (``reduce.h`` derives the error), and threads. Work is cut into chunks of the same size
however many threads there are, and the chunks' results are reduced in the same way: so the thread count
changes no bit.
Arithmetic intensity: one operation for each element read, so the speed of memory or of the cache.
"""

from cython.parallel cimport prange

from minigrad.kernels.cpu.memory import empty

include "arguments.pxi"

ctypedef void (*reduction)(
    void *out, const void *x, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t columns
) noexcept nogil

cdef extern from *:
    """
    /* Reductions wait for the cache. On a processor with AVX-512 (measured on Zen 4) they do so a tenth less with
       vectors of 256 bits, of which only every second one straddles two cache lines in an array that begins in the
       middle of one, as NumPy's do; and with rows that are read one after another. On one without (Zen 1), it is
       several streams of memory that are read quicker. */
    #ifdef __AVX512F__
    #define TOGETHER 128
    #define APART PTRDIFF_MAX
    #else
    #define TOGETHER 4096
    #define APART 4096
    #endif
    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC push_options
    #ifdef __AVX512F__
    #pragma GCC target("no-avx512f")
    #endif
    #endif
    #include "vector_math.h"

    enum { SUM, SUM_OF_SQUARES, PROD, MAX, MIN };

    /* The vectors of a strip. With two that are read, and what tells of NaN, 7 and 11 of 16 registers; down columns,
       strips of 128 bytes would read many cache lines twice. */
    enum { ROW_VECTORS = 4, COLUMN_VECTORS = 8, MOST_VECTORS = 8 };
    #define SHORT 16 /* elements of a row up to which it is no strip */

    #define REAL float
    #define VECTOR f32v
    #define MASK i32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "reduce.h"

    #define REAL double
    #define VECTOR f64v
    #define MASK i64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "reduce.h"

    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC pop_options
    #endif
    """
    const int ROW_VECTORS, TOGETHER
    reduction sum_rows_f32, sum_of_squares_rows_f32, prod_rows_f32, max_rows_f32, min_rows_f32
    reduction sum_rows_f64, sum_of_squares_rows_f64, prod_rows_f64, max_rows_f64, min_rows_f64
    reduction sum_columns_f32, sum_of_squares_columns_f32, prod_columns_f32, max_columns_f32
    reduction sum_columns_f64, sum_of_squares_columns_f64, prod_columns_f64, max_columns_f64
    reduction min_columns_f32, min_columns_f64

cdef enum:
    CHUNK = 32768  # elements that one thread reduces in a row
    WORK_PER_THREAD = 32768  # elements below which it is not worth waking another
    WIDTH = 512  # columns of a chunk: pieces of rows long enough to be read at the speed of memory


cdef class Reduction:
    """A reduction: see the module's text."""

    cdef reduction rows_f32, rows_f64, columns_f32, columns_f64
    cdef Reduction rest  # what reduces the results of parts; None if it is this one
    cdef double identity  # the result over nothing
    cdef bint has_identity
    cdef readonly str __name__, __doc__

    def new(self, x, tuple axes, bint keepdim, int threads, bint mean=False):
        """The reduction as a new array, if ``mean`` divided by how many elements make one of its own; None if
        x is no contiguous array with elements whose axes fit."""
        if type(x) is not cnp.ndarray:
            return None
        cdef cnp.ndarray array = <cnp.ndarray>x, out
        cdef int d, dtype = cnp.PyArray_TYPE(array)
        if (
            (dtype != cnp.NPY_FLOAT32 and dtype != cnp.NPY_FLOAT64)
            or not cnp.PyArray_ISCARRAY_RO(array)
            or cnp.PyArray_SIZE(array) == 0
            or not fits(array, axes)
        ):
            return None
        cdef list shape = []
        for d in range(cnp.PyArray_NDIM(array)):
            if d not in axes:
                shape.append(cnp.PyArray_DIM(array, d))
            elif keepdim:
                shape.append(1)
        out = empty(tuple(shape), array.dtype)
        self(out, array, axes, threads)
        if mean:
            divide(out, cnp.PyArray_SIZE(array) // cnp.PyArray_SIZE(out))
        return out

    def __call__(self, cnp.ndarray out, cnp.ndarray x, tuple axes, int threads):
        cdef int dtype = real_type(x)
        check_input(x, dtype)
        check_output(out, dtype)
        cdef Py_ssize_t sizes[4]
        merged_sizes(x, axes, sizes)
        cdef Py_ssize_t A = sizes[0], R = sizes[1], B = sizes[2], C = sizes[3]
        if cnp.PyArray_SIZE(out) != A * B:
            raise ValueError(
                f"{self.__name__}: an output of shape {(<object>out).shape} does not fit an input of shape "
                f"{(<object>x).shape} reduced over {axes}"
            )
        if A * B == 0:
            return
        if R * C == 0:
            if not self.has_identity:
                raise ValueError(f"{self.__name__}: no elements to compare in an array of shape "
                                 f"{(<object>x).shape}")
            out.fill(self.identity)
            return
        cdef cnp.ndarray rows = out
        cdef Reduction second = self
        if C == 1:
            self.reduce_columns(out, x, A, R, B, dtype, threads)
        elif R == 1:
            self.reduce_rows(out, x, A * B, C, dtype, threads)
        else:
            rows = new_array(A * R * B, dtype)
            self.reduce_rows(rows, x, A * R * B, C, dtype, threads)
            if self.rest is not None:
                second = self.rest
            second.reduce_columns(out, rows, A, R, B, dtype, threads)

    cdef reduce_rows(
        self, cnp.ndarray out, cnp.ndarray x, Py_ssize_t rows, Py_ssize_t columns, int dtype, int threads
    ):
        """out[i] = the reduction of row i; long rows by chunks."""
        cdef reduction f = self.rows_f32 if dtype == cnp.NPY_FLOAT32 else self.rows_f64
        cdef Py_ssize_t itemsize = cnp.PyArray_ITEMSIZE(x)
        cdef Py_ssize_t chunks = ceil_divide(columns, CHUNK), tasks = rows * chunks, task, begin, end
        cdef cnp.ndarray results = out if chunks == 1 else new_array(tasks, dtype)
        cdef char *to = <char *>cnp.PyArray_DATA(results)
        cdef const char *source = <const char *>cnp.PyArray_DATA(x)
        cdef int part, parts = threads_for(rows * columns, WORK_PER_THREAD, threads)
        cdef Py_ssize_t unit = ROW_VECTORS if columns < TOGETHER else 1  # the same rows together for all threads
        with nogil:
            if parts == 1 or tasks == 1:
                run_rows(f, to, source, columns, chunks, 0, tasks, itemsize)
            else:
                for part in prange(parts, num_threads=parts, schedule="static"):
                    run_rows(
                        f, to, source, columns, chunks, share(tasks, part, parts, unit),
                        share(tasks, part + 1, parts, unit), itemsize,
                    )
        if chunks > 1:
            (self if self.rest is None else self.rest).reduce_rows(out, results, rows, chunks, dtype, 1)

    cdef reduce_columns(
        self, cnp.ndarray out, cnp.ndarray x, Py_ssize_t A, Py_ssize_t rows, Py_ssize_t columns, int dtype,
        int threads,
    ):
        """out[a, j] = the reduction of x[a, i, j] over i < rows; many rows by chunks."""
        cdef reduction f = self.columns_f32 if dtype == cnp.NPY_FLOAT32 else self.columns_f64
        cdef Py_ssize_t itemsize = cnp.PyArray_ITEMSIZE(x), width = min(columns, <Py_ssize_t>WIDTH)
        cdef Py_ssize_t height = max(64, CHUNK // width), chunks = ceil_divide(rows, height)
        cdef Py_ssize_t strips = ceil_divide(columns, width), tasks = A * chunks * strips
        cdef cnp.ndarray results = out if chunks == 1 else new_array(A * chunks * columns, dtype)
        cdef char *to = <char *>cnp.PyArray_DATA(results)
        cdef const char *source = <const char *>cnp.PyArray_DATA(x)
        cdef int part, parts = threads_for(A * rows * columns, WORK_PER_THREAD, threads)
        with nogil:
            if parts == 1 or tasks == 1:
                run_columns(f, to, source, rows, columns, height, width, 0, tasks, itemsize)
            else:
                for part in prange(parts, num_threads=parts, schedule="static"):
                    run_columns(
                        f, to, source, rows, columns, height, width, share(tasks, part, parts, 1),
                        share(tasks, part + 1, parts, 1), itemsize,
                    )
        if chunks > 1:
            (self if self.rest is None else self.rest).reduce_columns(
                out, results, A, chunks, columns, dtype, 1
            )


cdef void run_rows(
    reduction f, char *to, const char *x, Py_ssize_t columns, Py_ssize_t chunks, Py_ssize_t begin,
    Py_ssize_t end, Py_ssize_t itemsize,
) noexcept nogil:
    """The tasks ``begin`` to ``end``: each a chunk of a row."""
    cdef Py_ssize_t task, at
    if chunks == 1:
        f(to + begin * itemsize, x + begin * columns * itemsize, columns, end - begin, columns)
        return
    for task in range(begin, end):
        at = task % chunks * CHUNK
        f(
            to + task * itemsize, x + (task // chunks * columns + at) * itemsize, columns, 1,
            min(<Py_ssize_t>CHUNK, columns - at),
        )


cdef void run_columns(
    reduction f, char *to, const char *x, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t height,
    Py_ssize_t width, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t itemsize,
) noexcept nogil:
    """The tasks ``begin`` to ``end``: each a block of rows and columns."""
    cdef Py_ssize_t task, a, i, j, strips = ceil_divide(columns, width)
    cdef Py_ssize_t chunks = ceil_divide(rows, height)
    for task in range(begin, end):
        j = task % strips * width
        i = task // strips % chunks
        a = task // strips // chunks
        f(
            to + ((a * chunks + i) * columns + j) * itemsize,
            x + ((a * rows + i * height) * columns + j) * itemsize,
            columns, min(height, rows - i * height), min(width, columns - j),
        )


cdef void divide(cnp.ndarray x, Py_ssize_t divisor) noexcept:
    cdef Py_ssize_t i
    cdef float *floats = <float *>cnp.PyArray_DATA(x)
    cdef double *doubles = <double *>cnp.PyArray_DATA(x)
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        for i in range(cnp.PyArray_SIZE(x)):
            floats[i] /= <float>divisor
    else:
        for i in range(cnp.PyArray_SIZE(x)):
            doubles[i] /= divisor


cdef cnp.ndarray new_array(cnp.npy_intp n, int dtype):
    return cnp.PyArray_EMPTY(1, &n, dtype, 0)


cdef int merged_sizes(cnp.ndarray x, tuple axes, Py_ssize_t *sizes) except -1:
    """The array as (kept, reduced, kept, reduced)."""
    cdef int d, k = 0, ndim = cnp.PyArray_NDIM(x)
    cdef bint reduced
    for d in range(4):
        sizes[d] = 1
    for d in range(ndim):
        if cnp.PyArray_DIM(x, d) == 1:
            continue
        reduced = d in axes
        if (k % 2 == 1) != reduced:
            k += 1
        if k > 3:
            raise ValueError(f"reductions over the axes {axes} of {ndim} have no kernel")
        sizes[k] *= cnp.PyArray_DIM(x, d)
    if sizes[2] == 1:  # kept, reduced: rows
        sizes[3] *= sizes[1]
        sizes[1] = 1
    return 0


cpdef bint fits(cnp.ndarray x, tuple axes):
    """Whether ``axes`` are in at most two groups of neighbours, of which the second is the last axes."""
    cdef int d, k = 0
    for d in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_DIM(x, d) != 1 and (k % 2 == 1) != (d in axes):
            k += 1
    return k <= 3


cdef Reduction reduction_of(
    str name, reduction rows_f32, reduction rows_f64, reduction columns_f32, reduction columns_f64, str doc
):
    cdef Reduction made = Reduction.__new__(Reduction)
    made.__name__, made.__doc__ = name, doc
    made.rows_f32, made.rows_f64 = rows_f32, rows_f64
    made.columns_f32, made.columns_f64 = columns_f32, columns_f64
    made.has_identity = True
    return made


cdef Reduction _sum = reduction_of(
    "sum", sum_rows_f32, sum_rows_f64, sum_columns_f32, sum_columns_f64,
    "The sum: vectors of sums in registers, blocks of them added in pairs.",
)
cdef Reduction _sum_of_squares = reduction_of(
    "sum_of_squares", sum_of_squares_rows_f32, sum_of_squares_rows_f64,
    sum_of_squares_columns_f32, sum_of_squares_columns_f64,
    "The sum of the squares, in one pass.",
)
_sum_of_squares.rest = _sum
cdef Reduction _prod = reduction_of(
    "prod", prod_rows_f32, prod_rows_f64, prod_columns_f32, prod_columns_f64,
    "The product: vectors of products in registers.",
)
_prod.identity = 1
cdef Reduction _largest = reduction_of(
    "max", max_rows_f32, max_rows_f64, max_columns_f32, max_columns_f64,
    "The largest: vectors of maxima in registers; NaN if there is one.",
)
cdef Reduction _smallest = reduction_of(
    "min", min_rows_f32, min_rows_f64, min_columns_f32, min_columns_f64,
    "The smallest: vectors of minima in registers; NaN if there is one.",
)
_largest.has_identity = _smallest.has_identity = False

# Under names that Cython would take for its own min and max inside of this file.
globals().update(sum=_sum, sum_of_squares=_sum_of_squares, prod=_prod, max=_largest, min=_smallest)
