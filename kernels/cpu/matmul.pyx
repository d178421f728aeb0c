"""Matrix multiplication, out (..., M, N) = a (..., M, K) @ b (..., K, N), as a ladder of four rungs.

    naive      the definition: a dot product for each element of out
    tiled      + blocks of b that stay in the L1 cache, and inner loops that the compiler vectorises
    packed     + a tile of out held in registers, fed from copies of a and b in the order it reads them
    threaded   + blocks of out, or for few outputs parts of K, computed by several threads, and no copies that
               do not pay: a is read in place where its rows are contiguous, and small matrices are left where
               they lie

A product makes 2 M N K floating-point operations on M K + K N + M N elements: 2 n / 3 operations for each
element at n x n, so there is reuse enough. What counts is who gets it. For a multiply-add, *naive* loads two
elements; *tiled* moves one and a half between L1 and registers, but whole vectors at a time; a 12 x 32
register tile of *packed* loads 44 elements for 384 multiply-adds, which leaves the arithmetic units as the
only limit. gemm.h tells the last part in full.

Every rung is called as ``rung(out, a, b, threads)``. The three arrays have the same batch dimensions (the
caller broadcasts a and b: their batch strides may be 0) and the same dtype, float32 or float64. a and b may
have any strides that are multiples of the item size; out is C-contiguous and shares no memory with them.
K = 0 gives zeros. ``threads`` is the largest number of OpenMP threads, of which the first three rungs use
one. The same thread count gives the same bits. *threaded* also takes a bias (N,), which it adds to every row
while the tile is still in registers, and ``relu``, whether 0 then takes the place of what is below: the memory
traffic of another pass over out is saved.
"""

from cython.parallel cimport parallel, prange, threadid

from minigrad.kernels.cpu.memory import empty

include "arguments.pxi"
include "workspace.pxi"

cdef extern from "gemm.h" nogil:
    enum:
        MR_f32
        NR_f32
        NR_f64
    ctypedef struct Epilogue_f32:
        const float *d
        Py_ssize_t d_row
        bint relu
    ctypedef struct Epilogue_f64:
        const double *d
        Py_ssize_t d_row
        bint relu
    int suits_rows_f32(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, Py_ssize_t a_col)
    int suits_rows_f64(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, Py_ssize_t a_col)
    void pack_b_f32(Py_ssize_t depth, Py_ssize_t columns, const float *b, Py_ssize_t b_row, Py_ssize_t b_col,
                    float *out)
    void pack_b_f64(Py_ssize_t depth, Py_ssize_t columns, const double *b, Py_ssize_t b_row, Py_ssize_t b_col,
                    double *out)
    void gemm_panels_f32(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                         const float *a, Py_ssize_t a_row, Py_ssize_t a_col,
                         const float *b_panels, Py_ssize_t depth,
                         float *c, Py_ssize_t ldc, Epilogue_f32 epilogue)
    void gemm_panels_f64(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                         const double *a, Py_ssize_t a_row, Py_ssize_t a_col,
                         const double *b_panels, Py_ssize_t depth,
                         double *c, Py_ssize_t ldc, Epilogue_f64 epilogue)
    Py_ssize_t gemm_workspace_f32(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K)
    Py_ssize_t gemm_workspace_f64(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K)
    void gemm_add_f32(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                      const float *a, Py_ssize_t a_row, Py_ssize_t a_col,
                      const float *b, Py_ssize_t b_row, Py_ssize_t b_col,
                      float *c, Py_ssize_t ldc, Epilogue_f32 epilogue, float *workspace)
    void gemm_add_f64(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                      const double *a, Py_ssize_t a_row, Py_ssize_t a_col,
                      const double *b, Py_ssize_t b_row, Py_ssize_t b_col,
                      double *c, Py_ssize_t ldc, Epilogue_f64 epilogue, double *workspace)
    void gemm_packed_add_f32(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                             const float *a, Py_ssize_t a_row, Py_ssize_t a_col,
                             const float *b, Py_ssize_t b_row, Py_ssize_t b_col,
                             float *c, Py_ssize_t ldc, Epilogue_f32 epilogue, float *workspace)
    void gemm_packed_add_f64(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                             const double *a, Py_ssize_t a_row, Py_ssize_t a_col,
                             const double *b, Py_ssize_t b_row, Py_ssize_t b_col,
                             double *c, Py_ssize_t ldc, Epilogue_f64 epilogue, double *workspace)

