# The *direct* rung of conv2d.pyx: the definitions, as loops over planes, kernel taps and rows.

cdef extern from "conv2d.h" nogil:
    float dot_f32(Py_ssize_t n, const float *a, const float *b, Py_ssize_t b_stride)
    double dot_f64(Py_ssize_t n, const double *a, const double *b, Py_ssize_t b_stride)

# The output positions first <= i < last for which a kernel tap lies inside the input, and the input position
# i * stride + offset that it then reads.
cdef struct Overlap:
    Py_ssize_t first, last, offset


cdef inline Overlap overlap(Py_ssize_t tap, Py_ssize_t outputs, Py_ssize_t size, Py_ssize_t stride,
                            Py_ssize_t pad, Py_ssize_t dil) noexcept nogil:
    cdef Py_ssize_t offset = tap * dil - pad
    cdef Py_ssize_t first = 0 if offset >= 0 else ceil_divide(-offset, stride)
    cdef Py_ssize_t last = 0 if offset >= size else ceil_divide(size - offset, stride)
    return Overlap(first, min(last, outputs), offset)


cdef inline Overlap tap_rows(const Conv *conv, Py_ssize_t u) noexcept nogil:
    return overlap(u, conv.OH, conv.H, conv.stride_h, conv.pad_h, conv.dil_h)


cdef inline Overlap tap_columns(const Conv *conv, Py_ssize_t v) noexcept nogil:
    return overlap(v, conv.OW, conv.W, conv.stride_w, conv.pad_w, conv.dil_w)


cdef int direct_forward(Conv *conv) except -1:
    cdef Py_ssize_t plane
    with nogil:
        for plane in prange(conv.N * conv.O, num_threads=conv.threads, schedule="static"):
            if conv.dtype == cnp.NPY_FLOAT32:
                forward_plane(conv, plane, <float *> conv.y, <float *> conv.x, <float *> conv.weight,
                              <float *> conv.bias)
            else:
                forward_plane(conv, plane, <double *> conv.y, <double *> conv.x, <double *> conv.weight,
                              <double *> conv.bias)
    return 0


