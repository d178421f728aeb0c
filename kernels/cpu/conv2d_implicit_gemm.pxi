# The *implicit_gemm* rung of conv2d.pyx: all three functions on gather_gemm, of conv2d.h.
#
# A Correlation slides a set of taps over a source image. As a GEMM, its left operand's element (pixel, tap)
# is the source element at (offset of the pixel) + (offset of the tap), and its right operand is a weight for
# each (tap, channel of the result).
#
#   forward      the source is x, the taps are the kernel's, the result is y.
#   input_grad   the source is grad_output. An input row h gets gradient through tap u from output row
#                (h + pad - u dil) / stride, if that is a whole number: so rows with equal (h + pad) mod
#                stride, one *phase* of the stride, have the same taps, and neighbours among them read
#                neighbouring rows. Each pair of a row and a column phase is one correlation with its share of
#                the kernel, rotated, whose results lie stride apart. At stride 1 there is one phase, and the
#                whole kernel.
#   weight_grad  the correlation of forward with pixels and taps exchanged: the left operand's element
#                (tap, pixel) is found in the same way, and the right operand is grad_output, (pixel,
#                channel).
#
# conv2d_correlation.pxi says how the taps and pixels are listed, and the work cut into blocks.

cdef extern from "conv2d.h" nogil:
    enum:
        LANES_f32 "F32_LANES"
        LANES_f64 "F64_LANES"
    void gather_gemm_f32(Py_ssize_t width, Py_ssize_t rows, const place *row, Py_ssize_t depth,
                         const place *step, const float *x, const float *b, const float *start, float *c)
    void gather_gemm_f64(Py_ssize_t width, Py_ssize_t rows, const place *row, Py_ssize_t depth,
                         const place *step, const double *x, const double *b, const double *start, double *c)
    void pack_channels_f32(Py_ssize_t channels, Py_ssize_t pixels, const float *planes,
                           Py_ssize_t plane_stride, float *panel)
    void pack_channels_f64(Py_ssize_t channels, Py_ssize_t pixels, const double *planes,
                           Py_ssize_t plane_stride, double *panel)
    void store_channels_f32(Py_ssize_t channels, Py_ssize_t pixels, const float *panel, float *planes,
                            Py_ssize_t plane_stride)
    void store_channels_f64(Py_ssize_t channels, Py_ssize_t pixels, const double *panel, double *planes,
                            Py_ssize_t plane_stride)


cdef inline Py_ssize_t panels_of(const Conv *conv, Py_ssize_t channels) noexcept nogil:
    return ceil_divide(channels, NR_f32 if conv.dtype == cnp.NPY_FLOAT32 else NR_f64)


# ---- forward and input gradient ----------------------------------------------------------------------------

# The right operand and the result of a correlation. The weights of each group are packed in panels of NR
# channels of the result: depth x NR elements each.
cdef struct Product:
    void *source
    void *result
    void *bias                                    # may be NULL
    Py_ssize_t source_channels, channels, panels  # in a group
    Py_ssize_t height, width                      # of the result
    Py_ssize_t weight_depth, weight_channel       # strides of the weight: source channels, and the result's


cdef int implicit_forward(Conv *conv) except -1:
    cdef Py_ssize_t taps = conv.KH * conv.KW
    cdef Product product = Product(
        source=conv.x, result=conv.y, bias=conv.bias, source_channels=conv.group_in, channels=conv.group_out,
        panels=panels_of(conv, conv.group_out), height=conv.OH, width=conv.OW,
        weight_depth=taps, weight_channel=conv.group_in * taps)
    return run_product(conv, &product,
                       forward_axis(conv.H, conv.OH, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h),
                       forward_axis(conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w))


