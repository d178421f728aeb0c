# The *planes* rung of conv2d.pyx, with vectors that run along the pixels of a row. It needs no channels to
# fill its vectors: it is for layers with few of them in a group, at either end.
#
# A unit of work is a band of rows of one group of one image. Its source is copied into Planes
# (conv2d_planes_layout.pxi), which the kernels of conv2d_planes.h read in place.
#
#   forward      one correlation, as in conv2d_implicit_gemm.pxi.
#   input_grad   one for each pair of a row and a column phase of the stride, all from the same planes. The
#                column phases of a row are computed one after the other, and then interleaved.
#   weight_grad  for each output channel, the products of its gradient's planes with the planes of x under
#                each tap, added up over the batch by one thread.

cdef extern from "conv2d_planes.h" nogil:
    enum:
        PLANE_CHANNELS
    ctypedef struct plane_taps:
        Py_ssize_t height, width, taps, column, row
        const Py_ssize_t *tap
        Py_ssize_t x_row, y_row, y_plane
        const char *ahead
        Py_ssize_t ahead_bytes
    void correlate_planes_f32(int channels, const plane_taps *taps, const float *x, const float *weight,
                              const float *start, float *y)
    void correlate_planes_f64(int channels, const plane_taps *taps, const double *x, const double *weight,
                              const double *start, double *y)
    void multiply_planes_f32(
        Py_ssize_t height, Py_ssize_t width, Py_ssize_t taps, const Py_ssize_t *tap, const float *x,
        Py_ssize_t x_row, const float *g, Py_ssize_t g_row, float *sums)
    void multiply_planes_f64(
        Py_ssize_t height, Py_ssize_t width, Py_ssize_t taps, const Py_ssize_t *tap, const double *x,
        Py_ssize_t x_row, const double *g, Py_ssize_t g_row, double *sums)
    void copy_elements_f32(Py_ssize_t n, const float *x, float *to)
    void copy_elements_f64(Py_ssize_t n, const double *x, double *to)
    void split_row_f32(Py_ssize_t n, const float *x, float *even, float *odd)
    void split_row_f64(Py_ssize_t n, const double *x, double *even, double *odd)
    void join_row_f32(Py_ssize_t n, const float *even, const float *odd, float *to)
    void join_row_f64(Py_ssize_t n, const double *even, const double *odd, double *to)

# The workspace: the packed weights of all phases, the biases, and for each thread planes and a scratch of
# interleaved phases. In elements.
cdef struct PlaneBuffers:
    Py_ssize_t weights, biases, planes, scratch, total


# ---- forward and input gradient ----------------------------------------------------------------------------


cdef int planes_forward(Conv *conv) except -1:
    cdef Py_ssize_t taps = conv.KH * conv.KW
    cdef Product product = Product(
        source=conv.x, result=conv.y, bias=conv.bias, source_channels=conv.group_in, channels=conv.group_out,
        panels=ceil_divide(conv.group_out, PLANE_CHANNELS), height=conv.OH, width=conv.OW,
        weight_depth=taps, weight_channel=conv.group_in * taps)
    if conv.N == 0 or product.channels == 0:
        return 0
    return run_planes(conv, &product, plan_planes(conv, conv.group_in, conv.H, conv.W, 1, 1, True))


cdef int planes_input_grad(Conv *conv) except -1:
    cdef Py_ssize_t taps = conv.KH * conv.KW
    cdef Product product = Product(
        source=conv.y, result=conv.x, bias=NULL, source_channels=conv.group_out, channels=conv.group_in,
        panels=ceil_divide(conv.group_in, PLANE_CHANNELS), height=conv.H, width=conv.W,
        weight_depth=conv.group_in * taps, weight_channel=taps)
    if conv.N == 0 or product.channels == 0 or conv.H == 0 or conv.W == 0:
        return 0
    return run_planes(conv, &product,
                      plan_planes(conv, conv.group_out, conv.OH, conv.OW, min(conv.stride_h, conv.H),
                                  min(conv.stride_w, conv.W), False))


