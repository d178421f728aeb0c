# The *implicit_gemm* rung of conv2d.pyx: all three functions on gather_gemm, of conv2d.h.
#
# A Correlation slides a set of taps over a source image. As a GEMM, its left operand's element (pixel, tap) is the
# source element at (offset of the pixel) + (offset of the tap), and its right operand is a weight for each (tap,
# channel of the result).
#
#   forward      the source is x, the taps are the kernel's, the result is y.
#   input_grad   the source is grad_output. An input row h gets gradient through tap u from output row
#                (h + pad - u dil) / stride, if that is a whole number: so rows with equal (h + pad) mod stride, one
#                *phase* of the stride, have the same taps, and neighbours among them read neighbouring rows. Each pair
#                of a row and a column phase is one correlation with its share of the kernel, rotated, whose results
#                lie stride apart. At stride 1 there is one phase, and the whole kernel.
#   weight_grad  the correlation of forward with pixels and taps exchanged: the left operand's element (tap, pixel) is
#                found in the same way, and the right operand is grad_output, (pixel, channel).
#
# Padding is neither stored nor multiplied by: the pixels are sorted into regions in which the same taps lie inside the
# source. With a 3x3 kernel padded by 1 these are the interior, four edges and four corners. A 14 x 14 image saves a
# tenth of the work that way, a 7 x 7 image a fifth.
#
# Work is cut into blocks, of some whole images or of a band of rows of one image, in one group of channels. The source
# and the result of a block stay in the second-level cache while the result's channels are computed, NR at a time.

cdef extern from "conv2d.h" nogil:
    enum:
        NR_f32
        NR_f64
    ctypedef struct place:
        Py_ssize_t x, at
    void gather_gemm_f32(Py_ssize_t width, Py_ssize_t rows, const place *row, Py_ssize_t depth, const place *step,
                         const float *x, const float *b, const float *start, float *c)
    void gather_gemm_f64(Py_ssize_t width, Py_ssize_t rows, const place *row, Py_ssize_t depth, const place *step,
                         const double *x, const double *b, const double *start, double *c)
    void pack_channels_f32(Py_ssize_t channels, Py_ssize_t pixels, const float *planes, Py_ssize_t plane_stride,
                           float *panel)
    void pack_channels_f64(Py_ssize_t channels, Py_ssize_t pixels, const double *planes, Py_ssize_t plane_stride,
                           double *panel)
    void store_channels_f32(Py_ssize_t channels, Py_ssize_t pixels, const float *panel, float *planes,
                            Py_ssize_t plane_stride)
    void store_channels_f64(Py_ssize_t channels, Py_ssize_t pixels, const double *panel, double *planes,
                            Py_ssize_t plane_stride)

cdef enum:
    SOURCE_BYTES = 256 << 10     # of source in a block: a part of L2
    MIN_PIXELS = 256             # in a block, if there are as many: what it takes to use the weights well
    MAX_PIXELS = 1024            # in a block of several images

# A correlation along one axis. Output i reads, through its m-th tap, element i * step + first_offset + m * offset_step
# of the source, if that exists.
cdef struct Axis:
    Py_ssize_t size                               # of the source
    Py_ssize_t outputs, step
    Py_ssize_t taps, first_tap, tap_step          # the kernel's taps that take part: first_tap + m * tap_step
    Py_ssize_t first_offset, offset_step
    Py_ssize_t result_first, result_step          # output i is element result_first + i * result_step of the result

# Neighbouring outputs with the same taps inside the source: first_tap <= m < last_tap.
cdef struct Run:
    Py_ssize_t first, last, first_tap, last_tap

cdef struct Region:
    Run h, w
    Py_ssize_t taps
    place *tap                   # of these taps, the offset in the source and the row in a panel of weights

cdef struct Correlation:
    Axis h, w
    Py_ssize_t images, groups, channels           # the source's channels, in a group
    Py_ssize_t depth                              # channels * all taps
    Py_ssize_t panel_width                        # NR
    Py_ssize_t block_images, block_rows, image_blocks, bands, block_pixels
    Py_ssize_t regions
    Region *region
    # Of the pixels of a block, the offset in the source and the row in a panel of results; sorted by (band, region),
    # pixels of (b, r) from band_pixels[b * regions + r] on, and image by image.
    place *pixel
    Py_ssize_t *band_pixels

# Where a block lies.
cdef struct Block:
    Py_ssize_t group, first_image, images, band, first_row, rows


# ---- axes, and their runs ----------------------------------------------------------------------------------


