"""3x3 and 5x5 convolution with stride 1, and its two gradients, by Winograd's minimal filtering: float32.

    forward      out[n, o, i, j] = bias[o] + the sum of weight[o, c, u, v] * x[n, c, i + u - p, j + v - q]
    input_grad   the same of grad_output, with the kernel rotated by half a turn and its channels exchanged
    weight_grad  out[o, c, u, v] = the sum of grad_output[n, o, i, j] * x[n, c, i + u - p, j + v - q]

(p, q) is the padding, and x is zero outside its borders. With groups, each group of channels is a convolution
of its own. The output is cut into tiles of m x m pixels, m = 4 or 2 for 3x3 kernels, and 2 for 5x5. The pixels
under a tile, 6 x 6 (or 4 x 4 for m = 2 and 3x3), become as many values at points, by additions and
multiplications with small constants; so do the kernels. At each point one multiplication of matrices then
sums over channels, and the products become the tile of the output. conv2d_winograd.h has the transforms, the
points and the source.

For the m x m outputs of a tile, the products take a multiply-add for each point where the definition takes
one for each tap and output: 36 for 144 (3x3, m = 4), 16 for 36 (m = 2), or 36 for 100 (5x5). The transforms
take about 120 operations (6 x 6) for each tile and channel of either side. So it gains when both sides have
many channels, and most pixels of the tiles are wanted.

What is saved is paid for in digits: on random data, rounding errors are 3 to 5 times those of the
definition's sums (at 36 points; at 16 they are alike), up to 8 in the last pixel of a tile. A value that is not
finite spreads to the whole tile.

A block of tiles is transformed, multiplied and transformed back while it lies in the second-level cache,
once for all channels: so the transformed weights, 4 times as large as the weights, are read once for each
block. Where they outgrow the cache, as those of 256 channels do, or there are few tiles, the work is cut
along output channels instead: each thread takes NR of them at a time, transforms their kernels, and
multiplies many tiles by them at once.
Arithmetic intensity of the products: that of a GEMM with as many rows as a block has tiles, for each point.

Arrays are C-contiguous float32. ``threads`` is the number of OpenMP threads; each output is computed in the
same way, whatever their number (weight_grad: the same number gives the same bits).
"""

from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset

from minigrad.kernels.cpu.memory import empty

include "arguments.pxi"

cdef extern from "conv2d_winograd.h" nogil:
    enum:
        NR "NR_f32"
        LANES "F32_LANES"
        MAX_KERNEL "MAX_COUNT"
    ctypedef struct point_values:
        float *data
        Py_ssize_t point, row
    ctypedef struct tile_row:
        Py_ssize_t height, width, first_row, first_column, step, tiles
    Py_ssize_t windows_scratch(Py_ssize_t width, Py_ssize_t tiles)
    void input_to_points(int tile, const tile_row *at, Py_ssize_t channels, const float *planes,
                         Py_ssize_t plane_stride, float *values, Py_ssize_t point, Py_ssize_t row,
                         float *scratch)
    void grad_output_to_points(int tile, int kernel, const tile_row *at, Py_ssize_t channels,
                               const float *planes, Py_ssize_t plane_stride, float *values, Py_ssize_t point,
                               Py_ssize_t row, float *scratch)
    void multiply_weights(Py_ssize_t points, Py_ssize_t tiles, Py_ssize_t depth, Py_ssize_t channels,
                          const point_values *values, const point_values *weights,
                          const point_values *products)
    void multiply_gradients(Py_ssize_t points, Py_ssize_t tiles, Py_ssize_t depth, Py_ssize_t channels,
                            const point_values *values, const point_values *gradients,
                            const point_values *sums)
    void points_to_output(int tile, int kernel, Py_ssize_t tiles, Py_ssize_t rows, Py_ssize_t width,
                          Py_ssize_t channels, const float *products, Py_ssize_t point, Py_ssize_t row,
                          const float *bias, float *planes, Py_ssize_t plane_stride, float *scratch)
    void weights_to_points(int tile, int kernel, Py_ssize_t depth, const float *taps, bint rotated,
                           float *weights, Py_ssize_t point)
    void points_to_weight_grad(int tile, int kernel, Py_ssize_t depth, const float *sums, Py_ssize_t point,
                               Py_ssize_t row, float *taps)
    void pack_channels_f32(Py_ssize_t channels, Py_ssize_t pixels, const float *planes,
                           Py_ssize_t plane_stride, float *panel)
    void store_channels_f32(Py_ssize_t channels, Py_ssize_t pixels, const float *panel, float *planes,
                            Py_ssize_t plane_stride)

