"""A long short-term memory over a whole sequence, forward and backward.

    z_t = weight_ih x_t + weight_hh h_{t-1} + bias     x (T, N, E), z (T, N, 4 H), weights (4 H, E), (4 H, H)
    i, f, o = sigmoid(z_t), g = tanh(z_t)              its four quarters, in the order i, f, g, o
    c_t = f c_{t-1} + i g                              (N, H)
    h_t = o tanh(c_t)                                  (N, H)

The first rung is *fused_sequence*. Its ideas: the weights are packed for the GEMM's tiles once for all steps;
x_t and h_{t-1} lie side by side, so that one product makes the pre-activations of a step; they pass to the gates'
functions while they lie in L2, and are never written to memory; and the rows of a batch never meet, so that a
thread takes its rows from the first step to the last, and no step waits. The weights' gradients are two products
that share one factor, dz^T: *weight_grad* packs it once for both, and adds up its rows, which are the bias's
gradient, while it lies in the cache.

The second, *projected_once*, is for an x that shows few different vectors, such as the output of an embedding of
characters. Their products with weight_ih are made before; a step looks them up, *forward_of_lookup*, and is
left with the product with h.

A step makes 8 N H (E + H) operations on the weights' 4 H (E + H) elements: 2 N for each, so that from some 16
rows on the arithmetic is the limit, and for fewer the reading of the weights from cache.
"""

from cython.parallel cimport parallel, prange
from libc.stdint cimport int64_t
from libc.string cimport memcpy

include "arguments.pxi"
include "workspace.pxi"

cdef extern from *:
    """
    #include <stdint.h>

    #include "gemm.h"
    #include "vector_math.h"

    #define REAL float
    #define VECTOR f32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "elementwise.h"
    #define REAL float
    #define VECTOR f32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "lstm.h"

    #define REAL double
    #define VECTOR f64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "elementwise.h"
    #define REAL double
    #define VECTOR f64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "lstm.h"
    """
    enum:
        MR_f32
        NR_f32
        NR_f64
    ctypedef struct LstmWeightGrad:
        Py_ssize_t T, N, E, H
        bint reverse
        const void *dz
        const void *x
        const void *h0
        const void *hidden
        void *grad_ih
        void *grad_hh
        void *grad_bias
    Py_ssize_t lstm_packed_size_f32(Py_ssize_t E, Py_ssize_t H) nogil
    Py_ssize_t lstm_packed_size_f64(Py_ssize_t E, Py_ssize_t H) nogil
    void lstm_pack_forward_f32(Py_ssize_t E, Py_ssize_t H, const float *weight_ih, const float *weight_hh,
                               const float *bias, Py_ssize_t first, Py_ssize_t end, float *packed) nogil
    void lstm_pack_forward_f64(Py_ssize_t E, Py_ssize_t H, const double *weight_ih, const double *weight_hh,
                               const double *bias, Py_ssize_t first, Py_ssize_t end, double *packed) nogil
    void lstm_pack_backward_f32(Py_ssize_t H, const float *weight_hh, Py_ssize_t first, Py_ssize_t end,
                                float *packed) nogil
    void lstm_pack_backward_f64(Py_ssize_t H, const double *weight_hh, Py_ssize_t first, Py_ssize_t end,
                                double *packed) nogil
    void lstm_forward_f32(Py_ssize_t rows, Py_ssize_t E, Py_ssize_t H, const float *packed, const float *x,
                          const int64_t *numbers, const float *c_previous, float *h, float *c,
                          float *gates, float *joined, float *z) nogil
    void lstm_forward_f64(Py_ssize_t rows, Py_ssize_t E, Py_ssize_t H, const double *packed, const double *x,
                          const int64_t *numbers, const double *c_previous, double *h, double *c,
                          double *gates, double *joined, double *z) nogil
    Py_ssize_t lstm_weight_grad_workspace_f32(Py_ssize_t E, Py_ssize_t H) nogil
    Py_ssize_t lstm_weight_grad_workspace_f64(Py_ssize_t E, Py_ssize_t H) nogil
    void lstm_weight_grad_f32(const LstmWeightGrad *arrays, Py_ssize_t first, Py_ssize_t rows,
                              float *workspace) nogil
    void lstm_weight_grad_f64(const LstmWeightGrad *arrays, Py_ssize_t first, Py_ssize_t rows,
                              double *workspace) nogil
    Py_ssize_t lstm_row_f32(Py_ssize_t columns) nogil
    Py_ssize_t lstm_row_f64(Py_ssize_t columns) nogil
    void lstm_backward_f32(Py_ssize_t rows, Py_ssize_t H, const float *packed, bint is_last, const float *gates,
                           const float *c_previous, const float *c, const float *grad_y, Py_ssize_t y_row,
                           const float *grad_c, float *dc, float *dz, float *dz_near, float *dh) nogil
    void lstm_backward_f64(Py_ssize_t rows, Py_ssize_t H, const double *packed, bint is_last, const double *gates,
                           const double *c_previous, const double *c, const double *grad_y, Py_ssize_t y_row,
                           const double *grad_c, double *dc, double *dz, double *dz_near, double *dh) nogil
    void lstm_send_back_f32(Py_ssize_t rows, Py_ssize_t H, const float *packed, const float *dz_near,
                            float *dh) nogil
    void lstm_send_back_f64(Py_ssize_t rows, Py_ssize_t H, const double *packed, const double *dz_near,
                            double *dh) nogil