cdef int implicit_input_grad(Conv *conv) except -1:
    cdef Py_ssize_t taps = conv.KH * conv.KW, first_row, first_column
    cdef Product product = Product(
        source=conv.y, result=conv.x, bias=NULL, source_channels=conv.group_out, channels=conv.group_in,
        panels=panels_of(conv, conv.group_in), height=conv.H, width=conv.W,
        weight_depth=conv.group_in * taps, weight_channel=taps)
    for first_row in range(min(conv.stride_h, conv.H)):
        for first_column in range(min(conv.stride_w, conv.W)):
            run_product(
                conv, &product,
                input_grad_axis(first_row, conv.H, conv.OH, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h),
                input_grad_axis(first_column, conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w,
                                conv.dil_w))
    return 0


cdef inline bint by_panels(const Conv *conv, Py_ssize_t panels, Py_ssize_t weights,
                           Py_ssize_t source) noexcept nogil:
    """Whether threads take panels of weights rather than blocks of pixels: with few images the weights are
    the larger operand, and are then packed, used and forgotten a panel at a time, in cache."""
    return weights > source and conv.groups * panels >= conv.threads


cdef int run_product(Conv *conv, Product *product, Axis h, Axis w) except -1:
    """Packs the weights, and computes block after block, or panel after panel."""
    if h.outputs <= 0 or w.outputs <= 0 or conv.N == 0 or product.channels == 0:
        return 0
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef bint panels = by_panels(conv, product.panels, product.channels * h.taps * w.taps,
                                 conv.N * h.size * w.size)
    cdef Correlation *plan = plan_correlation(conv, &h, &w, product.source_channels, SOURCE_BYTES,
                                              1 if panels else conv.threads)
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double)
    cdef Py_ssize_t panel_elements = plan.panel_width * (plan.depth + 1)      # weights and biases
    cdef Py_ssize_t elements = (conv.threads if panels else conv.groups * product.panels) * panel_elements \
        + conv.threads * plan.panel_width * plan.block_pixels
    cdef void *memory = NULL
    try:
        memory = allocate(elements * item)
        with nogil:
            if is_float:
                run_correlation(conv, plan, product, panels, <float *> aligned(memory))
            else:
                run_correlation(conv, plan, product, panels, <double *> aligned(memory))
    finally:
        free(memory)
        free(plan)
    return 0


cdef void run_correlation(const Conv *conv, const Correlation *plan, const Product *product, bint panels,
                          real *workspace) noexcept nogil:
    if panels:
        run_panels(conv, plan, product, workspace)
    else:
        run_blocks(conv, plan, product, workspace)


cdef void run_blocks(const Conv *conv, const Correlation *plan, const Product *product,
                     real *panels) noexcept nogil:
    cdef Py_ssize_t all_panels = plan.groups * product.panels, index
    cdef Py_ssize_t blocks = plan.groups * plan.image_blocks * plan.bands
    cdef real *bias = panels + all_panels * plan.depth * plan.panel_width
    cdef real *sums = bias + all_panels * plan.panel_width
    cdef int packers = threads_for(all_panels * plan.depth * plan.panel_width, WORK_PER_THREAD, conv.threads)
    for index in prange(all_panels, num_threads=packers, schedule="static"):
        pack_weights(conv, plan, product, index, panels + index * plan.depth * plan.panel_width,
                     bias + index * plan.panel_width)
    for index in prange(blocks, num_threads=conv.threads, schedule="dynamic"):
        run_block(plan, product, block_at(plan, index), panels, bias,
                  sums + threadid() * plan.block_pixels * plan.panel_width)


cdef void run_panels(const Conv *conv, const Correlation *plan, const Product *product,
                     real *workspaces) noexcept nogil:
    cdef Py_ssize_t index, size = plan.panel_width * (plan.depth + 1 + plan.block_pixels)
    for index in prange(plan.groups * product.panels, num_threads=conv.threads, schedule="dynamic"):
        run_panel(conv, plan, product, index, workspaces + threadid() * size)


cdef void run_panel(const Conv *conv, const Correlation *plan, const Product *product, Py_ssize_t index,
                    real *panel) noexcept nogil:
    """All blocks, for NR of the result's channels."""
    cdef real *bias = panel + plan.depth * plan.panel_width
    cdef Py_ssize_t group = index // product.panels, i
    pack_weights(conv, plan, product, index, panel, bias)
    for i in range(plan.image_blocks * plan.bands):
        run_block_panel(plan, product, block_at(plan, i * plan.groups + group), index % product.panels, panel,
                        bias, bias + plan.panel_width)