cdef int run_planes(Conv *conv, const Product *product, Planes *plan) except -1:
    """Packs the weights, then computes unit after unit. Frees ``plan``."""
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double), index
    cdef PlaneBuffers buffers
    cdef void *memory = NULL
    buffers.weights = 0
    for index in range(plan.row_phases * plan.column_phases):
        plan.phase[index].weights = buffers.weights
        buffers.weights += conv.groups * product.channels * plan.phase[index].taps
    buffers.biases = conv.groups * product.channels
    buffers.planes = whole_lines(plan.channels * plan.plane_size)
    buffers.scratch = 0
    if plan.column_phases > 1:
        buffers.scratch = whole_lines(
            PLANE_CHANNELS * plan.column_phases * plan.band_rows * plan.phase[0].w.outputs)
    buffers.total = whole_lines(buffers.weights + buffers.biases) \
        + conv.threads * (buffers.planes + buffers.scratch)
    try:
        memory = allocate(buffers.total * item)
        with nogil:
            if is_float:
                run_units(conv, plan, product, &buffers, <float *> aligned(memory))
            else:
                run_units(conv, plan, product, &buffers, <double *> aligned(memory))
    finally:
        free(memory)
        free(plan)
    return 0


cdef void run_units(const Conv *conv, const Planes *plan, const Product *product, const PlaneBuffers *buffers,
                    real *weights) noexcept nogil:
    cdef Py_ssize_t index, units = conv.N * conv.groups * plan.bands
    cdef real *biases = weights + buffers.weights
    cdef real *workspaces = weights + whole_lines(buffers.weights + buffers.biases)
    memset(workspaces, 0, conv.threads * (buffers.planes + buffers.scratch) * sizeof(real))
    memset(biases, 0, buffers.biases * sizeof(real))
    if product.bias != NULL:
        memcpy(biases, product.bias, buffers.biases * sizeof(real))
    for index in range(plan.row_phases * plan.column_phases):
        pack_plane_weights(conv, plan.phase + index, product, weights + plan.phase[index].weights)
    # A thread takes neighbouring units, for each fetches what the next one reads.
    cdef Py_ssize_t chunk = max(1, units // (16 * conv.threads))
    for index in prange(units, num_threads=conv.threads, schedule="dynamic", chunksize=chunk):
        run_unit(conv, plan, product, buffers, index, weights,
                 workspaces + threadid() * (buffers.planes + buffers.scratch))


cdef void pack_plane_weights(const Conv *conv, const Phase *phase, const Product *product,
                             real *packed) noexcept nogil:
    """In the order (group, panel, tap, channel); a panel has up to PLANE_CHANNELS channels of the result."""
    cdef Py_ssize_t group, panel, c, u, v, channel
    cdef const real *weight
    for group in range(conv.groups):
        for panel in range(product.panels):
            for c in range(product.source_channels):
                for u in range(phase.h.taps):
                    for v in range(phase.w.taps):
                        weight = <const real *> conv.weight + c * product.weight_depth \
                            + group * conv.group_out * conv.group_in * conv.KH * conv.KW \
                            + (phase.h.first_tap + from_top(&phase.h, u) * phase.h.tap_step) * conv.KW \
                            + phase.w.first_tap + v * phase.w.tap_step
                        for channel in range(panel_begin(product, panel),
                                             panel_begin(product, panel + 1)):
                            packed[0] = weight[channel * product.weight_channel]
                            packed += 1


cdef inline Py_ssize_t panel_begin(const Product *product, Py_ssize_t panel) noexcept nogil:
    """The first channel of a panel: all panels are nearly as large."""
    if panel == 0 or panel == product.panels:  # without a division, which takes as long as 40 multiply-adds
        return 0 if panel == 0 else product.channels
    return panel * product.channels // product.panels


cdef void run_unit(const Conv *conv, const Planes *plan, const Product *product, const PlaneBuffers *buffers,
                   Py_ssize_t unit, const real *weights, real *planes) noexcept nogil:
    cdef Py_ssize_t image_group = unit if plan.bands == 1 else unit // plan.bands
    cdef Py_ssize_t first_row = (unit - image_group * plan.bands) * plan.band_rows
    cdef Py_ssize_t row_phase, panel, plane = product.height * product.width
    cdef Py_ssize_t source_size = plan.channels * plan.height * plan.width
    cdef real *result = <real *> product.result + image_group * product.channels * plane
    cdef const real *source = <const real *> product.source + image_group * source_size
    cdef plane_taps taps
    copy_planes(plan, source, first_row, planes)
    taps.x_row = plan.step_h * plan.row_size
    for panel in range(product.panels):
        for row_phase in range(plan.row_phases):
            taps.ahead, taps.ahead_bytes = <const char *> planes, 0
            if plan.bands == 1 and panel + row_phase == 0 and image_group + 1 < conv.N * conv.groups:
                taps.ahead = <const char *> (source + source_size)
                taps.ahead_bytes = source_size * sizeof(real)
            correlate_phases(plan, product, buffers, row_phase, image_group % conv.groups, panel, first_row,
                             weights, planes, result + panel_begin(product, panel) * plane, &taps)


cdef void correlate_phases(const Planes *plan, const Product *product, const PlaneBuffers *buffers,
                           Py_ssize_t row_phase, Py_ssize_t group, Py_ssize_t panel, Py_ssize_t first_row,
                           const real *weights, real *planes, real *result, plane_taps *taps) noexcept nogil:
    """The rows of one row phase, for one panel of channels."""
    cdef const Phase *phase = plan.phase + row_phase * plan.column_phases
    cdef Py_ssize_t begin = panel_begin(product, panel), channels = panel_begin(product, panel + 1) - begin
    cdef Py_ssize_t rows = min(plan.band_rows, phase.h.outputs - first_row), column_phase
    cdef Py_ssize_t row_step = phase.h.result_step * product.width, plane = product.height * product.width
    cdef Py_ssize_t longest = phase.w.outputs
    cdef const real *bias = weights + buffers.weights + group * product.channels + begin
    cdef real *scratch = planes + buffers.planes
    cdef real *out
    if rows <= 0:
        return
    result += (phase.h.result_first + first_row * phase.h.result_step) * product.width
    taps.height = rows
    for column_phase in range(plan.column_phases):
        taps.width, taps.taps, taps.tap = phase.w.outputs, phase.taps, phase.tap
        taps.column, taps.row = column_of_taps(plan, phase), phase.w.taps
        if plan.column_phases == 1:
            out, taps.y_row, taps.y_plane = result, row_step, plane
        else:
            out, taps.y_row, taps.y_plane = scratch, longest, rows * longest
        correlate_planes(<int> channels, taps, planes,
                         weights + phase.weights + (group * product.channels + begin) * phase.taps, bias, out)
        scratch += channels * rows * longest
        taps.ahead_bytes = 0
        phase += 1
    if plan.column_phases > 1:
        interleave_phases(plan, channels, rows, longest, product.width, planes + buffers.planes, result,
                          row_step, plane)


cdef inline Py_ssize_t column_of_taps(const Planes *plan, const Phase *phase) noexcept nogil:
    """How many taps lie below each other a step of the outputs apart."""
    return phase.h.taps if max(phase.h.offset_step, -phase.h.offset_step) == plan.step_h else 1


cdef void interleave_phases(const Planes *plan, Py_ssize_t channels, Py_ssize_t rows, Py_ssize_t longest,
                            Py_ssize_t width, const real *scratch, real *result, Py_ssize_t row_step,
                            Py_ssize_t plane) noexcept nogil:
    """result[c, i, j * phases + phase] = scratch[phase, c, i, j]."""
    cdef Py_ssize_t c, i, j, phase, step = plan.column_phases, size = channels * rows * longest
    cdef const real *row
    cdef real *out
    for c in range(channels):
        for i in range(rows):
            row = scratch + (c * rows + i) * longest
            out = result + c * plane + i * row_step
            if step == 2:
                join_row(width, row, row + size, out)
            else:
                for phase in range(step):
                    for j in range(ceil_divide(width - phase, step)):
                        out[j * step + phase] = row[phase * size + j]


# ---- weight gradient ---------------------------------------------------------------------------------------


cdef int planes_weight_grad(Conv *conv) except -1:
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double)
    cdef PlaneBuffers buffers
    cdef Planes *plan
    cdef void *memory = NULL
    if conv.N == 0 or conv.group_in == 0:
        memset(conv.weight, 0, conv.O * conv.group_in * conv.KH * conv.KW * item)
        return 0
    plan = plan_planes(conv, conv.group_in, conv.H, conv.W, 1, 1, True)
    buffers.planes = whole_lines(plan.channels * plan.plane_size)
    buffers.weights = whole_lines(plan.phase[0].taps * (LANES_f32 if is_float else LANES_f64))
    buffers.scratch = whole_lines(plan.band_rows * (LANES_f32 if is_float else LANES_f64))
    buffers.total = buffers.planes + buffers.weights + buffers.scratch
    try:
        memory = allocate(conv.threads * buffers.total * item)
        with nogil:
            if is_float:
                run_plane_products(conv, plan, &buffers, <float *> aligned(memory), <float *> conv.weight)
            else:
                run_plane_products(conv, plan, &buffers, <double *> aligned(memory), <double *> conv.weight)
    finally:
        free(memory)
        free(plan)
    return 0