# One convolution of `source` into `result`, of one group after the other, and how it is cut up. Rows of tiles
# are counted through all images. C and O are the channels of a group.
cdef struct Winograd:
    const float *source                           # of the group's first image: (C, H, W)
    const float *weight                           # (O, C, kernel, kernel), or (C, O, ...) if `rotated`
    const float *bias                             # (O,), or NULL
    float *result                                 # of the first image: (O, OH, OW)
    Py_ssize_t source_image, result_image         # strides from image to image
    Py_ssize_t N, C, H, W, O, OH, OW, pad_h, pad_w, groups
    bint rotated
    int kernel, tile, step, threads               # step: pixels of the output along one side of a tile
    Py_ssize_t points, image_rows, tiles          # rows of tiles in an image, tiles in such a row
    Py_ssize_t rows, block_rows, blocks           # rows of tiles in all, and in each block
    Py_ssize_t panels                             # of NR output channels
    bint by_panels                                # whether threads share panels rather than blocks

# Multiply-adds that a thread must have to do, as in conv2d.pyx.
cdef Py_ssize_t WORK_PER_THREAD = 200_000

# Values and products of a block: as many tiles as fit, but enough to use each weight that often.
cdef enum:
    BLOCK_BYTES = 512 * 1024
    FEWEST_TILES = 24
    MOST_TILES = 256
    SHARED_BYTES = 4 * 1024 * 1024  # of what all threads read again and again: half a third-level cache
    CHUNK = 16          # kernels, of each lane, transformed at a time

cdef object FLOAT = cnp.PyArray_DescrFromType(cnp.NPY_FLOAT32)

include "conv2d_winograd_cost.pxi"
include "conv2d_winograd_weight_grad.pxi"


# ---- the three functions -----------------------------------------------------------------------------------


def forward(cnp.ndarray out not None, cnp.ndarray x not None, cnp.ndarray weight not None, bias,
            int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, int groups, int threads,
            int step=0):
    """Multiplies less: tiles of 4x4 or 2x2 outputs become products at 36 or 16 points, summed over channels
    by GEMMs; loses about half a digit."""
    cdef Winograd w
    check_options(stride_h, stride_w, dil_h, dil_w)
    check_arrays(x, weight, out, pad_h, pad_w, groups)
    check_output(out, cnp.NPY_FLOAT32)
    w.kernel = weight.shape[2]
    read_images(&w, x, out, pad_h, pad_w, groups)
    w.weight, w.rotated = <const float *> cnp.PyArray_DATA(weight), False
    w.bias = NULL if bias is None else read_bias(bias, weight.shape[0])
    plan(&w, step, threads)
    run(&w)


def input_grad(cnp.ndarray out not None, cnp.ndarray grad_output not None, cnp.ndarray weight not None,
               int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, int groups,
               int threads, int step=0):
    """Multiplies less: the forward pass of ``grad_output``, with rotated kernels and the channels' roles
    exchanged; loses about half a digit."""
    cdef Winograd w
    check_options(stride_h, stride_w, dil_h, dil_w)
    check_arrays(out, weight, grad_output, pad_h, pad_w, groups)
    check_output(out, cnp.NPY_FLOAT32)
    w.kernel = weight.shape[2]
    read_images(&w, grad_output, out, w.kernel - 1 - pad_h, w.kernel - 1 - pad_w, groups)
    w.weight, w.rotated = <const float *> cnp.PyArray_DATA(weight), True
    w.bias = NULL
    plan(&w, step, threads)
    run(&w)