cdef void pack_weights(const Conv *conv, const Correlation *plan, const Product *product, Py_ssize_t index,
                       real *panel, real *bias) noexcept nogil:
    """The taps of this correlation and the biases, for NR of the result's channels."""
    cdef Py_ssize_t NR = plan.panel_width, group = index // product.panels, lane, c, u, v
    cdef Py_ssize_t taps = plan.h.taps * plan.w.taps
    cdef Py_ssize_t first = index % product.panels * NR, count = min(NR, product.channels - first)
    cdef const real *weight = <const real *> conv.weight + first * product.weight_channel \
        + group * conv.group_out * conv.group_in * conv.KH * conv.KW
    cdef const real *tap
    memset(bias, 0, NR * sizeof(real))
    if product.bias != NULL:
        memcpy(bias, <const real *> product.bias + group * product.channels + first, count * sizeof(real))
    if taps == conv.KH * conv.KW and product.weight_depth == taps:            # all of them, and in order
        pack_channels(count, plan.depth, weight, product.weight_channel, panel)
        return
    if taps == conv.KH * conv.KW:
        for c in range(plan.channels):
            pack_channels(count, taps, weight + c * product.weight_depth, product.weight_channel,
                          panel + c * taps * NR)
        return
    for c in range(plan.channels):
        for u in range(plan.h.taps):
            for v in range(plan.w.taps):
                tap = weight + c * product.weight_depth + (plan.h.first_tap + u * plan.h.tap_step) * conv.KW \
                    + plan.w.first_tap + v * plan.w.tap_step
                for lane in range(count):
                    panel[lane] = tap[lane * product.weight_channel]
                for lane in range(count, NR):
                    panel[lane] = 0
                panel += NR


cdef void run_block(const Correlation *plan, const Product *product, Block block, const real *panels,
                    const real *bias, real *sums) noexcept nogil:
    """All channels of one block."""
    cdef Py_ssize_t q, panel
    for q in range(product.panels):
        panel = block.group * product.panels + q
        run_block_panel(plan, product, block, q, panels + panel * plan.depth * plan.panel_width,
                        bias + panel * plan.panel_width, sums)


cdef void run_block_panel(const Correlation *plan, const Product *product, Block block, Py_ssize_t q,
                          const real *panel, const real *bias, real *sums) noexcept nogil:
    """NR channels of one block: summed up in a panel of pixels x NR, which then goes to planes of the
    result."""
    cdef Py_ssize_t NR = plan.panel_width, width = min(NR, product.channels - q * NR), r, pixels
    cdef const real *source = <const real *> product.source + block_source(plan, &block)
    cdef const place *pixel
    for r in range(plan.regions):
        pixel = region_pixels(plan, &block, r, &pixels)
        gather_gemm(width, pixels, pixel, plan.region[r].taps, plan.region[r].tap, source, panel, bias, sums)
    store_panel(plan, product, block, q * NR, width, sums)


cdef void store_panel(const Correlation *plan, const Product *product, Block block, Py_ssize_t first_channel,
                      Py_ssize_t channels, const real *sums) noexcept nogil:
    """Channels first_channel, ... of the block: from rows of NR channels to planes of pixels."""
    cdef Py_ssize_t n, c, i, j, plane = product.height * product.width, pixels = block.rows * plan.w.outputs
    cdef real *result
    cdef real *row
    for n in range(block.images):
        result = <real *> product.result + plane * (
            ((block.first_image + n) * plan.groups + block.group) * product.channels + first_channel)
        if plan.h.result_step == 1 and plan.w.result_step == 1:
            store_channels(channels, pixels, sums, result + block.first_row * product.width, plane)
        else:
            for c in range(channels):
                for i in range(block.rows):
                    row = result + c * plane + plan.w.result_first + product.width * (
                        plan.h.result_first + (block.first_row + i) * plan.h.result_step)
                    for j in range(plan.w.outputs):
                        row[j * plan.w.result_step] = sums[(i * plan.w.outputs + j) * plan.panel_width + c]
        sums += pixels * plan.panel_width


