# The gradient for the weight of conv2d_winograd.pyx: products of transformed inputs and transformed tiles of
# grad_output, summed over all tiles of the batch at each point, and transformed back.
#
# What is summed up is 4 times as large as the weight. Where that fits the cache, each thread has sums of its
# own and adds up its own blocks of tiles. Where it does not, but the values of all tiles do, threads share
# the output channels: then the sums of a panel are complete at once, and none are kept.

# Of the values of all tiles, where they stand in for sums that are larger still.
cdef enum:
    MOST_SHARED_BYTES = 16 * 1024 * 1024


cdef int run_weight_grad(Winograd *w, float *weight_grad) except -1:
    cdef Py_ssize_t group
    for group in range(w.groups):
        weight_grad_of_group(w, weight_grad + group * w.O * w.C * w.kernel * w.kernel)
        next_group(w)
    return 0


cdef int weight_grad_of_group(Winograd *w, float *weight_grad) except -1:
    if w.by_panels and w.points * w.rows * w.tiles * w.C * <Py_ssize_t> sizeof(float) <= MOST_SHARED_BYTES:
        return weight_grad_by_panels(w, weight_grad)
    return weight_grad_by_blocks(w, weight_grad)


cdef int weight_grad_by_blocks(Winograd *w, float *weight_grad) except -1:
    """Each thread sums up the products of its own blocks, at all points; the threads' sums are added in a
    fixed order, and transformed back."""
    cdef Py_ssize_t parts = min(<Py_ssize_t> w.threads, max(1, w.blocks)), part, panel, sums_size, workspace
    cdef point_values sums
    sums.row = w.panels * NR
    sums.point = w.C * sums.row + NR
    sums_size = whole_lines(w.points * sums.point)
    workspace = sums_size + whole_lines(block_workspace(w))
    cdef cnp.ndarray memory = allocate(parts * workspace)
    sums.data = floats(memory)
    with nogil:
        if parts == 1:  # without OpenMP, which a forked child must not enter
            sum_blocks(w, 0, 1, sums, sums_size)
            for panel in range(w.panels):
                store_weight_grad(w, panel, &sums, panel * NR, weight_grad)
        else:
            for part in prange(parts, num_threads=<int> parts, schedule="static"):
                sum_blocks(w, part, parts, point_values(data=sums.data + part * workspace, row=sums.row,
                                                        point=sums.point), sums_size)
            for panel in prange(w.panels, num_threads=<int> parts, schedule="static"):
                add_parts(w, panel, parts, workspace, &sums)
                store_weight_grad(w, panel, &sums, panel * NR, weight_grad)
    return 0


cdef int weight_grad_by_panels(Winograd *w, float *weight_grad) except -1:
    """All tiles make one block, and each thread takes panel after panel of output channels."""
    w.blocks, w.block_rows = 1, w.rows
    cdef point_values values = values_of(w, w.C, NULL)
    cdef Py_ssize_t shared = whole_lines(w.points * values.point), row, panel
    cdef Py_ssize_t workspace = whole_lines(panel_workspace(w))
    cdef cnp.ndarray memory = allocate(shared + w.threads * workspace)
    values.data = floats(memory)
    cdef float *workspaces = values.data + shared
    with nogil:
        if w.threads == 1:
            for row in range(w.rows):
                transform_row(w, row, &values, row * w.tiles * values.row, workspaces)
            for panel in range(w.panels):
                weight_grad_panel(w, panel, &values, workspaces, weight_grad)
        else:
            for row in prange(w.rows, num_threads=w.threads, schedule="static"):
                transform_row(w, row, &values, row * w.tiles * values.row,
                              workspaces + threadid() * workspace)
            for panel in prange(w.panels, num_threads=w.threads, schedule="dynamic"):
                weight_grad_panel(w, panel, &values, workspaces + threadid() * workspace, weight_grad)
    return 0


