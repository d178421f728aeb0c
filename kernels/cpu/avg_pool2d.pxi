# Average pooling over windows, adaptive average pooling, and their gradients; included by pool2d.pyx.


cdef inline real window_divisor(
    Geometry g, Py_ssize_t row_start, Py_ssize_t column_start, bint count_include_pad,
    Py_ssize_t divisor_override, real like,
) noexcept nogil:
    """What the sum of a window is divided by: PyTorch's rule.

    The padding is counted or not; what hangs over the padding (ceil_mode) is never counted. ``like`` only
    tells Cython the type.
    """
    if divisor_override != 0:
        return <real>divisor_override
    cdef Py_ssize_t row_end = min(row_start + g.kernel_h, g.height + g.pad_h)
    cdef Py_ssize_t column_end = min(column_start + g.kernel_w, g.width + g.pad_w)
    if not count_include_pad:
        row_start, column_start = max(row_start, 0), max(column_start, 0)
        row_end, column_end = min(row_end, g.height), min(column_end, g.width)
    return <real>((row_end - row_start) * (column_end - column_start))


cdef inline real avg_window(
    const real *x, Geometry g, Py_ssize_t row_start, Py_ssize_t column_start, bint count_include_pad,
    Py_ssize_t divisor_override,
) noexcept nogil:
    """One window by the definition; 0 if it has no element inside the input."""
    cdef Py_ssize_t row_end = min(row_start + g.kernel_h, g.height)
    cdef Py_ssize_t column_end = min(column_start + g.kernel_w, g.width)
    cdef Py_ssize_t row, column
    cdef real total = 0
    if row_end <= max(row_start, 0) or column_end <= max(column_start, 0):
        return 0
    for row in range(max(row_start, 0), row_end):
        for column in range(max(column_start, 0), column_end):
            total += x[row * g.width + column]
    return total / window_divisor(g, row_start, column_start, count_include_pad, divisor_override, total)


cdef void avg_plane_naive(
    real *out, const real *x, Geometry g, bint count_include_pad, Py_ssize_t divisor_override
) noexcept nogil:
    cdef Py_ssize_t oh, ow
    for oh in range(g.out_height):
        for ow in range(g.out_width):
            out[oh * g.out_width + ow] = avg_window(
                x, g, oh * g.stride_h - g.pad_h, ow * g.stride_w - g.pad_w, count_include_pad, divisor_override
            )


cdef void avg_plane_vectorized(
    real *out, const real *x, Geometry g, bint count_include_pad, Py_ssize_t divisor_override
) noexcept nogil:
    cdef Py_ssize_t begin = interior_begin(g), count = interior_end(g) - begin
    cdef Py_ssize_t oh, ow, done, row_start, column_start = begin * g.stride_w - g.pad_w
    cdef pool2d_taps t
    cdef const real *corner
    cdef real divisor
    for oh in range(g.out_height):
        row_start = oh * g.stride_h - g.pad_h
        t = interior_taps(g, row_start)
        done = 0
        if t.row_begin < t.row_end:
            corner = x + (row_start + t.row_begin) * g.width + column_start
            # One divisor for all windows of the row that lie inside the input's columns.
            divisor = window_divisor(g, row_start, column_start, count_include_pad, divisor_override, x[0])
            if real is float:
                done = avg_columns_f32(out + begin, corner, count, t, divisor)
            else:
                done = avg_columns_f64(out + begin, corner, count, t, divisor)
        for ow in range(begin):
            out[ow] = avg_window(
                x, g, row_start, ow * g.stride_w - g.pad_w, count_include_pad, divisor_override
            )
        for ow in range(begin + done, g.out_width):
            out[ow] = avg_window(
                x, g, row_start, ow * g.stride_w - g.pad_w, count_include_pad, divisor_override
            )
        out += g.out_width


cdef void avg_pool(
    real *out, const real *x, Geometry g, bint count_include_pad, Py_ssize_t divisor_override, bint vectorized
) noexcept nogil:
    cdef Py_ssize_t plane, in_size = g.height * g.width, out_size = g.out_height * g.out_width
    for plane in prange(g.planes, num_threads=g.threads, schedule="static"):
        if vectorized:
            avg_plane_vectorized(
                out + plane * out_size, x + plane * in_size, g, count_include_pad, divisor_override
            )
        else:
            avg_plane_naive(out + plane * out_size, x + plane * in_size, g, count_include_pad, divisor_override)


