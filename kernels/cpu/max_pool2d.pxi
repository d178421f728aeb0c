# Max pooling, its gradient, and the adjoint of that; included by pool2d.pyx.

ctypedef fused tap_t:
    unsigned char
    int


cdef int check_taps(cnp.ndarray taps, cnp.ndarray like, Geometry g, bint written) except -1:
    """Taps are uint8 or int32, of the shape of ``like``; returns the bytes of one."""
    cdef int dtype = cnp.PyArray_TYPE(taps)
    if dtype != cnp.NPY_UINT8 and dtype != cnp.NPY_INT32:
        raise TypeError(f"taps must be uint8 or int32, got {taps.dtype}")
    if dtype == cnp.NPY_UINT8 and g.kernel_h * g.kernel_w > 256:
        raise ValueError(f"a {g.kernel_h}x{g.kernel_w} window needs int32 taps, got uint8")
    if written:
        check_output(taps, dtype)
    else:
        check_input(taps, dtype)
    check_same_shape(taps, like)
    return 1 if dtype == cnp.NPY_UINT8 else 4


cdef inline void max_window(
    real *out, tap_t *tap, const real *x, Geometry g, Py_ssize_t row_start, Py_ssize_t column_start
) noexcept nogil:
    """One window by the definition. One that has no tap inside the input gives -inf and tap 0."""
    cdef Py_ssize_t i_begin = first_tap(row_start, g.dilation_h)
    cdef Py_ssize_t i_end = end_tap(row_start, g.dilation_h, g.kernel_h, g.height)
    cdef Py_ssize_t j_begin = first_tap(column_start, g.dilation_w)
    cdef Py_ssize_t j_end = end_tap(column_start, g.dilation_w, g.kernel_w, g.width)
    cdef Py_ssize_t i, j, winner = 0
    cdef real best = -INFINITY, value
    if i_begin < i_end and j_begin < j_end:
        winner = i_begin * g.kernel_w + j_begin
    for i in range(i_begin, i_end):
        for j in range(j_begin, j_end):
            value = x[(row_start + i * g.dilation_h) * g.width + column_start + j * g.dilation_w]
            if value > best or value != value:
                best = value
                winner = i * g.kernel_w + j
    out[0] = best
    tap[0] = <tap_t>winner


cdef void max_plane_naive(real *out, tap_t *taps, const real *x, Geometry g) noexcept nogil:
    cdef Py_ssize_t oh, ow
    for oh in range(g.out_height):
        for ow in range(g.out_width):
            max_window(
                out + oh * g.out_width + ow, taps + oh * g.out_width + ow, x, g,
                oh * g.stride_h - g.pad_h, ow * g.stride_w - g.pad_w,
            )


cdef void max_plane_vectorized(real *out, tap_t *taps, const real *x, Geometry g) noexcept nogil:
    cdef Py_ssize_t begin = interior_begin(g), count = interior_end(g) - begin
    cdef Py_ssize_t oh, ow, done, row_start, column_start = begin * g.stride_w - g.pad_w
    cdef pool2d_taps t
    cdef const real *corner
    if is_2x2_tiling(g):
        if real is float:
            done = max_2x2_plane_f32(out, taps, sizeof(tap_t), x, g.width, g.out_height, g.out_width)
        else:
            done = max_2x2_plane_f64(out, taps, sizeof(tap_t), x, g.width, g.out_height, g.out_width)
        if done == g.out_width:
            return
    for oh in range(g.out_height):
        row_start = oh * g.stride_h - g.pad_h
        t = interior_taps(g, row_start)
        done = 0
        if t.row_begin < t.row_end:
            corner = x + (row_start + t.row_begin * g.dilation_h) * g.width + column_start
            if real is float:
                done = max_columns_f32(out + begin, taps + begin, sizeof(tap_t), corner, count, t)
            else:
                done = max_columns_f64(out + begin, taps + begin, sizeof(tap_t), corner, count, t)
        for ow in range(begin):
            max_window(out + ow, taps + ow, x, g, row_start, ow * g.stride_w - g.pad_w)
        for ow in range(begin + done, g.out_width):
            max_window(out + ow, taps + ow, x, g, row_start, ow * g.stride_w - g.pad_w)
        out += g.out_width
        taps += g.out_width


cdef void max_pool_planes(
    real *out, tap_t *taps, const real *x, Geometry g, bint vectorized, int part
) noexcept nogil:
    cdef Py_ssize_t plane, in_size = g.height * g.width, out_size = g.out_height * g.out_width
    for plane in range(first_plane(g, part), first_plane(g, part + 1)):
        if vectorized:
            max_plane_vectorized(out + plane * out_size, taps + plane * out_size, x + plane * in_size, g)
        else:
            max_plane_naive(out + plane * out_size, taps + plane * out_size, x + plane * in_size, g)