cdef void weight_grad_panel(const Winograd *w, Py_ssize_t panel, const point_values *values, float *workspace,
                            float *weight_grad) noexcept nogil:
    """The gradient of the kernels of NR output channels."""
    cdef point_values sums = kernels_of(w, workspace)
    cdef point_values gradients = values_of(w, NR, workspace + w.points * sums.point)
    cdef float *scratch = gradients.data + w.points * gradients.point
    cdef Py_ssize_t row
    sums.row = NR
    memset(sums.data, 0, w.points * sums.point * sizeof(float))
    for row in range(w.rows):
        transform_grad_row(w, row, panel, &gradients, row * w.tiles * gradients.row, scratch)
    multiply_gradients(w.points, w.rows * w.tiles, w.C, channels_of(w.O, panel), values, &gradients, &sums)
    store_weight_grad(w, panel, &sums, 0, weight_grad)


cdef void sum_blocks(const Winograd *w, Py_ssize_t part, Py_ssize_t parts, point_values sums,
                     Py_ssize_t sums_size) noexcept nogil:
    """One thread's blocks. ``w.result`` is grad_output here."""
    cdef point_values values = values_of(w, w.C, sums.data + sums_size)
    cdef point_values gradients = values_of(w, w.O, values.data + w.points * values.point)
    cdef float *scratch = gradients.data + w.points * gradients.point
    cdef Py_ssize_t block, first, last, row, panel
    memset(sums.data, 0, w.points * sums.point * sizeof(float))
    for block in range(part * w.blocks // parts, (part + 1) * w.blocks // parts):
        first, last = block * w.block_rows, min((block + 1) * w.block_rows, w.rows)
        for row in range(first, last):
            transform_row(w, row, &values, (row - first) * w.tiles * values.row, scratch)
            for panel in range(w.panels):
                transform_grad_row(w, row, panel, &gradients,
                                   (row - first) * w.tiles * gradients.row + panel * NR, scratch)
        multiply_gradients(w.points, (last - first) * w.tiles, w.C, w.O, &values, &gradients, &sums)


cdef void transform_grad_row(const Winograd *w, Py_ssize_t row, Py_ssize_t panel,
                             const point_values *gradients, Py_ssize_t offset, float *scratch) noexcept nogil:
    """One row of tiles of NR channels of grad_output, to ``offset`` in ``gradients``."""
    cdef Py_ssize_t plane = w.OH * w.OW, o = panel * NR
    cdef tile_row at = tile_row(height=w.OH, width=w.OW, first_row=row % w.image_rows * w.step,
                                first_column=0, step=w.step, tiles=w.tiles)
    grad_output_to_points(w.tile, w.kernel, &at, channels_of(w.O, panel),
                          w.result + row // w.image_rows * w.result_image + o * plane, plane,
                          gradients.data + offset,
                          gradients.point, gradients.row, scratch)


cdef void store_weight_grad(const Winograd *w, Py_ssize_t panel, const point_values *sums, Py_ssize_t offset,
                            float *weight_grad) noexcept nogil:
    """The kernels of NR output channels, transformed back from ``offset`` in ``sums``."""
    cdef float[CHUNK * MAX_KERNEL * MAX_KERNEL * NR] taps
    cdef Py_ssize_t first = panel * NR, lanes = channels_of(w.O, panel), taps_each = w.kernel * w.kernel
    cdef Py_ssize_t chunk, c, depth
    for chunk in range(ceil_divide(w.C, CHUNK)):
        c = chunk * CHUNK
        depth = min(<Py_ssize_t> CHUNK, w.C - c)
        points_to_weight_grad(w.tile, w.kernel, depth, sums.data + c * sums.row + offset, sums.point, sums.row,
                              taps)
        store_channels_f32(lanes, depth * taps_each, taps, weight_grad + (first * w.C + c) * taps_each,
                           w.C * taps_each)


cdef void add_parts(const Winograd *w, Py_ssize_t panel, Py_ssize_t parts, Py_ssize_t part_size,
                    const point_values *sums) noexcept nogil:
    """Adds what the other threads have for this panel to the first one's sums."""
    cdef Py_ssize_t part, point, c, lane
    cdef float *total
    for part in range(1, parts):
        for point in range(w.points):
            for c in range(w.C):
                total = sums.data + point * sums.point + c * sums.row + panel * NR
                for lane in range(NR):
                    total[lane] += total[part * part_size + lane]