cdef run_avg_pool(
    cnp.ndarray out, cnp.ndarray x, Geometry g, bint count_include_pad, Py_ssize_t divisor_override,
    bint vectorized,
):
    cdef int dtype = real_type(x)
    check_input(x, dtype)
    check_output(out, dtype)
    cdef void *o = cnp.PyArray_DATA(out)
    cdef void *data = cnp.PyArray_DATA(x)
    with nogil:
        if dtype == cnp.NPY_FLOAT32:
            avg_pool(<float *>o, <const float *>data, g, count_include_pad, divisor_override, vectorized)
        else:
            avg_pool(<double *>o, <const double *>data, g, count_include_pad, divisor_override, vectorized)


def avg_pool2d_naive(
    cnp.ndarray out, cnp.ndarray x, Py_ssize_t kernel_h, Py_ssize_t kernel_w, Py_ssize_t stride_h,
    Py_ssize_t stride_w, Py_ssize_t pad_h, Py_ssize_t pad_w, bint count_include_pad,
    Py_ssize_t divisor_override, int threads,
):
    """Average pooling, window by window: the definition as loops (``divisor_override`` 0: none)."""
    cdef Geometry g = geometry(x, out, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1, threads)
    run_avg_pool(out, x, g, count_include_pad, divisor_override, False)


def avg_pool2d_vectorized(
    cnp.ndarray out, cnp.ndarray x, Py_ssize_t kernel_h, Py_ssize_t kernel_w, Py_ssize_t stride_h,
    Py_ssize_t stride_w, Py_ssize_t pad_h, Py_ssize_t pad_w, bint count_include_pad,
    Py_ssize_t divisor_override, int threads,
):
    """Average pooling with neighbouring windows in the lanes of a vector."""
    cdef Geometry g = geometry(x, out, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1, threads)
    run_avg_pool(out, x, g, count_include_pad, divisor_override, True)


# ---- gradient of average pooling ---------------------------------------------------------------------


cdef void spread_plane(
    real *out, const real *grad, Geometry g, bint count_include_pad, Py_ssize_t divisor_override
) noexcept nogil:
    cdef Py_ssize_t oh, ow, row, column, row_start, column_start
    cdef real share
    memset(out, 0, g.height * g.width * sizeof(real))
    for oh in range(g.out_height):
        row_start = oh * g.stride_h - g.pad_h
        for ow in range(g.out_width):
            column_start = ow * g.stride_w - g.pad_w
            share = grad[oh * g.out_width + ow] / window_divisor(
                g, row_start, column_start, count_include_pad, divisor_override, grad[0]
            )
            for row in range(max(row_start, 0), min(row_start + g.kernel_h, g.height)):
                for column in range(max(column_start, 0), min(column_start + g.kernel_w, g.width)):
                    out[row * g.width + column] += share


cdef void spread_plane_by_rows(
    real *out, const real *grad, Geometry g, bint count_include_pad, Py_ssize_t divisor_override, real *line
) noexcept nogil:
    """All rows under one row of windows receive the same ``line`` (g.width elements of scratch): it is
    summed once, and then added to each of them."""
    cdef Py_ssize_t oh, ow, row, column, row_start, column_start
    cdef real share
    cdef real *out_row
    memset(out, 0, g.height * g.width * sizeof(real))
    for oh in range(g.out_height):
        row_start = oh * g.stride_h - g.pad_h
        memset(line, 0, g.width * sizeof(real))
        for ow in range(g.out_width):
            column_start = ow * g.stride_w - g.pad_w
            share = grad[ow] / window_divisor(
                g, row_start, column_start, count_include_pad, divisor_override, grad[0]
            )
            for column in range(max(column_start, 0), min(column_start + g.kernel_w, g.width)):
                line[column] += share
        for row in range(max(row_start, 0), min(row_start + g.kernel_h, g.height)):
            out_row = out + row * g.width
            for column in range(g.width):
                out_row[column] += line[column]
        grad += g.out_width


