"""Max, average and adaptive average pooling over (N, C, H, W) arrays, and their gradients.

Max pooling writes two outputs of shape (N, C, OH, OW): the largest value of each window, and the *tap* it
came from: the index i * kernel_w + j of the winner inside its window, as uint8 (windows of at most 256
elements) or int32. A tap is smaller than a position in the plane and does not depend on the size of the
input. Windows may hang over the far border (ceil_mode); padding never wins; a NaN always does.

Rungs: *naive* goes window by window, with its bounds clipped to the input. *vectorized* computes the
windows of a row that lie wholly inside the input's columns many at a time (``pool2d.h``), and the few
others by the naive rule. Both split the N * C planes over the threads, so a plane's sums are made by one
thread and in one order, whatever the number of threads.

The last arguments of the functions of max pooling, ``options``, are kernel_h, kernel_w, stride_h, stride_w,
pad_h, pad_w, dilation_h, dilation_w and the number of threads. Average pooling has count_include_pad and
divisor_override (0: none) in place of the dilation.

Arithmetic intensity: a 2x2 window at stride 2 reads 16 bytes and writes 5 for 3 comparisons. The kernels
are bound by memory once they are vectorised, and the one-byte taps pay.
"""

from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memset

include "arguments.pxi"

cdef extern from *:
    """
    #define REAL float
    #define INTEGER int
    #define LANES 4
    #define SUFFIX _f32x4
    #include "pool2d.h"

    #define REAL double
    #define INTEGER long long
    #define LANES 2
    #define SUFFIX _f64x2
    #include "pool2d.h"

    #ifdef __AVX2__
    #define REAL float
    #define INTEGER int
    #define LANES 8
    #define SUFFIX _f32x8
    #define NARROWER _f32x4
    #include "pool2d.h"

    #define REAL double
    #define INTEGER long long
    #define LANES 4
    #define SUFFIX _f64x4
    #define NARROWER _f64x2
    #include "pool2d.h"

    #define F32(name) name##_f32x8
    #define F64(name) name##_f64x4
    #else
    #define F32(name) name##_f32x4
    #define F64(name) name##_f64x2
    #endif
    """
    ctypedef struct pool2d_taps:
        Py_ssize_t row_begin
        Py_ssize_t row_end
        Py_ssize_t kernel_w
        Py_ssize_t row_step
        Py_ssize_t column_step
        Py_ssize_t stride

    Py_ssize_t max_columns_f32 "F32(max_pool_columns)"(
        float *out, void *taps, int tap_bytes, const float *corner, Py_ssize_t count, pool2d_taps t
    ) noexcept nogil
    Py_ssize_t max_columns_f64 "F64(max_pool_columns)"(
        double *out, void *taps, int tap_bytes, const double *corner, Py_ssize_t count, pool2d_taps t
    ) noexcept nogil
    Py_ssize_t max_2x2_plane_f32 "F32(max_pool_2x2_plane)"(
        float *out, void *taps, int tap_bytes, const float *x, Py_ssize_t width, Py_ssize_t out_height,
        Py_ssize_t count
    ) noexcept nogil
    Py_ssize_t max_2x2_plane_f64 "F64(max_pool_2x2_plane)"(
        double *out, void *taps, int tap_bytes, const double *x, Py_ssize_t width, Py_ssize_t out_height,
        Py_ssize_t count
    ) noexcept nogil
    Py_ssize_t avg_columns_f32 "F32(avg_pool_columns)"(
        float *out, const float *corner, Py_ssize_t count, pool2d_taps t, float divisor
    ) noexcept nogil
    Py_ssize_t avg_columns_f64 "F64(avg_pool_columns)"(
        double *out, const double *corner, Py_ssize_t count, pool2d_taps t, double divisor
    ) noexcept nogil
    Py_ssize_t max_2x2_grad_columns_f32 "F32(max_pool_2x2_grad_columns)"(
        float *upper, float *lower, const float *grad, const void *taps, int tap_bytes, Py_ssize_t count
    ) noexcept nogil
    Py_ssize_t max_2x2_grad_columns_f64 "F64(max_pool_2x2_grad_columns)"(
        double *upper, double *lower, const double *grad, const void *taps, int tap_bytes, Py_ssize_t count
    ) noexcept nogil
    Py_ssize_t avg_2x2_grad_columns_f32 "F32(avg_pool_2x2_grad_columns)"(
        float *upper, float *lower, const float *grad, Py_ssize_t count, float divisor
    ) noexcept nogil
    Py_ssize_t avg_2x2_grad_columns_f64 "F64(avg_pool_2x2_grad_columns)"(
        double *upper, double *lower, const double *grad, Py_ssize_t count, double divisor
    ) noexcept nogil
    float sum_run_f32 "F32(sum_run)"(const float *x, Py_ssize_t n) noexcept nogil
    double sum_run_f64 "F64(sum_run)"(const double *x, Py_ssize_t n) noexcept nogil

# Elements read or written by one thread, below which it is not worth waking.
cdef enum:
    WORK_PER_THREAD = 32768