# Multiply-adds of the whole sequence below which it is not worth waking another thread.
cdef enum:
    WORK_PER_THREAD = 1000000

# The sizes, and the arrays of both directions: (T, N, 4 H), (T, N, H) or (T, N, E), but the first states (N, H).
cdef struct Sequence:
    Py_ssize_t T, N, E, H
    bint reverse              # time runs from the last step to the first
    int dtype
    const void *weight_ih
    const void *weight_hh
    const void *bias          # or NULL
    void *packed              # the weights, in panels
    void *near                # z, or dz, of a step: N rows, lstm_row apart
    void *joined              # x and h before it, side by side: as many rows
    const void *h0
    const void *c0
    const void *x             # or the projections that `numbers` name
    const int64_t *numbers    # (T, N), or NULL
    void *y
    void *c
    void *gates
    const void *grad_y        # contiguous vectors, at these strides in elements
    Py_ssize_t y_step, y_row
    const void *grad_c        # or NULL
    void *grad_z
    void *grad_h0             # on the way, what the step at hand gets from the step after
    void *grad_c0             # on the way, the gradient of c that comes from later steps


def forward(cnp.ndarray y not None, cnp.ndarray c not None, cnp.ndarray gates not None,
            cnp.ndarray x not None, cnp.ndarray h0 not None, cnp.ndarray c0 not None,
            cnp.ndarray weight_ih not None, cnp.ndarray weight_hh not None, cnp.ndarray bias, bint reverse,
            int threads):
    """All steps: the hidden states ``y``, the cell states ``c`` and the values of the gates."""
    cdef Sequence s = sequence_of(y, c, gates, h0, c0, weight_hh, reverse)
    if cnp.PyArray_NDIM(x) != 3:
        raise ValueError("lstm kernel: x must have 3 dimensions")
    s.E = x.shape[2]
    check_array(x, s.dtype, (s.T, s.N, s.E))
    check_array(weight_ih, s.dtype, (4 * s.H, s.E))
    cdef const void *b = NULL
    if bias is not None:
        check_array(bias, s.dtype, (4 * s.H,))
        b = cnp.PyArray_DATA(bias)
    s.x = cnp.PyArray_DATA(x)
    run_forward(&s, cnp.PyArray_DATA(weight_ih), cnp.PyArray_DATA(weight_hh), b, threads)