def weight_grad(cnp.ndarray out not None, cnp.ndarray grad_output not None, cnp.ndarray x not None,
                int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, int groups,
                int threads, int step=0):
    """Multiplies less: at each point the gradient is a product of matrices over all tiles of the batch,
    summed up before it is transformed back; loses about half a digit."""
    cdef Winograd w
    check_options(stride_h, stride_w, dil_h, dil_w)
    check_arrays(x, out, grad_output, pad_h, pad_w, groups)
    check_output(out, cnp.NPY_FLOAT32)
    w.kernel = out.shape[2]
    read_images(&w, x, grad_output, pad_h, pad_w, groups)
    w.weight, w.bias = NULL, NULL
    plan(&w, step, threads)
    run_weight_grad(&w, <float *> cnp.PyArray_DATA(out))


# ---- forward and input gradient ----------------------------------------------------------------------------


cdef int run(Winograd *w) except -1:
    cdef Py_ssize_t group
    if w.rows == 0 or w.tiles == 0 or w.O == 0:
        return 0
    cdef cnp.ndarray memory = allocate(w.panels * NR)
    cdef float *bias = floats(memory)
    memset(bias, 0, w.panels * NR * sizeof(float))
    for group in range(w.groups):
        if w.bias != NULL:
            memcpy(bias, w.bias, w.O * sizeof(float))
        if w.by_panels:
            run_by_panels(w, bias)
        else:
            run_by_blocks(w, bias)
        next_group(w)
    return 0


cdef void next_group(Winograd *w) noexcept nogil:
    w.source += w.C * w.H * w.W
    w.result += w.O * w.OH * w.OW
    if w.weight != NULL:
        w.weight += w.O * w.C * w.kernel * w.kernel
    if w.bias != NULL:
        w.bias += w.O


cdef int run_by_blocks(Winograd *w, const float *bias) except -1:
    """Transforms all weights, then computes block after block."""
    cdef point_values weights = point_values(data=NULL, row=w.C * NR, point=w.panels * w.C * NR + NR)
    cdef Py_ssize_t weight_elements = whole_lines(w.points * weights.point), panel, block
    cdef Py_ssize_t workspace = whole_lines(block_workspace(w))
    cdef cnp.ndarray memory = allocate(weight_elements + w.threads * workspace)
    weights.data = floats(memory)
    cdef float *workspaces = weights.data + weight_elements
    cdef int packers = threads_for(w.points * w.panels * NR * w.C, WORK_PER_THREAD, w.threads)
    with nogil:
        if packers == 1:  # without OpenMP, which a forked child must not enter
            for panel in range(w.panels):
                transform_weights(w, panel, &weights)
        else:
            for panel in prange(w.panels, num_threads=packers, schedule="static"):
                transform_weights(w, panel, &weights)
        if w.threads == 1:
            for block in range(w.blocks):
                run_block(w, block, &weights, bias, workspaces)
        else:
            for block in prange(w.blocks, num_threads=w.threads, schedule="dynamic"):
                run_block(w, block, &weights, bias, workspaces + threadid() * workspace)
    return 0


cdef int run_by_panels(Winograd *w, const float *bias) except -1:
    """Transforms all channels of a block, then computes panel after panel of the result."""
    cdef point_values values = values_of(w, w.C, NULL)
    cdef Py_ssize_t shared = whole_lines(w.points * values.point), first, last, row, panel, block
    cdef Py_ssize_t workspace = whole_lines(panel_workspace(w))
    cdef cnp.ndarray memory = allocate(shared + w.threads * workspace)
    values.data = floats(memory)
    cdef float *workspaces = values.data + shared
    with nogil:
        for block in range(w.blocks):
            first, last = block * w.block_rows, min((block + 1) * w.block_rows, w.rows)
            if w.threads == 1:
                for row in range(first, last):
                    transform_row(w, row, &values, (row - first) * w.tiles * values.row, workspaces)
                for panel in range(w.panels):
                    run_panel(w, panel, first, last, &values, bias, workspaces)
            else:
                for row in prange(first, last, num_threads=w.threads, schedule="static"):
                    transform_row(w, row, &values, (row - first) * w.tiles * values.row,
                                  workspaces + threadid() * workspace)
                for panel in prange(w.panels, num_threads=w.threads, schedule="dynamic"):
                    run_panel(w, panel, first, last, &values, bias, workspaces + threadid() * workspace)
    return 0