cdef void spread_plane_2x2(real *out, const real *grad, Geometry g, Py_ssize_t divisor_override) noexcept nogil:
    cdef Py_ssize_t oh, ow, done, k
    cdef real divisor = divisor_override if divisor_override != 0 else 4
    cdef real *upper = out
    cdef real *lower
    for oh in range(g.out_height):
        lower = upper + g.width
        if real is float:
            done = avg_2x2_grad_columns_f32(upper, lower, grad, g.out_width, divisor)
        else:
            done = avg_2x2_grad_columns_f64(upper, lower, grad, g.out_width, divisor)
        for ow in range(done, g.out_width):
            for k in range(2):
                upper[2 * ow + k] = lower[2 * ow + k] = grad[ow] / divisor
        upper += 2 * g.width
        grad += g.out_width
    clear_outside_tiling(out, g)


cdef void avg_grad(
    real *out, const real *grad, Geometry g, bint count_include_pad, Py_ssize_t divisor_override, real *lines
) noexcept nogil:
    """``lines`` is g.width elements of scratch for each thread, or NULL for the naive rung."""
    cdef Py_ssize_t plane, in_size = g.height * g.width, out_size = g.out_height * g.out_width
    cdef bint tiled = is_2x2_tiling(g)
    for plane in prange(g.planes, num_threads=g.threads, schedule="static"):
        if lines == NULL:
            spread_plane(
                out + plane * in_size, grad + plane * out_size, g, count_include_pad, divisor_override
            )
        elif tiled:
            spread_plane_2x2(out + plane * in_size, grad + plane * out_size, g, divisor_override)
        else:
            spread_plane_by_rows(
                out + plane * in_size, grad + plane * out_size, g, count_include_pad, divisor_override,
                lines + threadid() * g.width,
            )


cdef run_avg_grad(
    cnp.ndarray out, cnp.ndarray grad_output, Geometry g, bint count_include_pad, Py_ssize_t divisor_override,
    bint vectorized,
):
    cdef int dtype = real_type(grad_output)
    check_input(grad_output, dtype)
    check_output(out, dtype)
    cdef void *o = cnp.PyArray_DATA(out)
    cdef void *grad = cnp.PyArray_DATA(grad_output)
    cdef void *lines = NULL
    if vectorized:
        lines = malloc(max(g.width, 1) * g.threads * sizeof(double))
        if lines == NULL:
            raise MemoryError("no memory for the scratch rows of avg_pool2d_input_grad")
    with nogil:
        if dtype == cnp.NPY_FLOAT32:
            avg_grad(<float *>o, <const float *>grad, g, count_include_pad, divisor_override, <float *>lines)
        else:
            avg_grad(<double *>o, <const double *>grad, g, count_include_pad, divisor_override, <double *>lines)
        free(lines)


def avg_pool2d_input_grad_naive(
    cnp.ndarray out, cnp.ndarray grad_output, Py_ssize_t kernel_h, Py_ssize_t kernel_w, Py_ssize_t stride_h,
    Py_ssize_t stride_w, Py_ssize_t pad_h, Py_ssize_t pad_w, bint count_include_pad,
    Py_ssize_t divisor_override, int threads,
):
    """Adds each window's share of the gradient to all of its elements: out (N, C, H, W) is zeroed first."""
    cdef Geometry g = geometry(
        out, grad_output, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1, threads
    )
    run_avg_grad(out, grad_output, g, count_include_pad, divisor_override, False)


def avg_pool2d_input_grad_vectorized(
    cnp.ndarray out, cnp.ndarray grad_output, Py_ssize_t kernel_h, Py_ssize_t kernel_w, Py_ssize_t stride_h,
    Py_ssize_t stride_w, Py_ssize_t pad_h, Py_ssize_t pad_w, bint count_include_pad,
    Py_ssize_t divisor_override, int threads,
):
    """Sums each row of windows along the row once for all rows under it; writes 2x2 windows at stride 2
    whole, a vector of them at a time."""
    cdef Geometry g = geometry(
        out, grad_output, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1, threads
    )
    run_avg_grad(out, grad_output, g, count_include_pad, divisor_override, True)