def forward_of_lookup(cnp.ndarray y not None, cnp.ndarray c not None, cnp.ndarray gates not None,
                      cnp.ndarray projected not None, cnp.ndarray numbers not None, cnp.ndarray h0 not None,
                      cnp.ndarray c0 not None, cnp.ndarray weight_hh not None, bint reverse, int threads):
    """As *forward*, where x_t weight_ih^T + bias is the row of ``projected`` (rows, 4 H) that ``numbers`` (T, N),
    int64, names."""
    cdef Sequence s = sequence_of(y, c, gates, h0, c0, weight_hh, reverse)
    if cnp.PyArray_NDIM(projected) != 2:
        raise ValueError("lstm kernel: projected must have 2 dimensions")
    check_array(projected, s.dtype, (projected.shape[0], 4 * s.H))
    check_array(numbers, cnp.NPY_INT64, (s.T, s.N))
    s.x, s.numbers = cnp.PyArray_DATA(projected), <const int64_t *> cnp.PyArray_DATA(numbers)
    cdef Py_ssize_t i
    for i in range(s.T * s.N):
        if not 0 <= s.numbers[i] < projected.shape[0]:
            raise ValueError(f"lstm kernel: number {s.numbers[i]} is none of {projected.shape[0]} rows")
    cdef const void *w_hh = cnp.PyArray_DATA(weight_hh)
    run_forward(&s, w_hh, w_hh, NULL, threads)  # of weight_ih, no column is read


cdef int run_forward(Sequence *s, const void *weight_ih, const void *weight_hh, const void *bias,
                     int threads) except -1:
    """Packs the weights and walks."""
    cdef bint is_float = s.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t size = (lstm_packed_size_f32 if is_float else lstm_packed_size_f64)(s.E, s.H)
    cdef void *packed = NULL
    cdef void *near = NULL
    cdef void *joined = NULL
    s.weight_ih, s.weight_hh, s.bias = weight_ih, weight_hh, bias
    try:
        packed = allocate_elements(size, s.dtype, &s.packed)
        near = allocate_elements(s.N * row_of(s, 4 * s.H), s.dtype, &s.near)
        joined = allocate_elements(s.N * row_of(s, s.E + s.H), s.dtype, &s.joined)
        with nogil:
            run(s, False, parts_of(s, s.E + s.H, threads))
    finally:
        free(joined)
        free(near)
        free(packed)
    return 0


def backward(cnp.ndarray grad_z not None, cnp.ndarray grad_h0 not None, cnp.ndarray grad_c0 not None,
             cnp.ndarray weight_hh not None, cnp.ndarray c0 not None, cnp.ndarray c not None,
             cnp.ndarray gates not None, cnp.ndarray grad_y not None, cnp.ndarray grad_c, bint reverse,
             int threads):
    """The gradients of ``z`` and of the first states, from those of ``y`` and, if not None, of ``c``. Of ``grad_y``,
    only the vectors of H need be contiguous."""
    cdef Sequence s = sizes_of(gates, weight_hh, reverse)
    check_output(grad_z, s.dtype)
    check_shape(grad_z, (s.T, s.N, 4 * s.H))
    for array in (grad_h0, grad_c0):
        check_output(array, s.dtype)
        check_shape(array, (s.N, s.H))
    check_array(gates, s.dtype, (s.T, s.N, 4 * s.H))
    check_array(c, s.dtype, (s.T, s.N, s.H))
    check_strided(grad_y, s.dtype, (s.T, s.N, s.H))
    check_array(c0, s.dtype, (s.N, s.H))
    s.grad_c = NULL
    if grad_c is not None:
        check_array(grad_c, s.dtype, (s.T, s.N, s.H))
        s.grad_c = cnp.PyArray_DATA(grad_c)
    s.c0, s.c, s.gates = cnp.PyArray_DATA(c0), cnp.PyArray_DATA(c), cnp.PyArray_DATA(gates)
    s.grad_y, s.grad_z = cnp.PyArray_DATA(grad_y), cnp.PyArray_DATA(grad_z)
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(grad_y)
    s.y_step, s.y_row = grad_y.strides[0] // item, grad_y.strides[1] // item
    s.grad_h0, s.grad_c0 = cnp.PyArray_DATA(grad_h0), cnp.PyArray_DATA(grad_c0)
    cdef const void *w_hh = cnp.PyArray_DATA(weight_hh)
    cdef Py_ssize_t NR = NR_f32 if s.dtype == cnp.NPY_FLOAT32 else NR_f64
    cdef void *packed = NULL
    cdef void *near = NULL
    s.weight_hh = w_hh
    try:
        packed = allocate_elements(4 * s.H * ceil_divide(s.H, NR) * NR, s.dtype, &s.packed)
        near = allocate_elements(s.N * row_of(&s, 4 * s.H), s.dtype, &s.near)
        with nogil:
            run(&s, True, parts_of(&s, s.H, threads))
    finally:
        free(near)
        free(packed)


