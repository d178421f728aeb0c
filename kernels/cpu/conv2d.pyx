"""2-D convolution and its two gradients, each as a ladder of rungs.

    forward      out[n, o, i, j] = bias[o] + the sum of weight[o, c, u, v] * x[n, c, h, w] over c, u, v
    input_grad   out[n, c, h, w] = the sum of weight[o, c, u, v] * grad_output[n, o, i, j] over o, u, v
    weight_grad  out[o, c, u, v] = the sum of grad_output[n, o, i, j] * x[n, c, h, w] over n, i, j

where output pixel (i, j) meets input pixel (h, w) under kernel tap (u, v):

    h = i * stride_h + u * dil_h - pad_h        w = j * stride_w + v * dil_w - pad_w

and x is zero outside its borders. (It is cross-correlation, as everywhere in deep learning.) With groups, an
output channel sees only the input channels of its own group. Shapes:

    x (N, C, H, W)    weight (O, C / groups, KH, KW)    bias (O,) or None    out, grad_output (N, O, OH, OW)
    OH = (H + 2 pad_h - dil_h (KH - 1) - 1) // stride_h + 1, and OW likewise

    direct          the definition as loops; the innermost runs along a row of pixels
    im2col          + the input under each kernel tap copied out into a matrix, so that a GEMM does the sums
    implicit_gemm   + the same GEMM without that matrix: its elements are found by adding two offsets
    planes          + vectors that run along the pixels of a row, for layers with few channels in a group
    depthwise       for one channel in a group: vectors across the groups, of planes transposed in cache

All of them make 2 N O OH OW (C / groups) KH KW floating-point operations. *direct* loads three elements and
stores one for each multiply-add. *im2col* runs at the speed of GEMM, but first writes a matrix KH KW times as
large as x, and reads it back: with few output channels that traffic costs more than the arithmetic.
*implicit_gemm* has the intensity of the GEMM tile and no such traffic, and spares the taps that fall into the
padding; its vectors hold output channels. *planes* copies the input once, with its padding. *depthwise* has a load
for each multiply-add.
minigrad/ops/conv_choice.py says which of them runs where.

Every array is C-contiguous, all of one dtype, float32 or float64. The last arguments of each function,
``options``, are stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups and the number of OpenMP threads; the
same number of threads gives the same bits.
"""

from cython.parallel cimport prange, threadid
from libc.stdint cimport INTPTR_MAX
from libc.string cimport memcpy, memset

include "arguments.pxi"
include "workspace.pxi"

# One convolution. x, weight and y are its three arrays, whichever of them is being computed; y has the shape
# of the output. bias may be NULL.
cdef struct Conv:
    int dtype
    void *x
    void *weight
    void *bias
    void *y
    Py_ssize_t N, C, H, W, O, OH, OW, KH, KW
    Py_ssize_t stride_h, stride_w, pad_h, pad_w, dil_h, dil_w
    Py_ssize_t groups, group_in, group_out     # groups, and the input and output channels of each
    int threads

# Multiply-adds that a thread must have to do: waking it takes about as long as computing these.
cdef Py_ssize_t WORK_PER_THREAD = 200_000

include "conv2d_direct.pxi"
include "conv2d_im2col.pxi"
include "conv2d_correlation.pxi"
include "conv2d_implicit_gemm.pxi"
include "conv2d_depthwise.pxi"
include "conv2d_planes_layout.pxi"
include "conv2d_planes.pxi"


# ---- forward -----------------------------------------------------------------------------------------------


def forward_direct(cnp.ndarray out not None, cnp.ndarray x not None,
                   cnp.ndarray weight not None, bias, *options):
    """The definition: each plane of ``out`` is a sum of shifted planes of ``x``, one for each kernel tap."""
    cdef Conv conv
    read_conv(&conv, out, x, weight, out, bias, options)
    direct_forward(&conv)


def forward_im2col(cnp.ndarray out not None, cnp.ndarray x not None,
                   cnp.ndarray weight not None, bias, *options):
    """Adds im2col: the pixels under each kernel tap become a matrix row, and a GEMM does the sums."""
    cdef Conv conv
    read_conv(&conv, out, x, weight, out, bias, options)
    im2col_run(&conv, FORWARD)