cdef void run_panel(const Winograd *w, Py_ssize_t panel, Py_ssize_t first, Py_ssize_t last,
                    const point_values *values, const float *bias, float *workspace) noexcept nogil:
    """NR channels of the result, of the rows of tiles from ``first`` to ``last``."""
    cdef point_values weights = kernels_of(w, workspace)
    cdef point_values products = values_of(w, NR, workspace + w.points * weights.point)
    cdef float *scratch = products.data + w.points * products.point
    cdef Py_ssize_t row
    transform_weights(w, panel, &weights)
    multiply_weights(w.points, (last - first) * w.tiles, w.C, channels_of(w.O, panel), values, &weights,
                     &products)
    for row in range(first, last):
        store_panel(w, row, panel, &products, (row - first) * w.tiles * products.row, bias, scratch)


cdef void transform_weights(const Winograd *w, Py_ssize_t panel, const point_values *weights) noexcept nogil:
    """The kernels of NR channels of the result, at all points."""
    cdef float[CHUNK * MAX_KERNEL * MAX_KERNEL * NR] taps
    cdef Py_ssize_t first = panel * NR, lanes = channels_of(w.O, panel), taps_each = w.kernel * w.kernel
    cdef Py_ssize_t chunk, c, k, depth
    for chunk in range(ceil_divide(w.C, CHUNK)):
        c = chunk * CHUNK
        depth = min(<Py_ssize_t> CHUNK, w.C - c)
        if w.rotated:
            for k in range(depth):
                pack_channels_f32(lanes, taps_each, w.weight + ((c + k) * w.O + first) * taps_each, taps_each,
                                  taps + k * taps_each * NR)
        else:
            pack_channels_f32(lanes, depth * taps_each, w.weight + (first * w.C + c) * taps_each,
                              w.C * taps_each, taps)
        weights_to_points(w.tile, w.kernel, depth, taps, w.rotated,
                          weights.data + panel * weights.row + c * NR, weights.point)


cdef inline Py_ssize_t channels_of(Py_ssize_t channels, Py_ssize_t panel) noexcept nogil:
    return min(<Py_ssize_t> NR, channels - panel * NR)


cdef point_values kernels_of(const Winograd *w, float *data) noexcept nogil:
    """Room for one panel of kernels at all points; every panel lies in the same place."""
    return point_values(data=data, row=0, point=w.C * NR + NR)


cdef point_values values_of(const Winograd *w, Py_ssize_t channels, float *data) noexcept nogil:
    """Room for a block's values at all points. Neither rows nor points lie a power of two apart, where they
    would evict each other from the cache."""
    cdef Py_ssize_t row = ceil_divide(channels, NR) * NR
    if row % 256 == 0:
        row += NR
    return point_values(data=data, row=row, point=w.block_rows * w.tiles * row + NR)


cdef Py_ssize_t block_workspace(const Winograd *w) noexcept nogil:
    """Elements for the values and products of a block, and for the rows of pixels beside them."""
    return w.points * (values_of(w, w.C, NULL).point + values_of(w, w.O, NULL).point) + pixel_workspace(w)


cdef Py_ssize_t panel_workspace(const Winograd *w) noexcept nogil:
    """The same for one panel: its kernels, its products or gradients, and pixels."""
    return w.points * (kernels_of(w, NULL).point + values_of(w, NR, NULL).point) + pixel_workspace(w)


cdef Py_ssize_t pixel_workspace(const Winograd *w) noexcept nogil:
    return max(windows_scratch(max(w.W, w.OW), w.tiles), w.step * w.OW * NR)


