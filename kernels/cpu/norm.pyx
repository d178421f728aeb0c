"""Layer, group and batch norm, and their gradients: one formula over different elements (``norm.h``).

    y = (x - mean) rstd weight + bias      rstd = 1 / sqrt(variance + eps)

All arrays of a call are C-contiguous and of one dtype, float32 or float64; weight and bias may be None. The
variance is the mean of the squared deviations: of blocks that are read twice while they are in the L1 cache,
whose means and squares are then combined in double by Chan's formula. An error of at most
(BLOCK / 32 + a few) eps is left, of the mean in units of the mean magnitude, of the variance relative.

There is one rung, *fused*: x is read from memory once for the statistics, with the gradient once for their
sums, and once more, from a cache as far as one holds what is normalised together, for the result. Arithmetic
intensity: about 10 operations for 12 bytes (20 in the gradient): bound by memory. The results' bits depend on
the shape alone, but for the sums over rows in layer norm's gradient, which depend on the number of threads.
"""

from cython.parallel cimport prange
from libc.string cimport memset

include "arguments.pxi"

cdef extern from *:
    """
    #include "vector_math.h"

    /* Elements whose mean is taken before their deviations, and channels whose sums are kept together. */
    #define BLOCK 2048
    #define MAX_CHANNELS 128

    /* Elements between the sums of one thread and the next, which must not share a cache line, or the pair of
       lines that hardware fetches together. */
    #define GAP 32

    typedef struct {
        double count, mean, squares; /* squares: of the deviations from the mean */
    } Moments;

    /* Of the union of two sets: T. F. Chan, G. H. Golub and R. J. LeVeque (1983),
       https://doi.org/10.1080/00031305.1983.10483115 */
    ALWAYS_INLINE void add_moments(Moments *total, Moments other) {
        const double count = total->count + other.count, distance = other.mean - total->mean;
        if (total->count == 0) {
            *total = other;
            return;
        }
        total->mean += distance * (other.count / count);
        total->squares += other.squares + distance * distance * (total->count * other.count / count);
        total->count = count;
    }

    /* What a kernel works on; in a gradient y is dx. What is not needed is NULL or 0. */
    typedef struct {
        void *y, *mean, *rstd, *dweight, *dbias, *partial;
        const void *x, *grad, *weight, *bias;
        ptrdiff_t samples, groups, channels, area, at_once;
        double eps;
    } Norm;

    typedef void (*norm_kernel)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end);

    #define REAL float
    #define VECTOR f32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "norm.h"

    #define REAL double
    #define VECTOR f64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "norm.h"
    """
    ctypedef struct Norm:
        void *y
        void *mean
        void *rstd
        void *dweight
        void *dbias
        void *partial
        const void *x
        const void *grad
        const void *weight
        const void *bias
        Py_ssize_t samples, groups, channels, area, at_once
        double eps

    enum:
        GAP
        MAX_CHANNELS

    ctypedef void (*norm_kernel)(const Norm *p, int part, Py_ssize_t begin, Py_ssize_t end) noexcept nogil

    norm_kernel layer_norm_rows_f32, layer_norm_grad_rows_f32, group_norm_rows_f32, group_norm_grad_rows_f32
    norm_kernel layer_norm_rows_f64, layer_norm_grad_rows_f64, group_norm_rows_f64, group_norm_grad_rows_f64
    norm_kernel group_norm_parameters_f32, batch_norm_channels_f32, batch_norm_grad_channels_f32
    norm_kernel group_norm_parameters_f64, batch_norm_channels_f64, batch_norm_grad_channels_f64
    norm_kernel batch_norm_inference_runs_f32, batch_norm_columns_f32, batch_norm_grad_columns_f32
    norm_kernel batch_norm_inference_runs_f64, batch_norm_columns_f64, batch_norm_grad_columns_f64
    norm_kernel batch_norm_inference_columns_f32, batch_norm_inference_columns_f64

# Elements below which it is not worth waking another thread; the elements of neighbouring channels that are
# read together; the channels at whose multiples threads begin where vectors hold channels.
cdef enum:
    WORK_PER_THREAD = 16384
    TOGETHER = 1024
    LINE = 16