def weight_grad(cnp.ndarray grad_ih not None, cnp.ndarray grad_hh not None, cnp.ndarray grad_bias not None,
                cnp.ndarray dz not None, cnp.ndarray x not None, cnp.ndarray h0 not None,
                cnp.ndarray hidden not None, bint reverse, int threads):
    """The gradients of both weights and, if it is not empty, the bias, from those of ``z``: each thread for some of
    their rows."""
    cdef int dtype = real_type(dz), part, parts
    if cnp.PyArray_NDIM(x) != 3 or cnp.PyArray_NDIM(h0) != 2 or x.shape[0] == 0:
        raise ValueError("lstm kernel: x must have 3 dimensions, the first not 0, and h0 must have 2")
    cdef LstmWeightGrad p
    p.T, p.N, p.E, p.H, p.reverse = x.shape[0], x.shape[1], x.shape[2], h0.shape[1], reverse
    for array, shape in ((grad_ih, (4 * p.H, p.E)), (grad_hh, (4 * p.H, p.H)), (grad_bias, (4 * p.H,))):
        check_output(array, dtype)
        if array is not grad_bias or grad_bias.shape[0] > 0:
            check_shape(array, shape)
    check_array(dz, dtype, (p.T, p.N, 4 * p.H))
    check_array(x, dtype, (p.T, p.N, p.E))
    check_array(h0, dtype, (p.N, p.H))
    check_array(hidden, dtype, (p.T, p.N, p.H))
    p.dz, p.x = cnp.PyArray_DATA(dz), cnp.PyArray_DATA(x)
    p.h0, p.hidden = cnp.PyArray_DATA(h0), cnp.PyArray_DATA(hidden)
    p.grad_ih, p.grad_hh = cnp.PyArray_DATA(grad_ih), cnp.PyArray_DATA(grad_hh)
    p.grad_bias = cnp.PyArray_DATA(grad_bias) if cnp.PyArray_SIZE(grad_bias) > 0 else NULL
    parts = threads_for(4 * p.T * p.N * p.H * (p.E + p.H), WORK_PER_THREAD, threads)
    cdef Py_ssize_t each = (lstm_weight_grad_workspace_f32 if dtype == cnp.NPY_FLOAT32
                            else lstm_weight_grad_workspace_f64)(p.E, p.H)
    cdef void *workspace
    cdef void *allocation = allocate_elements(parts * each, dtype, &workspace)
    with nogil:
        if parts == 1:
            grad_rows(&p, dtype, workspace, each, 0, 1)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                grad_rows(&p, dtype, workspace, each, part, parts)
    free(allocation)


cdef void grad_rows(const LstmWeightGrad *p, int dtype, void *workspace, Py_ssize_t each, int part,
                    int parts) noexcept nogil:
    """The rows of part ``part``, with its share of the workspace, ``each`` elements."""
    cdef Py_ssize_t first = share(4 * p.H, part, parts, MR_f32)
    cdef Py_ssize_t rows = share(4 * p.H, part + 1, parts, MR_f32) - first
    if rows == 0:
        return
    if dtype == cnp.NPY_FLOAT32:
        lstm_weight_grad_f32(p, first, rows, <float *> workspace + part * each)
    else:
        lstm_weight_grad_f64(p, first, rows, <double *> workspace + part * each)


# ---- the arguments -----------------------------------------------------------------------------------------


cdef Sequence sequence_of(cnp.ndarray y, cnp.ndarray c, cnp.ndarray gates, cnp.ndarray h0, cnp.ndarray c0,
                          cnp.ndarray weight_hh, bint reverse) except *:
    """What both ways forward have: all but x."""
    cdef Sequence s = sizes_of(gates, weight_hh, reverse)
    for array, width in ((y, s.H), (c, s.H), (gates, 4 * s.H)):
        check_output(array, s.dtype)
        check_shape(array, (s.T, s.N, width))
    check_array(h0, s.dtype, (s.N, s.H))
    check_array(c0, s.dtype, (s.N, s.H))
    s.y, s.c, s.gates = cnp.PyArray_DATA(y), cnp.PyArray_DATA(c), cnp.PyArray_DATA(gates)
    s.h0, s.c0 = cnp.PyArray_DATA(h0), cnp.PyArray_DATA(c0)
    s.E, s.numbers = 0, NULL
    return s


