# Average pooling over windows, adaptive average pooling, and their gradients; included by pool2d.pyx.


cdef inline real window_divisor(
    Geometry g, Py_ssize_t row_start, Py_ssize_t column_start, real like,
) noexcept nogil:
    """What the sum of a window is divided by: PyTorch's rule.

    The padding is counted or not; what hangs over the padding (ceil_mode) is never counted. ``like`` only
    tells Cython the type.
    """
    if g.divisor_override != 0:
        return <real>g.divisor_override
    cdef Py_ssize_t row_end = min(row_start + g.kernel_h, g.height + g.pad_h)
    cdef Py_ssize_t column_end = min(column_start + g.kernel_w, g.width + g.pad_w)
    if not g.count_include_pad:
        row_start, column_start = max(row_start, 0), max(column_start, 0)
        row_end, column_end = min(row_end, g.height), min(column_end, g.width)
    return <real>((row_end - row_start) * (column_end - column_start))


cdef inline real avg_window(
    const real *x, Geometry g, Py_ssize_t row_start, Py_ssize_t column_start,
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
    return total / window_divisor(g, row_start, column_start, total)


cdef void avg_plane_naive(real *out, const real *x, Geometry g) noexcept nogil:
    cdef Py_ssize_t oh, ow
    for oh in range(g.out_height):
        for ow in range(g.out_width):
            out[oh * g.out_width + ow] = avg_window(
                x, g, oh * g.stride_h - g.pad_h, ow * g.stride_w - g.pad_w
            )


cdef inline bint is_global(Geometry g) noexcept nogil:
    """One window, which is the whole plane."""
    return (
        g.out_height == 1 and g.out_width == 1 and g.kernel_h == g.height and g.kernel_w == g.width
        and g.pad_h == 0 and g.pad_w == 0
    )


cdef void global_planes(real *out, const real *x, Geometry g, int part) noexcept nogil:
    """The mean of each plane."""
    cdef Py_ssize_t plane, size = g.height * g.width
    cdef real divisor = <real>(g.divisor_override if g.divisor_override != 0 else size)
    for plane in range(first_plane(g, part), first_plane(g, part + 1)):
        out[plane] = run_sum(x + plane * size, size) / divisor


cdef void global_grad_planes(real *out, const real *grad, Geometry g, int part) noexcept nogil:
    """Each plane filled with its portion."""
    cdef Py_ssize_t plane, i, size = g.height * g.width
    cdef real divisor = <real>(g.divisor_override if g.divisor_override != 0 else size), portion
    for plane in range(first_plane(g, part), first_plane(g, part + 1)):
        portion = grad[plane] / divisor
        for i in range(plane * size, (plane + 1) * size):
            out[i] = portion


cdef void avg_plane_vectorized(real *out, const real *x, Geometry g) noexcept nogil:
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
            divisor = window_divisor(g, row_start, column_start, <real>0)
            if real is float:
                done = avg_columns_f32(out + begin, corner, count, t, divisor)
            else:
                done = avg_columns_f64(out + begin, corner, count, t, divisor)
        for ow in range(begin):
            out[ow] = avg_window(x, g, row_start, ow * g.stride_w - g.pad_w)
        for ow in range(begin + done, g.out_width):
            out[ow] = avg_window(x, g, row_start, ow * g.stride_w - g.pad_w)
        out += g.out_width


cdef void avg_pool_planes(real *out, const real *x, Geometry g, bint vectorized, int part) noexcept nogil:
    cdef Py_ssize_t plane, in_size = g.height * g.width, out_size = g.out_height * g.out_width
    if vectorized and is_global(g):
        global_planes(out, x, g, part)
        return
    for plane in range(first_plane(g, part), first_plane(g, part + 1)):
        if vectorized:
            avg_plane_vectorized(out + plane * out_size, x + plane * in_size, g)
        else:
            avg_plane_naive(out + plane * out_size, x + plane * in_size, g)


cdef void avg_pool(real *out, const real *x, Geometry g, bint vectorized) noexcept nogil:
    cdef int part
    if g.threads == 1:
        avg_pool_planes(out, x, g, vectorized, 0)
    else:
        for part in prange(g.threads, num_threads=g.threads, schedule="static"):
            avg_pool_planes(out, x, g, vectorized, part)


cdef run_avg_pool(cnp.ndarray out, cnp.ndarray x, Geometry g, bint vectorized):
    cdef int dtype = real_type(x)
    check_input(x, dtype)
    check_output(out, dtype)
    cdef void *o = cnp.PyArray_DATA(out)
    cdef void *data = cnp.PyArray_DATA(x)
    with nogil:
        if dtype == cnp.NPY_FLOAT32:
            avg_pool(<float *>o, <const float *>data, g, vectorized)
        else:
            avg_pool(<double *>o, <const double *>data, g, vectorized)


def avg_pool2d_naive(cnp.ndarray out, cnp.ndarray x, *options):
    """Average pooling, window by window: the definition as loops."""
    run_avg_pool(out, x, geometry(x, out, options, True), False)


def avg_pool2d_vectorized(cnp.ndarray out, cnp.ndarray x, *options):
    """Average pooling with neighbouring windows in the lanes of a vector."""
    run_avg_pool(out, x, geometry(x, out, options, True), True)


# ---- gradient of average pooling ---------------------------------------------------------------------


cdef void spread_plane(real *out, const real *grad, Geometry g) noexcept nogil:
    cdef Py_ssize_t oh, ow, row, column, row_start, column_start
    cdef real portion
    memset(out, 0, g.height * g.width * sizeof(real))
    for oh in range(g.out_height):
        row_start = oh * g.stride_h - g.pad_h
        for ow in range(g.out_width):
            column_start = ow * g.stride_w - g.pad_w
            portion = grad[oh * g.out_width + ow] / window_divisor(g, row_start, column_start, <real>0)
            for row in range(max(row_start, 0), min(row_start + g.kernel_h, g.height)):
                for column in range(max(column_start, 0), min(column_start + g.kernel_w, g.width)):
                    out[row * g.width + column] += portion


cdef void spread_plane_by_rows(real *out, const real *grad, Geometry g, real *line) noexcept nogil:
    """All rows under one row of windows receive the same ``line``: it is summed once, tap by tap, and then
    added to each of them. Scratch: ``line`` has g.width elements, and behind it lie g.out_width portions."""
    cdef Py_ssize_t oh, row, column, tap, row_start
    cdef real *portions = line + g.width
    cdef real *out_row
    memset(out, 0, g.height * g.width * sizeof(real))
    for oh in range(g.out_height):
        row_start = oh * g.stride_h - g.pad_h
        list_portions(portions, grad, g, row_start)
        memset(line, 0, g.width * sizeof(real))
        for tap in range(g.kernel_w):
            add_portions(line, portions, g, tap)
        for row in range(max(row_start, 0), min(row_start + g.kernel_h, g.height)):
            out_row = out + row * g.width
            for column in range(g.width):
                out_row[column] += line[column]
        grad += g.out_width


cdef inline void list_portions(real *portions, const real *grad, Geometry g, Py_ssize_t row_start) noexcept nogil:
    """What each window of a row gives to each of its elements."""
    cdef Py_ssize_t begin = interior_begin(g), end = interior_end(g), ow
    # One divisor for all windows of the row that lie inside the input's columns.
    cdef real divisor = window_divisor(g, row_start, begin * g.stride_w - g.pad_w, <real>0)
    for ow in range(begin):
        portions[ow] = grad[ow] / window_divisor(g, row_start, ow * g.stride_w - g.pad_w, <real>0)
    for ow in range(begin, end):
        portions[ow] = grad[ow] / divisor
    for ow in range(end, g.out_width):
        portions[ow] = grad[ow] / window_divisor(g, row_start, ow * g.stride_w - g.pad_w, <real>0)


cdef inline void add_portions(real *line, const real *portions, Geometry g, Py_ssize_t tap) noexcept nogil:
    """Adds the portions of a row of windows to the elements under one tap, where these exist."""
    cdef Py_ssize_t begin = ceil_div(g.pad_w - tap, g.stride_w), ow, offset = tap - g.pad_w
    cdef Py_ssize_t end = min(g.out_width, ceil_div(g.width - offset, g.stride_w))
    if g.stride_w == 1:  # a constant, for which the compiler finds vectors
        for ow in range(begin, end):
            line[ow + offset] += portions[ow]
    else:
        for ow in range(begin, end):
            line[ow * g.stride_w + offset] += portions[ow]


cdef void spread_plane_2x2(real *out, const real *grad, Geometry g) noexcept nogil:
    cdef Py_ssize_t oh, ow, done, k
    cdef real divisor = g.divisor_override if g.divisor_override != 0 else 4
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


cdef inline Py_ssize_t scratch_elements(Geometry g) noexcept nogil:
    """Of a thread: a row of the input and one of windows, and what keeps other threads' cache lines away."""
    return g.width + g.out_width + 64 // <Py_ssize_t>sizeof(float)


cdef void avg_grad_planes(real *out, const real *grad, Geometry g, real *lines, int part) noexcept nogil:
    """``lines`` has scratch for each thread, or is NULL for the naive rung."""
    cdef Py_ssize_t plane, in_size = g.height * g.width, out_size = g.out_height * g.out_width
    cdef real *plane_out
    cdef const real *plane_grad
    if lines != NULL and is_global(g):
        global_grad_planes(out, grad, g, part)
        return
    for plane in range(first_plane(g, part), first_plane(g, part + 1)):
        plane_out, plane_grad = out + plane * in_size, grad + plane * out_size
        if lines == NULL:
            spread_plane(plane_out, plane_grad, g)
        elif is_2x2_tiling(g):
            spread_plane_2x2(plane_out, plane_grad, g)
        else:
            spread_plane_by_rows(plane_out, plane_grad, g, lines + part * scratch_elements(g))


cdef void avg_grad(real *out, const real *grad, Geometry g, real *lines) noexcept nogil:
    cdef int part
    if g.threads == 1:
        avg_grad_planes(out, grad, g, lines, 0)
    else:
        for part in prange(g.threads, num_threads=g.threads, schedule="static"):
            avg_grad_planes(out, grad, g, lines, part)


cdef run_avg_grad(cnp.ndarray out, cnp.ndarray grad_output, Geometry g, bint vectorized):
    cdef int dtype = real_type(grad_output)
    check_input(grad_output, dtype)
    check_output(out, dtype)
    cdef void *o = cnp.PyArray_DATA(out)
    cdef void *grad = cnp.PyArray_DATA(grad_output)
    cdef void *lines = NULL
    if vectorized:
        lines = malloc(scratch_elements(g) * g.threads * sizeof(double))
        if lines == NULL:
            raise MemoryError("no memory for the scratch rows of avg_pool2d_input_grad")
    with nogil:
        if dtype == cnp.NPY_FLOAT32:
            avg_grad(<float *>o, <const float *>grad, g, <float *>lines)
        else:
            avg_grad(<double *>o, <const double *>grad, g, <double *>lines)
        free(lines)


def avg_pool2d_input_grad_naive(cnp.ndarray out, cnp.ndarray grad_output, *options):
    """Adds each window's portion of the gradient to all of its elements: out (N, C, H, W) is zeroed first."""
    run_avg_grad(out, grad_output, geometry(out, grad_output, options, True), False)


def avg_pool2d_input_grad_vectorized(cnp.ndarray out, cnp.ndarray grad_output, *options):
    """Sums each row of windows along the row once for all rows under it; writes 2x2 windows at stride 2
    whole, a vector of them at a time."""
    run_avg_grad(out, grad_output, geometry(out, grad_output, options, True), True)


# ---- adaptive average pooling ------------------------------------------------------------------------
# Window i of n over a size covers [floor(i * size / n), ceil((i + 1) * size / n)): uneven windows, which
# may share elements. Both directions go through one line of g.width sums for each row of windows.


cdef inline real run_sum(const real *x, Py_ssize_t n) noexcept nogil:
    if real is float:
        return sum_run_f32(x, n)
    else:
        return sum_run_f64(x, n)


cdef void list_bounds(Py_ssize_t *bounds, Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    """The begin and the end of each window, listed once: they take divisions."""
    cdef Py_ssize_t i
    for i in range(n):  # i * size / n without the product, which could overflow
        bounds[2 * i] = i * (size // n) + i * (size % n) // n
        bounds[2 * i + 1] = (i + 1) * (size // n) + ((i + 1) * (size % n) + n - 1) // n


cdef void adaptive_plane(real *out, const real *x, Geometry g, const Py_ssize_t *rows,
                         const Py_ssize_t *columns, real *line) noexcept nogil:
    cdef Py_ssize_t oh, ow, row, column
    cdef real total
    for oh in range(g.out_height):
        for column in range(g.width):
            line[column] = 0
        for row in range(rows[2 * oh], rows[2 * oh + 1]):
            for column in range(g.width):
                line[column] += x[row * g.width + column]
        for ow in range(g.out_width):
            total = 0
            for column in range(columns[2 * ow], columns[2 * ow + 1]):
                total += line[column]
            out[oh * g.out_width + ow] = total / <real>(
                (rows[2 * oh + 1] - rows[2 * oh]) * (columns[2 * ow + 1] - columns[2 * ow]))


cdef void adaptive_grad_plane(real *out, const real *grad, Geometry g, const Py_ssize_t *rows,
                              const Py_ssize_t *columns, real *line) noexcept nogil:
    cdef Py_ssize_t oh, ow, row, column
    cdef real portion
    memset(out, 0, g.height * g.width * sizeof(real))
    for oh in range(g.out_height):
        memset(line, 0, g.width * sizeof(real))
        for ow in range(g.out_width):
            portion = grad[oh * g.out_width + ow] / <real>(
                (rows[2 * oh + 1] - rows[2 * oh]) * (columns[2 * ow + 1] - columns[2 * ow]))
            for column in range(columns[2 * ow], columns[2 * ow + 1]):
                line[column] += portion
        for row in range(rows[2 * oh], rows[2 * oh + 1]):
            for column in range(g.width):
                out[row * g.width + column] += line[column]


cdef void adaptive_planes(real *large, real *small, Geometry g, bint gradient, Py_ssize_t *bounds,
                          real *lines, int part) noexcept nogil:
    """Forward (large to small) or backward (small to large)."""
    cdef Py_ssize_t plane, in_size = g.height * g.width, out_size = g.out_height * g.out_width
    cdef Py_ssize_t *columns = bounds + 2 * g.out_height
    if g.out_height == 1 and g.out_width == 1:
        if gradient:
            global_grad_planes(large, <const real *>small, g, part)
        else:
            global_planes(small, <const real *>large, g, part)
        return
    lines += part * scratch_elements(g)
    for plane in range(first_plane(g, part), first_plane(g, part + 1)):
        if gradient:
            adaptive_grad_plane(large + plane * in_size, <const real *>(small + plane * out_size), g, bounds,
                                columns, lines)
        else:
            adaptive_plane(small + plane * out_size, <const real *>(large + plane * in_size), g, bounds,
                           columns, lines)


cdef void adaptive(real *large, real *small, Geometry g, bint gradient, Py_ssize_t *bounds,
                   real *lines) noexcept nogil:
    cdef int part
    if g.threads == 1:
        adaptive_planes(large, small, g, gradient, bounds, lines, 0)
    else:
        for part in prange(g.threads, num_threads=g.threads, schedule="static"):
            adaptive_planes(large, small, g, gradient, bounds, lines, part)


cdef run_adaptive(cnp.ndarray large, cnp.ndarray small, int threads, bint gradient):
    cdef Geometry g = geometry(large, small, (1, 1, 1, 1, 0, 0, 1, 1, threads))
    cdef int dtype = real_type(large)
    check_input(small if gradient else large, dtype)
    check_output(large if gradient else small, dtype)
    cdef void *a = cnp.PyArray_DATA(large)
    cdef void *b = cnp.PyArray_DATA(small)
    cdef Py_ssize_t bounds = 2 * (g.out_height + g.out_width) * sizeof(Py_ssize_t)
    cdef void *memory = malloc(bounds + g.threads * scratch_elements(g) * sizeof(double))
    if memory == NULL:
        raise MemoryError("no memory for the scratch rows of adaptive_avg_pool2d")
    with nogil:
        list_bounds(<Py_ssize_t *>memory, g.out_height, g.height)
        list_bounds(<Py_ssize_t *>memory + 2 * g.out_height, g.out_width, g.width)
        if dtype == cnp.NPY_FLOAT32:
            adaptive(<float *>a, <float *>b, g, gradient, <Py_ssize_t *>memory,
                     <float *>(<char *>memory + bounds))
        else:
            adaptive(<double *>a, <double *>b, g, gradient, <Py_ssize_t *>memory,
                     <double *>(<char *>memory + bounds))
        free(memory)


def adaptive_avg_pool2d(cnp.ndarray out, cnp.ndarray x, int threads):
    """Averages x (N, C, H, W) over OH x OW nearly equal windows: out (N, C, OH, OW)."""
    run_adaptive(x, out, threads, False)


def adaptive_avg_pool2d_input_grad(cnp.ndarray out, cnp.ndarray grad_output, int threads):
    """Spreads grad_output (N, C, OH, OW) evenly over each window's elements: out (N, C, H, W)."""
    run_adaptive(out, grad_output, threads, True)