cdef enum:
    MAX_BATCH_DIMS = 62       # NumPy has at most 64 dimensions
    TILE_K = 64               # *tiled* keeps TILE_K x TILE_N elements of b in L1: 32 KB of float32
    TILE_N = 128

# Multiply-adds below which a second thread does not pay: waking it takes as long as computing these.
cdef double SERIAL_WORK = 56.0 * 56 * 56

# Threads share K instead, if each gets a LONG_PART of it, where blocks of out would have every thread read and pack
# most of a and b: for so few elements of out, or for sides that are both so short.
cdef enum:
    FEW_OUTPUTS = 1024
    SHORT_SIDE = 192
    LONG_PART = 2048

# A batch of matrix products. Strides count elements.
cdef struct Problem:
    int dtype
    void *out
    void *a
    void *b
    void *bias                # (N,), added to each row of every product; or NULL
    bint relu                 # whether what is below 0 becomes 0 then
    Py_ssize_t M, N, K
    Py_ssize_t a_row, a_col, b_row, b_col
    Py_ssize_t batch
    int batch_ndim
    Py_ssize_t[MAX_BATCH_DIMS] batch_shape
    Py_ssize_t[MAX_BATCH_DIMS] a_batch
    Py_ssize_t[MAX_BATCH_DIMS] b_batch

# How the threads share the work: each product is cut into row_blocks x column_blocks blocks.
cdef struct Grid:
    int threads
    Py_ssize_t row_blocks, column_blocks, block_rows, block_columns


# ---- the rungs ---------------------------------------------------------------------------------------------


def naive(cnp.ndarray out not None, cnp.ndarray a not None, cnp.ndarray b not None, int threads):
    """The definition: each element of ``out`` is the dot product of a row of ``a`` and a column of ``b``."""
    cdef Problem problem
    read_problem(&problem, out, a, b)
    with nogil:
        if problem.dtype == cnp.NPY_FLOAT32:
            naive_batch(&problem, <float *> problem.out, <float *> problem.a, <float *> problem.b)
        else:
            naive_batch(&problem, <double *> problem.out, <double *> problem.a, <double *> problem.b)


def tiled(cnp.ndarray out not None, cnp.ndarray a not None, cnp.ndarray b not None, int threads):
    """Adds cache tiles: a block of ``b`` serves all rows of ``a`` while it lies in L1, and the inner loop
    runs along contiguous elements, so that the compiler vectorises it."""
    cdef Problem problem
    read_problem(&problem, out, a, b)
    with nogil:
        if problem.dtype == cnp.NPY_FLOAT32:
            tiled_batch(&problem, <float *> problem.out, <float *> problem.a, <float *> problem.b)
        else:
            tiled_batch(&problem, <double *> problem.out, <double *> problem.a, <double *> problem.b)


def packed(cnp.ndarray out not None, cnp.ndarray a not None, cnp.ndarray b not None, int threads):
    """Adds register tiles: a micro-kernel sums a tile of ``out`` in vector registers, and reads ``a`` and
    ``b`` from panels packed in the order of its loads."""
    cdef Problem problem
    read_problem(&problem, out, a, b)
    run_blocks(&problem, whole_matrix(&problem), True)


def threaded(cnp.ndarray out not None, cnp.ndarray a not None, cnp.ndarray b not None, int threads,
             cnp.ndarray bias=None, bint relu=False):
    """Adds threads, each computing whole blocks of ``out``; small and thin matrices are multiplied in place,
    where packing would cost more than it saves."""
    cdef Problem problem
    read_problem(&problem, out, a, b)
    run_threaded(&problem, threads, bias, relu)