ctypedef struct Geometry:
    Py_ssize_t planes, height, width, out_height, out_width
    Py_ssize_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w
    bint count_include_pad  # this and the next: average pooling only
    Py_ssize_t divisor_override  # 0: none
    int threads


cdef Geometry geometry(cnp.ndarray large, cnp.ndarray small, tuple options, bint is_average=False) except *:
    """The sizes of a pooling from ``large`` (N, C, H, W) to ``small`` (N, C, OH, OW)."""
    cdef Geometry g
    cdef Py_ssize_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h = 1, dilation_w = 1
    cdef int threads
    g.count_include_pad, g.divisor_override = True, 0
    if is_average:
        (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, g.count_include_pad, g.divisor_override,
         threads) = options
    else:
        kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, threads = options
    if cnp.PyArray_NDIM(large) != 4 or cnp.PyArray_NDIM(small) != 4:
        raise ValueError("pooling kernels take (N, C, H, W) arrays")
    if large.shape[0] != small.shape[0] or large.shape[1] != small.shape[1]:
        raise ValueError(
            f"pooling kernel arrays differ in N or C: {(<object>large).shape} and {(<object>small).shape}"
        )
    if min(kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w) < 1 or min(pad_h, pad_w) < 0:
        raise ValueError("pooling kernels need kernel, stride and dilation >= 1 and padding >= 0")
    g.planes = large.shape[0] * large.shape[1]
    g.height, g.width = large.shape[2], large.shape[3]
    g.out_height, g.out_width = small.shape[2], small.shape[3]
    g.kernel_h, g.kernel_w, g.stride_h, g.stride_w = kernel_h, kernel_w, stride_h, stride_w
    g.pad_h, g.pad_w, g.dilation_h, g.dilation_w = pad_h, pad_w, dilation_h, dilation_w
    g.threads = threads_for(cnp.PyArray_SIZE(large) + cnp.PyArray_SIZE(small), WORK_PER_THREAD, threads)
    return g


cdef inline Py_ssize_t first_plane(Geometry g, int part) noexcept nogil:
    """The planes are split over g.threads; this is where part ``part`` begins."""
    return share(g.planes, part, g.threads, 1)


# ---- which taps and windows lie inside the input -----------------------------------------------------


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """ceil(a / b) where it is positive, else 0 (b > 0)."""
    if a <= 0:
        return 0
    return a if b == 1 else (a + b - 1) // b  # a division costs as much as a short row of windows


cdef inline Py_ssize_t first_tap(Py_ssize_t start, Py_ssize_t dilation) noexcept nogil:
    """The first tap at or behind 0, of a window that starts at ``start``."""
    return ceil_div(-start, dilation)


cdef inline Py_ssize_t end_tap(
    Py_ssize_t start, Py_ssize_t dilation, Py_ssize_t kernel, Py_ssize_t size
) noexcept nogil:
    """One past the last tap before ``size``, of a window that starts at ``start``."""
    return min(kernel, ceil_div(size - start, dilation))


cdef inline Py_ssize_t interior_begin(Geometry g) noexcept nogil:
    """The first output column whose window lies wholly inside the input's columns."""
    return min(g.out_width, ceil_div(g.pad_w, g.stride_w))


cdef inline Py_ssize_t interior_end(Geometry g) noexcept nogil:
    """One past the last output column whose window lies wholly inside the input's columns."""
    cdef Py_ssize_t last_start = g.width + g.pad_w - (g.kernel_w - 1) * g.dilation_w - 1
    return max(interior_begin(g), min(g.out_width, last_start // g.stride_w + 1 if last_start >= 0 else 0))


cdef inline pool2d_taps interior_taps(Geometry g, Py_ssize_t row_start) noexcept nogil:
    cdef pool2d_taps t
    t.row_begin = first_tap(row_start, g.dilation_h)
    t.row_end = end_tap(row_start, g.dilation_h, g.kernel_h, g.height)
    t.kernel_w = g.kernel_w
    t.row_step = g.dilation_h * g.width
    t.column_step = g.dilation_w
    t.stride = g.stride_w
    return t


cdef inline bint is_2x2_tiling(Geometry g) noexcept nogil:
    """2x2 windows side by side, all inside the input: no two of them share an element."""
    return (
        g.kernel_h == 2 and g.kernel_w == 2 and g.stride_h == 2 and g.stride_w == 2
        and g.pad_h == 0 and g.pad_w == 0 and g.dilation_h == 1 and g.dilation_w == 1
        and 2 * g.out_height <= g.height and 2 * g.out_width <= g.width
    )


cdef void clear_outside_tiling(real *out, Geometry g) noexcept nogil:
    """Zeroes the last row and column, where the size is odd and the 2x2 windows do not reach them."""
    cdef Py_ssize_t row, covered = 2 * g.out_width
    if covered < g.width:
        for row in range(2 * g.out_height):
            memset(out + row * g.width + covered, 0, (g.width - covered) * sizeof(real))
    row = 2 * g.out_height
    memset(out + row * g.width, 0, (g.height - row) * g.width * sizeof(real))


include "max_pool2d.pxi"
include "avg_pool2d.pxi"
