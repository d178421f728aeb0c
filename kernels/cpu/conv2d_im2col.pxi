# The *im2col* rung of conv2d.pyx. For one image and one group,
#
#   forward      out (O, P)          = weight (O, K) @ columns (K, P)
#   input_grad   grad_columns (K, P) = weight^T (K, O) @ grad_output (O, P), then col2im, im2col's adjoint
#   weight_grad  out (O, K)         += grad_output (O, P) @ columns^T (P, K)
#
# with K = C KH KW kernel taps, P = OH OW pixels, and C, O the channels of a group; columns[k, p] is the input
# element under tap k at output pixel p, or zero outside the input. A 1x1 kernel at stride 1 needs no copy:
# there the image is the matrix. Each thread takes a share of the images.

cdef extern from "gemm.h" nogil:
    Py_ssize_t gemm_workspace_f32(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K)
    Py_ssize_t gemm_workspace_f64(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K)
    void gemm_f32(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                  const float *a, Py_ssize_t a_row, Py_ssize_t a_col,
                  const float *b, Py_ssize_t b_row, Py_ssize_t b_col,
                  float *c, Py_ssize_t ldc, int accumulate, float *workspace)
    void gemm_f64(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                  const double *a, Py_ssize_t a_row, Py_ssize_t a_col,
                  const double *b, Py_ssize_t b_row, Py_ssize_t b_col,
                  double *c, Py_ssize_t ldc, int accumulate, double *workspace)

cdef enum Task:
    FORWARD
    INPUT_GRAD
    WEIGHT_GRAD

# Where the buffers of one thread lie in its workspace, in elements from its start.
cdef struct Im2colBuffers:
    Py_ssize_t columns         # K x P
    Py_ssize_t weight_sums     # WEIGHT_GRAD: the thread's own share of the weight gradient
    Py_ssize_t gemm            # what gemm.h asks for
    Py_ssize_t total


cdef int im2col_run(Conv *conv, Task task) except -1:
    cdef Im2colBuffers buffers = im2col_buffers(conv, task)
    cdef Py_ssize_t item = sizeof(float) if conv.dtype == cnp.NPY_FLOAT32 else sizeof(double)
    cdef Py_ssize_t parts = max(1, min(<Py_ssize_t> conv.threads, conv.N)), part
    cdef void *memory = allocate(parts * buffers.total * item)
    cdef char *workspace = aligned(memory)
    with nogil:
        for part in prange(parts, num_threads=<int> parts, schedule="static"):
            if conv.dtype == cnp.NPY_FLOAT32:
                im2col_part(conv, task, part, parts, &buffers, <float *> workspace, <float *> conv.x)
            else:
                im2col_part(conv, task, part, parts, &buffers, <double *> workspace, <double *> conv.x)
        if task == WEIGHT_GRAD:
            if conv.dtype == cnp.NPY_FLOAT32:
                add_weight_sums(conv, parts, &buffers, <float *> workspace, <float *> conv.weight)
            else:
                add_weight_sums(conv, parts, &buffers, <double *> workspace, <double *> conv.weight)
    free(memory)
    return 0


cdef inline bint is_matrix(const Conv *conv) noexcept nogil:
    """A 1x1 kernel at stride 1: an image is its own matrix."""
    return (conv.KH == 1 and conv.KW == 1 and conv.stride_h == 1 and conv.stride_w == 1
            and conv.pad_h == 0 and conv.pad_w == 0)


cdef Im2colBuffers im2col_buffers(Conv *conv, Task task) noexcept nogil:
    cdef Py_ssize_t K = conv.group_in * conv.KH * conv.KW, P = conv.OH * conv.OW, O = conv.group_out
    cdef Py_ssize_t weight = conv.O * K if task == WEIGHT_GRAD else 0, gemm
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    if task == FORWARD:
        gemm = gemm_workspace_f32(O, P, K) if is_float else gemm_workspace_f64(O, P, K)
    elif task == INPUT_GRAD:
        gemm = gemm_workspace_f32(K, P, O) if is_float else gemm_workspace_f64(K, P, O)
    else:
        gemm = gemm_workspace_f32(O, K, P) if is_float else gemm_workspace_f64(O, K, P)
    cdef Py_ssize_t columns_end = 0 if is_matrix(conv) else whole_lines(K * P)
    cdef Py_ssize_t weight_end = columns_end + whole_lines(weight)
    return Im2colBuffers(columns=0, weight_sums=columns_end, gemm=weight_end,
                         total=weight_end + whole_lines(gemm))


