# A Correlation, the geometry of the *implicit_gemm* rung of conv2d.pyx: which source elements, weights and
# results belong together, and in which order they are worked on.
#
# Padding is neither stored nor multiplied by: the pixels are sorted into regions in which the same taps lie
# inside the source. With a 3x3 kernel padded by 1 these are the interior, four edges and four corners. A
# 14 x 14 image saves a tenth of the work that way, a 7 x 7 image a fifth.
#
# Work is cut into blocks, of some whole images or of a band of rows of one image, in one group of channels.
# The source and the result of a block stay in the second-level cache while the result's channels are
# computed, NR at a time.

cdef extern from "conv2d.h" nogil:
    enum:
        NR_f32
        NR_f64
    ctypedef struct place:
        Py_ssize_t x, at

cdef enum:
    SOURCE_BYTES = 256 << 10     # of source in a block: a part of L2
    MIN_PIXELS = 256             # in a block, if there are as many: what it takes to use the weights well
    MAX_PIXELS = 1024            # in a block of several images

# A correlation along one axis. Output i reads, through its m-th tap, element
# i * step + first_offset + m * offset_step of the source, if that exists.
cdef struct Axis:
    Py_ssize_t size                               # of the source
    Py_ssize_t outputs, step
    Py_ssize_t taps, first_tap, tap_step          # the kernel's taps that take part: first_tap + m * tap_step
    Py_ssize_t first_offset, offset_step
    Py_ssize_t result_first, result_step          # output i is result_first + i * result_step of the result

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
    # Of the pixels of a block, the offset in the source and the row in a panel of results; sorted by (band,
    # region), pixels of (b, r) from band_pixels[b * regions + r] on, and image by image.
    place *pixel
    Py_ssize_t *band_pixels

# Where a block lies.
cdef struct Block:
    Py_ssize_t group, first_image, images, band, first_row, rows


# ---- axes, and their runs ----------------------------------------------------------------------------------


cdef Axis forward_axis(Py_ssize_t size, Py_ssize_t outputs, Py_ssize_t kernel, Py_ssize_t stride,
                       Py_ssize_t pad, Py_ssize_t dil) noexcept nogil:
    return Axis(size=size, outputs=outputs, step=stride, taps=kernel, first_tap=0, tap_step=1,
                first_offset=-pad, offset_step=dil, result_first=0, result_step=1)


cdef Axis input_grad_axis(Py_ssize_t first, Py_ssize_t size, Py_ssize_t outputs, Py_ssize_t kernel,
                          Py_ssize_t stride, Py_ssize_t pad, Py_ssize_t dil) noexcept nogil:
    """The phase of the input positions first, first + stride, ...; size and outputs are those of forward.

    Position first + i * stride is reached from output i + (first + pad - u * dil) / stride through those taps
    u for which the division leaves no rest: u = first_tap, first_tap + tap_step, ...
    """
    cdef Py_ssize_t tap_step = stride // greatest_common_divisor(stride, dil), first_tap = 0, taps = 0
    while first_tap < min(tap_step, kernel) and (first + pad - first_tap * dil) % stride:
        first_tap += 1
    if first_tap < min(tap_step, kernel):
        taps = ceil_divide(kernel - first_tap, tap_step)
    return Axis(size=outputs, outputs=ceil_divide(size - first, stride), step=1, taps=taps,
                first_tap=first_tap, tap_step=tap_step,
                first_offset=(first + pad - first_tap * dil) // stride,
                offset_step=-(tap_step * dil // stride), result_first=first, result_step=stride)


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


cdef inline void taps_inside(const Axis *axis, Py_ssize_t output, Py_ssize_t *first,
                             Py_ssize_t *last) noexcept nogil:
    """The taps m, first <= m < last, through which an output reads elements that exist."""
    cdef Py_ssize_t position = output * axis.step + axis.first_offset
    first[0] = 0
    while first[0] < axis.taps and not 0 <= position + first[0] * axis.offset_step < axis.size:
        first[0] += 1
    last[0] = first[0]
    while last[0] < axis.taps and 0 <= position + last[0] * axis.offset_step < axis.size:
        last[0] += 1


# ---- blocks, regions, and the offsets in them --------------------------------------------------------------


cdef Correlation *plan_correlation(const Conv *conv, const Axis *h, const Axis *w, Py_ssize_t channels,
                                   Py_ssize_t source_bytes, int threads) except NULL:
    """Chooses blocks, of ``source_bytes`` each and enough for ``threads``, and lists the taps and pixels of each
    region. To be freed."""
    cdef Correlation plan
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double), row_taps = 0, column_taps = 0
    cdef Py_ssize_t row_runs = count_runs(h, &row_taps), column_runs = count_runs(w, &column_taps)
    plan.h, plan.w, plan.images, plan.groups, plan.channels = h[0], w[0], conv.N, conv.groups, channels
    plan.depth, plan.panel_width = channels * h.taps * w.taps, NR_f32 if is_float else NR_f64
    plan.regions = row_runs * column_runs
    choose_blocks(&plan, source_bytes // item, threads)
    cdef Py_ssize_t pixels = plan.block_images * h.outputs * w.outputs
    cdef Py_ssize_t taps = channels * row_taps * column_taps
    cdef Correlation *result = <Correlation *> allocate(
        sizeof(Correlation) + plan.regions * sizeof(Region) + (pixels + taps) * sizeof(place)
        + plan.bands * plan.regions * sizeof(Py_ssize_t))
    plan.region = <Region *> (result + 1)
    plan.pixel = <place *> (plan.region + plan.regions)
    plan.band_pixels = <Py_ssize_t *> (plan.pixel + pixels + taps)
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
    """As many rows, then images, as read ``budget`` elements of the source; but enough blocks for the
    threads, and enough pixels for a block."""
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
        images = min(budget // (row_elements * plan.h.outputs), MAX_PIXELS // pixels)
        images = max(images, MIN_PIXELS // pixels)
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
    cdef Py_ssize_t first = max(block.first_row, region.h.first)
    cdef Py_ssize_t rows = min(block.first_row + block.rows, region.h.last) - first
    count[0] = block.images * max(0, rows) * (region.w.last - region.w.first)
    return plan.pixel + plan.band_pixels[block.band * plan.regions + r]


cdef inline Py_ssize_t block_source(const Correlation *plan, const Block *block) noexcept nogil:
    """Where the block's first image starts in the source."""
    return (block.first_image * plan.groups + block.group) * plan.channels * plan.h.size * plan.w.size
