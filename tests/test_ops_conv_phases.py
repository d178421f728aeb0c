"""Winograd's algorithm on dilated convolutions, whose pixels fall into phases that do not meet each other."""

from contextlib import ExitStack

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F
from minigrad.dispatch import kernel_table
from minigrad.kernels.cpu.threads import num_threads

CASES = [  # input, outputs, kernel, padding, dilation, groups
    ((2, 9, 12, 8), 7, 3, (2, 2), (2, 2), 1),
    ((1, 6, 10, 9), 8, 3, (4, 0), (2, 1), 2),
    ((3, 5, 7, 12), 34, 3, (1, 3), (1, 3), 1),
    ((2, 4, 12, 15), 3, 5, (6, 0), (2, 3), 1),
    ((1, 40, 8, 8), 17, 3, (2, 4), (2, 4), 1),
    ((2, 6, 6, 6), 6, 3, (4, 2), (2, 2), 1),
]


def output_and_gradients(arrays, padding, dilation, groups, dtype):
    x, weight, bias, g = (mg.tensor(array.astype(dtype), requires_grad=True) for array in arrays)
    out = F.conv2d(x, weight, bias, 1, padding, dilation, groups)
    out.backward(g.detach())
    return out.detach(), x.grad, weight.grad


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("shape, outputs, kernel, padding, dilation, groups", CASES, ids=str)
def test_phases_against_float64(rng, shape, outputs, kernel, padding, dilation, groups, threads):
    size = [n + 2 * p - d * (kernel - 1) for n, p, d in zip(shape[2:], padding, dilation, strict=True)]
    arrays = [
        rng.standard_normal(s)
        for s in (shape, (outputs, shape[1] // groups, kernel, kernel), outputs, (shape[0], outputs, *size))
    ]
    options = padding, dilation, groups
    exact = output_and_gradients(arrays, *options, np.float64)
    with num_threads(threads), ExitStack() as stack:
        for op in ("conv2d", "conv2d_input_grad", "conv2d_weight_grad"):
            stack.enter_context(mg.use_kernel(op, "winograd"))
        found = output_and_gradients(arrays, *options, np.float32)
    for ours, wanted in zip(found, exact, strict=True):
        error = np.linalg.norm(ours.numpy() - wanted.numpy()) / np.linalg.norm(wanted.numpy())
        assert 1e-9 < error < 3e-6  # above zero: the kernel of float32 is another one


def chosen(shape, padding=2, dilation=2):
    x, weight = np.empty(shape, np.float32), np.empty((shape[1], shape[1], 3, 3), np.float32)
    options = {"padding": (padding,) * 2, "dilation": (dilation,) * 2, "stride": (1, 1), "groups": 1}
    return kernel_table("conv2d").choose("cpu", x.dtype, (x, weight, None), options).name


def test_when_phases_are_taken():
    assert chosen((8, 64, 28, 28)) == "winograd"
    assert chosen((8, 64, 27, 27)) == "implicit_gemm"
    assert chosen((8, 64, 28, 28), padding=1) == "implicit_gemm"
    assert chosen((8, 16, 28, 28)) == "implicit_gemm"
    with mg.convolution_precision("highest"):
        assert chosen((8, 64, 28, 28)) == "implicit_gemm"