cdef void forward_plane(const Conv *conv, Py_ssize_t plane, real *y, const real *x, const real *weight,
                        const real *bias) noexcept nogil:
    """One output channel of one image."""
    cdef Py_ssize_t n = plane // conv.O, o = plane % conv.O, c, u, v, i
    cdef Overlap rows, columns
    cdef real start = bias[o] if bias != NULL else 0
    y += plane * conv.OH * conv.OW
    x += (n * conv.C + o // conv.group_out * conv.group_in) * conv.H * conv.W
    weight += o * conv.group_in * conv.KH * conv.KW
    for i in range(conv.OH * conv.OW):
        y[i] = start
    for c in range(conv.group_in):
        for u in range(conv.KH):
            rows = tap_rows(conv, u)
            for v in range(conv.KW):
                columns = tap_columns(conv, v)
                for i in range(rows.first, rows.last):
                    add_row(columns, conv.stride_w, weight[(c * conv.KH + u) * conv.KW + v],
                            x + (c * conv.H + i * conv.stride_h + rows.offset) * conv.W, y + i * conv.OW)


cdef inline void add_row(Overlap columns, Py_ssize_t stride, real factor, const real *x,
                         real *y) noexcept nogil:
    """One output row += factor * the input row under one tap."""
    cdef Py_ssize_t j
    if stride == 1:  # a loop of its own, which the compiler vectorises
        for j in range(columns.first, columns.last):
            y[j] += factor * x[j + columns.offset]
    else:
        for j in range(columns.first, columns.last):
            y[j] += factor * x[j * stride + columns.offset]


cdef int direct_input_grad(Conv *conv) except -1:
    cdef Py_ssize_t plane
    with nogil:
        for plane in prange(conv.N * conv.C, num_threads=conv.threads, schedule="static"):
            if conv.dtype == cnp.NPY_FLOAT32:
                input_grad_plane(conv, plane, <float *> conv.x, <float *> conv.y, <float *> conv.weight)
            else:
                input_grad_plane(conv, plane, <double *> conv.x, <double *> conv.y, <double *> conv.weight)
    return 0


cdef void input_grad_plane(const Conv *conv, Py_ssize_t plane, real *x, const real *y,
                           const real *weight) noexcept nogil:
    """One input channel of one image."""
    cdef Py_ssize_t n = plane // conv.C, c = plane % conv.C, o, u, v, i
    cdef Py_ssize_t group = c // conv.group_in, taps = conv.KH * conv.KW
    cdef Overlap rows, columns
    x += plane * conv.H * conv.W
    y += (n * conv.O + group * conv.group_out) * conv.OH * conv.OW
    weight += (group * conv.group_out * conv.group_in + c % conv.group_in) * taps
    memset(x, 0, conv.H * conv.W * sizeof(real))
    for o in range(conv.group_out):
        for u in range(conv.KH):
            rows = tap_rows(conv, u)
            for v in range(conv.KW):
                columns = tap_columns(conv, v)
                for i in range(rows.first, rows.last):
                    add_row_back(columns, conv.stride_w, weight[o * conv.group_in * taps + u * conv.KW + v],
                                 y + (o * conv.OH + i) * conv.OW,
                                 x + (i * conv.stride_h + rows.offset) * conv.W)


cdef inline void add_row_back(Overlap columns, Py_ssize_t stride, real factor, const real *y,
                              real *x) noexcept nogil:
    """The input row under one tap += factor * one output row."""
    cdef Py_ssize_t j
    if stride == 1:
        for j in range(columns.first, columns.last):
            x[j + columns.offset] += factor * y[j]
    else:
        for j in range(columns.first, columns.last):
            x[j * stride + columns.offset] += factor * y[j]


cdef int direct_weight_grad(Conv *conv) except -1:
    cdef Py_ssize_t plane
    with nogil:
        for plane in prange(conv.O * conv.group_in, num_threads=conv.threads, schedule="static"):
            if conv.dtype == cnp.NPY_FLOAT32:
                weight_grad_plane(conv, plane, <float *> conv.weight, <float *> conv.y, <float *> conv.x)
            else:
                weight_grad_plane(conv, plane, <double *> conv.weight, <double *> conv.y, <double *> conv.x)
    return 0


cdef void weight_grad_plane(const Conv *conv, Py_ssize_t plane, real *weight, const real *y,
                            const real *x) noexcept nogil:
    """The kernel between one pair of channels."""
    cdef Py_ssize_t o = plane // conv.group_in, u, v, n
    cdef Py_ssize_t c = o // conv.group_out * conv.group_in + plane % conv.group_in
    cdef Overlap rows, columns
    cdef real total
    for u in range(conv.KH):
        rows = tap_rows(conv, u)
        for v in range(conv.KW):
            columns = tap_columns(conv, v)
            total = 0
            for n in range(conv.N):
                total += dot_planes(conv, rows, columns, y + (n * conv.O + o) * conv.OH * conv.OW,
                                    x + (n * conv.C + c) * conv.H * conv.W)
            weight[(plane * conv.KH + u) * conv.KW + v] = total


cdef inline real dot_planes(const Conv *conv, Overlap rows, Overlap columns, const real *y,
                            const real *x) noexcept nogil:
    """The output plane times the input plane under one tap, summed over the pixels where they overlap."""
    cdef Py_ssize_t i, first_x = columns.first * conv.stride_w + columns.offset
    cdef Py_ssize_t count = columns.last - columns.first
    cdef real total = 0
    if count <= 0:
        return 0
    for i in range(rows.first, rows.last):
        total += dot(count, y + i * conv.OW + columns.first,
                     x + (i * conv.stride_h + rows.offset) * conv.W + first_x, conv.stride_w)
    return total


cdef inline real dot(Py_ssize_t n, const real *a, const real *b, Py_ssize_t b_stride) noexcept nogil:
    if real is float:
        return dot_f32(n, a, b, b_stride)
    else:
        return dot_f64(n, a, b, b_stride)
