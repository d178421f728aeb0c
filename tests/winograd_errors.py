"""Winograd's convolution, for the tests of its kernels: definitions in float64, and the errors to expect.

Errors are held against what the transform matrices predict; the matrices are made here from their points, by
the definition, and not taken from a kernel.
"""

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

POINTS = {6: (0, 0.75, -0.75, 1.5, -1.5), 4: (0, 1, -1)}  # number of points -> all of them but infinity

# ---- what errors to expect ---------------------------------------------------------------------------------


def matrices(points, outputs, taps):
    """A^T (outputs, n), G (n, taps) and B^T (n, n) for n - 1 ``points`` and infinity."""
    n = outputs + taps - 1
    a, g, b = np.zeros((outputs, n)), np.zeros((n, taps)), np.zeros((n, n))
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        a[:, i] = [p**k for k in range(outputs)]
        g[i] = np.array([p**k for k in range(taps)]) / np.prod([p - q for q in others])
        b[i, : n - 1] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    return a, g, b


def predicted_errors(step, kernel, channels, weight_grad=False):
    """The standard deviations of the errors that float32's rounding causes in the outputs of one tile.

    Inputs and weights are independent, of unit variance, and ``channels`` is how many products each point
    sums up. Every rounding is taken as an independent error of standard deviation u times that of the number
    rounded (it is at most u times the number), and every partial sum of a transform to be as large as the
    whole, its terms as independent. So there are 4 roundings in a pass over inputs, 4 over kernels and 5 over
    products, in each of two passes, and one for each sum of products; errors pass through the transforms as
    the numbers do, variances times squared entries.
    """
    u = np.finfo(np.float32).eps / 2
    points = POINTS[step + kernel - 1]
    a, g, b = matrices(points, kernel, step) if weight_grad else matrices(points, step, kernel)
    values, kernels = (np.outer(norms, norms) for norms in ((b**2).sum(1), (g**2).sum(1)))
    products = channels * values * kernels
    errors = u**2 * (products * (2 * 4 + 2 * 4) + values * kernels * channels * (channels + 1) / 2)
    return np.sqrt(a**2 @ (errors + 2 * 5 * u**2 * products) @ (a**2).T)


def amplification(points, outputs, taps):
    """How much larger the error of the products' sums is in the worst output of a tile than that of the same
    number of roundings in the definition."""
    a, g, b = matrices(points, outputs, taps)
    return ((a**2) @ ((b**2).sum(1) * (g**2).sum(1))).max() / taps


# ---- the definition ----------------------------------------------------------------------------------------


def taps(x, pad, kernel):
    """x (N, C, H, W) as (N, C, OH, OW, K, K): the pixels under each tap, for each output."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2))
    return sliding_window_view(padded, (kernel, kernel), axis=(2, 3))


def definition(function, pad, x, weight, bias, grad_output):
    groups = groups_of(x, weight)
    weights, biases = np.split(weight.astype(np.float64), groups), np.split(bias, groups)
    images, gradients = (np.split(a.astype(np.float64), groups, axis=1) for a in (x, grad_output))
    parts = [
        of_group(function, pad, *group) for group in zip(images, weights, biases, gradients, strict=True)
    ]
    return np.concatenate(parts, axis=0 if function == "weight_grad" else 1)


def groups_of(x, weight):
    return x.shape[1] // max(weight.shape[1], 1) or 1


def of_group(function, pad, x, weight, bias, grad_output):
    kernel = weight.shape[2]
    if function == "forward":
        out = np.einsum("ncijuv,ocuv->noij", taps(x, pad, kernel), weight, optimize=True)
        return out + bias[:, None, None]
    if function == "weight_grad":
        return np.einsum("ncijuv,noij->ocuv", taps(x, pad, kernel), grad_output, optimize=True)
    (height, width), (rows, columns) = x.shape[2:], grad_output.shape[2:]
    grad = np.zeros((*x.shape[:2], height + 2 * pad[0], width + 2 * pad[1]))
    for u in range(kernel):
        for v in range(kernel):
            grad[:, :, u : u + rows, v : v + columns] += np.einsum(
                "noij,oc->ncij", grad_output, weight[:, :, u, v], optimize=True
            )
    return grad[:, :, pad[0] : pad[0] + height, pad[1] : pad[1] + width]


@lru_cache
def operands(n, channels, out_channels, size, pad, kernel=3, groups=1, seed=0):
    """x, weight, bias and grad_output, of unit variance; with so many channels in each group."""
    out_size = tuple(s + 2 * p - kernel + 1 for s, p in zip(size, pad, strict=True))
    shapes = (
        (n, groups * channels, *size),
        (groups * out_channels, channels, kernel, kernel),
        (groups * out_channels,),
        (n, groups * out_channels, *out_size),
    )
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    for array in arrays:
        array.flags.writeable = False
    return tuple(arrays)


def deviations(function, step, arrays):
    x, weight, _, grad_output = arrays
    tiles = x.shape[0] * -(-grad_output.shape[2] // step) * -(-grad_output.shape[3] // step)
    out_channels = weight.shape[0] // groups_of(x, weight)
    terms = {"forward": weight.shape[1], "input_grad": out_channels, "weight_grad": tiles}[function]
    return predicted_errors(step, weight.shape[2], max(terms, 1), function == "weight_grad")


def bound(function, step, arrays):
    """Six standard deviations: 2e-9 of normally distributed errors exceed them."""
    return 6 * deviations(function, step, arrays).max()
