# The *implicit_gemm* rung of conv2d.pyx: all three functions on the micro-kernel of conv2d.h.
#
# A Correlation is a stride-s correlation of a source image with a set of taps, seen as a GEMM: its left operand's
# element (pixel, tap) is source[pixel_offset + tap_offset], its right operand is a weight for each (tap, channel).
# The source is copied beforehand with its zero padding, so that no tap leaves it; and with its columns sorted by
# their remainder modulo the stride, so that the offset of a pixel to its right-hand neighbour is 1 for every tap.
# The copy is made for one block of work at a time (some images, or a band of rows of one), which then stays in L2.
#
#   forward      the source is x, the taps are the kernel's, the result is y.
#   input_grad   the source is grad_output. An input row h gets gradient through tap u from output row
#                (h + pad - u dil) / stride, if that is a whole number: so rows with equal (h + pad) mod stride, one
#                *phase* of the stride, have the same taps, and neighbours among them read neighbouring rows.
#                Each pair of a row and a column phase is one stride-1 correlation with its share of the kernel,
#                rotated, whose results land stride apart. At stride 1 there is one phase and the whole kernel.
#   weight_grad  the correlation of forward with pixels and taps exchanged: the left operand's element
#                (tap, pixel) is found in the same way, and the right operand is grad_output, (pixel, channel).

cdef extern from "conv2d.h" nogil:
    enum:
        TILE_ROWS
        NR_f32
        NR_f64
    void pack_b_f32(Py_ssize_t depth, Py_ssize_t columns, const float *b, Py_ssize_t b_row, Py_ssize_t b_col,
                    float *out)
    void pack_b_f64(Py_ssize_t depth, Py_ssize_t columns, const double *b, Py_ssize_t b_row, Py_ssize_t b_col,
                    double *out)
    void gather_kernel_f32(Py_ssize_t width, Py_ssize_t depth, const float *x, const Py_ssize_t *row,
                           const Py_ssize_t *step, const float *b, const float *base, Py_ssize_t base_row, float *c)
    void gather_kernel_f64(Py_ssize_t width, Py_ssize_t depth, const double *x, const Py_ssize_t *row,
                           const Py_ssize_t *step, const double *b, const double *base, Py_ssize_t base_row,
                           double *c)
    void store_channels_f32(Py_ssize_t pixels, Py_ssize_t channels, const float *panel, float *out,
                            Py_ssize_t out_row)
    void store_channels_f64(Py_ssize_t pixels, Py_ssize_t channels, const double *panel, double *out,
                            Py_ssize_t out_row)

cdef enum:
    SOURCE_BYTES = 256 << 10     # of padded source in a block: a part of L2
    MIN_PIXELS = 256             # of a block, if there are as many: what it takes to use the weights well
    MAX_PIXELS = 1024
    DEPTH = 320                  # of taps, or pixels, at a time: DEPTH x NR elements stay in L1 or close to it

# A correlation along one axis. Output i reads, through its m-th tap, position i * step + first_offset +
# m * offset_step of the padded source, in which `pad` zeros come first (if pad < 0: which starts at -pad).
cdef struct Axis:
    Py_ssize_t size              # of the source
    Py_ssize_t outputs, step, pad
    Py_ssize_t reach             # positions from the first to the last tap, both counted
    Py_ssize_t taps, first_tap, tap_step          # which of the kernel's taps take part
    Py_ssize_t first_offset, offset_step
    Py_ssize_t result_first, result_step          # output i is element result_first + i * result_step of the result

cdef struct Correlation:
    Axis h, w
    Py_ssize_t images, groups, channels           # the source's channels, in a group
    Py_ssize_t depth                              # channels * taps
    # A block of work: block_images images and block_rows rows of outputs, of one group.
    Py_ssize_t block_images, block_rows, image_blocks, row_blocks, block_pixels
    # The padded source: columns with remainder r modulo w.step start at r * row_part in each row.
    Py_ssize_t row_part, row_size, channel_size, image_size, source_size
    Py_ssize_t *pixel            # offset of each pixel of a block in the padded source; whole tiles
    Py_ssize_t *tap              # offset of each tap, ordered (channel, u, v); whole tiles

