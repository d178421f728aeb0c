"""Scaled dot-product attention, out = softmax(scale q k^T) v for each head, and its gradients.

There is one rung, *blocks*, after Dao et al. 2022, https://arxiv.org/abs/2205.14135: the scores are computed
for a few queries at a time, become probabilities and are multiplied with v while they lie in cache. What is
kept of them for the gradient is the logarithm of each query's sum of exponentials, from which the backward
direction computes the probabilities anew, block by block: memory grows with L + S, not with L S. Blocks that
the causal mask hides are not computed. The products are those of gemm.h's tiles.

A score takes 4 D operations and an exponential forward, 10 D and another one backward, and no traffic beyond
L2, so that the arithmetic is the limit. Each thread has its own heads; forward, where there are fewer heads
than threads, its own queries.

q (B, H, L, E), k (B, H, S, E), v and grad_out (B, H, S or L, V) have contiguous rows and any other strides
that are multiples of the item size; all other arrays are C-contiguous. S must not be 0.
"""

from cython.parallel cimport prange, threadid
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

include "arguments.pxi"

cdef extern from *:
    """
    #include "gemm.h"
    #include "vector_math.h"

    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC optimize("schedule-insns") /* interleaves the vectors whose exponentials are computed together */
    #endif

    #define log_f32 logf
    #define log_f64 log

    #define REAL float
    #define VECTOR f32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "attention.h"

    #define REAL double
    #define VECTOR f64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "attention.h"
    """
    Py_ssize_t attention_workspace_f32(Py_ssize_t S, Py_ssize_t E, Py_ssize_t V) nogil
    Py_ssize_t attention_workspace_f64(Py_ssize_t S, Py_ssize_t E, Py_ssize_t V) nogil
    Py_ssize_t attention_grad_workspace_f32(Py_ssize_t L, Py_ssize_t E, Py_ssize_t V) nogil
    Py_ssize_t attention_grad_workspace_f64(Py_ssize_t L, Py_ssize_t E, Py_ssize_t V) nogil
    void attention_forward_f32(
        Py_ssize_t S, Py_ssize_t E, Py_ssize_t V, Py_ssize_t first, Py_ssize_t last, int causal, double scale,
        const float *q, Py_ssize_t q_row, const float *k, Py_ssize_t k_row, const float *v, Py_ssize_t v_row,
        float *out, float *lse, float *workspace) nogil
    void attention_forward_f64(
        Py_ssize_t S, Py_ssize_t E, Py_ssize_t V, Py_ssize_t first, Py_ssize_t last, int causal, double scale,
        const double *q, Py_ssize_t q_row, const double *k, Py_ssize_t k_row, const double *v,
        Py_ssize_t v_row, double *out, double *lse, double *workspace) nogil
    void attention_backward_f32(
        Py_ssize_t L, Py_ssize_t S, Py_ssize_t E, Py_ssize_t V, int causal, double scale,
        const float *q, Py_ssize_t q_row, const float *k, Py_ssize_t k_row, const float *v, Py_ssize_t v_row,
        const float *grad, Py_ssize_t grad_row, const float *out, const float *lse,
        float *dq, float *dk, float *dv, float *workspace) nogil
    void attention_backward_f64(
        Py_ssize_t L, Py_ssize_t S, Py_ssize_t E, Py_ssize_t V, int causal, double scale,
        const double *q, Py_ssize_t q_row, const double *k, Py_ssize_t k_row, const double *v,
        Py_ssize_t v_row, const double *grad, Py_ssize_t grad_row, const double *out, const double *lse,
        double *dq, double *dk, double *dv, double *workspace) nogil

# Multiply-adds below which it is not worth waking another thread.
cdef enum:
    WORK_PER_THREAD = 1000000
    CACHE_LINE = 64

# (B, H, rows, columns), with strides in elements; rows are contiguous.
cdef struct Matrices:
    char *data
    Py_ssize_t batch, head, row

cdef struct Attention:
    int dtype
    Py_ssize_t item, B, H, L, S, E, V
    Py_ssize_t chunks         # forward: into how many each head's queries are cut
    bint causal
    double scale
    Matrices q, k, v, grad
    char *out
    char *lse
    char *dq
    char *dk
    char *dv