cdef void run(
    const Norm *p, norm_kernel f32, norm_kernel f64, int dtype, Py_ssize_t units, Py_ssize_t unit, int parts
) noexcept nogil:
    """The kernel on ``units`` rows, runs or channels, divided at multiples of ``unit``."""
    cdef norm_kernel kernel = f32 if dtype == cnp.NPY_FLOAT32 else f64
    cdef int part
    if parts == 1:
        kernel(p, 0, 0, units)
    else:
        for part in prange(parts, num_threads=parts, schedule="static"):
            kernel(p, part, share(units, part, parts, unit), share(units, part + 1, parts, unit))


cdef int parts_of(Py_ssize_t elements, Py_ssize_t units, int threads) noexcept:
    return <int>max(1, min(<Py_ssize_t>threads_for(elements, WORK_PER_THREAD, threads), units))


cdef const void *input_data(cnp.ndarray array, int dtype, Py_ssize_t size, str name) except? NULL:
    """The memory of an input of ``size`` elements; NULL for None."""
    if array is None:
        return NULL
    check_input(array, dtype)
    if cnp.PyArray_SIZE(array) != size:
        raise ValueError(f"norm kernel: {name} must have {size} elements, got {(<object>array).shape}")
    return cnp.PyArray_DATA(array)


cdef void *output_data(cnp.ndarray array, int dtype, Py_ssize_t size, str name) except? NULL:
    if array is None:
        return NULL
    check_output(array, dtype)
    return <void *>input_data(array, dtype, size, name)


cdef int check_sizes(cnp.ndarray x, int ndim) except -1:
    if cnp.PyArray_NDIM(x) != ndim or cnp.PyArray_SIZE(x) == 0:
        raise ValueError(f"norm kernel: expected {ndim} dimensions with elements, got {(<object>x).shape}")
    return 0


cdef Norm layer_sizes(cnp.ndarray x) except *:
    check_sizes(x, 2)
    cdef Norm p
    memset(&p, 0, sizeof(p))
    p.samples, p.area = x.shape[0], x.shape[1]
    return p


cdef Norm group_sizes(cnp.ndarray x) except *:
    check_sizes(x, 4)
    cdef Norm p
    memset(&p, 0, sizeof(p))
    p.samples, p.groups, p.channels, p.area = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
    return p