cdef void run_plane_products(const Conv *conv, const Planes *plan, const PlaneBuffers *buffers,
                             real *workspace, real *weight) noexcept nogil:
    cdef Py_ssize_t o
    memset(workspace, 0, conv.threads * buffers.total * sizeof(real))
    for o in prange(conv.O, num_threads=conv.threads, schedule="dynamic"):
        weight_grad_channel(conv, plan, buffers, o, workspace + threadid() * buffers.total,
                            weight + o * plan.phase[0].taps)


cdef void weight_grad_channel(const Conv *conv, const Planes *plan, const PlaneBuffers *buffers, Py_ssize_t o,
                              real *planes, real *weight) noexcept nogil:
    """One output channel: a vector of sums for each tap, of which the lanes are added up in the end."""
    cdef Py_ssize_t n, band, first_row, rows, lane, p
    cdef Py_ssize_t lanes = LANES_f32 if real is float else LANES_f64
    cdef real *sums = planes + buffers.planes
    cdef real *narrow = sums + buffers.weights
    cdef const real *grad_output
    memset(sums, 0, buffers.weights * sizeof(real))
    for n in range(conv.N):
        for band in range(plan.bands):
            first_row = band * plan.band_rows
            rows = min(plan.band_rows, conv.OH - first_row)
            grad_output = <const real *> conv.y + ((n * conv.O + o) * conv.OH + first_row) * conv.OW
            copy_planes(plan, <const real *> conv.x
                        + (n * conv.C + o // conv.group_out * conv.group_in) * conv.H * conv.W,
                        first_row, planes)
            if conv.OW < lanes:
                widen_rows(rows, conv.OW, grad_output, lanes, narrow)
                multiply_planes(rows, conv.OW, plan.phase[0].taps, plan.phase[0].tap, planes,
                                plan.step_h * plan.row_size, narrow, lanes, sums)
            else:
                multiply_planes(rows, conv.OW, plan.phase[0].taps, plan.phase[0].tap, planes,
                                plan.step_h * plan.row_size, grad_output, conv.OW, sums)
    for p in range(plan.phase[0].taps):
        weight[p] = 0
        for lane in range(lanes):
            weight[p] += sums[p * lanes + lane]


cdef void widen_rows(Py_ssize_t rows, Py_ssize_t width, const real *narrow, Py_ssize_t lanes,
                     real *wide) noexcept nogil:
    """Rows of fewer elements than a vector, a vector apart."""
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j in range(width):
            wide[i * lanes + j] = narrow[i * width + j]


# ---- conv2d_planes.h, for either type ----------------------------------------------------------------------


cdef inline void correlate_planes(int channels, const plane_taps *taps, const real *x, const real *weight,
                                  const real *start, real *y) noexcept nogil:
    if real is float:
        correlate_planes_f32(channels, taps, x, weight, start, y)
    else:
        correlate_planes_f64(channels, taps, x, weight, start, y)


cdef inline void multiply_planes(
        Py_ssize_t height, Py_ssize_t width, Py_ssize_t taps, const Py_ssize_t *tap, const real *x,
        Py_ssize_t x_row, const real *g, Py_ssize_t g_row, real *sums) noexcept nogil:
    if real is float:
        multiply_planes_f32(height, width, taps, tap, x, x_row, g, g_row, sums)
    else:
        multiply_planes_f64(height, width, taps, tap, x, x_row, g, g_row, sums)


cdef inline void copy_elements(Py_ssize_t n, const real *x, real *to) noexcept nogil:
    if real is float:
        copy_elements_f32(n, x, to)
    else:
        copy_elements_f64(n, x, to)


cdef inline void split_row(Py_ssize_t n, const real *x, real *even, real *odd) noexcept nogil:
    if real is float:
        split_row_f32(n, x, even, odd)
    else:
        split_row_f64(n, x, even, odd)


cdef inline void join_row(Py_ssize_t n, const real *even, const real *odd, real *to) noexcept nogil:
    if real is float:
        join_row_f32(n, even, odd, to)
    else:
        join_row_f64(n, even, odd, to)