# Where a block lies.
cdef struct Block:
    Py_ssize_t group, first_image, images, first_row, rows, pixels


# ---- the axes ----------------------------------------------------------------------------------------------


cdef Axis forward_axis(Py_ssize_t size, Py_ssize_t outputs, Py_ssize_t kernel, Py_ssize_t stride, Py_ssize_t pad,
                       Py_ssize_t dil) noexcept nogil:
    return Axis(size=size, outputs=outputs, step=stride, pad=pad, reach=(kernel - 1) * dil + 1,
                taps=kernel, first_tap=0, tap_step=1, first_offset=0, offset_step=dil,
                result_first=0, result_step=1)


cdef Axis input_grad_axis(Py_ssize_t first, Py_ssize_t size, Py_ssize_t outputs, Py_ssize_t kernel,
                          Py_ssize_t stride, Py_ssize_t pad, Py_ssize_t dil) noexcept nogil:
    """The phase of the input positions first, first + stride, ...; size and outputs are those of forward.

    Position first + i * stride is reached from output i + (first + pad - u * dil) / stride through those taps u for
    which the division leaves no rest: u = first_tap, first_tap + tap_step, ...
    """
    cdef Py_ssize_t tap_step = stride // greatest_common_divisor(stride, dil), first_tap = 0, taps, lowest
    while first_tap < min(tap_step, kernel) and (first + pad - first_tap * dil) % stride:
        first_tap += 1
    taps = 0 if first_tap >= min(tap_step, kernel) else (kernel - first_tap + tap_step - 1) // tap_step
    cdef Py_ssize_t between = tap_step * dil // stride     # outputs, from one of these taps to the next
    cdef Py_ssize_t last_tap = first_tap + (taps - 1) * tap_step
    lowest = (first + pad - last_tap * dil) // stride if taps else 0
    return Axis(size=outputs, outputs=(size - first + stride - 1) // stride, step=1, pad=-lowest,
                reach=max(0, taps - 1) * between + 1, taps=taps, first_tap=first_tap, tap_step=tap_step,
                first_offset=max(0, taps - 1) * between, offset_step=-between,
                result_first=first, result_step=stride)


cdef inline Py_ssize_t greatest_common_divisor(Py_ssize_t x, Py_ssize_t y) noexcept nogil:
    while y:
        x, y = y, x % y
    return x


# ---- blocks, and the offsets in them -----------------------------------------------------------------------