def forward(cnp.ndarray out not None, cnp.ndarray lse not None, cnp.ndarray q not None,
            cnp.ndarray k not None, cnp.ndarray v not None, bint causal, double scale, int threads):
    """``out`` (B, H, L, V), and ``lse`` (B, H, L), the logarithms of the sums of exponentials."""
    cdef Attention a = read_inputs(q, k, v, causal, scale)
    a.out = <char *> output(out, &a, (a.B, a.H, a.L, a.V))
    a.lse = <char *> output(lse, &a, (a.B, a.H, a.L))
    run(&a, False, threads)


def backward(cnp.ndarray dq not None, cnp.ndarray dk not None, cnp.ndarray dv not None,
             cnp.ndarray grad_out not None, cnp.ndarray q not None, cnp.ndarray k not None,
             cnp.ndarray v not None, cnp.ndarray out not None, cnp.ndarray lse not None, bint causal,
             double scale, int threads):
    """The gradients of ``q``, ``k`` and ``v``, from that of ``out``; ``out`` and ``lse`` as from forward."""
    cdef Attention a = read_inputs(q, k, v, causal, scale)
    a.grad = matrices(grad_out, &a, (a.B, a.H, a.L, a.V))
    check_input(out, a.dtype)
    check_input(lse, a.dtype)
    check_shape(out, (a.B, a.H, a.L, a.V))
    check_shape(lse, (a.B, a.H, a.L))
    a.out, a.lse = <char *> cnp.PyArray_DATA(out), <char *> cnp.PyArray_DATA(lse)
    a.dq = <char *> output(dq, &a, (a.B, a.H, a.L, a.E))
    a.dk = <char *> output(dk, &a, (a.B, a.H, a.S, a.E))
    a.dv = <char *> output(dv, &a, (a.B, a.H, a.S, a.V))
    run(&a, True, threads)


# ---- the arguments -----------------------------------------------------------------------------------------


cdef Attention read_inputs(cnp.ndarray q, cnp.ndarray k, cnp.ndarray v, bint causal, double scale) except *:
    cdef Attention a
    if not cnp.PyArray_NDIM(q) == cnp.PyArray_NDIM(k) == cnp.PyArray_NDIM(v) == 4:
        raise ValueError("attention kernel: q, k and v must have 4 dimensions")
    a.dtype, a.item = real_type(q), cnp.PyArray_ITEMSIZE(q)
    a.B, a.H, a.L, a.E = q.shape[0], q.shape[1], q.shape[2], q.shape[3]
    a.S, a.V = k.shape[2], v.shape[3]
    a.chunks, a.causal, a.scale = 1, causal, scale
    if a.S == 0:
        raise ValueError("attention kernel: there must be at least one key")
    a.q = matrices(q, &a, (a.B, a.H, a.L, a.E))
    a.k = matrices(k, &a, (a.B, a.H, a.S, a.E))
    a.v = matrices(v, &a, (a.B, a.H, a.S, a.V))
    return a


cdef int check_shape(cnp.ndarray array, tuple shape) except -1:
    if (<object> array).shape != shape:
        raise ValueError(f"attention kernel: expected shape {shape}, got {(<object> array).shape}")
    return 0


cdef Matrices matrices(cnp.ndarray array, Attention *a, tuple shape) except *:
    cdef Matrices m
    cdef int axis
    if cnp.PyArray_TYPE(array) != a.dtype:
        raise TypeError(f"attention kernel: dtype {array.dtype} does not fit the other arguments")
    check_shape(array, shape)
    if not cnp.PyArray_ISBEHAVED_RO(array):
        raise ValueError("attention kernel: inputs must be aligned and in native byte order")
    for axis in range(4):
        if array.strides[axis] % a.item:
            raise ValueError("attention kernel: strides must be multiples of the item size")
    if array.shape[3] > 1 and array.strides[3] != a.item and cnp.PyArray_SIZE(array) > 0:
        raise ValueError("attention kernel: the rows of inputs must be contiguous")
    m.data = <char *> cnp.PyArray_DATA(array)
    m.batch, m.head, m.row = array.strides[0] // a.item, array.strides[1] // a.item, array.strides[2] // a.item
    return m


cdef void *output(cnp.ndarray array, Attention *a, tuple shape) except? NULL:
    check_output(array, a.dtype)
    check_shape(array, shape)
    return cnp.PyArray_DATA(array)


# ---- the heads ---------------------------------------------------------------------------------------------