cdef Axis forward_axis(Py_ssize_t size, Py_ssize_t outputs, Py_ssize_t kernel, Py_ssize_t stride, Py_ssize_t pad,
                       Py_ssize_t dil) noexcept nogil:
    return Axis(size=size, outputs=outputs, step=stride, taps=kernel, first_tap=0, tap_step=1, first_offset=-pad,
                offset_step=dil, result_first=0, result_step=1)


cdef Axis input_grad_axis(Py_ssize_t first, Py_ssize_t size, Py_ssize_t outputs, Py_ssize_t kernel,
                          Py_ssize_t stride, Py_ssize_t pad, Py_ssize_t dil) noexcept nogil:
    """The phase of the input positions first, first + stride, ...; size and outputs are those of forward.

    Position first + i * stride is reached from output i + (first + pad - u * dil) / stride through those taps u for
    which the division leaves no rest: u = first_tap, first_tap + tap_step, ...
    """
    cdef Py_ssize_t tap_step = stride // greatest_common_divisor(stride, dil), first_tap = 0, taps = 0
    while first_tap < min(tap_step, kernel) and (first + pad - first_tap * dil) % stride:
        first_tap += 1
    if first_tap < min(tap_step, kernel):
        taps = ceil_divide(kernel - first_tap, tap_step)
    return Axis(size=outputs, outputs=ceil_divide(size - first, stride), step=1, taps=taps, first_tap=first_tap,
                tap_step=tap_step, first_offset=(first + pad - first_tap * dil) // stride,
                offset_step=-(tap_step * dil // stride), result_first=first, result_step=stride)


cdef inline Py_ssize_t greatest_common_divisor(Py_ssize_t x, Py_ssize_t y) noexcept nogil:
    while y:
        x, y = y, x % y
    return x


cdef inline Py_ssize_t ceil_divide(Py_ssize_t x, Py_ssize_t y) noexcept nogil:
    return (x + y - 1) // y


cdef Py_ssize_t next_run(const Axis *axis, Py_ssize_t first, Run *run) noexcept nogil:
    """The run that starts at output ``first``; returns where it ends."""
    run.first, run.last = first, first + 1
    taps_inside(axis, first, &run.first_tap, &run.last_tap)
    cdef Py_ssize_t first_tap, last_tap
    while run.last < axis.outputs:
        taps_inside(axis, run.last, &first_tap, &last_tap)
        if first_tap != run.first_tap or last_tap != run.last_tap:
            break
        run.last += 1
    return run.last


cdef inline void taps_inside(const Axis *axis, Py_ssize_t output, Py_ssize_t *first, Py_ssize_t *last) noexcept nogil:
    """The taps m, first <= m < last, through which an output reads elements that exist."""
    cdef Py_ssize_t position = output * axis.step + axis.first_offset
    first[0] = 0
    while first[0] < axis.taps and not 0 <= position + first[0] * axis.offset_step < axis.size:
        first[0] += 1
    last[0] = first[0]
    while last[0] < axis.taps and 0 <= position + last[0] * axis.offset_step < axis.size:
        last[0] += 1


# ---- blocks, regions, and the offsets in them --------------------------------------------------------------


cdef Correlation *plan_correlation(const Conv *conv, const Axis *h, const Axis *w, Py_ssize_t channels) except NULL:
    """Chooses the blocks and lists the taps and pixels of each region. To be freed."""
    cdef Correlation plan
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double), row_taps = 0, column_taps = 0
    cdef Py_ssize_t row_runs = count_runs(h, &row_taps), column_runs = count_runs(w, &column_taps)
    plan.h, plan.w, plan.images, plan.groups, plan.channels = h[0], w[0], conv.N, conv.groups, channels
    plan.depth, plan.panel_width = channels * h.taps * w.taps, NR_f32 if is_float else NR_f64
    plan.regions = row_runs * column_runs
    choose_blocks(&plan, SOURCE_BYTES // item, conv.threads)
    cdef Py_ssize_t pixels = plan.block_images * h.outputs * w.outputs
    cdef Correlation *result = <Correlation *> allocate(
        sizeof(Correlation) + plan.regions * sizeof(Region) + (pixels + channels * row_taps * column_taps) * sizeof(place)
        + plan.bands * plan.regions * sizeof(Py_ssize_t))
    plan.region = <Region *> (result + 1)
    plan.pixel = <place *> (plan.region + plan.regions)
    plan.band_pixels = <Py_ssize_t *> (plan.pixel + pixels + channels * row_taps * column_taps)
    list_taps(&plan, plan.pixel + pixels)
    list_pixels(&plan)
    result[0] = plan
    return result


cdef Py_ssize_t count_runs(const Axis *axis, Py_ssize_t *taps) noexcept nogil:
    """The number of runs; adds up the taps of each."""
    cdef Py_ssize_t first = 0, runs = 0
    cdef Run run
    while first < axis.outputs:
        first = next_run(axis, first, &run)
        taps[0] += run.last_tap - run.first_tap
        runs += 1
    return runs


cdef void choose_blocks(Correlation *plan, Py_ssize_t budget, int threads) noexcept nogil:
    """As many rows, then images, as read ``budget`` elements of the source; but enough blocks for the threads, and
    enough pixels for a block."""
    cdef Py_ssize_t row_elements = max(1, plan.channels * plan.w.size * plan.h.step), pixels, images
    cdef Py_ssize_t rows = max(budget // row_elements, MIN_PIXELS // plan.w.outputs, 1)
    if plan.images * plan.groups < threads:
        rows = min(rows, ceil_divide(plan.h.outputs * plan.images * plan.groups, threads))
    plan.bands = ceil_divide(plan.h.outputs, rows)
    plan.block_rows = ceil_divide(plan.h.outputs, plan.bands)
    plan.bands = ceil_divide(plan.h.outputs, plan.block_rows)

    images = 1
    if plan.bands == 1:
        pixels = plan.h.outputs * plan.w.outputs
        images = max(MIN_PIXELS // pixels, min(budget // (row_elements * plan.h.outputs), MAX_PIXELS // pixels))
        images = max(1, min(images, plan.images * plan.groups // (2 * threads), plan.images))
    plan.image_blocks = ceil_divide(plan.images, images)
    plan.block_images = ceil_divide(plan.images, plan.image_blocks)
    plan.block_pixels = plan.block_images * plan.block_rows * plan.w.outputs


cdef void list_taps(Correlation *plan, place *tap) noexcept nogil:
    """The regions, and the taps of each in the order (channel, u, v)."""
    cdef Py_ssize_t c, u, v, row, column, first_row = 0, first_column
    cdef Region *region = plan.region
    while first_row < plan.h.outputs:
        first_column = 0
        while first_column < plan.w.outputs:
            next_run(&plan.h, first_row, &region.h)
            first_column = next_run(&plan.w, first_column, &region.w)
            region.tap = tap
            for c in range(plan.channels):
                for u in range(region.h.first_tap, region.h.last_tap):
                    row = c * plan.h.size + plan.h.first_offset + u * plan.h.offset_step
                    for v in range(region.w.first_tap, region.w.last_tap):
                        column = plan.w.first_offset + v * plan.w.offset_step
                        tap.x = row * plan.w.size + column
                        tap.at = ((c * plan.h.taps + u) * plan.w.taps + v) * plan.panel_width
                        tap += 1
            region.taps = tap - region.tap
            region += 1
        first_row = (region - 1).h.last


cdef void list_pixels(Correlation *plan) noexcept nogil:
    """The pixels of each band and region, for all images of a block."""
    cdef Py_ssize_t band, r, n, i, j, first, rows, at = 0
    cdef Py_ssize_t image_size = plan.groups * plan.channels * plan.h.size * plan.w.size
    cdef Region *region
    for band in range(plan.bands):
        first = band * plan.block_rows
        rows = min(plan.block_rows, plan.h.outputs - first)
        for r in range(plan.regions):
            region = plan.region + r
            plan.band_pixels[band * plan.regions + r] = at
            for n in range(plan.block_images):
                for i in range(max(first, region.h.first), min(first + rows, region.h.last)):
                    for j in range(region.w.first, region.w.last):
                        plan.pixel[at].x = n * image_size + i * plan.h.step * plan.w.size + j * plan.w.step
                        plan.pixel[at].at = ((n * rows + i - first) * plan.w.outputs + j) * plan.panel_width
                        at += 1


cdef inline Block block_at(const Correlation *plan, Py_ssize_t index) noexcept nogil:
    cdef Block block
    block.group = index % plan.groups
    block.band = index // plan.groups % plan.bands
    block.first_row = block.band * plan.block_rows
    block.rows = min(plan.block_rows, plan.h.outputs - block.first_row)
    block.first_image = index // plan.groups // plan.bands * plan.block_images
    block.images = min(plan.block_images, plan.images - block.first_image)
    return block


cdef inline const place *region_pixels(const Correlation *plan, const Block *block, Py_ssize_t r,
                                       Py_ssize_t *count) noexcept nogil:
    """The pixels of region ``r`` in the block, and how many they are."""
    cdef const Region *region = plan.region + r
    cdef Py_ssize_t rows = (min(block.first_row + block.rows, region.h.last) - max(block.first_row, region.h.first))
    count[0] = block.images * max(0, rows) * (region.w.last - region.w.first)
    return plan.pixel + plan.band_pixels[block.band * plan.regions + r]


cdef inline Py_ssize_t block_source(const Correlation *plan, const Block *block) noexcept nogil:
    """Where the block's first image starts in the source."""
    return (block.first_image * plan.groups + block.group) * plan.channels * plan.h.size * plan.w.size


cdef inline Py_ssize_t panels_of(const Conv *conv, Py_ssize_t channels) noexcept nogil:
    return ceil_divide(channels, NR_f32 if conv.dtype == cnp.NPY_FLOAT32 else NR_f64)


# ---- forward and input gradient ----------------------------------------------------------------------------

# The right operand and the result of a correlation. The weights of each group are packed in panels of NR channels of
# the result: depth x NR elements each.
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
                input_grad_axis(first_column, conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w))
    return 0


cdef int run_product(Conv *conv, Product *product, Axis h, Axis w) except -1:
    """Packs the weights, then computes block after block."""
    if h.outputs <= 0 or w.outputs <= 0 or conv.N == 0 or product.channels == 0:
        return 0
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Correlation *plan = plan_correlation(conv, &h, &w, product.source_channels)
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double)
    cdef Py_ssize_t panel_elements = plan.panel_width * (plan.depth + 1)      # weights and biases
    cdef Py_ssize_t elements = conv.groups * product.panels * panel_elements \
        + conv.threads * plan.panel_width * plan.block_pixels
    cdef void *memory = NULL
    try:
        memory = allocate(elements * item)
        with nogil:
            if is_float:
                run_blocks(conv, plan, product, <float *> aligned(memory))
            else:
                run_blocks(conv, plan, product, <double *> aligned(memory))
    finally:
        free(memory)
        free(plan)
    return 0


cdef void run_blocks(const Conv *conv, const Correlation *plan, const Product *product, real *panels) noexcept nogil:
    cdef Py_ssize_t index, all_panels = plan.groups * product.panels, blocks = plan.groups * plan.image_blocks * plan.bands
    cdef real *bias = panels + all_panels * plan.depth * plan.panel_width
    cdef real *sums = bias + all_panels * plan.panel_width
    for index in prange(all_panels, num_threads=conv.threads, schedule="static"):
        pack_weights(conv, plan, product, index, panels + index * plan.depth * plan.panel_width,
                     bias + index * plan.panel_width)
    for index in prange(blocks, num_threads=conv.threads, schedule="dynamic"):
        run_block(plan, product, block_at(plan, index), panels, bias,
                  sums + threadid() * plan.block_pixels * plan.panel_width)


cdef void pack_weights(const Conv *conv, const Correlation *plan, const Product *product, Py_ssize_t index,
                       real *panel, real *bias) noexcept nogil:
    """The taps of this correlation and the biases, for NR of the result's channels."""
    cdef Py_ssize_t NR = plan.panel_width, group = index // product.panels, lane, c, u, v
    cdef Py_ssize_t first = index % product.panels * NR, count = min(NR, product.channels - first)
    cdef const real *weight = <const real *> conv.weight + first * product.weight_channel \
        + group * conv.group_out * conv.group_in * conv.KH * conv.KW
    cdef const real *tap
    memset(bias, 0, NR * sizeof(real))
    if product.bias != NULL:
        memcpy(bias, <const real *> product.bias + group * product.channels + first, count * sizeof(real))
    if plan.h.taps == conv.KH and plan.w.taps == conv.KW and plan.depth == product.weight_channel:
        pack_channels(count, plan.depth, weight, product.weight_channel, panel)   # contiguous, and in order
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
    """All channels of one block: summed up in a panel of pixels x NR, which then goes to planes of the result."""
    cdef Py_ssize_t NR = plan.panel_width, q, r, panel, width, pixels
    cdef const real *source = <const real *> product.source + block_source(plan, &block)
    cdef const place *pixel
    for q in range(product.panels):
        panel = block.group * product.panels + q
        width = min(NR, product.channels - q * NR)
        for r in range(plan.regions):
            pixel = region_pixels(plan, &block, r, &pixels)
            gather_gemm(width, pixels, pixel, plan.region[r].taps, plan.region[r].tap, source,
                        panels + panel * plan.depth * NR, bias + panel * NR, sums)
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

# Each thread adds up its blocks in sums of its own: for each group and panel of NR output channels, depth x NR.
# Behind them in its workspace lies a panel of grad_output.
cdef struct WeightSums:
    Py_ssize_t panels                             # in a group
    Py_ssize_t size, total                        # elements of the sums, and of the workspace


cdef int implicit_weight_grad(Conv *conv) except -1:
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double), parts
    cdef WeightSums sums
    if conv.N == 0:
        memset(conv.weight, 0, conv.O * conv.group_in * conv.KH * conv.KW * item)
        return 0
    cdef Axis h = forward_axis(conv.H, conv.OH, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h)
    cdef Axis w = forward_axis(conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w)
    cdef Correlation *plan = plan_correlation(conv, &h, &w, conv.group_in)
    parts = min(<Py_ssize_t> conv.threads, plan.image_blocks * plan.bands)
    sums.panels = panels_of(conv, conv.group_out)
    sums.size = conv.groups * sums.panels * plan.depth * plan.panel_width
    sums.total = whole_lines(sums.size) + whole_lines(plan.block_pixels * plan.panel_width)
    cdef void *memory = NULL
    try:
        memory = allocate(parts * sums.total * item)
        with nogil:
            if is_float:
                run_weight_grad(conv, plan, &sums, parts, <float *> aligned(memory))
            else:
                run_weight_grad(conv, plan, &sums, parts, <double *> aligned(memory))
    finally:
        free(memory)
        free(plan)
    return 0


cdef void run_weight_grad(const Conv *conv, const Correlation *plan, const WeightSums *sums, Py_ssize_t parts,
                          real *workspace) noexcept nogil:
    cdef Py_ssize_t part, panel, o, i
    for part in prange(parts, num_threads=<int> parts, schedule="static"):
        weight_grad_part(conv, plan, sums, part, parts, workspace + part * sums.total)
    for part in range(1, parts):
        for i in range(sums.size):
            workspace[i] += workspace[part * sums.total + i]
    for panel in range(conv.groups * sums.panels):
        o = panel % sums.panels * plan.panel_width
        store_channels(min(plan.panel_width, conv.group_out - o), plan.depth,
                       workspace + panel * plan.depth * plan.panel_width,
                       <real *> conv.weight + (panel // sums.panels * conv.group_out + o) * plan.depth, plan.depth)


cdef void weight_grad_part(const Conv *conv, const Correlation *plan, const WeightSums *sums, Py_ssize_t part,
                           Py_ssize_t parts, real *workspace) noexcept nogil:
    """One thread's blocks."""
    cdef Py_ssize_t NR = plan.panel_width, blocks = plan.image_blocks * plan.bands, index, q, r, width, pixels
    cdef const real *source
    cdef const place *pixel
    cdef real *grad_output = workspace + whole_lines(sums.size)
    cdef Block block
    memset(workspace, 0, sums.size * sizeof(real))
    for index in range(part * blocks // parts * plan.groups, (part + 1) * blocks // parts * plan.groups):
        block = block_at(plan, index)
        source = <const real *> conv.x + block_source(plan, &block)
        for q in range(sums.panels):
            width = min(NR, conv.group_out - q * NR)
            pack_grad_output(conv, &block, q * NR, width, NR, grad_output)
            for r in range(plan.regions):
                pixel = region_pixels(plan, &block, r, &pixels)
                gather_gemm(width, plan.region[r].taps, plan.region[r].tap, pixels, pixel, source, grad_output,
                            <real *> NULL, workspace + (block.group * sums.panels + q) * plan.depth * NR)


cdef inline void pack_grad_output(const Conv *conv, const Block *block, Py_ssize_t first_channel, Py_ssize_t channels,
                                  Py_ssize_t NR, real *panel) noexcept nogil:
    """Some channels of the block's pixels, as rows of the right operand."""
    cdef Py_ssize_t n, P = conv.OH * conv.OW, pixels = block.rows * conv.OW
    for n in range(block.images):
        pack_channels(channels, pixels, <const real *> conv.y + block.first_row * conv.OW + P * (
            (block.first_image + n) * conv.O + block.group * conv.group_out + first_channel), P, panel)
        panel += pixels * NR


# ---- conv2d.h, for either type -----------------------------------------------------------------------------


cdef inline void gather_gemm(Py_ssize_t width, Py_ssize_t rows, const place *row, Py_ssize_t depth, const place *step,
                             const real *x, const real *b, const real *start, real *c) noexcept nogil:
    if real is float:
        gather_gemm_f32(width, rows, row, depth, step, x, b, start, c)
    else:
        gather_gemm_f64(width, rows, row, depth, step, x, b, start, c)


cdef inline void pack_channels(Py_ssize_t channels, Py_ssize_t pixels, const real *planes, Py_ssize_t plane_stride,
                               real *panel) noexcept nogil:
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