cdef Correlation *plan_correlation(const Conv *conv, Axis h, Axis w, Py_ssize_t channels, Py_ssize_t source_bytes) except NULL:
    """Chooses the blocks and fills the tables of offsets. To be freed."""
    cdef Correlation plan
    cdef Py_ssize_t item = sizeof(float) if conv.dtype == cnp.NPY_FLOAT32 else sizeof(double)
    plan.h, plan.w, plan.images, plan.groups, plan.channels = h, w, conv.N, conv.groups, channels
    plan.depth = channels * h.taps * w.taps
    plan.row_part = ((w.outputs - 1) * w.step + w.reach + w.step - 1) // w.step
    plan.row_size = w.step * plan.row_part
    choose_blocks(&plan, source_bytes // item, conv.threads)
    cdef Py_ssize_t pixels = TILE_ROWS * tiles_of(plan.block_pixels), taps = TILE_ROWS * tiles_of(plan.depth)
    cdef Correlation *result = <Correlation *> allocate(sizeof(Correlation) + (pixels + taps) * sizeof(Py_ssize_t))
    plan.pixel = <Py_ssize_t *> (result + 1)
    plan.tap = plan.pixel + pixels
    result[0] = plan
    memset(plan.pixel, 0, (pixels + taps) * sizeof(Py_ssize_t))   # what fills up the last tile reads offset 0
    fill_offsets(result)
    return result


cdef inline Py_ssize_t tiles_of(Py_ssize_t rows) noexcept nogil:
    return (rows + TILE_ROWS - 1) // TILE_ROWS


cdef void choose_blocks(Correlation *plan, Py_ssize_t budget, int threads) noexcept nogil:
    """As many rows, then images, as fit ``budget`` elements of padded source; but enough blocks for the threads,
    and enough pixels for a block."""
    cdef Py_ssize_t pixels, rows, row_elements = plan.channels * plan.row_size * plan.h.step
    cdef Py_ssize_t fixed = plan.channels * plan.row_size * max(0, plan.h.reach - plan.h.step)
    rows = max((budget - fixed) // max(1, row_elements), MIN_PIXELS // max(1, plan.w.outputs), 1)
    if plan.images * plan.groups < threads:
        rows = min(rows, (plan.h.outputs * plan.images * plan.groups + threads - 1) // threads)
    plan.row_blocks = ceil_divide(plan.h.outputs, max(1, rows))
    plan.block_rows = ceil_divide(plan.h.outputs, max(1, plan.row_blocks))
    plan.channel_size = ((plan.block_rows - 1) * plan.h.step + plan.h.reach) * plan.row_size
    plan.image_size = plan.channels * plan.channel_size

    pixels = max(1, plan.block_rows * plan.w.outputs)
    plan.block_images = 1
    if plan.row_blocks == 1:
        plan.block_images = max(MIN_PIXELS // pixels, min(budget // max(1, plan.image_size), MAX_PIXELS // pixels), 1)
        plan.block_images = max(1, min(plan.block_images, plan.images * plan.groups // (2 * threads), plan.images))
    plan.image_blocks = ceil_divide(plan.images, plan.block_images)
    plan.block_images = ceil_divide(plan.images, max(1, plan.image_blocks))
    plan.block_pixels = plan.block_images * plan.block_rows * plan.w.outputs
    plan.source_size = plan.block_images * plan.image_size


cdef inline Py_ssize_t ceil_divide(Py_ssize_t x, Py_ssize_t y) noexcept nogil:
    return (x + y - 1) // y


cdef void fill_offsets(Correlation *plan) noexcept nogil:
    cdef Py_ssize_t n, i, j, c, u, v, at = 0, row, column
    for n in range(plan.block_images):
        for i in range(plan.block_rows):
            for j in range(plan.w.outputs):
                plan.pixel[at] = n * plan.image_size + i * plan.h.step * plan.row_size + j
                at += 1
    at = 0
    for c in range(plan.channels):
        for u in range(plan.h.taps):
            row = plan.h.first_offset + u * plan.h.offset_step
            for v in range(plan.w.taps):
                column = plan.w.first_offset + v * plan.w.offset_step
                plan.tap[at] = (c * plan.channel_size + row * plan.row_size
                                + column % plan.w.step * plan.row_part + column // plan.w.step)
                at += 1


cdef inline Block block_at(const Correlation *plan, Py_ssize_t index) noexcept nogil:
    cdef Block block
    cdef Py_ssize_t image_block = index // plan.groups // plan.row_blocks
    block.group = index % plan.groups
    block.first_row = index // plan.groups % plan.row_blocks * plan.block_rows
    block.rows = max(0, min(plan.block_rows, plan.h.outputs - block.first_row))
    block.first_image = image_block * plan.block_images
    block.images = max(0, min(plan.block_images, plan.images - block.first_image))
    block.pixels = block.images * block.rows * plan.w.outputs
    return block


cdef void copy_source(const Correlation *plan, Block block, const real *source, real *padded) noexcept nogil:
    """The part of the source that the block reads, with its zeros and with its columns sorted."""
    cdef Py_ssize_t n, c, q, row, rows = (block.rows - 1) * plan.h.step + plan.h.reach
    cdef Py_ssize_t first = block.first_row * plan.h.step - plan.h.pad
    cdef const real *plane
    cdef real *target
    for n in range(block.images):
        for c in range(plan.channels):
            plane = source + (((block.first_image + n) * plan.groups + block.group) * plan.channels + c) \
                * plan.h.size * plan.w.size
            target = padded + n * plan.image_size + c * plan.channel_size
            for q in range(rows):
                row = first + q
                if 0 <= row < plan.h.size:
                    copy_padded_row(plan, plane + row * plan.w.size, target + q * plan.row_size)
                else:
                    memset(target + q * plan.row_size, 0, plan.row_size * sizeof(real))


cdef inline void copy_padded_row(const Correlation *plan, const real *row, real *target) noexcept nogil:
    """Source column j goes to padded column j + pad, which lies at (j + pad) mod step of its parts."""
    cdef Py_ssize_t part, q, first, last, step = plan.w.step, pad = plan.w.pad, size = plan.row_part
    for part in range(step):
        # The padded columns q * step + part that lie in the source: first <= q < last.
        first = ceil_divide(pad - part, step) if pad > part else 0
        last = ceil_divide(plan.w.size + pad - part, step) if plan.w.size + pad > part else 0
        first, last = min(first, size), min(last, size)
        last = max(first, last)
        for q in range(first):
            target[q] = 0
        if step == 1:
            for q in range(first, last):
                target[q] = row[q - pad]
        else:
            for q in range(first, last):
                target[q] = row[q * step + part - pad]
        for q in range(last, size):
            target[q] = 0
        target += size


# ---- forward and input gradient ----------------------------------------------------------------------------

# The right operand and the result of one correlation. Weights are packed, for each group, in panels of NR channels:
# depth x NR each, as pack_b in gemm.h makes them.
cdef struct Product:
    void *result
    void *bias                                    # may be NULL
    Py_ssize_t channels, panels_per_group         # of the result, in a group
    Py_ssize_t height, width                      # of the result
    Py_ssize_t weight_group, weight_channel, weight_depth      # strides of the weight, in elements


cdef inline Py_ssize_t panels_of(const Conv *conv, Py_ssize_t channels) noexcept nogil:
    return ceil_divide(channels, NR_f32 if conv.dtype == cnp.NPY_FLOAT32 else NR_f64)


cdef int implicit_forward(Conv *conv) except -1:
    cdef Product product = Product(
        result=conv.y, bias=conv.bias, channels=conv.group_out,
        panels_per_group=panels_of(conv, conv.group_out), height=conv.OH, width=conv.OW,
        weight_group=conv.group_out * conv.group_in * conv.KH * conv.KW,
        weight_channel=conv.group_in * conv.KH * conv.KW, weight_depth=conv.KH * conv.KW)
    return run_product(
        conv, &product, conv.x, conv.group_in,
        forward_axis(conv.H, conv.OH, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h),
        forward_axis(conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w))


cdef int implicit_input_grad(Conv *conv) except -1:
    cdef Py_ssize_t first_row, first_column
    cdef Product product = Product(
        result=conv.x, bias=NULL, channels=conv.group_in,
        panels_per_group=panels_of(conv, conv.group_in), height=conv.H, width=conv.W,
        weight_group=conv.group_out * conv.group_in * conv.KH * conv.KW,
        weight_channel=conv.KH * conv.KW, weight_depth=conv.group_in * conv.KH * conv.KW)
    for first_row in range(min(conv.stride_h, conv.H)):
        for first_column in range(min(conv.stride_w, conv.W)):
            run_product(
                conv, &product, conv.y, conv.group_out,
                input_grad_axis(first_row, conv.H, conv.OH, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h),
                input_grad_axis(first_column, conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w))
    return 0


cdef int run_product(Conv *conv, Product *product, void *source, Py_ssize_t source_channels, Axis h,
                     Axis w) except -1:
    """Packs the weights, then computes block after block."""
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double), NR = NR_f32 if is_float else NR_f64
    if h.outputs <= 0 or w.outputs <= 0 or conv.N == 0 or product.channels == 0:
        return 0
    cdef Correlation *plan = plan_correlation(conv, h, w, source_channels, SOURCE_BYTES)
    cdef Py_ssize_t panels = conv.groups * product.panels_per_group
    cdef Py_ssize_t panels_size = panels * NR * (plan.depth + 1)              # and the bias
    cdef Py_ssize_t block_size = whole_lines(plan.source_size) + TILE_ROWS * tiles_of(plan.block_pixels) * NR
    cdef void *memory = NULL
    try:
        memory = allocate((panels_size + conv.threads * block_size) * item)
        with nogil:
            if is_float:
                run_blocks(conv, plan, product, block_size, <float *> source, <float *> aligned(memory))
            else:
                run_blocks(conv, plan, product, block_size, <double *> source, <double *> aligned(memory))
    finally:
        free(memory)
        free(plan)
    return 0


cdef void run_blocks(Conv *conv, Correlation *plan, Product *product, Py_ssize_t block_size, const real *source,
                     real *packed) noexcept nogil:
    cdef Py_ssize_t NR = NR_f32 if real is float else NR_f64, index
    cdef Py_ssize_t blocks = plan.groups * plan.image_blocks * plan.row_blocks
    cdef Py_ssize_t panels = plan.groups * product.panels_per_group
    cdef real *bias = packed + panels * NR * plan.depth
    cdef real *workspace = bias + panels * NR
    for index in prange(panels, num_threads=conv.threads, schedule="static"):
        pack_weight_panel(conv, plan, product, index, packed + index * NR * plan.depth, bias + index * NR)
    for index in prange(blocks, num_threads=conv.threads, schedule="dynamic"):
        run_block(plan, product, block_at(plan, index), source, packed, bias, workspace + threadid() * block_size)


cdef void pack_weight_panel(Conv *conv, Correlation *plan, Product *product, Py_ssize_t index, real *panel,
                            real *bias) noexcept nogil:
    """The taps of this correlation, for NR of the result's channels, and their biases."""
    cdef Py_ssize_t NR = NR_f32 if real is float else NR_f64, group = index // product.panels_per_group
    cdef Py_ssize_t first = index % product.panels_per_group * NR, count = min(NR, product.channels - first)
    cdef Py_ssize_t lane, c, u, v
    cdef const real *weight = <const real *> conv.weight + group * product.weight_group \
        + first * product.weight_channel
    cdef const real *tap
    for lane in range(NR):
        bias[lane] = 0
    if product.bias != NULL:
        memcpy(bias, <real *> product.bias + group * product.channels + first, count * sizeof(real))
    if plan.h.tap_step == 1 and plan.w.tap_step == 1 and plan.h.taps == conv.KH and plan.w.taps == conv.KW \
            and product.weight_depth == conv.KH * conv.KW:
        if real is float:   # the whole kernel, with its depth contiguous
            pack_b_f32(plan.depth, count, weight, 1, product.weight_channel, panel)
        else:
            pack_b_f64(plan.depth, count, weight, 1, product.weight_channel, panel)
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


cdef void run_block(const Correlation *plan, const Product *product, Block block, const real *source,
                    const real *panels, const real *bias, real *workspace) noexcept nogil:
    """All channels of one block: sums in a panel of pixels x NR, which then goes to its planes of the result."""
    cdef Py_ssize_t NR = NR_f32 if real is float else NR_f64, q, first, width, panel
    cdef real *sums = workspace + whole_lines(plan.source_size)
    cdef Py_ssize_t steps = max(1, ceil_divide(plan.depth, DEPTH)), step, start, stop
    cdef Py_ssize_t tile
    copy_source(plan, block, source, workspace)
    for q in range(product.panels_per_group):
        panel = block.group * product.panels_per_group + q
        width = min(NR, product.channels - q * NR)
        for step in range(steps):
            start, stop = step * plan.depth // steps, (step + 1) * plan.depth // steps
            for tile in range(tiles_of(block.pixels)):
                first = tile * TILE_ROWS
                gather_kernel(width, stop - start, workspace, plan.pixel + first, plan.tap + start,
                              panels + (panel * plan.depth + start) * NR,
                              bias + panel * NR if step == 0 else sums + first * NR, 0 if step == 0 else NR,
                              sums + first * NR)
        store_panel(plan, product, block, q * NR, width, sums)


cdef inline void gather_kernel(Py_ssize_t width, Py_ssize_t depth, const real *x, const Py_ssize_t *row,
                               const Py_ssize_t *step, const real *b, const real *base, Py_ssize_t base_row,
                               real *c) noexcept nogil:
    if real is float:
        gather_kernel_f32(width, depth, x, row, step, b, base, base_row, c)
    else:
        gather_kernel_f64(width, depth, x, row, step, b, base, base_row, c)


cdef void store_panel(const Correlation *plan, const Product *product, Block block, Py_ssize_t first_channel,
                      Py_ssize_t channels, const real *sums) noexcept nogil:
    """Channels first_channel, ... of the block: from rows of NR channels to planes of pixels."""
    cdef Py_ssize_t NR = NR_f32 if real is float else NR_f64, n, c, i, j, plane = product.height * product.width
    cdef Py_ssize_t pixels = block.rows * plan.w.outputs
    cdef real *result
    cdef real *row
    for n in range(block.images):
        result = <real *> product.result + plane * (
            ((block.first_image + n) * plan.groups + block.group) * product.channels + first_channel)
        if plan.h.result_step == 1 and plan.w.result_step == 1:
            if real is float:
                store_channels_f32(pixels, channels, sums, result + block.first_row * product.width, plane)
            else:
                store_channels_f64(pixels, channels, sums, result + block.first_row * product.width, plane)
        else:
            for c in range(channels):
                for i in range(block.rows):
                    row = result + c * plane + plan.w.result_first + product.width * (
                        plan.h.result_first + (block.first_row + i) * plan.h.result_step)
                    for j in range(plan.w.outputs):
                        row[j * plan.w.result_step] = sums[(i * plan.w.outputs + j) * NR + c]
        sums += pixels * NR


# ---- weight gradient ---------------------------------------------------------------------------------------

# Each thread adds up its blocks in sums of its own: for each group and panel of NR output channels, taps x NR.
cdef struct WeightSums:
    Py_ssize_t panels_per_group, taps, size        # taps: whole tiles
    Py_ssize_t source, pixels, total               # the thread's workspace: sums, padded source, grad_output


cdef int implicit_weight_grad(Conv *conv) except -1:
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double), NR = NR_f32 if is_float else NR_f64
    cdef Py_ssize_t blocks, parts, part
    cdef WeightSums sums
    if conv.N == 0 or conv.group_in == 0:
        memset(conv.weight, 0, conv.O * conv.group_in * conv.KH * conv.KW * item)
        return 0
    cdef Correlation *plan = plan_correlation(
        conv, forward_axis(conv.H, conv.OH, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h),
        forward_axis(conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w), conv.group_in, SOURCE_BYTES)
    blocks = plan.image_blocks * plan.row_blocks
    parts = max(1, min(<Py_ssize_t> conv.threads, blocks))
    sums.panels_per_group, sums.taps = panels_of(conv, conv.group_out), TILE_ROWS * tiles_of(plan.depth)
    sums.size = conv.groups * sums.panels_per_group * sums.taps * NR
    sums.source = whole_lines(sums.size)
    sums.pixels = sums.source + whole_lines(plan.source_size)
    sums.total = sums.pixels + whole_lines(plan.block_pixels * NR)
    cdef void *memory = NULL
    try:
        memory = allocate(parts * sums.total * item)
        with nogil:
            if is_float:
                run_weight_grad(conv, plan, &sums, parts, <float *> aligned(memory), <float *> conv.x)
            else:
                run_weight_grad(conv, plan, &sums, parts, <double *> aligned(memory), <double *> conv.x)
    finally:
        free(memory)
        free(plan)
    return 0


cdef void run_weight_grad(Conv *conv, Correlation *plan, WeightSums *sums, Py_ssize_t parts, real *workspace,
                          const real *x) noexcept nogil:
    cdef Py_ssize_t NR = NR_f32 if real is float else NR_f64, part, panel, o, panels, i
    panels = conv.groups * sums.panels_per_group
    for part in prange(parts, num_threads=<int> parts, schedule="static"):
        weight_grad_part(conv, plan, sums, part, parts, workspace + part * sums.total, x)
    for part in range(1, parts):
        for i in range(sums.size):
            workspace[i] += workspace[part * sums.total + i]
    for panel in range(panels):
        o = panel % sums.panels_per_group * NR
        store_sums(min(NR, conv.group_out - o), plan.depth, workspace + panel * sums.taps * NR,
                   <real *> conv.weight + (panel // sums.panels_per_group * conv.group_out + o) * plan.depth)


cdef inline void store_sums(Py_ssize_t channels, Py_ssize_t depth, const real *sums, real *weight) noexcept nogil:
    if real is float:
        store_channels_f32(depth, channels, sums, weight, depth)
    else:
        store_channels_f64(depth, channels, sums, weight, depth)


cdef void weight_grad_part(const Conv *conv, const Correlation *plan, const WeightSums *sums, Py_ssize_t part,
                           Py_ssize_t parts, real *workspace, const real *x) noexcept nogil:
    """One thread's blocks."""
    cdef Py_ssize_t NR = NR_f32 if real is float else NR_f64, index, q
    cdef Py_ssize_t blocks = plan.image_blocks * plan.row_blocks
    cdef real *source = workspace + sums.source
    cdef Block block
    memset(workspace, 0, sums.size * sizeof(real))
    for index in range(part * blocks // parts * plan.groups, (part + 1) * blocks // parts * plan.groups):
        block = block_at(plan, index)
        copy_source(plan, block, x, source)
        for q in range(sums.panels_per_group):
            pack_grad_output(conv, block, q * NR, workspace + sums.pixels)
            add_products(plan, block.pixels, min(NR, conv.group_out - q * NR), source, workspace + sums.pixels,
                         workspace + (block.group * sums.panels_per_group + q) * sums.taps * NR)


cdef inline void pack_grad_output(const Conv *conv, Block block, Py_ssize_t first_channel,
                                  real *panel) noexcept nogil:
    """NR channels of the block's pixels, as rows of the right operand."""
    cdef Py_ssize_t NR = NR_f32 if real is float else NR_f64, n, P = conv.OH * conv.OW
    cdef Py_ssize_t channels = min(NR, conv.group_out - first_channel), pixels = block.rows * conv.OW
    cdef const real *plane
    for n in range(block.images):
        plane = <const real *> conv.y + block.first_row * conv.OW + P * (
            (block.first_image + n) * conv.O + block.group * conv.group_out + first_channel)
        if real is float:
            pack_b_f32(pixels, channels, plane, 1, P, panel)
        else:
            pack_b_f64(pixels, channels, plane, 1, P, panel)
        panel += pixels * NR


cdef void add_products(const Correlation *plan, Py_ssize_t pixels, Py_ssize_t width, const real *source,
                       const real *grad_output, real *sums) noexcept nogil:
    """sums (taps, NR) += source (taps, pixels) @ grad_output (pixels, NR)."""
    cdef Py_ssize_t NR = NR_f32 if real is float else NR_f64, tap, tile, step, start, stop
    cdef Py_ssize_t steps = max(1, ceil_divide(pixels, DEPTH))
    for step in range(steps):
        start, stop = step * pixels // steps, (step + 1) * pixels // steps
        for tile in range(tiles_of(plan.depth)):
            tap = tile * TILE_ROWS
            gather_kernel(width, stop - start, source, plan.tap + tap, plan.pixel + start, grad_output + start * NR,
                          sums + tap * NR, NR, sums + tap * NR)
