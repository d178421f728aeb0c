"""Convolutions, and what they give, for the tests of kernels."""

import numpy as np

from minigrad.kernels.arguments import bfloat16_bits

# (N, C, H, W), (O, C/groups, KH, KW), stride, padding, dilation, groups
CASES = [
    ((1, 1, 3, 3), (1, 1, 3, 3), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 7, 6), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 4, 9, 8), (6, 2, 3, 2), (2, 3), (1, 0), (1, 2), 2),
    ((1, 3, 5, 11), (6, 1, 1, 5), (1, 2), (0, 4), (2, 1), 3),
    ((3, 2, 4, 4), (5, 2, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((2, 1, 5, 5), (2, 1, 3, 3), (1, 1), (4, 4), (1, 1), 1),  # some windows see padding only
    ((1, 2, 6, 6), (1, 2, 2, 2), (3, 3), (0, 0), (1, 1), 1),  # some pixels are in no window
    ((1, 2, 3, 4), (2, 2, 2, 3), (7, 9), (3, 4), (1, 1), 1),  # strides beyond the image
    ((1, 2, 13, 12), (2, 2, 4, 3), (4, 6), (3, 2), (2, 4), 1),  # strides and dilations with common divisors
    ((2, 3, 9, 8), (66, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),  # more rows than a tile has
    ((2, 66, 6, 7), (3, 66, 2, 3), (2, 1), (1, 0), (1, 2), 1),
    ((2, 36, 7, 7), (34, 18, 3, 2), (1, 2), (1, 1), (1, 1), 2),
    ((3, 1, 22, 21), (2, 1, 3, 3), (1, 1), (0, 0), (1, 1), 1),  # sums long enough to be cut into parts
]


def output_shape(case):
    (N, _, *size), (O, _, *kernel), *options, _ = case  # noqa: E741
    axes = zip(size, kernel, *options, strict=True)
    return N, O, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


def split_groups(array, groups, axis):
    """The array with its channels, along ``axis``, as two axes: groups, and channels of each. A view."""
    shape = array.shape
    return array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])


def by_definition(x, weight, grad, options):
    """The output without bias, and the gradients for x and weight, in float64: sums over the taps."""
    sh, sw, ph, pw, dh, dw, groups = options
    x, weight, grad = (a.astype(np.float64) for a in (x, weight, grad))
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    out, padded_grad, weight_grad = np.zeros(grad.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    of_out, of_grad, of_padded, of_padded_grad = (
        split_groups(a, groups, 1) for a in (out, grad, padded, padded_grad)
    )
    of_weight, of_weight_grad = (split_groups(a, groups, 0) for a in (weight, weight_grad))
    OH, OW = grad.shape[2:]
    for i, j in np.ndindex(weight.shape[2:]):
        rows = slice(i * dh, i * dh + (OH - 1) * sh + 1, sh)
        columns = slice(j * dw, j * dw + (OW - 1) * sw + 1, sw)
        tap, pixels = of_weight[..., i, j], of_padded[..., rows, columns]
        of_out += np.einsum("goc,ngchw->ngohw", tap, pixels)
        of_padded_grad[..., rows, columns] += np.einsum("goc,ngohw->ngchw", tap, of_grad)
        of_weight_grad[..., i, j] = np.einsum("ngohw,ngchw->goc", of_grad, pixels)
    H, W = x.shape[2:]
    return out, padded_grad[:, :, ph : ph + H, pw : pw + W], weight_grad


# ---- on tensor cores ---------------------------------------------------------------------------------------

# By name: to what the kernels take, to numbers, the rounding errors of a product, and of the result.
FORMATS = {
    "tf32": (lambda x: x.astype(np.float32), lambda x: x, 2.0**-10 + 2.0**-22, 0),
    "f16": (lambda x: x.astype(np.float16), lambda x: x, 0, 2.0**-11),
    "bf16": (bfloat16_bits, lambda x: (x.astype(np.uint32) << 16).view(np.float32), 0, 2.0**-8),
}


def formats_in_turn(cases):
    """(format, case): each case in TF32, and in one of the formats of 16 bits, which have one template, whose
    instances differ in an instruction and in how they round. Which one that is alternates."""
    return [(name, case) for k, case in enumerate(cases) for name in ("tf32", ("f16", "bf16")[k % 2])]


def as_channels_last(x):
    """The same numbers, stored as (N, H, W, C)."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def inputs(name, case):
    """Random x, weight, bias and gradient of the output as the kernels take them, and the options."""
    shapes = case[0], case[1], case[1][:1], output_shape(case)
    encode = FORMATS[name][0]
    arrays = [
        encode(np.random.default_rng(i).standard_normal(s).astype(np.float32)) for i, s in enumerate(shapes)
    ]
    _, _, stride, padding, dilation, groups = case
    return *arrays, (*stride, *padding, *dilation, groups)


def assert_close(name, found, arrays, options):
    """Check output and gradients against float64, of the same numbers; None in ``found`` is passed over."""
    _, numbers, of_product, of_result = FORMATS[name]
    x, weight, bias, grad = (numbers(np.ascontiguousarray(a)).astype(np.float64) for a in arrays)
    expected = list(by_definition(x, weight, grad, options))
    magnitudes = list(by_definition(abs(x), abs(weight), abs(grad), options))
    expected[0] += bias[:, None, None]
    magnitudes[0] += abs(bias[:, None, None])
    # The sums run over the channels' zeros too, up to 8 for each channel.
    lengths = weight[0].size + 1, weight[:, 0].size, grad[:, 0].size
    for result, exact, magnitude, length in zip(found, expected, magnitudes, lengths, strict=True):
        if result is None:
            continue
        # A card cuts off the last bits of its sums: https://doi.org/10.7717/peerj-cs.330
        allowed = (of_product + (length + 1) * 2.0**-22) * magnitude + of_result * np.abs(exact)
        smallest = 2.0**-25 if name == "f16" else 0
        assert result.shape == exact.shape
        assert (np.abs(result - exact) <= 1.001 * allowed + smallest).all()