cdef void run_block(const Winograd *w, Py_ssize_t block, const point_values *weights, const float *bias,
                    float *workspace) noexcept nogil:
    """All channels of some rows of tiles."""
    cdef point_values values = values_of(w, w.C, workspace)
    cdef point_values products = values_of(w, w.O, workspace + w.points * values.point)
    cdef float *scratch = products.data + w.points * products.point
    cdef Py_ssize_t first = block * w.block_rows, last = min(first + w.block_rows, w.rows), row, panel
    for row in range(first, last):
        transform_row(w, row, &values, (row - first) * w.tiles * values.row, scratch)
    multiply_weights(w.points, (last - first) * w.tiles, w.C, w.O, &values, weights, &products)
    for row in range(first, last):
        for panel in range(w.panels):
            store_panel(w, row, panel, &products, (row - first) * w.tiles * products.row + panel * NR, bias,
                        scratch)


cdef void transform_row(const Winograd *w, Py_ssize_t row, const point_values *values, Py_ssize_t offset,
                        float *scratch) noexcept nogil:
    """One row of tiles of the source, to ``offset`` in ``values``."""
    cdef Py_ssize_t plane = w.H * w.W, panel
    cdef const float *image = w.source + row // w.image_rows * w.source_image
    cdef tile_row at = tile_row(height=w.H, width=w.W, first_row=row % w.image_rows * w.step - w.pad_h,
                                first_column=-w.pad_w, step=w.step, tiles=w.tiles)
    for panel in range(ceil_divide(w.C, NR)):
        input_to_points(w.tile, &at, channels_of(w.C, panel), image + panel * NR * plane, plane,
                        values.data + offset + panel * NR, values.point, values.row, scratch)


cdef void store_panel(const Winograd *w, Py_ssize_t row, Py_ssize_t panel, const point_values *products,
                      Py_ssize_t offset, const float *bias, float *scratch) noexcept nogil:
    """One row of tiles of NR channels of the result, from ``offset`` in ``products``."""
    cdef Py_ssize_t plane = w.OH * w.OW, o = panel * NR, first_row = row % w.image_rows * w.step
    cdef float *target = w.result + row // w.image_rows * w.result_image + o * plane + first_row * w.OW
    points_to_output(w.tile, w.kernel, w.tiles, min(<Py_ssize_t> w.step, w.OH - first_row), w.OW,
                     channels_of(w.O, panel), products.data + offset, products.point, products.row,
                     bias + o, target, plane, scratch)


# ---- the plan ----------------------------------------------------------------------------------------------


cdef void read_images(Winograd *w, cnp.ndarray source, cnp.ndarray result, Py_ssize_t pad_h,
                      Py_ssize_t pad_w, int groups) noexcept:
    w.source, w.result = <const float *> cnp.PyArray_DATA(source), <float *> cnp.PyArray_DATA(result)
    w.N, w.C, w.H, w.W = source.shape[0], source.shape[1] // groups, source.shape[2], source.shape[3]
    w.O, w.OH, w.OW = result.shape[1] // groups, result.shape[2], result.shape[3]
    w.groups = groups
    w.source_image, w.result_image = groups * w.C * w.H * w.W, groups * w.O * w.OH * w.OW
    w.pad_h, w.pad_w = pad_h, pad_w