def product(a, b, int threads, bias=None, bint relu=False):
    """``a @ b + bias``, or ReLU of it, by *threaded* as a new array.

    None if they are not what it takes as it is: two matrices, two batches of one shape of them, or a contiguous
    batch and a matrix; and None or a contiguous vector."""
    if type(a) is not cnp.ndarray or type(b) is not cnp.ndarray:
        return None
    cdef cnp.ndarray left = <cnp.ndarray> a, right = <cnp.ndarray> b, out, rows
    cdef int dtype = cnp.PyArray_TYPE(left), ndim = cnp.PyArray_NDIM(left), b_ndim = cnp.PyArray_NDIM(right), axis
    cdef bint shares_b = ndim > 2 and b_ndim == 2
    if ((dtype != cnp.NPY_FLOAT32 and dtype != cnp.NPY_FLOAT64)
            or b_ndim < 2 or (ndim != b_ndim and not shares_b)
            or cnp.PyArray_DIM(left, ndim - 1) != cnp.PyArray_DIM(right, b_ndim - 2)
            or not is_readable(left, dtype) or not is_readable(right, dtype)
            or not is_addend(bias, dtype, cnp.PyArray_DIM(right, b_ndim - 1))
            or (shares_b and not (cnp.PyArray_ISCARRAY_RO(left) and cnp.PyArray_SIZE(left)))):
        return None
    for axis in range(b_ndim - 2):
        if cnp.PyArray_DIM(left, axis) != cnp.PyArray_DIM(right, axis):
            return None
    cdef Problem problem
    cdef Py_ssize_t columns = cnp.PyArray_DIM(right, b_ndim - 1)
    if ndim == 2:
        out = rows = empty((cnp.PyArray_DIM(left, 0), columns), left.dtype)
    else:
        out = rows = empty((*(<object> left).shape[:ndim - 1], columns), left.dtype)
    if shares_b:
        left = left.reshape(-1, cnp.PyArray_DIM(right, 0))
        rows = out.reshape(cnp.PyArray_DIM(left, 0), columns)
    read_problem(&problem, rows, left, right)
    run_threaded(&problem, threads, bias, relu)
    return out


cdef bint is_addend(bias, int dtype, Py_ssize_t columns) noexcept:
    """Whether ``bias`` is None, or what :func:`run_threaded` takes."""
    if bias is None:
        return True
    if type(bias) is not cnp.ndarray:
        return False
    cdef cnp.ndarray vector = <cnp.ndarray> bias
    return (cnp.PyArray_TYPE(vector) == dtype and cnp.PyArray_ISCARRAY_RO(vector)
            and cnp.PyArray_NDIM(vector) == 1 and cnp.PyArray_DIM(vector, 0) == columns)


cdef int run_threaded(Problem *p, int threads, cnp.ndarray bias, bint relu) except -1:
    p.relu = relu
    if bias is not None:
        check_input(bias, p.dtype)
        if cnp.PyArray_NDIM(bias) != 1 or bias.shape[0] != p.N:
            raise ValueError(f"matmul kernel: bias must have shape ({p.N},), got {(<object> bias).shape}")
        p.bias = cnp.PyArray_DATA(bias)
    fold_batch_into_rows(p)
    cdef Grid grid = choose_grid(p, threads)
    if splits_depth(p, grid.threads):
        run_parts(p, grid.threads)
    elif shares_panels(p, grid.threads):
        run_rows(p, grid.threads)
    else:
        run_blocks(p, grid, False)
    return 0


include "matmul_loops.pxi"
include "matmul_parts.pxi"


# ---- packed and threaded -----------------------------------------------------------------------------------


cdef Grid whole_matrix(Problem *p) noexcept nogil:
    """One thread, and no cutting."""
    return Grid(threads=1, row_blocks=1, column_blocks=1, block_rows=p.M, block_columns=p.N)


