"""Scaled dot-product attention, out = softmax(scale q k^T) v for each head, and its gradients.

There is one rung, *blocks*, after Dao et al. 2022, https://arxiv.org/abs/2205.14135: the scores are computed
for a few queries at a time, become probabilities and are multiplied with v while they lie in cache. What is
kept of them for the gradient is the logarithm of each query's sum of exponentials, from which the backward
direction computes the probabilities anew, block by block: memory grows with L + S, not with L S. Blocks that
the causal mask hides are not computed. The products are those of gemm.h's tiles.

A score takes 4 D operations and an exponential forward, 10 D and another one backward, and no traffic beyond
L2, so that the arithmetic is the limit; a small head's inputs are fetched while the head before is computed.
Each thread has its own heads; forward, where there are fewer heads than threads, its own queries.

q (B, H, L, E), k (B, H, S, E), v and grad_out (B, H, S or L, V) have contiguous rows and any other strides
that are multiples of the item size; all other arrays are C-contiguous. S must not be 0.
"""

from cython.parallel cimport prange, threadid
from libc.string cimport memset

include "arguments.pxi"
include "workspace.pxi"

cdef extern from *:
    """
    #include "gemm.h"
    #include "vector_log.h"
    #include "vector_math.h"

    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC optimize("schedule-insns") /* interleaves the vectors whose exponentials are computed together */
    #endif

    /* A matrix with contiguous rows, `row` elements apart; and that of the head which comes next, or NULL. */
    typedef struct {
        const void *data, *next;
        ptrdiff_t row;
    } Rows;

    /* q (L, E), k (S, E), v (S, V), grad (L, V); out (L, V), lse (L), dq, dk and dv are contiguous. Forward computes
     * the queries from `first` to `last`. If causal, query i sees the keys 0 to i, else all. */
    typedef struct {
        Rows q, k, v, grad;
        void *out, *lse, *dq, *dk, *dv;
        ptrdiff_t L, S, E, V, first, last;
        double scale;
        int causal;
    } Head;

    typedef ptrdiff_t (*workspace_size)(const Head *h);
    typedef void (*head_kernel)(const Head *h, void *workspace);

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
    ctypedef struct Rows:
        const void *data
        const void *next
        Py_ssize_t row

    ctypedef struct Head:
        Rows q, k, v, grad
        void *out
        void *lse
        void *dq
        void *dk
        void *dv
        Py_ssize_t L, S, E, V, first, last
        double scale
        bint causal

    ctypedef Py_ssize_t (*workspace_size)(const Head *h) noexcept nogil
    ctypedef void (*head_kernel)(const Head *h, void *workspace) noexcept nogil

    workspace_size attention_workspace_f32, attention_workspace_f64
    workspace_size attention_grad_workspace_f32, attention_grad_workspace_f64
    head_kernel attention_forward_f32, attention_forward_f64
    head_kernel attention_backward_f32, attention_backward_f64

# Multiply-adds below which it is not worth waking another thread.
cdef enum:
    WORK_PER_THREAD = 1000000

# Bytes of the inputs of a head up to which the next one's are fetched meanwhile: beside it they stay in L2, and
# larger heads compute for longer than they wait.
cdef enum:
    FETCHED_AHEAD = 1 << 17

# (B, H, rows, columns), with strides in elements; rows are contiguous.
cdef struct Matrices:
    char *data
    Py_ssize_t batch, head, row

cdef struct Attention:
    int dtype
    Py_ssize_t item, B, H
    Py_ssize_t chunks         # forward: into how many each head's queries are cut
    Matrices q, k, v, grad
    Head first                # the first of all heads, but for what is in Matrices


def forward(cnp.ndarray out not None, cnp.ndarray lse not None, cnp.ndarray q not None,
            cnp.ndarray k not None, cnp.ndarray v not None, bint causal, double scale, int threads):
    """``out`` (B, H, L, V), and ``lse`` (B, H, L), the logarithms of the sums of exponentials."""
    cdef Attention a = read_inputs(q, k, v, causal, scale)
    a.first.out = output(out, &a, (a.B, a.H, a.first.L, a.first.V))
    a.first.lse = output(lse, &a, (a.B, a.H, a.first.L))
    run(&a, False, threads)


def backward(cnp.ndarray dq not None, cnp.ndarray dk not None, cnp.ndarray dv not None,
             cnp.ndarray grad_out not None, cnp.ndarray q not None, cnp.ndarray k not None,
             cnp.ndarray v not None, cnp.ndarray out not None, cnp.ndarray lse not None, bint causal,
             double scale, int threads):
    """The gradients of ``q``, ``k`` and ``v``, from that of ``out``; ``out`` and ``lse`` as from forward."""
    cdef Attention a = read_inputs(q, k, v, causal, scale)
    cdef Head *h = &a.first
    a.grad = matrices(grad_out, &a, (a.B, a.H, h.L, h.V))
    check_input(out, a.dtype)
    check_input(lse, a.dtype)
    check_shape(out, (a.B, a.H, h.L, h.V))
    check_shape(lse, (a.B, a.H, h.L))
    h.out, h.lse = cnp.PyArray_DATA(out), cnp.PyArray_DATA(lse)
    h.dq = output(dq, &a, (a.B, a.H, h.L, h.E))
    h.dk = output(dk, &a, (a.B, a.H, h.S, h.E))
    h.dv = output(dv, &a, (a.B, a.H, h.S, h.V))
    run(&a, True, threads)


# ---- the arguments -----------------------------------------------------------------------------------------


cdef Attention read_inputs(cnp.ndarray q, cnp.ndarray k, cnp.ndarray v, bint causal, double scale) except *:
    cdef Attention a
    memset(&a, 0, sizeof(a))
    if not cnp.PyArray_NDIM(q) == cnp.PyArray_NDIM(k) == cnp.PyArray_NDIM(v) == 4:
        raise ValueError("attention kernel: q, k and v must have 4 dimensions")
    cdef Head *h = &a.first
    a.dtype, a.item = real_type(q), cnp.PyArray_ITEMSIZE(q)
    a.B, a.H, a.chunks = q.shape[0], q.shape[1], 1
    h.L, h.S, h.E, h.V = q.shape[2], k.shape[2], q.shape[3], v.shape[3]
    h.causal, h.scale = causal, scale
    if h.S == 0:
        raise ValueError("attention kernel: there must be at least one key")
    a.q = matrices(q, &a, (a.B, a.H, h.L, h.E))
    a.k = matrices(k, &a, (a.B, a.H, h.S, h.E))
    a.v = matrices(v, &a, (a.B, a.H, h.S, h.V))
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
    cdef bint is_float = a.dtype == cnp.NPY_FLOAT32
    cdef workspace_size size_of
    cdef head_kernel kernel
    if back:
        size_of = attention_grad_workspace_f32 if is_float else attention_grad_workspace_f64
        kernel = attention_backward_f32 if is_float else attention_backward_f64
    else:
        size_of = attention_workspace_f32 if is_float else attention_workspace_f64
        kernel = attention_forward_f32 if is_float else attention_forward_f64
    cdef const Head *h = &a.first
    cdef Py_ssize_t heads = a.B * a.H, task, size
    cdef int parts = threads_for(heads * h.L * h.S * (h.E + h.V), WORK_PER_THREAD, threads)
    if not back and 0 < heads < parts:
        a.chunks = ceil_divide(parts, heads)
    parts = <int> max(1, min(<Py_ssize_t> parts, heads * a.chunks))
    size = whole_lines(size_of(h) * a.item)
    cdef void *memory = allocate(parts * size)
    cdef char *workspace = aligned(memory)
    with nogil:
        if parts == 1:
            for task in range(heads * a.chunks):
                run_task(a, kernel, task, workspace)
        else:
            for task in prange(heads * a.chunks, num_threads=parts, schedule="static"):
                run_task(a, kernel, task, workspace + threadid() * size)
    free(memory)
    return 0


cdef void run_task(const Attention *a, head_kernel kernel, Py_ssize_t task, char *workspace) noexcept nogil:
    cdef Head h = a.first
    cdef Py_ssize_t index = task // a.chunks, chunk = task % a.chunks
    h.q, h.k, h.v, h.grad = rows(a, &a.q, index), rows(a, &a.k, index), rows(a, &a.v, index), rows(a, &a.grad, index)
    h.out = of_head(a, h.out, index, h.L * h.V)
    h.lse = of_head(a, h.lse, index, h.L)
    h.dq = of_head(a, h.dq, index, h.L * h.E)
    h.dk = of_head(a, h.dk, index, h.S * h.E)
    h.dv = of_head(a, h.dv, index, h.S * h.V)
    h.first, h.last = h.L * chunk // a.chunks, h.L * (chunk + 1) // a.chunks
    kernel(&h, workspace)


cdef inline void *of_head(const Attention *a, void *first, Py_ssize_t index, Py_ssize_t size) noexcept nogil:
    """The ``size`` elements of head ``index``, of all B H that follow each other; NULL where there are none."""
    return <char *> first + index * size * a.item if first else NULL


cdef inline Rows rows(const Attention *a, const Matrices *m, Py_ssize_t index) noexcept nogil:
    """The matrix of head ``index``, and that of the next one if it is to be fetched meanwhile."""
    cdef const Head *h = &a.first
    cdef Rows found
    found.data, found.next, found.row = start(a, m, index), NULL, m.row
    if a.chunks == 1 and index + 1 < a.B * a.H and (h.L + h.S) * (h.E + h.V) * a.item <= FETCHED_AHEAD:
        found.next = start(a, m, index + 1)
    return found


cdef inline const void *start(const Attention *a, const Matrices *m, Py_ssize_t index) noexcept nogil:
    return m.data + (index // a.H * m.batch + index % a.H * m.head) * a.item if m.data else NULL