cdef int plan(Winograd *w, int step, int threads) except -1:
    """Cuts the result into tiles of ``step`` x ``step`` pixels and blocks of rows of them."""
    if step != 2 and step != 0 and (step != 4 or w.kernel == 5):
        raise ValueError(f"conv2d winograd kernel: tiles are of 4 or 2 pixels a side, of 2 for 5x5 kernels, "
                         f"got {step}")
    w.step = step if step else cheaper_step(w.N, w.OH, w.OW, w.C, w.O, w.kernel)
    w.tile = w.step + w.kernel - 1
    w.points = w.tile * w.tile
    w.image_rows, w.tiles = ceil_divide(w.OH, w.step), ceil_divide(w.OW, w.step)
    w.rows = w.N * w.image_rows
    w.panels = ceil_divide(w.O, NR)
    w.threads = threads_for(w.rows * w.tiles * w.points * w.C * w.O, WORK_PER_THREAD, max(threads, 1))
    cdef Py_ssize_t value_bytes = w.points * sizeof(float), tiles
    # With fewer tiles than output channels, there are fewer values to read again than weights.
    w.by_panels = w.panels >= 2 * w.threads and (
        w.rows * w.tiles < w.O or value_bytes * w.C * w.O > SHARED_BYTES)
    if w.by_panels:
        tiles = max(<Py_ssize_t> FEWEST_TILES, SHARED_BYTES // (value_bytes * max(1, w.C)))
    else:
        tiles = BLOCK_BYTES // (value_bytes * (w.C + w.O + 1))
        tiles = max(<Py_ssize_t> FEWEST_TILES, min(<Py_ssize_t> MOST_TILES, tiles))
    w.block_rows = max(1, tiles // max(1, w.tiles))
    w.blocks = ceil_divide(w.rows, w.block_rows)
    if not w.by_panels:  # as many for each thread
        w.blocks = ceil_divide(w.blocks, w.threads) * w.threads
    # Of nearly equal size.
    w.block_rows = ceil_divide(w.rows, max(1, w.blocks))
    w.blocks = ceil_divide(w.rows, max(1, w.block_rows))
    return 0


# ---- reading the arguments ---------------------------------------------------------------------------------


cdef int check_options(int stride_h, int stride_w, int dil_h, int dil_w) except -1:
    if not stride_h == stride_w == dil_h == dil_w == 1:
        raise ValueError("conv2d winograd kernel: stride and dilation must be 1")
    return 0


cdef int check_arrays(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray y, int pad_h, int pad_w,
                      int groups) except -1:
    """The three arrays of one convolution, whichever of them is being computed."""
    check_input(x, cnp.NPY_FLOAT32)
    check_input(weight, cnp.NPY_FLOAT32)
    check_input(y, cnp.NPY_FLOAT32)
    if cnp.PyArray_NDIM(x) != 4 or cnp.PyArray_NDIM(weight) != 4 or cnp.PyArray_NDIM(y) != 4:
        raise ValueError("conv2d winograd kernel: input, weight and output must have 4 dimensions")
    if weight.shape[2] != weight.shape[3] or (weight.shape[2] != 3 and weight.shape[2] != 5):
        raise ValueError(f"conv2d winograd kernel: shapes do not fit: kernels must be 3x3 or 5x5, weight is "
                         f"{(<object> weight).shape}")
    cdef Py_ssize_t taps_before = weight.shape[2] - 1
    if (pad_h < 0 or pad_w < 0 or groups < 1 or weight.shape[0] % groups
            or y.shape[0] != x.shape[0] or weight.shape[0] != y.shape[1]
            or weight.shape[1] * groups != x.shape[1]
            or y.shape[2] != x.shape[2] + 2 * <Py_ssize_t> pad_h - taps_before
            or y.shape[3] != x.shape[3] + 2 * <Py_ssize_t> pad_w - taps_before):
        raise ValueError(f"conv2d winograd kernel: shapes do not fit: input {(<object> x).shape}, weight "
                         f"{(<object> weight).shape}, output {(<object> y).shape}, padding {pad_h, pad_w}, "
                         f"groups {groups}")
    return 0


cdef float *read_bias(cnp.ndarray bias, Py_ssize_t channels) except? NULL:
    check_input(bias, cnp.NPY_FLOAT32)
    if cnp.PyArray_NDIM(bias) != 1 or bias.shape[0] != channels:
        raise ValueError(f"conv2d winograd kernel: bias must have shape ({channels},), got "
                         f"{(<object> bias).shape}")
    return <float *> cnp.PyArray_DATA(bias)


# ---- workspaces --------------------------------------------------------------------------------------------

cdef enum:
    LINE = 16  # elements of a cache line


cdef inline Py_ssize_t whole_lines(Py_ssize_t elements) noexcept nogil:
    return ceil_divide(elements, LINE) * LINE


cdef cnp.ndarray allocate(Py_ssize_t elements):
    """A workspace, aligned to a cache line, whose memory our allocator keeps for the next call: the pages of a block
    that the C library has given back take longer to map than to compute."""
    return empty((elements,), FLOAT)


cdef inline float *floats(cnp.ndarray workspace) noexcept:
    return <float *> cnp.PyArray_DATA(workspace)