cdef Grid choose_grid(Problem *p, int threads) noexcept nogil:
    """Cuts the products into as few blocks as keep ``threads`` busy alike, and these near square."""
    cdef Grid grid = whole_matrix(p), candidate
    cdef double work = <double> p.M * p.N * p.K * p.batch, cost, best = -1
    cdef Py_ssize_t blocks, rows, tile_columns = NR_f32 if p.dtype == cnp.NPY_FLOAT32 else NR_f64
    if threads <= 1 or work <= SERIAL_WORK:
        return grid
    threads = <int> min(<double> threads, 1 + work / SERIAL_WORK)
    # Whole products where there are many; else a number of blocks that the threads can share evenly.
    blocks = 1 if p.batch >= 4 * threads else threads // greatest_common_divisor(p.batch, threads)
    for rows in range(1, blocks + 1):
        if blocks % rows:
            continue
        candidate = Grid(threads=threads, row_blocks=rows, column_blocks=blocks // rows,
                         block_rows=block_size(p.M, rows, MR_f32),
                         block_columns=block_size(p.N, blocks // rows, tile_columns))
        # The largest block sets the time: its arithmetic, and packing at some eight multiply-adds an element.
        cost = (<double> candidate.block_rows * candidate.block_columns
                + 8.0 * (candidate.block_rows + candidate.block_columns))
        if best < 0 or cost < best:
            best, grid = cost, candidate
    return grid


cdef inline Py_ssize_t block_size(Py_ssize_t total, Py_ssize_t blocks, Py_ssize_t tile) noexcept nogil:
    """Whole tiles, so that only the last block ends in a partial one."""
    return ceil_divide(ceil_divide(total, blocks), tile) * tile


cdef int run_blocks(Problem *p, Grid grid, bint always_pack) except -1:
    """Computes every block of every product, on ``grid.threads`` threads with a workspace each."""
    cdef Py_ssize_t per_product = grid.row_blocks * grid.column_blocks, task, bytes_each
    cdef bint is_float = p.dtype == cnp.NPY_FLOAT32
    if is_float:
        bytes_each = gemm_workspace_f32(grid.block_rows, grid.block_columns, p.K) * sizeof(float)
    else:
        bytes_each = gemm_workspace_f64(grid.block_rows, grid.block_columns, p.K) * sizeof(double)
    bytes_each = whole_lines(bytes_each)
    cdef void *memory = allocate(grid.threads * bytes_each)
    cdef char *workspace = aligned(memory)
    with nogil:
        if grid.threads == 1:  # without OpenMP, which a forked child must not enter
            for task in range(p.batch * per_product):
                run_block(p, &grid, always_pack, task // per_product, task % per_product, workspace)
        else:
            for task in prange(p.batch * per_product, num_threads=grid.threads, schedule="static"):
                run_block(p, &grid, always_pack, task // per_product, task % per_product,
                          workspace + threadid() * bytes_each)
    free(memory)
    return 0


cdef inline Epilogue_f32 epilogue_f32(Problem *p, Py_ssize_t first_column) noexcept nogil:
    cdef const float *bias = <float *> p.bias + first_column if p.bias else NULL
    return Epilogue_f32(bias, 0, p.relu)


cdef inline Epilogue_f64 epilogue_f64(Problem *p, Py_ssize_t first_column) noexcept nogil:
    cdef const double *bias = <double *> p.bias + first_column if p.bias else NULL
    return Epilogue_f64(bias, 0, p.relu)


cdef void run_block(Problem *p, Grid *grid, bint always_pack, Py_ssize_t index, Py_ssize_t block,
                    char *workspace) noexcept nogil:
    cdef Py_ssize_t first_row = block // grid.column_blocks * grid.block_rows
    cdef Py_ssize_t first_column = block % grid.column_blocks * grid.block_columns
    cdef Py_ssize_t M = min(grid.block_rows, p.M - first_row), N = min(grid.block_columns, p.N - first_column)
    cdef Py_ssize_t out = index * p.M * p.N + first_row * p.N + first_column
    cdef Py_ssize_t a = batch_offset(p, p.a_batch, index) + first_row * p.a_row
    cdef Py_ssize_t b = batch_offset(p, p.b_batch, index) + first_column * p.b_col
    if M <= 0 or N <= 0:  # blocks of whole tiles may be used up before the last one
        return
    if p.dtype == cnp.NPY_FLOAT32:
        (gemm_packed_add_f32 if always_pack else gemm_add_f32)(
            M, N, p.K, <float *> p.a + a, p.a_row, p.a_col, <float *> p.b + b, p.b_row, p.b_col,
            <float *> p.out + out, p.N, epilogue_f32(p, first_column),
            <float *> workspace)
    else:
        (gemm_packed_add_f64 if always_pack else gemm_add_f64)(
            M, N, p.K, <double *> p.a + a, p.a_row, p.a_col, <double *> p.b + b, p.b_row, p.b_col,
            <double *> p.out + out, p.N, epilogue_f64(p, first_column),
            <double *> workspace)


cdef bint shares_panels(Problem *p, int threads) noexcept nogil:
    """Whether threads with rows of ``a`` each do best to pack ``b`` together: one product, many rows."""
    cdef bint is_float = p.dtype == cnp.NPY_FLOAT32
    return (threads > 1 and p.batch == 1 and p.N >= NR_f32
            and (suits_rows_f32 if is_float else suits_rows_f64)(p.M // threads, p.N, p.K, p.a_col))


cdef int run_rows(Problem *p, int threads) except -1:
    """One product: the threads pack ``b`` together, then each multiplies rows of ``a`` with all of it."""
    cdef bint is_float = p.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t columns = ceil_divide(p.N, NR_f32) * NR_f32
    cdef void *memory = allocate(columns * p.K * (sizeof(float) if is_float else sizeof(double)))
    cdef void *panels = aligned(memory)
    cdef int part
    with nogil, parallel(num_threads=threads):
        for part in prange(threads, schedule="static"):
            pack_columns(p, panels, share(p.N, part, threads, NR_f32), share(p.N, part + 1, threads, NR_f32))
        for part in prange(threads, schedule="static"):
            multiply_rows(p, panels, share(p.M, part, threads, MR_f32), share(p.M, part + 1, threads, MR_f32))
    free(memory)
    return 0


cdef void pack_columns(Problem *p, void *panels, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Packs the columns of ``b`` from ``begin``, where a panel begins, to ``end``."""
    if p.dtype == cnp.NPY_FLOAT32:
        pack_b_f32(p.K, end - begin, <float *> p.b + begin * p.b_col, p.b_row, p.b_col,
                   <float *> panels + begin * p.K)
    else:
        pack_b_f64(p.K, end - begin, <double *> p.b + begin * p.b_col, p.b_row, p.b_col,
                   <double *> panels + begin * p.K)


cdef void multiply_rows(Problem *p, void *panels, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    if p.dtype == cnp.NPY_FLOAT32:
        gemm_panels_f32(end - begin, p.N, p.K, <float *> p.a + begin * p.a_row, p.a_row, p.a_col,
                        <float *> panels, p.K, <float *> p.out + begin * p.N, p.N, epilogue_f32(p, 0))
    else:
        gemm_panels_f64(end - begin, p.N, p.K, <double *> p.a + begin * p.a_row, p.a_row, p.a_col,
                        <double *> panels, p.K, <double *> p.out + begin * p.N, p.N, epilogue_f64(p, 0))


# ---- reading the arguments ---------------------------------------------------------------------------------


cdef int read_problem(Problem *p, cnp.ndarray out, cnp.ndarray a, cnp.ndarray b) except -1:
    cdef int axis, ndim = cnp.PyArray_NDIM(out)
    p.dtype = real_type(a)
    check_output(out, p.dtype)
    check_matrices(a, ndim, p.dtype)
    check_matrices(b, ndim, p.dtype)
    p.out, p.a, p.b, p.bias = cnp.PyArray_DATA(out), cnp.PyArray_DATA(a), cnp.PyArray_DATA(b), NULL
    p.relu = False
    p.M, p.N, p.K = out.shape[ndim - 2], out.shape[ndim - 1], a.shape[ndim - 1]
    cdef bint fits = a.shape[ndim - 2] == p.M and b.shape[ndim - 2] == p.K and b.shape[ndim - 1] == p.N
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(a)
    p.a_row, p.a_col = a.strides[ndim - 2] // item, a.strides[ndim - 1] // item
    p.b_row, p.b_col = b.strides[ndim - 2] // item, b.strides[ndim - 1] // item
    p.batch, p.batch_ndim = 1, ndim - 2
    for axis in range(ndim - 2):
        fits = fits and a.shape[axis] == out.shape[axis] and b.shape[axis] == out.shape[axis]
        p.batch *= out.shape[axis]
        p.batch_shape[axis] = out.shape[axis]
        p.a_batch[axis], p.b_batch[axis] = a.strides[axis] // item, b.strides[axis] // item
    if not fits:
        raise ValueError(f"matmul kernel: shapes do not fit: out {(<object> out).shape}, "
                         f"a {(<object> a).shape}, b {(<object> b).shape}")
    if p.M == 0 or p.N == 0:
        p.batch = 0
    return 0


cdef int check_matrices(cnp.ndarray array, int ndim, int dtype) except -1:
    """An input has ``ndim`` dimensions, at least two, and strides that are multiples of the item size."""
    cdef int axis
    if cnp.PyArray_TYPE(array) != dtype:
        raise TypeError(f"matmul kernel: dtype {array.dtype} does not fit the other arguments")
    if ndim < 2 or cnp.PyArray_NDIM(array) != ndim:
        raise ValueError(f"matmul kernel: all arrays must have as many dimensions as out, and at least 2; "
                         f"got {cnp.PyArray_NDIM(array)}, and {ndim} in out")
    if not cnp.PyArray_ISBEHAVED_RO(array):
        raise ValueError("matmul kernel: inputs must be aligned and in native byte order")
    for axis in range(ndim):
        if array.strides[axis] % cnp.PyArray_ITEMSIZE(array):
            raise ValueError("matmul kernel: strides of inputs must be multiples of the item size")
    return 0


cdef inline bint is_readable(cnp.ndarray array, int dtype) noexcept:
    """What :func:`check_matrices` asks of an input, of any number of dimensions."""
    cdef int axis
    if cnp.PyArray_TYPE(array) != dtype or not cnp.PyArray_ISBEHAVED_RO(array):
        return False
    for axis in range(cnp.PyArray_NDIM(array)):
        if cnp.PyArray_STRIDE(array, axis) % cnp.PyArray_ITEMSIZE(array):
            return False
    return True


cdef inline Py_ssize_t batch_offset(Problem *p, Py_ssize_t *strides, Py_ssize_t index) noexcept nogil:
    """Where product ``index`` of the batch (counted in C order) starts, in elements."""
    cdef Py_ssize_t offset = 0
    cdef int axis = p.batch_ndim
    while axis > 0 and index > 0:
        axis -= 1
        offset += index % p.batch_shape[axis] * strides[axis]
        index //= p.batch_shape[axis]
    return offset


cdef void fold_batch_into_rows(Problem *p) noexcept nogil:
    """Makes one tall product of a batch that shares one ``b``, where the rows of ``a`` go on evenly from one
    matrix to the next, as those of a (batch, M, K) array do. out is contiguous, so its rows always do."""
    cdef int axis
    cdef Py_ssize_t row = p.a_row, rows = p.M
    if p.batch <= 1:
        return
    for axis in range(p.batch_ndim - 1, -1, -1):
        if p.batch_shape[axis] == 1:
            continue
        if p.b_batch[axis] != 0 or (rows > 1 and p.a_batch[axis] != rows * row):
            return
        if rows == 1:
            row = p.a_batch[axis]
        rows *= p.batch_shape[axis]
    p.a_row, p.M = row, rows
    p.batch, p.batch_ndim = 1, 0
