# When Winograd's algorithm, conv2d_winograd.pyx, is worth it, and with which tiles: an estimate.

# What a value at a point costs, in multiply-adds of a GEMM: to transform that of a tile, or that of a kernel;
# and what a tap costs the implicit GEMM before it begins.
cdef enum:
    TRANSFORM = 20
    WEIGHT = 10
    PACK = 22


def is_faster(tuple x_shape, tuple weight_shape, Py_ssize_t pad_h, Py_ssize_t pad_w, bint of_input):
    """Whether Winograd's algorithm beats the implicit GEMM on an input (N, C, H, W): an estimate of both.

    The unit is a multiply-add of a GEMM. The implicit GEMM takes 1.1 for each of its own, sparing the taps
    that fall into the padding, and ``PACK`` for each tap of a kernel. Winograd's algorithm takes its products,
    and the transforms beside them (``cost``). Measured on an AMD EPYC with AVX2 and 512 KB of second-level
    cache, on layers of 8 to 512 channels, images of 2x2 to 56x56 pixels and batches of 1 to 128: where the
    estimates are near each other, so are the times. Two threads share the work of either evenly, and change
    nothing; nor do groups.

    ``of_input``: the tiles are those of the input, as for its gradient.
    """
    cdef Py_ssize_t N = x_shape[0], H = x_shape[2], W = x_shape[3], kernel = weight_shape[2]
    cdef Py_ssize_t C = weight_shape[1], O = weight_shape[0] // max(1, x_shape[1] // max(1, C))  # of a group
    cdef Py_ssize_t OH = H + 2 * pad_h - kernel + 1, OW = W + 2 * pad_w - kernel + 1
    cdef Py_ssize_t rows = H if of_input else OH, columns = W if of_input else OW
    cdef double taps = <double> N * taps_inside(kernel, H, OH, pad_h) * taps_inside(kernel, W, OW, pad_w)
    if of_input:
        C, O = O, C
    cdef double definition = (1.1 * taps + PACK * kernel * kernel) * C * ceil_divide(O, LANES) * LANES
    return cost(N, rows, columns, C, O, kernel, cheaper_step(N, rows, columns, C, O, kernel)) < definition


cdef Py_ssize_t taps_inside(Py_ssize_t kernel, Py_ssize_t size, Py_ssize_t out_size, Py_ssize_t pad) noexcept:
    """How many taps meet pixels rather than padding, of all outputs along one axis."""
    cdef Py_ssize_t tap, total = 0
    for tap in range(kernel):
        total += max(0, min(out_size, size + pad - tap) - max(0, pad - tap))
    return total


cdef double cost(Py_ssize_t N, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t C, Py_ssize_t O,
                 Py_ssize_t kernel, Py_ssize_t step) noexcept:
    """Winograd's algorithm with tiles of ``step`` x ``step``: its multiply-adds, and at each point
    ``TRANSFORM`` for each tile and channel of either side, and ``WEIGHT`` for each kernel: the larger part,
    with few tiles."""
    cdef double tiles = <double> N * ceil_divide(rows, step) * ceil_divide(columns, step)
    cdef Py_ssize_t points = (step + kernel - 1) * (step + kernel - 1)
    cdef Py_ssize_t C_lanes = ceil_divide(C, LANES) * LANES, O_lanes = ceil_divide(O, LANES) * LANES
    return points * (tiles * C * O_lanes + TRANSFORM * tiles * (C_lanes + O_lanes)
                     + WEIGHT * <double> C * O_lanes)


cdef int cheaper_step(Py_ssize_t N, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t C, Py_ssize_t O,
                      Py_ssize_t kernel) noexcept:
    """4, or 2 where too much of the larger tiles would be computed in vain; 5x5 kernels know 2 alone."""
    if kernel == 5 or cost(N, rows, columns, C, O, 3, 2) < cost(N, rows, columns, C, O, 3, 4):
        return 2
    return 4
