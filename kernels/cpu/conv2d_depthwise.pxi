# The *depthwise* rung of conv2d.pyx, for groups of one channel at both ends. It has channels in the lanes of
# vectors, as *implicit_gemm* has, so that planes of any width and at any stride fill its vectors.
#
# A unit of work is a panel: NR channels of one image, transposed to pixels x NR. The weights are such panels
# too, of taps x NR, and all three functions are gather_lanes of conv2d.h, on a Correlation of panels
# (conv2d_correlation.pxi). To transpose takes a quarter of a cycle for each element, there and back: more than
# *planes* takes to copy rows, which is ahead where rows fill its vectors.

cdef extern from "conv2d.h" nogil:
    void gather_lanes_f32(Py_ssize_t width, Py_ssize_t rows, const place *row, Py_ssize_t depth,
                          const place *step, const float *x, const float *b, const float *start, float *c)
    void gather_lanes_f64(Py_ssize_t width, Py_ssize_t rows, const place *row, Py_ssize_t depth,
                          const place *step, const double *x, const double *b, const double *start, double *c)

# One correlation of each plane, or one for each pair of a row and a column phase of the stride. For the weight's
# gradient, `result` is that of forward, too.
cdef struct Depthwise:
    const void *source
    void *result
    Py_ssize_t source_pixels, result_pixels, taps
    Py_ssize_t NR, panels        # of NR channels each
    Py_ssize_t source_panel      # elements of a panel of the source, and of one of the result, in whole lines
    Py_ssize_t result_panel
    Py_ssize_t phases
    Correlation **phase


# ---- geometry ----------------------------------------------------------------------------------------------


cdef int plan_depthwise(const Conv *conv, Depthwise *d, bint of_input) except -1:
    """Lists the taps and pixels of a plane. ``of_input``: they are those of the gradient for the input."""
    cdef Py_ssize_t row_phases = 1, column_phases = 1, index
    cdef Axis h, w
    if conv.group_in != 1 or conv.group_out != 1:
        raise ValueError(f"conv2d depthwise kernel: a group must have one channel at either end, got "
                         f"{conv.group_in} and {conv.group_out}")
    d.source_pixels, d.result_pixels = conv.H * conv.W, conv.OH * conv.OW
    d.source, d.result = conv.x, conv.y
    if of_input:
        row_phases, column_phases = min(conv.stride_h, conv.H), min(conv.stride_w, conv.W)
        d.source_pixels, d.result_pixels = d.result_pixels, d.source_pixels
        d.source, d.result = conv.y, conv.x
    d.NR, d.taps = NR_f32 if conv.dtype == cnp.NPY_FLOAT32 else NR_f64, conv.KH * conv.KW
    d.panels = ceil_divide(conv.C, d.NR)
    d.source_panel, d.result_panel = whole_lines(d.source_pixels * d.NR), whole_lines(d.result_pixels * d.NR)
    d.phases = 0
    d.phase = <Correlation **> allocate(row_phases * column_phases * sizeof(void *))
    try:
        for index in range(row_phases * column_phases):
            if of_input:
                h = input_grad_axis(index // column_phases, conv.H, conv.OH, conv.KH, conv.stride_h,
                                    conv.pad_h, conv.dil_h)
                w = input_grad_axis(index % column_phases, conv.W, conv.OW, conv.KW, conv.stride_w,
                                    conv.pad_w, conv.dil_w)
            else:
                h = forward_axis(conv.H, conv.OH, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h)
                w = forward_axis(conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w)
            d.phase[index] = plan_plane(conv, &h, &w, conv.W if of_input else conv.OW)
            d.phases += 1
    except:
        free_depthwise(d)
        raise
    return 0


cdef void free_depthwise(Depthwise *d) noexcept:
    cdef Py_ssize_t index
    for index in range(d.phases):
        free(d.phase[index])
    free(d.phase)