cdef void max_pool(real *out, tap_t *taps, const real *x, Geometry g, bint vectorized) noexcept nogil:
    cdef int part
    if g.threads == 1:
        max_pool_planes(out, taps, x, g, vectorized, 0)
    else:
        for part in prange(g.threads, num_threads=g.threads, schedule="static"):
            max_pool_planes(out, taps, x, g, vectorized, part)


cdef run_max_pool(cnp.ndarray out, cnp.ndarray taps, cnp.ndarray x, Geometry g, bint vectorized):
    cdef int dtype = real_type(x)
    check_input(x, dtype)
    check_output(out, dtype)
    cdef int tap_bytes = check_taps(taps, out, g, True)
    cdef void *o = cnp.PyArray_DATA(out)
    cdef void *t = cnp.PyArray_DATA(taps)
    cdef void *data = cnp.PyArray_DATA(x)
    with nogil:
        if dtype == cnp.NPY_FLOAT32 and tap_bytes == 1:
            max_pool(<float *>o, <unsigned char *>t, <const float *>data, g, vectorized)
        elif dtype == cnp.NPY_FLOAT32:
            max_pool(<float *>o, <int *>t, <const float *>data, g, vectorized)
        elif tap_bytes == 1:
            max_pool(<double *>o, <unsigned char *>t, <const double *>data, g, vectorized)
        else:
            max_pool(<double *>o, <int *>t, <const double *>data, g, vectorized)


def max_pool2d_naive(cnp.ndarray out, cnp.ndarray taps, cnp.ndarray x, *options):
    """Max pooling, window by window: the definition as loops."""
    run_max_pool(out, taps, x, geometry(x, out, options), False)


def max_pool2d_vectorized(cnp.ndarray out, cnp.ndarray taps, cnp.ndarray x, *options):
    """Adds vectors: neighbouring windows lie in their lanes, maxima and taps in registers."""
    run_max_pool(out, taps, x, geometry(x, out, options), True)


# ---- gradient of max pooling, and its adjoint --------------------------------------------------------


cdef inline Py_ssize_t winning_element(
    Geometry g, Py_ssize_t oh, Py_ssize_t ow, unsigned int tap
) noexcept nogil:
    """Where in the input plane the winner of window (oh, ow) stands; -1 if outside (a window of padding)."""
    cdef unsigned int i
    if g.kernel_w == 3:
        i = tap // 3  # by a constant: a multiplication instead of a division
    else:
        i = tap // <unsigned int>g.kernel_w
    cdef Py_ssize_t row = oh * g.stride_h - g.pad_h + i * g.dilation_h
    cdef Py_ssize_t column = ow * g.stride_w - g.pad_w + (tap - i * g.kernel_w) * g.dilation_w
    if 0 <= row < g.height and 0 <= column < g.width:
        return row * g.width + column
    return -1


cdef void scatter_plane(real *out, const real *grad, const tap_t *taps, Geometry g) noexcept nogil:
    cdef Py_ssize_t oh, ow, at
    memset(out, 0, g.height * g.width * sizeof(real))
    for oh in range(g.out_height):
        for ow in range(g.out_width):
            at = winning_element(g, oh, ow, taps[oh * g.out_width + ow])
            if at >= 0:
                out[at] += grad[oh * g.out_width + ow]


cdef void scatter_plane_2x2(real *out, const real *grad, const tap_t *taps, Geometry g) noexcept nogil:
    cdef Py_ssize_t oh, ow, done, k
    cdef real *upper = out
    cdef real *lower
    for oh in range(g.out_height):
        lower = upper + g.width
        if real is float:
            done = max_2x2_grad_columns_f32(upper, lower, grad, taps, sizeof(tap_t), g.out_width)
        else:
            done = max_2x2_grad_columns_f64(upper, lower, grad, taps, sizeof(tap_t), g.out_width)
        for ow in range(done, g.out_width):
            for k in range(2):
                upper[2 * ow + k] = grad[ow] if taps[ow] == k else 0
                lower[2 * ow + k] = grad[ow] if taps[ow] == 2 + k else 0
        upper += 2 * g.width
        grad += g.out_width
        taps += g.out_width
    clear_outside_tiling(out, g)