def forward_implicit_gemm(cnp.ndarray out not None, cnp.ndarray x not None,
                          cnp.ndarray weight not None, bias, *options):
    """Drops the matrix: the micro-kernel reads ``x`` in place, at the sum of a pixel's and a tap's offset."""
    cdef Conv conv
    read_conv(&conv, out, x, weight, out, bias, options)
    implicit_forward(&conv)


def forward_planes(cnp.ndarray out not None, cnp.ndarray x not None,
                   cnp.ndarray weight not None, bias, *options):
    """Turns the vectors: along the pixels of a row, of images copied with their padding, so that layers with
    few channels fill them too."""
    cdef Conv conv
    read_conv(&conv, out, x, weight, out, bias, options)
    planes_forward(&conv)


def forward_depthwise(cnp.ndarray out not None, cnp.ndarray x not None,
                      cnp.ndarray weight not None, bias, *options):
    """For one channel in a group: puts channels into the lanes again, of planes transposed in cache, so that each
    sums up its own window, and small or strided planes fill vectors."""
    cdef Conv conv
    read_conv(&conv, out, x, weight, out, bias, options)
    depthwise_correlation(&conv, False)


# ---- gradient for the input --------------------------------------------------------------------------------


def input_grad_direct(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                      cnp.ndarray weight not None, *options):
    """The adjoint of the definition: planes of ``grad_output`` added back where forward read ``x``."""
    cdef Conv conv
    read_conv(&conv, out, out, weight, grad_output, None, options)
    direct_input_grad(&conv)


def input_grad_im2col(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                      cnp.ndarray weight not None, *options):
    """Adds a GEMM that makes the gradient of the im2col matrix, which col2im then adds up into ``out``."""
    cdef Conv conv
    read_conv(&conv, out, out, weight, grad_output, None, options)
    im2col_run(&conv, INPUT_GRAD)


def input_grad_implicit_gemm(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                             cnp.ndarray weight not None, *options):
    """Turns it into forward convolutions of ``grad_output`` with the rotated kernel, one for each phase of
    the stride, as implicit GEMMs: every element is written once, and nothing is added up in memory."""
    cdef Conv conv
    read_conv(&conv, out, out, weight, grad_output, None, options)
    implicit_input_grad(&conv)


def input_grad_planes(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                      cnp.ndarray weight not None, *options):
    """Turns the vectors: along the pixels of a row, whatever the number of channels. The phases of the stride
    are interleaved in cache."""
    cdef Conv conv
    read_conv(&conv, out, out, weight, grad_output, None, options)
    planes_input_grad(&conv)


def input_grad_depthwise(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                         cnp.ndarray weight not None, *options):
    """For one channel in a group: the phases of the stride on transposed planes, which need no interleaving."""
    cdef Conv conv
    read_conv(&conv, out, out, weight, grad_output, None, options)
    depthwise_correlation(&conv, True)


# ---- gradient for the weight -------------------------------------------------------------------------------


def weight_grad_direct(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                       cnp.ndarray x not None, *options):
    """The definition: each element is the dot product of a plane of ``grad_output`` with a shifted plane of
    ``x``, summed over the batch."""
    cdef Conv conv
    read_conv(&conv, out, x, out, grad_output, None, options)
    direct_weight_grad(&conv)


def weight_grad_im2col(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                       cnp.ndarray x not None, *options):
    """Adds im2col: for each image, ``grad_output`` times the transposed matrix, by GEMM. Each thread sums up
    its own images, and the threads' sums are added in a fixed order."""
    cdef Conv conv
    read_conv(&conv, out, x, out, grad_output, None, options)
    im2col_run(&conv, WEIGHT_GRAD)


def weight_grad_implicit_gemm(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                              cnp.ndarray x not None, *options):
    """Drops the matrix: the micro-kernel of the forward pass, with pixels and taps exchanged, so that the
    sums run over the pixels of several images at a time."""
    cdef Conv conv
    read_conv(&conv, out, x, out, grad_output, None, options)
    implicit_weight_grad(&conv)