cdef Norm batch_sizes(cnp.ndarray x, int threads) except *:
    check_sizes(x, 3)
    cdef Norm p
    memset(&p, 0, sizeof(p))
    p.samples, p.channels, p.area = x.shape[0], x.shape[1], x.shape[2]
    cdef Py_ssize_t for_each_thread = p.channels // threads
    p.at_once = max(1, min(TOGETHER // p.area, for_each_thread, <Py_ssize_t>MAX_CHANNELS))
    return p


def layer_norm(
    cnp.ndarray y, cnp.ndarray mean, cnp.ndarray rstd, cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias,
    double eps, int threads,
):
    """Layer norm of the rows of x (rows, columns); weight and bias (columns,), mean and rstd (rows,)."""
    cdef int dtype = real_type(x)
    cdef Norm p = layer_sizes(x)
    cdef Py_ssize_t size = cnp.PyArray_SIZE(x)
    p.eps = eps
    p.x = input_data(x, dtype, size, "x")
    p.y = output_data(y, dtype, size, "y")
    p.mean = output_data(mean, dtype, p.samples, "mean")
    p.rstd = output_data(rstd, dtype, p.samples, "rstd")
    p.weight = input_data(weight, dtype, p.area, "weight")
    p.bias = input_data(bias, dtype, p.area, "bias")
    cdef int parts = parts_of(size, p.samples, threads)
    with nogil:
        run(&p, layer_norm_rows_f32, layer_norm_rows_f64, dtype, p.samples, 1, parts)


def layer_norm_grad(
    cnp.ndarray dx, cnp.ndarray dweight, cnp.ndarray dbias, cnp.ndarray grad, cnp.ndarray x, cnp.ndarray mean,
    cnp.ndarray rstd, cnp.ndarray weight, int threads,
):
    """The gradients of layer norm; shapes as there."""
    cdef int dtype = real_type(x)
    cdef Norm p = layer_sizes(x)
    cdef Py_ssize_t size = cnp.PyArray_SIZE(x)
    cdef int parts = parts_of(size, p.samples, threads)
    p.x = input_data(x, dtype, size, "x")
    p.grad = input_data(grad, dtype, size, "grad")
    p.y = output_data(dx, dtype, size, "dx")
    p.mean = <void *>input_data(mean, dtype, p.samples, "mean")
    p.rstd = <void *>input_data(rstd, dtype, p.samples, "rstd")
    p.weight = input_data(weight, dtype, p.area, "weight")
    output_data(dweight, dtype, p.area, "dweight")
    output_data(dbias, dtype, p.area, "dbias")
    cdef cnp.npy_intp shape[2]
    shape[0], shape[1] = parts, 2 * p.area + GAP
    cdef cnp.ndarray partial = cnp.PyArray_ZEROS(2, shape, dtype, 0)
    p.partial = cnp.PyArray_DATA(partial)
    with nogil:
        run(&p, layer_norm_grad_rows_f32, layer_norm_grad_rows_f64, dtype, p.samples, 1, parts)
    partial.sum(0, out=(<object>partial)[0]) if parts > 1 else None
    dweight[...], dbias[...] = (<object>partial)[0, :2 * p.area].reshape(2, *(<object>dweight).shape)


def group_norm(
    cnp.ndarray y, cnp.ndarray mean, cnp.ndarray rstd, cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias,
    double eps, int threads,
):
    """Group norm of x (samples, groups, channels, area); weight and bias have a group's channels for each
    group, mean and rstd an element for each group of a sample."""
    cdef int dtype = real_type(x)
    cdef Norm p = group_sizes(x)
    cdef Py_ssize_t size = cnp.PyArray_SIZE(x), rows = p.samples * p.groups
    p.eps = eps
    p.x = input_data(x, dtype, size, "x")
    p.y = output_data(y, dtype, size, "y")
    p.mean = output_data(mean, dtype, rows, "mean")
    p.rstd = output_data(rstd, dtype, rows, "rstd")
    p.weight = input_data(weight, dtype, p.groups * p.channels, "weight")
    p.bias = input_data(bias, dtype, p.groups * p.channels, "bias")
    cdef int parts = parts_of(size, rows, threads)
    with nogil:
        run(&p, group_norm_rows_f32, group_norm_rows_f64, dtype, rows, 1, parts)


def group_norm_grad(
    cnp.ndarray dx, cnp.ndarray dweight, cnp.ndarray dbias, cnp.ndarray grad, cnp.ndarray x, cnp.ndarray mean,
    cnp.ndarray rstd, cnp.ndarray weight, int threads,
):
    """The gradients of group norm; shapes as there."""
    cdef int dtype = real_type(x)
    cdef Norm p = group_sizes(x)
    cdef Py_ssize_t size = cnp.PyArray_SIZE(x), rows = p.samples * p.groups, channels = p.groups * p.channels
    p.x = input_data(x, dtype, size, "x")
    p.grad = input_data(grad, dtype, size, "grad")
    p.y = output_data(dx, dtype, size, "dx")
    p.mean = <void *>input_data(mean, dtype, rows, "mean")
    p.rstd = <void *>input_data(rstd, dtype, rows, "rstd")
    p.weight = input_data(weight, dtype, channels, "weight")
    p.dweight = output_data(dweight, dtype, channels, "dweight")
    p.dbias = output_data(dbias, dtype, channels, "dbias")
    cdef cnp.npy_intp shape[1]
    shape[0] = 2 * rows * p.channels
    cdef cnp.ndarray partial = cnp.PyArray_EMPTY(1, shape, cnp.NPY_FLOAT64, 0)
    p.partial = cnp.PyArray_DATA(partial)
    cdef int parts = parts_of(size, rows, threads), parts_of_sums = parts_of(shape[0], channels, threads)
    with nogil:
        run(&p, group_norm_grad_rows_f32, group_norm_grad_rows_f64, dtype, rows, 1, parts)
        run(&p, group_norm_parameters_f32, group_norm_parameters_f64, dtype, channels, LINE, parts_of_sums)


cdef void run_channels(
    const Norm *p, norm_kernel channels_f32, norm_kernel channels_f64, norm_kernel columns_f32,
    norm_kernel columns_f64, int dtype, int threads,
) noexcept:
    cdef Py_ssize_t size = p.samples * p.channels * p.area
    cdef int parts
    if p.area == 1:
        parts = parts_of(size, ceil_divide(p.channels, LINE), threads)
        with nogil:
            run(p, columns_f32, columns_f64, dtype, p.channels, LINE, parts)
    else:
        parts = parts_of(size, p.channels, threads)
        with nogil:
            run(p, channels_f32, channels_f64, dtype, p.channels, p.at_once, parts)


def batch_norm(
    cnp.ndarray y, cnp.ndarray mean, cnp.ndarray rstd, cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias,
    double eps, int threads,
):
    """Batch norm of x (samples, channels, area); all but y (channels,)."""
    cdef int dtype = real_type(x)
    cdef Norm p = batch_sizes(x, threads)
    p.eps = eps
    p.x = input_data(x, dtype, cnp.PyArray_SIZE(x), "x")
    p.y = output_data(y, dtype, cnp.PyArray_SIZE(x), "y")
    p.mean = output_data(mean, dtype, p.channels, "mean")
    p.rstd = output_data(rstd, dtype, p.channels, "rstd")
    p.weight = input_data(weight, dtype, p.channels, "weight")
    p.bias = input_data(bias, dtype, p.channels, "bias")
    run_channels(
        &p, batch_norm_channels_f32, batch_norm_channels_f64, batch_norm_columns_f32, batch_norm_columns_f64,
        dtype, threads,
    )


def batch_norm_grad(
    cnp.ndarray dx, cnp.ndarray dweight, cnp.ndarray dbias, cnp.ndarray grad, cnp.ndarray x, cnp.ndarray mean,
    cnp.ndarray rstd, cnp.ndarray weight, int threads,
):
    """The gradients of batch norm; shapes as there. Without dx, dbias and rstd, dweight is
    sum(grad (x - mean))."""
    cdef int dtype = real_type(x)
    cdef Norm p = batch_sizes(x, threads)
    p.x = input_data(x, dtype, cnp.PyArray_SIZE(x), "x")
    p.grad = input_data(grad, dtype, cnp.PyArray_SIZE(x), "grad")
    p.y = output_data(dx, dtype, cnp.PyArray_SIZE(x), "dx")
    p.mean = <void *>input_data(mean, dtype, p.channels, "mean")
    p.rstd = <void *>input_data(rstd, dtype, p.channels, "rstd")
    p.weight = input_data(weight, dtype, p.channels, "weight")
    p.dweight = output_data(dweight, dtype, p.channels, "dweight")
    p.dbias = output_data(dbias, dtype, p.channels, "dbias")
    run_channels(
        &p, batch_norm_grad_channels_f32, batch_norm_grad_channels_f64, batch_norm_grad_columns_f32,
        batch_norm_grad_columns_f64, dtype, threads,
    )


def batch_norm_inference(
    cnp.ndarray y, cnp.ndarray x, cnp.ndarray mean, cnp.ndarray var, cnp.ndarray weight, cnp.ndarray bias,
    double eps, int threads,
):
    """Batch norm with given statistics; shapes as in ``batch_norm``."""
    cdef int dtype = real_type(x), parts
    cdef Norm p = batch_sizes(x, threads)
    p.eps = eps
    p.x = input_data(x, dtype, cnp.PyArray_SIZE(x), "x")
    p.y = output_data(y, dtype, cnp.PyArray_SIZE(x), "y")
    p.mean = <void *>input_data(mean, dtype, p.channels, "mean")
    p.rstd = <void *>input_data(var, dtype, p.channels, "var")
    p.weight = input_data(weight, dtype, p.channels, "weight")
    p.bias = input_data(bias, dtype, p.channels, "bias")
    if p.area == 1:
        run_channels(
            &p, NULL, NULL, batch_norm_inference_columns_f32, batch_norm_inference_columns_f64, dtype, threads
        )
        return
    parts = parts_of(cnp.PyArray_SIZE(x), p.samples * p.channels, threads)
    with nogil:
        run(
            &p, batch_norm_inference_runs_f32, batch_norm_inference_runs_f64, dtype, p.samples * p.channels,
            1, parts,
        )