cdef void max_grad_planes(
    real *out, const real *grad, const tap_t *taps, Geometry g, bint vectorized, int part
) noexcept nogil:
    cdef Py_ssize_t plane, in_size = g.height * g.width, out_size = g.out_height * g.out_width
    for plane in range(first_plane(g, part), first_plane(g, part + 1)):
        if vectorized:
            scatter_plane_2x2(out + plane * in_size, grad + plane * out_size, taps + plane * out_size, g)
        else:
            scatter_plane(out + plane * in_size, grad + plane * out_size, taps + plane * out_size, g)


cdef void max_grad(
    real *out, const real *grad, const tap_t *taps, Geometry g, bint vectorized
) noexcept nogil:
    cdef int part
    if g.threads == 1:
        max_grad_planes(out, grad, taps, g, vectorized, 0)
    else:
        for part in prange(g.threads, num_threads=g.threads, schedule="static"):
            max_grad_planes(out, grad, taps, g, vectorized, part)


cdef run_max_grad(cnp.ndarray out, cnp.ndarray grad_output, cnp.ndarray taps, Geometry g, bint vectorized):
    cdef int dtype = real_type(grad_output)
    check_input(grad_output, dtype)
    check_output(out, dtype)
    cdef int tap_bytes = check_taps(taps, grad_output, g, False)
    cdef void *o = cnp.PyArray_DATA(out)
    cdef void *t = cnp.PyArray_DATA(taps)
    cdef void *grad = cnp.PyArray_DATA(grad_output)
    vectorized = vectorized and is_2x2_tiling(g)
    with nogil:
        if dtype == cnp.NPY_FLOAT32 and tap_bytes == 1:
            max_grad(<float *>o, <const float *>grad, <const unsigned char *>t, g, vectorized)
        elif dtype == cnp.NPY_FLOAT32:
            max_grad(<float *>o, <const float *>grad, <const int *>t, g, vectorized)
        elif tap_bytes == 1:
            max_grad(<double *>o, <const double *>grad, <const unsigned char *>t, g, vectorized)
        else:
            max_grad(<double *>o, <const double *>grad, <const int *>t, g, vectorized)


def max_pool2d_input_grad_naive(cnp.ndarray out, cnp.ndarray grad_output, cnp.ndarray taps, *options):
    """Adds each window's gradient to its winning element: out (N, C, H, W) is zeroed, then scattered into."""
    run_max_grad(out, grad_output, taps, geometry(out, grad_output, options), False)


def max_pool2d_input_grad_vectorized(cnp.ndarray out, cnp.ndarray grad_output, cnp.ndarray taps, *options):
    """Writes 2x2 windows at stride 2 whole, a vector of them at a time, with no zeroing before (other
    shapes: as the naive rung)."""
    run_max_grad(out, grad_output, taps, geometry(out, grad_output, options), True)


cdef void gather_planes(real *out, const real *x, const tap_t *taps, Geometry g, int part) noexcept nogil:
    cdef Py_ssize_t plane, oh, ow, at, k
    for plane in range(first_plane(g, part), first_plane(g, part + 1)):
        for oh in range(g.out_height):
            for ow in range(g.out_width):
                k = (plane * g.out_height + oh) * g.out_width + ow
                at = winning_element(g, oh, ow, taps[k])
                out[k] = x[plane * g.height * g.width + at] if at >= 0 else 0


cdef void gather(real *out, const real *x, const tap_t *taps, Geometry g) noexcept nogil:
    cdef int part
    if g.threads == 1:
        gather_planes(out, x, taps, g, 0)
    else:
        for part in prange(g.threads, num_threads=g.threads, schedule="static"):
            gather_planes(out, x, taps, g, part)


def max_pool2d_gather(cnp.ndarray out, cnp.ndarray x, cnp.ndarray taps, *options):
    """Takes x (N, C, H, W) at each window's winning tap: the adjoint of ``max_pool2d_input_grad``."""
    cdef Geometry g = geometry(x, out, options)
    cdef int dtype = real_type(x)
    check_input(x, dtype)
    check_output(out, dtype)
    cdef int tap_bytes = check_taps(taps, out, g, False)
    cdef void *o = cnp.PyArray_DATA(out)
    cdef void *t = cnp.PyArray_DATA(taps)
    cdef void *data = cnp.PyArray_DATA(x)
    with nogil:
        if dtype == cnp.NPY_FLOAT32 and tap_bytes == 1:
            gather(<float *>o, <const float *>data, <const unsigned char *>t, g)
        elif dtype == cnp.NPY_FLOAT32:
            gather(<float *>o, <const float *>data, <const int *>t, g)
        elif tap_bytes == 1:
            gather(<double *>o, <const double *>data, <const unsigned char *>t, g)
        else:
            gather(<double *>o, <const double *>data, <const int *>t, g)
