"""Losses, and their gradients, each in one walk (``loss.h``).

Of classes: ``x`` is (rows, classes), logits or their log-softmax; ``target`` (rows,), int64, in [0, classes) or
``ignore_index``; ``weight`` (classes,) or None. Elementwise: ``x`` and ``target`` of one shape. All arrays are
C-contiguous, and all but classes of one dtype, float32 or float64. A ``reduction`` is "none", "sum" or "mean";
sums are taken in double, those of a thread's share in the order of the elements.

There is one rung, *fused*: a row of logits is read once from memory for its loss, and its softmax is written
once for the gradient; an elementwise loss is read once and never written. Arithmetic intensity: as that of
softmax, an exponential for 4 or 8 bytes; of a squared error 3 operations for 8 bytes, bound by memory.
"""

import numpy as np

from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memset

include "arguments.pxi"

cdef extern from *:
    """
    #include <stdint.h>

    #include "vector_log.h"
    #include "vector_math.h"

    #define SMALLEST_LOG -100 /* of a probability of 0, so that its loss stays finite, as in PyTorch */
    #define BLOCK 2048 /* elements that are summed before what they come to is added in double */

    typedef struct {
        const void *x, *weight, *grad;
        const int64_t *target;
        void *out;
        double *sums; /* for each part, of its losses and of their weights */
        ptrdiff_t classes;
        int64_t ignore_index;
        double smoothing, weight_sum, divisor;
        int is_log, each; /* each: every row has a loss, and a gradient, of its own */
    } ClassLoss;

    typedef struct {
        const void *x, *target, *grad;
        const void *weight; /* `period` of them, and a vector of the first once more; or NULL */
        void *out;
        ptrdiff_t period;
        double scale, delta;
        int each; /* every element has a gradient of its own */
    } ElementLoss;

    typedef void (*class_kernel)(const ClassLoss *p, int part, ptrdiff_t begin, ptrdiff_t end);
    typedef double (*sum_kernel)(const ElementLoss *p, ptrdiff_t begin, ptrdiff_t end);
    typedef void (*element_kernel)(const ElementLoss *p, ptrdiff_t begin, ptrdiff_t end);

    /* log(1 + e) for e in [0, 1]: 2 artanh(s), s = e / (2 + e) being at most 1/3, by its series; what is left
       out is below 2e-9 of it. */
    ALWAYS_INLINE f32v log1p_unit_f32(f32v e) {
        f32v s = e / (2.0f + e), z = s * s;
        f32v p = z * 0.0666666667f + 0.0769230769f;
        p = p * z + 0.0909090909f;
        p = p * z + 0.111111111f;
        p = p * z + 0.142857143f;
        p = p * z + 0.2f;
        p = p * z + 0.333333333f;
        return 2.0f * s + 2.0f * s * (z * p);
    }

    ALWAYS_INLINE f64v log1p_unit_f64(f64v e) {
        for (int lane = 0; lane < F64_LANES; lane++) e[lane] = log1p(e[lane]);
        return e;
    }

    #define REAL float
    #define VECTOR f32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "softmax.h"

    #define REAL float
    #define VECTOR f32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "loss.h"

    #define REAL double
    #define VECTOR f64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "softmax.h"

    #define REAL double
    #define VECTOR f64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "loss.h"

    typedef struct {
        const char *name;
        sum_kernel sum_f32, sum_f64;
        element_kernel each_f32, each_f64, grad_f32, grad_f64;
    } ElementKernels;

    #define KERNELS(f) {#f, f##_sum_f32, f##_sum_f64, f##_each_f32, f##_each_f64, f##_grad_f32, f##_grad_f64}
    #define LOSSES 8

    static const ElementKernels ELEMENT_KERNELS[LOSSES] = {
        KERNELS(l1_loss), KERNELS(mse_loss), KERNELS(huber_loss), KERNELS(binary_cross_entropy),
        KERNELS(binary_cross_entropy_with_logits), KERNELS(kl_div), KERNELS(kl_div_of_logs),
        KERNELS(weighted_logits_loss)};
    """
    ctypedef struct ClassLoss:
        const void *x
        const void *weight
        const void *grad
        const int64_t *target
        void *out
        double *sums
        Py_ssize_t classes
        int64_t ignore_index
        double smoothing, weight_sum, divisor
        bint is_log, each

    ctypedef struct ElementLoss:
        const void *x
        const void *target
        const void *grad
        const void *weight
        void *out
        Py_ssize_t period
        double scale, delta
        bint each

    ctypedef void (*class_kernel)(
        const ClassLoss *p, int part, Py_ssize_t begin, Py_ssize_t end
    ) noexcept nogil
    ctypedef double (*sum_kernel)(const ElementLoss *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil
    ctypedef void (*element_kernel)(const ElementLoss *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil

    class_kernel class_losses_f32, class_losses_f64, class_loss_grads_f32, class_loss_grads_f64

    ctypedef struct ElementKernels:
        const char *name
        sum_kernel sum_f32, sum_f64
        element_kernel each_f32, each_f64, grad_f32, grad_f64

    enum:
        LOSSES
    const ElementKernels[LOSSES] ELEMENT_KERNELS

# Elements below which it is not worth waking another thread, the rows and elements at whose multiples threads
# begin, and the most of them.
cdef enum:
    WORK_PER_THREAD = 16384
    ROWS = 16
    LINE = 16
    MAX_PARTS = 64


def first_out_of_range(cnp.ndarray target, int64_t classes, int64_t ignore_index):
    """The place of the first class, counted in flat order, that is neither in [0, classes) nor ignored; or -1."""
    check_input(target, cnp.NPY_INT64)
    cdef const int64_t *data = <const int64_t *>cnp.PyArray_DATA(target)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(target)):
        if not 0 <= data[i] < classes and data[i] != ignore_index:
            return i
    return -1


cdef double element(cnp.ndarray array, Py_ssize_t i) noexcept:
    if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32:
        return (<float *>cnp.PyArray_DATA(array))[i]
    return (<double *>cnp.PyArray_DATA(array))[i]


cdef int set_element(cnp.ndarray array, double value) except -1:
    if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32:
        (<float *>cnp.PyArray_DATA(array))[0] = <float>value
    else:
        (<double *>cnp.PyArray_DATA(array))[0] = value
    return 0


cdef int check_size(cnp.ndarray array, Py_ssize_t size, str name) except -1:
    if cnp.PyArray_SIZE(array) != size:
        raise ValueError(f"loss kernel: {name} must have {size} elements, got {(<object>array).shape}")
    return 0


cdef ClassLoss class_loss(
    cnp.ndarray x, cnp.ndarray target, cnp.ndarray weight, int64_t ignore_index, double smoothing, bint is_log
) except *:
    """The checked inputs: no target is out of range."""
    cdef int dtype = real_type(x)
    cdef Py_ssize_t i
    check_input(x, dtype)
    if cnp.PyArray_NDIM(x) != 2:
        raise ValueError(f"loss kernel: x must be (rows, classes), got {(<object>x).shape}")
    check_size(target, x.shape[0], "target")
    if first_out_of_range(target, x.shape[1], ignore_index) != -1:
        raise ValueError(f"loss kernel: a target is not one of {x.shape[1]} classes")
    cdef ClassLoss p
    memset(&p, 0, sizeof(p))
    p.x, p.target = cnp.PyArray_DATA(x), <const int64_t *>cnp.PyArray_DATA(target)
    p.classes, p.weight_sum, p.divisor = x.shape[1], x.shape[1], 1
    p.ignore_index, p.smoothing, p.is_log = ignore_index, smoothing, is_log
    if weight is not None:
        check_input(weight, dtype)
        check_size(weight, p.classes, "weight")
        p.weight = cnp.PyArray_DATA(weight)
        p.weight_sum = 0
        for i in range(p.classes):
            p.weight_sum += element(weight, i)
    return p


cdef void run_classes(const ClassLoss *p, class_kernel kernel, Py_ssize_t rows, int parts) noexcept nogil:
    cdef int part
    if parts == 1:
        kernel(p, 0, 0, rows)
    else:
        for part in prange(parts, num_threads=parts, schedule="static"):
            kernel(p, part, share(rows, part, parts, ROWS), share(rows, part + 1, parts, ROWS))


cdef int parts_of(Py_ssize_t work, int threads) noexcept:
    return min(threads_for(work, WORK_PER_THREAD, threads), <int>MAX_PARTS)


def class_losses(
    cnp.ndarray out, cnp.ndarray x, cnp.ndarray target, cnp.ndarray weight, int64_t ignore_index,
    double smoothing, bint is_log, str reduction, int threads,
):
    """The cross-entropy of logits, or the negative of ``is_log`` log-probabilities, with its targets.

    ``out`` is (rows,) for the reduction "none", else one element. The mean is weighted.
    """
    cdef ClassLoss p = class_loss(x, target, weight, ignore_index, smoothing, is_log)
    cdef int dtype = real_type(x), part
    cdef Py_ssize_t rows = x.shape[0]
    p.each = reduction == "none"
    check_output(out, dtype)
    check_size(out, rows if p.each else 1, "the loss")
    p.out = cnp.PyArray_DATA(out)
    cdef double[2 * MAX_PARTS] sums
    p.sums = &sums[0]
    cdef int parts = parts_of(rows if is_log else cnp.PyArray_SIZE(x), threads)
    cdef class_kernel kernel = class_losses_f32 if dtype == cnp.NPY_FLOAT32 else class_losses_f64
    with nogil:
        run_classes(&p, kernel, rows, parts)
    if p.each:
        return
    cdef double losses = 0, weights = 0
    for part in range(parts):
        losses += sums[2 * part]
        weights += sums[2 * part + 1]
    set_element(out, losses / weights if reduction == "mean" else losses)


def class_loss_grads(
    cnp.ndarray out, cnp.ndarray grad, cnp.ndarray x, cnp.ndarray target, cnp.ndarray weight,
    int64_t ignore_index, double smoothing, bint is_log, str reduction, int threads,
):
    """The gradient of ``class_losses`` for x, in its shape; ``grad`` is that of the loss, in its shape."""
    cdef ClassLoss p = class_loss(x, target, weight, ignore_index, smoothing, is_log)
    cdef int dtype = real_type(x)
    cdef Py_ssize_t rows = x.shape[0], row
    p.each = reduction == "none"
    check_input(grad, dtype)
    check_size(grad, rows if p.each else 1, "the loss's gradient")
    check_output(out, dtype)
    check_same_shape(out, x)
    p.out, p.grad = cnp.PyArray_DATA(out), cnp.PyArray_DATA(grad)
    if reduction == "mean":
        p.divisor = 0
        for row in range(rows):
            if p.target[row] != ignore_index:
                p.divisor += 1 if weight is None else element(weight, p.target[row])
    cdef int parts = parts_of(cnp.PyArray_SIZE(x), threads)
    cdef class_kernel kernel = class_loss_grads_f32 if dtype == cnp.NPY_FLOAT32 else class_loss_grads_f64
    with nogil:
        run_classes(&p, kernel, rows, parts)


cdef const ElementKernels *element_kernels(str loss) except NULL:
    cdef int i
    for i in range(LOSSES):
        if ELEMENT_KERNELS[i].name.decode() == loss:
            return &ELEMENT_KERNELS[i]
    raise ValueError(f"loss kernel: there is no loss {loss!r} of elements")


cdef object wrapped(object weight):
    """The weights, with as many of the first behind them as the longest vector has; they may be few."""
    return None if weight is None else np.resize(weight, weight.size + LINE)


cdef ElementLoss element_loss(
    cnp.ndarray x, cnp.ndarray target, double scale, double delta, cnp.ndarray weight
) except *:
    """The checked inputs; the weights are wrapped."""
    cdef ElementLoss p
    memset(&p, 0, sizeof(p))
    check_input(x, real_type(x))
    check_input(target, real_type(x))
    check_same_shape(x, target)
    p.x, p.target = cnp.PyArray_DATA(x), cnp.PyArray_DATA(target)
    p.scale, p.delta = scale, delta
    if weight is not None:
        check_input(weight, real_type(x))
        p.weight, p.period = cnp.PyArray_DATA(weight), cnp.PyArray_SIZE(weight) - LINE
    return p


cdef void run_elements(const ElementLoss *p, element_kernel kernel, Py_ssize_t n, int parts) noexcept nogil:
    cdef int part
    if parts == 1:
        kernel(p, 0, n)
    else:
        for part in prange(parts, num_threads=parts, schedule="static"):
            kernel(p, share(n, part, parts, LINE), share(n, part + 1, parts, LINE))


def total(
    cnp.ndarray out, cnp.ndarray x, cnp.ndarray target, str loss, double scale, double delta, int threads,
    cnp.ndarray weight=None,
):
    """``scale`` times the sum of a loss over all elements; ``delta`` is the Huber loss's, and ``weight`` the
    weighted loss's: (period,), repeated along the flat ``x``."""
    cdef const ElementKernels *kernels = element_kernels(loss)
    cdef cnp.ndarray weights = wrapped(weight)
    cdef ElementLoss p = element_loss(x, target, scale, delta, weights)
    check_output(out, real_type(x))
    check_size(out, 1, "the loss")
    cdef int part
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef sum_kernel kernel = kernels.sum_f32 if real_type(x) == cnp.NPY_FLOAT32 else kernels.sum_f64
    cdef int parts = parts_of(n, threads)
    cdef double[MAX_PARTS] sums
    cdef double sum = 0
    with nogil:
        if parts == 1:
            sums[0] = kernel(&p, 0, n)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                sums[part] = kernel(&p, share(n, part, parts, LINE), share(n, part + 1, parts, LINE))
    for part in range(parts):
        sum += sums[part]
    set_element(out, sum * scale)


def each(
    cnp.ndarray out, cnp.ndarray x, cnp.ndarray target, str loss, double scale, double delta, int threads,
    cnp.ndarray weight=None,
):
    """``scale`` times the loss of each element, in its place."""
    cdef const ElementKernels *kernels = element_kernels(loss)
    cdef cnp.ndarray weights = wrapped(weight)
    cdef ElementLoss p = element_loss(x, target, scale, delta, weights)
    check_output(out, real_type(x))
    check_same_shape(out, x)
    p.out = cnp.PyArray_DATA(out)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef int parts = parts_of(n, threads)
    cdef element_kernel kernel = kernels.each_f32 if real_type(x) == cnp.NPY_FLOAT32 else kernels.each_f64
    with nogil:
        run_elements(&p, kernel, n, parts)


def gradient(
    cnp.ndarray out, cnp.ndarray grad, cnp.ndarray x, cnp.ndarray target, str loss, double scale, double delta,
    int threads, cnp.ndarray weight=None,
):
    """``scale`` times the slope of each element's loss, and ``grad``, of one element or an own one for each."""
    cdef const ElementKernels *kernels = element_kernels(loss)
    cdef cnp.ndarray weights = wrapped(weight)
    cdef ElementLoss p = element_loss(x, target, scale, delta, weights)
    cdef int dtype = real_type(x)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    check_output(out, dtype)
    check_same_shape(out, x)
    check_input(grad, dtype)
    p.each = cnp.PyArray_SIZE(grad) != 1
    if p.each:
        check_same_shape(grad, x)
    p.out, p.grad = cnp.PyArray_DATA(out), cnp.PyArray_DATA(grad)
    cdef int parts = parts_of(n, threads)
    cdef element_kernel kernel = kernels.grad_f32 if dtype == cnp.NPY_FLOAT32 else kernels.grad_f64
    with nogil:
        run_elements(&p, kernel, n, parts)