cdef int run(Attention *a, bint back, int threads) except -1:
    """Computes all heads, on threads with a workspace each."""
    cdef Py_ssize_t heads = a.B * a.H, task, size
    cdef int parts = threads_for(heads * a.L * a.S * (a.E + a.V), WORK_PER_THREAD, threads)
    if not back and 0 < heads < parts:
        a.chunks = (parts + heads - 1) // heads
    parts = <int> max(1, min(<Py_ssize_t> parts, heads * a.chunks))
    if a.dtype == cnp.NPY_FLOAT32:
        size = attention_grad_workspace_f32(a.L, a.E, a.V) if back else attention_workspace_f32(a.S, a.E, a.V)
    else:
        size = attention_grad_workspace_f64(a.L, a.E, a.V) if back else attention_workspace_f64(a.S, a.E, a.V)
    size = (size * a.item + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    cdef void *allocation = malloc(parts * size + CACHE_LINE)
    if allocation == NULL:
        raise MemoryError(f"attention: no memory for a workspace of {parts * size} bytes")
    cdef char *workspace = <char *> ((<uintptr_t> allocation + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE)
    with nogil:
        if parts == 1:
            for task in range(heads * a.chunks):
                run_task(a, back, task, workspace)
        else:
            for task in prange(heads * a.chunks, num_threads=parts, schedule="static"):
                run_task(a, back, task, workspace + threadid() * size)
    free(allocation)
    return 0


cdef inline void run_task(const Attention *a, bint back, Py_ssize_t task, char *workspace) noexcept nogil:
    if a.dtype == cnp.NPY_FLOAT32:
        if back:
            backward_head(a, task, <float *> workspace)
        else:
            forward_head(a, task // a.chunks, task % a.chunks, <float *> workspace)
    elif back:
        backward_head(a, task, <double *> workspace)
    else:
        forward_head(a, task // a.chunks, task % a.chunks, <double *> workspace)


cdef inline Py_ssize_t start(const Attention *a, const Matrices *m, Py_ssize_t index) noexcept nogil:
    """Where the matrix of head ``index`` of all B H begins, in elements."""
    return index // a.H * m.batch + index % a.H * m.head


cdef void forward_head(const Attention *a, Py_ssize_t index, Py_ssize_t chunk, real *workspace) noexcept nogil:
    cdef const real *q = <const real *> a.q.data + start(a, &a.q, index)
    cdef const real *k = <const real *> a.k.data + start(a, &a.k, index)
    cdef const real *v = <const real *> a.v.data + start(a, &a.v, index)
    cdef real *out = <real *> a.out + index * a.L * a.V
    cdef real *lse = <real *> a.lse + index * a.L
    cdef Py_ssize_t first = a.L * chunk // a.chunks, last = a.L * (chunk + 1) // a.chunks
    if real is float:
        attention_forward_f32(a.S, a.E, a.V, first, last, a.causal, a.scale, q, a.q.row, k, a.k.row, v,
                              a.v.row, out, lse, workspace)
    else:
        attention_forward_f64(a.S, a.E, a.V, first, last, a.causal, a.scale, q, a.q.row, k, a.k.row, v,
                              a.v.row, out, lse, workspace)


cdef void backward_head(const Attention *a, Py_ssize_t index, real *workspace) noexcept nogil:
    cdef const real *q = <const real *> a.q.data + start(a, &a.q, index)
    cdef const real *k = <const real *> a.k.data + start(a, &a.k, index)
    cdef const real *v = <const real *> a.v.data + start(a, &a.v, index)
    cdef const real *grad = <const real *> a.grad.data + start(a, &a.grad, index)
    cdef const real *out = <const real *> a.out + index * a.L * a.V
    cdef const real *lse = <const real *> a.lse + index * a.L
    cdef real *dq = <real *> a.dq + index * a.L * a.E
    cdef real *dk = <real *> a.dk + index * a.S * a.E
    cdef real *dv = <real *> a.dv + index * a.S * a.V
    if real is float:
        attention_backward_f32(a.L, a.S, a.E, a.V, a.causal, a.scale, q, a.q.row, k, a.k.row, v, a.v.row,
                               grad, a.grad.row, out, lse, dq, dk, dv, workspace)
    else:
        attention_backward_f64(a.L, a.S, a.E, a.V, a.causal, a.scale, q, a.q.row, k, a.k.row, v, a.v.row,
                               grad, a.grad.row, out, lse, dq, dk, dv, workspace)