cdef Correlation *plan_plane(const Conv *conv, const Axis *h, const Axis *w, Py_ssize_t width) except NULL:
    """The correlation of one plane, in a single block. Its offsets are made those in panels: of the whole
    kernel, and of a whole plane of the result, with rows of ``width`` pixels. To be freed."""
    cdef Conv plane = conv[0]
    cdef Correlation *plan
    cdef Py_ssize_t NR, index, r, i, j
    cdef place *at
    plane.N = plane.groups = 1
    plan = plan_correlation(&plane, h, w, 1, INTPTR_MAX, 1)
    NR = plan.panel_width
    for index in range(h.outputs * w.outputs):
        at = plan.pixel + index
        i, j = at.at // NR // w.outputs, at.at // NR % w.outputs
        at.x *= NR
        at.at = ((h.result_first + i * h.result_step) * width + w.result_first + j * w.result_step) * NR
    for r in range(plan.regions):
        for index in range(plan.region[r].taps):
            at = plan.region[r].tap + index
            i, j = at.at // NR // w.taps, at.at // NR % w.taps
            at.x *= NR
            at.at = ((h.first_tap + i * h.tap_step) * conv.KW + w.first_tap + j * w.tap_step) * NR
    return plan


# ---- forward and input gradient ----------------------------------------------------------------------------


cdef int depthwise_correlation(Conv *conv, bint of_input) except -1:
    """Packs the weights of all channels, then computes panel after panel of each image."""
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double)
    cdef Depthwise d
    cdef void *memory = NULL
    if conv.N == 0 or conv.C == 0 or of_input and (conv.H == 0 or conv.W == 0):
        return 0
    plan_depthwise(conv, &d, of_input)
    try:
        memory = allocate((d.panels * (d.taps + 1) * d.NR
                           + conv.threads * (d.source_panel + d.result_panel)) * item)
        with nogil:
            if is_float:
                run_depthwise(conv, &d, <float *> aligned(memory))
            else:
                run_depthwise(conv, &d, <double *> aligned(memory))
    finally:
        free(memory)
        free_depthwise(&d)
    return 0


cdef void run_depthwise(const Conv *conv, const Depthwise *d, real *weights) noexcept nogil:
    cdef Py_ssize_t index, units = conv.N * d.panels, panel
    cdef real *biases = weights + d.panels * d.taps * d.NR
    cdef real *workspaces = biases + d.panels * d.NR
    memset(biases, 0, d.panels * d.NR * sizeof(real))
    if conv.bias != NULL:
        memcpy(biases, conv.bias, conv.C * sizeof(real))
    for panel in range(d.panels):
        pack_channels(channels_of(conv, d, panel), d.taps,
                      <const real *> conv.weight + panel * d.NR * d.taps, d.taps,
                      weights + panel * d.taps * d.NR)
    for index in prange(units, num_threads=conv.threads, schedule="dynamic"):
        depthwise_panel(conv, d, index // d.panels, index % d.panels, weights, biases,
                        workspaces + threadid() * (d.source_panel + d.result_panel))


cdef inline Py_ssize_t channels_of(const Conv *conv, const Depthwise *d, Py_ssize_t panel) noexcept nogil:
    return min(d.NR, conv.C - panel * d.NR)


cdef void depthwise_panel(const Conv *conv, const Depthwise *d, Py_ssize_t image, Py_ssize_t panel,
                          const real *weights, const real *biases, real *source) noexcept nogil:
    """NR channels of one image."""
    cdef Py_ssize_t first = image * conv.C + panel * d.NR, channels = channels_of(conv, d, panel)
    cdef Py_ssize_t phase, r, pixels
    cdef real *result = source + d.source_panel
    cdef const Correlation *plan
    cdef Block block
    cdef const place *pixel
    pack_channels(channels, d.source_pixels, <const real *> d.source + first * d.source_pixels,
                  d.source_pixels, source)
    for phase in range(d.phases):
        plan = d.phase[phase]
        block = block_at(plan, 0)
        for r in range(plan.regions):
            pixel = region_pixels(plan, &block, r, &pixels)
            gather_lanes(channels, pixels, pixel, plan.region[r].taps, plan.region[r].tap, source,
                         weights + panel * d.taps * d.NR, biases + panel * d.NR, result)
    store_channels(channels, d.result_pixels, result, <real *> d.result + first * d.result_pixels,
                   d.result_pixels)