# ---- weight gradient ---------------------------------------------------------------------------------------

# Each thread adds up its blocks in sums of its own: for each group and panel of NR output channels,
# depth x NR elements. Behind them in its workspace lies a panel of grad_output. Where the weight is large and
# the images are few, a thread takes a panel at a time instead, and adds up all of its blocks.
cdef struct WeightSums:
    Py_ssize_t panels                             # in a group
    Py_ssize_t panel_size                         # elements of the sums of one panel,
    Py_ssize_t size, total                        # of all that a thread keeps, and of its workspace


cdef int implicit_weight_grad(Conv *conv) except -1:
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double), parts
    cdef WeightSums sums
    if conv.N == 0:
        memset(conv.weight, 0, conv.O * conv.group_in * conv.KH * conv.KW * item)
        return 0
    cdef Axis h = forward_axis(conv.H, conv.OH, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h)
    cdef Axis w = forward_axis(conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w)
    sums.panels = panels_of(conv, conv.group_out)
    cdef bint panels = by_panels(conv, sums.panels, conv.group_out * conv.KH * conv.KW,
                                 conv.N * conv.H * conv.W)
    cdef Correlation *plan = plan_correlation(conv, &h, &w, conv.group_in, SOURCE_BYTES,
                                              1 if panels else conv.threads)
    parts = conv.threads if panels else min(<Py_ssize_t> conv.threads, plan.image_blocks * plan.bands)
    sums.panel_size = plan.depth * plan.panel_width
    sums.size = sums.panel_size if panels else conv.groups * sums.panels * sums.panel_size
    sums.total = whole_lines(sums.size) + whole_lines(plan.block_pixels * plan.panel_width)
    cdef void *memory = NULL
    try:
        memory = allocate(parts * sums.total * item)
        with nogil:
            if is_float:
                run_weight_grad(conv, plan, &sums, panels, parts, <float *> aligned(memory))
            else:
                run_weight_grad(conv, plan, &sums, panels, parts, <double *> aligned(memory))
    finally:
        free(memory)
        free(plan)
    return 0


cdef void run_weight_grad(const Conv *conv, const Correlation *plan, const WeightSums *sums, bint panels,
                          Py_ssize_t parts, real *workspace) noexcept nogil:
    if panels:
        weight_grad_by_panels(conv, plan, sums, parts, workspace)
    else:
        weight_grad_by_parts(conv, plan, sums, parts, workspace)


cdef void weight_grad_by_panels(const Conv *conv, const Correlation *plan, const WeightSums *sums,
                                Py_ssize_t parts, real *workspace) noexcept nogil:
    cdef Py_ssize_t index
    for index in prange(conv.groups * sums.panels, num_threads=<int> parts, schedule="dynamic"):
        weight_grad_panel(conv, plan, sums, index, workspace + threadid() * sums.total)


cdef void weight_grad_panel(const Conv *conv, const Correlation *plan, const WeightSums *sums,
                            Py_ssize_t index, real *workspace) noexcept nogil:
    """All blocks, for NR output channels."""
    cdef Py_ssize_t group = index // sums.panels, i
    memset(workspace, 0, sums.size * sizeof(real))
    for i in range(plan.image_blocks * plan.bands):
        weight_grad_block(conv, plan, block_at(plan, i * plan.groups + group), index % sums.panels, workspace,
                          workspace + whole_lines(sums.size))
    store_weight_panel(conv, plan, sums, index, workspace)


cdef void store_weight_panel(const Conv *conv, const Correlation *plan, const WeightSums *sums,
                             Py_ssize_t index, const real *panel) noexcept nogil:
    cdef Py_ssize_t first = index % sums.panels * plan.panel_width, group = index // sums.panels
    store_channels(min(plan.panel_width, conv.group_out - first), plan.depth, panel,
                   <real *> conv.weight + (group * conv.group_out + first) * plan.depth, plan.depth)