# ---- adaptive average pooling ------------------------------------------------------------------------
# Window i of n over a size covers [floor(i * size / n), ceil((i + 1) * size / n)): uneven windows, which
# may share elements.


cdef inline Py_ssize_t adaptive_begin(Py_ssize_t i, Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    # i * size / n without the product, which could overflow
    return i * (size // n) + i * (size % n) // n


cdef inline Py_ssize_t adaptive_end(Py_ssize_t i, Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    return (i + 1) * (size // n) + ((i + 1) * (size % n) + n - 1) // n


cdef inline real run_sum(const real *x, Py_ssize_t n) noexcept nogil:
    if real is float:
        return sum_run_f32(x, n)
    else:
        return sum_run_f64(x, n)


cdef void adaptive_plane(real *out, const real *x, Geometry g) noexcept nogil:
    cdef Py_ssize_t oh, ow, row, row_begin, row_end, begin, end
    cdef real total
    for oh in range(g.out_height):
        row_begin = adaptive_begin(oh, g.out_height, g.height)
        row_end = adaptive_end(oh, g.out_height, g.height)
        for ow in range(g.out_width):
            begin = adaptive_begin(ow, g.out_width, g.width)
            end = adaptive_end(ow, g.out_width, g.width)
            if end - begin == g.width:
                total = run_sum(x + row_begin * g.width, (row_end - row_begin) * g.width)
            else:
                total = 0
                for row in range(row_begin, row_end):
                    total += run_sum(x + row * g.width + begin, end - begin)
            out[oh * g.out_width + ow] = total / <real>((row_end - row_begin) * (end - begin))


cdef void adaptive_grad_plane(real *out, const real *grad, Geometry g) noexcept nogil:
    cdef Py_ssize_t oh, ow, row, column, row_begin, row_end, begin, end
    cdef real share
    memset(out, 0, g.height * g.width * sizeof(real))
    for oh in range(g.out_height):
        row_begin = adaptive_begin(oh, g.out_height, g.height)
        row_end = adaptive_end(oh, g.out_height, g.height)
        for ow in range(g.out_width):
            begin = adaptive_begin(ow, g.out_width, g.width)
            end = adaptive_end(ow, g.out_width, g.width)
            share = grad[oh * g.out_width + ow] / <real>((row_end - row_begin) * (end - begin))
            for row in range(row_begin, row_end):
                for column in range(begin, end):
                    out[row * g.width + column] += share


cdef void adaptive(real *large, real *small, Geometry g, bint gradient) noexcept nogil:
    """All planes, forward (large to small) or backward (small to large)."""
    cdef Py_ssize_t plane, in_size = g.height * g.width, out_size = g.out_height * g.out_width
    for plane in prange(g.planes, num_threads=g.threads, schedule="static"):
        if gradient:
            adaptive_grad_plane(large + plane * in_size, <const real *>(small + plane * out_size), g)
        else:
            adaptive_plane(small + plane * out_size, <const real *>(large + plane * in_size), g)


cdef run_adaptive(cnp.ndarray large, cnp.ndarray small, int threads, bint gradient):
    cdef Geometry g = geometry(large, small, 1, 1, 1, 1, 0, 0, 1, 1, threads)
    cdef int dtype = real_type(large)
    check_input(small if gradient else large, dtype)
    check_output(large if gradient else small, dtype)
    cdef void *a = cnp.PyArray_DATA(large)
    cdef void *b = cnp.PyArray_DATA(small)
    with nogil:
        if dtype == cnp.NPY_FLOAT32:
            adaptive(<float *>a, <float *>b, g, gradient)
        else:
            adaptive(<double *>a, <double *>b, g, gradient)


def adaptive_avg_pool2d(cnp.ndarray out, cnp.ndarray x, int threads):
    """Averages x (N, C, H, W) over OH x OW nearly equal windows: out (N, C, OH, OW)."""
    run_adaptive(x, out, threads, False)


def adaptive_avg_pool2d_input_grad(cnp.ndarray out, cnp.ndarray grad_output, int threads):
    """Spreads grad_output (N, C, OH, OW) evenly over each window's elements: out (N, C, H, W)."""
    run_adaptive(out, grad_output, threads, True)