cdef Sequence sizes_of(cnp.ndarray gates, cnp.ndarray weight, bint reverse) except *:
    cdef Sequence s
    s.dtype = real_type(gates)
    check_input(weight, s.dtype)
    if cnp.PyArray_NDIM(gates) != 3 or cnp.PyArray_NDIM(weight) != 2:
        raise ValueError("lstm kernel: gates must have 3 dimensions, and weight 2")
    s.T, s.N, s.H, s.reverse = gates.shape[0], gates.shape[1], weight.shape[1], reverse
    if weight.shape[0] != 4 * s.H or s.T == 0:
        raise ValueError(f"lstm kernel: expected gates (T, N, 4 H) with T > 0 and weight (4 H, H), got shapes "
                         f"{(<object> gates).shape} and {(<object> weight).shape}")
    return s


cdef int check_shape(cnp.ndarray array, tuple shape) except -1:
    if (<object> array).shape != shape:
        raise ValueError(f"lstm kernel: expected an array of shape {shape}, got {(<object> array).shape}")
    return 0


cdef int check_array(cnp.ndarray array, int dtype, tuple shape) except -1:
    check_input(array, dtype)
    return check_shape(array, shape)


cdef int check_strided(cnp.ndarray array, int dtype, tuple shape) except -1:
    """As *check_array*, but only the last axis need be contiguous."""
    check_shape(array, shape)
    if cnp.PyArray_TYPE(array) != dtype:
        raise TypeError(f"lstm kernel: dtype {array.dtype} does not fit the other arguments")
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(array)
    if not cnp.PyArray_ISBEHAVED_RO(array) or array.strides[0] % item or array.strides[1] % item:
        raise ValueError("lstm kernel: inputs must be aligned and in native byte order")
    if shape[2] > 1 and array.strides[2] != item and cnp.PyArray_SIZE(array) > 0:
        raise ValueError("lstm kernel: the vectors of inputs must be contiguous")
    return 0


cdef void *allocate_elements(Py_ssize_t size, int dtype, void **first) except NULL:
    """Memory to be freed, for ``size`` elements from ``first`` on, where a cache line begins."""
    cdef void *memory = allocate(size * (sizeof(float) if dtype == cnp.NPY_FLOAT32 else sizeof(double)))
    first[0] = aligned(memory)
    return memory


cdef Py_ssize_t row_of(const Sequence *s, Py_ssize_t columns) noexcept nogil:
    return lstm_row_f32(columns) if s.dtype == cnp.NPY_FLOAT32 else lstm_row_f64(columns)


# ---- the walk ----------------------------------------------------------------------------------------------


cdef int parts_of(Sequence *s, Py_ssize_t depth, int threads) noexcept nogil:
    """Among how many threads the rows are shared, each step's product having ``depth`` terms."""
    cdef int parts = threads_for(4 * s.T * s.N * s.H * depth, WORK_PER_THREAD, threads)
    return <int> max(1, min(<Py_ssize_t> parts, s.N))


cdef void run(Sequence *s, bint back, int parts) noexcept nogil:
    """Packs the weights and walks along the sequence: each thread for its share of the rows."""
    cdef int part
    if parts == 1:
        pack(s, back, 0, 1)
        walk(s, back, 0, 1)
    else:
        with parallel(num_threads=parts):
            for part in prange(parts, schedule="static"):
                pack(s, back, part, parts)
            for part in prange(parts, schedule="static"):
                walk(s, back, part, parts)