cdef void weight_grad_by_parts(const Conv *conv, const Correlation *plan, const WeightSums *sums,
                               Py_ssize_t parts, real *workspace) noexcept nogil:
    cdef Py_ssize_t part, panel, i
    for part in prange(parts, num_threads=<int> parts, schedule="static"):
        weight_grad_part(conv, plan, sums, part, parts, workspace + part * sums.total)
    for part in range(1, parts):
        for i in range(sums.size):
            workspace[i] += workspace[part * sums.total + i]
    for panel in range(conv.groups * sums.panels):
        store_weight_panel(conv, plan, sums, panel, workspace + panel * sums.panel_size)


cdef void weight_grad_part(const Conv *conv, const Correlation *plan, const WeightSums *sums, Py_ssize_t part,
                           Py_ssize_t parts, real *workspace) noexcept nogil:
    """One thread's blocks."""
    cdef Py_ssize_t blocks = plan.image_blocks * plan.bands, index, q
    cdef Block block
    memset(workspace, 0, sums.size * sizeof(real))
    for index in range(part * blocks // parts * plan.groups, (part + 1) * blocks // parts * plan.groups):
        block = block_at(plan, index)
        for q in range(sums.panels):
            weight_grad_block(conv, plan, block, q,
                              workspace + (block.group * sums.panels + q) * sums.panel_size,
                              workspace + whole_lines(sums.size))


cdef void weight_grad_block(const Conv *conv, const Correlation *plan, Block block, Py_ssize_t q,
                            real *panel_sums, real *grad_output) noexcept nogil:
    """Adds one block's pixels to the sums of NR output channels."""
    cdef Py_ssize_t NR = plan.panel_width, width = min(NR, conv.group_out - q * NR), r, pixels
    cdef const real *source = <const real *> conv.x + block_source(plan, &block)
    cdef const place *pixel
    pack_grad_output(conv, &block, q * NR, width, NR, grad_output)
    for r in range(plan.regions):
        pixel = region_pixels(plan, &block, r, &pixels)
        gather_gemm(width, plan.region[r].taps, plan.region[r].tap, pixels, pixel, source, grad_output,
                    <real *> NULL, panel_sums)


cdef inline void pack_grad_output(const Conv *conv, const Block *block, Py_ssize_t first_channel,
                                  Py_ssize_t channels, Py_ssize_t NR, real *panel) noexcept nogil:
    """Some channels of the block's pixels, as rows of the right operand."""
    cdef Py_ssize_t n, P = conv.OH * conv.OW, pixels = block.rows * conv.OW
    for n in range(block.images):
        pack_channels(channels, pixels, <const real *> conv.y + block.first_row * conv.OW + P * (
            (block.first_image + n) * conv.O + block.group * conv.group_out + first_channel), P, panel)
        panel += pixels * NR


# ---- conv2d.h, for either type -----------------------------------------------------------------------------


cdef inline void gather_gemm(Py_ssize_t width, Py_ssize_t rows, const place *row, Py_ssize_t depth,
                             const place *step, const real *x, const real *b, const real *start,
                             real *c) noexcept nogil:
    if real is float:
        gather_gemm_f32(width, rows, row, depth, step, x, b, start, c)
    else:
        gather_gemm_f64(width, rows, row, depth, step, x, b, start, c)


cdef inline void pack_channels(Py_ssize_t channels, Py_ssize_t pixels, const real *planes,
                               Py_ssize_t plane_stride, real *panel) noexcept nogil:
    if real is float:
        pack_channels_f32(channels, pixels, planes, plane_stride, panel)
    else:
        pack_channels_f64(channels, pixels, planes, plane_stride, panel)


cdef inline void store_channels(Py_ssize_t channels, Py_ssize_t pixels, const real *panel, real *planes,
                                Py_ssize_t plane_stride) noexcept nogil:
    if real is float:
        store_channels_f32(channels, pixels, panel, planes, plane_stride)
    else:
        store_channels_f64(channels, pixels, panel, planes, plane_stride)