cdef void im2col_part(Conv *conv, Task task, Py_ssize_t part, Py_ssize_t parts, Im2colBuffers *buffers,
                      real *workspace, real *x) noexcept nogil:
    """One thread's images."""
    cdef Py_ssize_t n, group, taps = conv.KH * conv.KW, P = conv.OH * conv.OW
    cdef real *y = <real *> conv.y
    cdef real *weight = <real *> conv.weight
    workspace += part * buffers.total
    if task == WEIGHT_GRAD:
        weight = workspace + buffers.weight_sums
        memset(weight, 0, conv.O * conv.group_in * taps * sizeof(real))
    for n in range(part * conv.N // parts, (part + 1) * conv.N // parts):
        for group in range(conv.groups):
            im2col_group(conv, task, buffers, workspace,
                         x + (n * conv.C + group * conv.group_in) * conv.H * conv.W,
                         weight + group * conv.group_out * conv.group_in * taps,
                         y + (n * conv.O + group * conv.group_out) * P,
                         <real *> conv.bias + group * conv.group_out if conv.bias != NULL else NULL)


cdef void im2col_group(const Conv *conv, Task task, Im2colBuffers *buffers, real *workspace, real *x,
                       real *weight, real *y, const real *bias) noexcept nogil:
    """One group of one image: the products at the head of this file."""
    cdef Py_ssize_t K = conv.group_in * conv.KH * conv.KW, P = conv.OH * conv.OW, O = conv.group_out
    cdef real *columns = workspace + buffers.columns
    cdef real *gemm_workspace = workspace + buffers.gemm
    cdef Py_ssize_t o, p
    if is_matrix(conv):
        columns = x
    elif task != INPUT_GRAD:
        im2col(conv, x, columns)
    if task == FORWARD:
        gemm(O, P, K, weight, K, 1, columns, P, 1, y, 0, gemm_workspace)
        if bias != NULL:
            for o in range(O):
                for p in range(P):
                    y[o * P + p] += bias[o]
    elif task == INPUT_GRAD:
        gemm(K, P, O, weight, 1, K, y, P, 1, columns, 0, gemm_workspace)
        if not is_matrix(conv):
            col2im(conv, columns, x)
    else:
        gemm(O, K, P, y, P, 1, columns, 1, P, weight, 1, gemm_workspace)


cdef inline void gemm(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                      const real *a, Py_ssize_t a_row, Py_ssize_t a_col,
                      const real *b, Py_ssize_t b_row, Py_ssize_t b_col,
                      real *c, int accumulate, real *workspace) noexcept nogil:
    if real is float:
        gemm_f32(M, N, K, a, a_row, a_col, b, b_row, b_col, c, N, accumulate, workspace)
    else:
        gemm_f64(M, N, K, a, a_row, a_col, b, b_row, b_col, c, N, accumulate, workspace)


cdef void im2col(const Conv *conv, const real *x, real *columns) noexcept nogil:
    """columns[(c, u, v), (i, j)] = x[c, row(i, u), column(j, v)], zero outside x."""
    cdef Py_ssize_t c, u, v, i, P = conv.OH * conv.OW
    cdef Overlap rows, cols
    for c in range(conv.group_in):
        for u in range(conv.KH):
            rows = tap_rows(conv, u)
            for v in range(conv.KW):
                cols = tap_columns(conv, v)
                for i in range(conv.OH):
                    if rows.first <= i < rows.last:
                        copy_row(conv, cols, x + (c * conv.H + i * conv.stride_h + rows.offset) * conv.W,
                                 columns + i * conv.OW)
                    else:
                        memset(columns + i * conv.OW, 0, conv.OW * sizeof(real))
                columns += P


cdef inline void copy_row(const Conv *conv, Overlap cols, const real *x, real *row) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(min(cols.first, conv.OW)):
        row[j] = 0
    if conv.stride_w == 1:
        for j in range(cols.first, cols.last):
            row[j] = x[j + cols.offset]
    else:
        for j in range(cols.first, cols.last):
            row[j] = x[j * conv.stride_w + cols.offset]
    for j in range(max(cols.first, cols.last), conv.OW):
        row[j] = 0


cdef void col2im(const Conv *conv, const real *columns, real *x) noexcept nogil:
    """x[c, row(i, u), column(j, v)] += columns[(c, u, v), (i, j)], starting from zero."""
    cdef Py_ssize_t c, u, v, i, P = conv.OH * conv.OW
    cdef Overlap rows, cols
    cdef real one = 1
    memset(x, 0, conv.group_in * conv.H * conv.W * sizeof(real))
    for c in range(conv.group_in):
        for u in range(conv.KH):
            rows = tap_rows(conv, u)
            for v in range(conv.KW):
                cols = tap_columns(conv, v)
                for i in range(rows.first, rows.last):
                    add_row_back(cols, conv.stride_w, one, columns + i * conv.OW,
                                 x + (c * conv.H + i * conv.stride_h + rows.offset) * conv.W)
                columns += P


cdef void add_weight_sums(const Conv *conv, Py_ssize_t parts, Im2colBuffers *buffers, real *workspace,
                          real *weight) noexcept nogil:
    """The threads' shares of the weight gradient, added in their order."""
    cdef Py_ssize_t size = conv.O * conv.group_in * conv.KH * conv.KW, part, i
    cdef real *share
    memcpy(weight, workspace + buffers.weight_sums, size * sizeof(real))
    for part in range(1, parts):
        share = workspace + part * buffers.total + buffers.weight_sums
        for i in range(size):
            weight[i] += share[i]