# ---- weight gradient ---------------------------------------------------------------------------------------


cdef int depthwise_weight_grad(Conv *conv) except -1:
    """Cuts the batch into parts, if there are too few panels for the threads, and adds up their sums."""
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double), parts
    cdef Depthwise d
    cdef void *memory = NULL
    if conv.N == 0 or conv.C == 0:
        memset(conv.weight, 0, conv.O * conv.KH * conv.KW * item)
        return 0
    plan_depthwise(conv, &d, False)
    parts = max(1, min(conv.N, 4 * conv.threads // d.panels)) if conv.threads > 1 else 1
    try:
        memory = allocate((parts * whole_lines(d.panels * d.taps * d.NR)
                           + conv.threads * (d.source_panel + d.result_panel)) * item)
        with nogil:
            if is_float:
                run_depthwise_sums(conv, &d, parts, <float *> aligned(memory))
            else:
                run_depthwise_sums(conv, &d, parts, <double *> aligned(memory))
    finally:
        free(memory)
        free_depthwise(&d)
    return 0


cdef void run_depthwise_sums(const Conv *conv, const Depthwise *d, Py_ssize_t parts,
                             real *sums) noexcept nogil:
    cdef Py_ssize_t index, part, panel, size = d.panels * d.taps * d.NR, i
    cdef real *workspaces = sums + parts * whole_lines(size)
    memset(sums, 0, parts * whole_lines(size) * sizeof(real))
    for index in prange(parts * d.panels, num_threads=conv.threads, schedule="dynamic"):
        depthwise_sums(conv, d, index // d.panels, parts, index % d.panels,
                       sums + index // d.panels * whole_lines(size),
                       workspaces + threadid() * (d.source_panel + d.result_panel))
    for part in range(1, parts):
        for i in range(size):
            sums[i] += sums[part * whole_lines(size) + i]
    for panel in range(d.panels):
        store_channels(channels_of(conv, d, panel), d.taps, sums + panel * d.taps * d.NR,
                       <real *> conv.weight + panel * d.NR * d.taps, d.taps)


cdef void depthwise_sums(const Conv *conv, const Depthwise *d, Py_ssize_t part, Py_ssize_t parts,
                         Py_ssize_t panel, real *sums, real *source) noexcept nogil:
    """NR channels of one part of the images: the correlation of forward, with pixels and taps exchanged."""
    cdef Py_ssize_t channels = channels_of(conv, d, panel), n, first, r, pixels
    cdef real *grad_output = source + d.source_panel
    cdef const Correlation *plan = d.phase[0]
    cdef Block block = block_at(plan, 0)
    cdef const place *pixel
    sums += panel * d.taps * d.NR
    for n in range(part * conv.N // parts, (part + 1) * conv.N // parts):
        first = n * conv.C + panel * d.NR
        pack_channels(channels, d.source_pixels, <const real *> d.source + first * d.source_pixels,
                      d.source_pixels, source)
        pack_channels(channels, d.result_pixels, <const real *> d.result + first * d.result_pixels,
                      d.result_pixels, grad_output)
        for r in range(plan.regions):
            pixel = region_pixels(plan, &block, r, &pixels)
            gather_lanes(channels, plan.region[r].taps, plan.region[r].tap, pixels, pixel, source,
                         grad_output, <real *> NULL, sums)


# ---- conv2d.h, for either type -----------------------------------------------------------------------------


cdef inline void gather_lanes(Py_ssize_t width, Py_ssize_t rows, const place *row, Py_ssize_t depth,
                              const place *step, const real *x, const real *b, const real *start,
                              real *c) noexcept nogil:
    if real is float:
        gather_lanes_f32(width, rows, row, depth, step, x, b, start, c)
    else:
        gather_lanes_f64(width, rows, row, depth, step, x, b, start, c)