cdef void pack(const Sequence *s, bint back, int part, int parts) noexcept nogil:
    """Part ``part`` of the panels of weights."""
    cdef bint is_float = s.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t columns = s.H if back else 4 * s.H, NR = NR_f32 if is_float else NR_f64
    cdef Py_ssize_t first = share(columns, part, parts, NR), end = share(columns, part + 1, parts, NR)
    if first == end:
        return
    if is_float and back:
        lstm_pack_backward_f32(s.H, <const float *> s.weight_hh, first, end, <float *> s.packed)
    elif is_float:
        lstm_pack_forward_f32(s.E, s.H, <const float *> s.weight_ih, <const float *> s.weight_hh,
                              <const float *> s.bias, first, end, <float *> s.packed)
    elif back:
        lstm_pack_backward_f64(s.H, <const double *> s.weight_hh, first, end, <double *> s.packed)
    else:
        lstm_pack_forward_f64(s.E, s.H, <const double *> s.weight_ih, <const double *> s.weight_hh,
                              <const double *> s.bias, first, end, <double *> s.packed)


cdef void walk(const Sequence *s, bint back, int part, int parts) noexcept nogil:
    cdef Py_ssize_t first = share(s.N, part, parts, 1), rows = share(s.N, part + 1, parts, 1) - first
    if rows == 0:
        return
    if s.dtype == cnp.NPY_FLOAT32:
        if back:
            walk_back(s, <const float *> s.packed, first, rows)
        else:
            walk_forward(s, <const float *> s.packed, first, rows)
    elif back:
        walk_back(s, <const double *> s.packed, first, rows)
    else:
        walk_forward(s, <const double *> s.packed, first, rows)


cdef void walk_forward(const Sequence *s, const real *packed, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t step, t, row, at, joined_row = row_of(s, s.E + s.H)
    cdef const int64_t *numbers = NULL
    cdef const real *h0 = <const real *> s.h0 + first * s.H
    cdef const real *c = <const real *> s.c0 + first * s.H
    cdef real *joined = <real *> s.joined + first * joined_row
    cdef real *z = <real *> s.near + first * row_of(s, 4 * s.H)
    for row in range(rows):
        memcpy(joined + row * joined_row + s.E, h0 + row * s.H, s.H * sizeof(real))
    for step in range(s.T):
        t = s.T - 1 - step if s.reverse else step
        row = t * s.N + first
        at = row * s.H
        if s.numbers:
            numbers = s.numbers + row
        if real is float:
            lstm_forward_f32(rows, s.E, s.H, packed, <const float *> s.x + row * s.E, numbers, c,
                             <float *> s.y + at, <float *> s.c + at, <float *> s.gates + 4 * at, joined, z)
        else:
            lstm_forward_f64(rows, s.E, s.H, packed, <const double *> s.x + row * s.E, numbers, c,
                             <double *> s.y + at, <double *> s.c + at, <double *> s.gates + 4 * at, joined, z)
        c = <const real *> s.c + at


cdef void walk_back(const Sequence *s, const real *packed, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t step, t, at, i, start = first * s.H
    cdef Py_ssize_t earlier = (s.N if s.reverse else -s.N) * s.H
    cdef real *dz_near = <real *> s.near + first * row_of(s, 4 * s.H)
    cdef real *dh = <real *> s.grad_h0 + start
    cdef real *dc = <real *> s.grad_c0 + start
    cdef const real *c_previous
    cdef const real *grad_y
    cdef const real *grad_c = NULL
    for i in range(rows * s.H):
        dc[i] = 0
    for step in range(s.T):
        t = step if s.reverse else s.T - 1 - step
        at = (t * s.N + first) * s.H
        c_previous = <const real *> s.c + at + earlier if step < s.T - 1 else <const real *> s.c0 + start
        grad_y = <const real *> s.grad_y + t * s.y_step + first * s.y_row
        if s.grad_c:
            grad_c = <const real *> s.grad_c + at
        if real is float:
            lstm_backward_f32(rows, s.H, packed, step == 0, <const float *> s.gates + 4 * at, c_previous,
                              <const float *> s.c + at, <const float *> grad_y, s.y_row, grad_c, dc,
                              <float *> s.grad_z + 4 * at, dz_near, dh)
        else:
            lstm_backward_f64(rows, s.H, packed, step == 0, <const double *> s.gates + 4 * at, c_previous,
                              <const double *> s.c + at, <const double *> grad_y, s.y_row, grad_c, dc,
                              <double *> s.grad_z + 4 * at, dz_near, dh)
    if real is float:
        lstm_send_back_f32(rows, s.H, packed, dz_near, dh)
    else:
        lstm_send_back_f64(rows, s.H, packed, dz_near, dh)