def weight_grad_planes(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                       cnp.ndarray x not None, *options):
    """Turns the vectors: each tap sums up the products of two rows of pixels, lane by lane."""
    cdef Conv conv
    read_conv(&conv, out, x, out, grad_output, None, options)
    planes_weight_grad(&conv)


def weight_grad_depthwise(cnp.ndarray out not None, cnp.ndarray grad_output not None,
                          cnp.ndarray x not None, *options):
    """For one channel in a group: each tap sums up products of transposed planes, channel by channel."""
    cdef Conv conv
    read_conv(&conv, out, x, out, grad_output, None, options)
    depthwise_weight_grad(&conv)


# ---- reading the arguments ---------------------------------------------------------------------------------


cdef int read_conv(Conv *conv, cnp.ndarray out, cnp.ndarray x, cnp.ndarray weight, cnp.ndarray y, bias,
                   tuple options) except -1:
    """``out`` is that of ``x``, ``weight`` and ``y`` which is to be computed."""
    cdef int dtype = real_type(x), stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups, threads
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups, threads = options
    check_input(x, dtype)
    check_input(weight, dtype)
    check_input(y, dtype)
    check_output(out, dtype)
    if cnp.PyArray_NDIM(x) != 4 or cnp.PyArray_NDIM(weight) != 4 or cnp.PyArray_NDIM(y) != 4:
        raise ValueError("conv2d kernel: input, weight and output must have 4 dimensions")
    if min(stride_h, stride_w, dil_h, dil_w, groups) < 1 or min(pad_h, pad_w) < 0:
        raise ValueError("conv2d kernel: stride, dilation and groups must be positive, padding not negative")
    conv.dtype = dtype
    conv.x, conv.weight, conv.y = cnp.PyArray_DATA(x), cnp.PyArray_DATA(weight), cnp.PyArray_DATA(y)
    conv.N, conv.C, conv.H, conv.W = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
    conv.O, conv.KH, conv.KW = weight.shape[0], weight.shape[2], weight.shape[3]
    conv.OH, conv.OW = y.shape[2], y.shape[3]
    conv.stride_h, conv.stride_w, conv.pad_h, conv.pad_w = stride_h, stride_w, pad_h, pad_w
    conv.dil_h, conv.dil_w, conv.groups = dil_h, dil_w, groups
    conv.group_in, conv.group_out = weight.shape[1], conv.O // conv.groups
    if (y.shape[0] != conv.N or y.shape[1] != conv.O or conv.O != conv.groups * conv.group_out
            or conv.C != conv.groups * conv.group_in
            or conv.OH != output_size(conv.H, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h)
            or conv.OW != output_size(conv.W, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w)):
        raise ValueError(f"conv2d kernel: shapes do not fit: input {(<object> x).shape}, weight "
                         f"{(<object> weight).shape}, output {(<object> y).shape}, options {options}")
    conv.bias = NULL if bias is None else read_bias(bias, dtype, conv.O)
    conv.threads = threads_for(conv.N * conv.O * conv.OH * conv.OW * conv.group_in * conv.KH * conv.KW,
                               WORK_PER_THREAD, max(1, threads))
    return 0


cdef void *read_bias(cnp.ndarray bias, int dtype, Py_ssize_t channels) except? NULL:
    check_input(bias, dtype)
    if cnp.PyArray_NDIM(bias) != 1 or bias.shape[0] != channels:
        raise ValueError(f"conv2d kernel: bias must have shape ({channels},), got {(<object> bias).shape}")
    return cnp.PyArray_DATA(bias)


cdef inline Py_ssize_t output_size(Py_ssize_t size, Py_ssize_t kernel, Py_ssize_t stride, Py_ssize_t pad,
                                   Py_ssize_t dil) noexcept nogil:
    """The output's size along one axis; -1, which no array has, for a kernel that does not fit."""
    cdef Py_ssize_t room = size + 2 * pad - dil * (kernel - 1) - 1
    return room // stride + 1 if room >= 0 and kernel >= 1 else -1
