"""Launches ``conv2d.cu``: convolution and its two gradients by the definition, on a card or the simulator.

In this module and in the others of convolution, arrays are C-contiguous, all float32 or all float64: input
(N, C, H, W), weight (O, C/groups, KH, KW), output (N, O, OH, OW). ``options`` are seven ints: stride_h,
stride_w, pad_h, pad_w, dilation_h, dilation_w, groups. The size of the output is taken from the arrays.
Results have the same bits in every run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..arguments import unchanging
from ..launch import CudaKernel, blocks
from ..source import CudaSource

OPTIONS = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "groups")
THREADS = 256  # in a block; the .cu relies on it where it says so (WEIGHT_GRAD_THREADS)

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_forward = CudaKernel(_source, "conv2d_forward<T>")
_input_grad = CudaKernel(_source, "conv2d_input_grad<T>")
_weight_grad = CudaKernel(_source, "conv2d_weight_grad<T>")


def forward(out: Any, x: Any, weight: Any, bias: Any | None, *options: int, relu: bool = False) -> None:
    """Convolution by the definition: one thread for each element of ``out``. ``bias`` is (O,) or None."""
    shape = shape_fields(x, weight, out, options, bias)
    _forward.launch(blocks(out.size, THREADS), THREADS, (out, x, weight, bias, relu, shape))


def input_grad(out: Any, grad_output: Any, weight: Any, *options: int) -> None:
    """One thread for each element of ``out`` (N, C, H, W), which gathers the outputs it took part in."""
    shape = shape_fields(out, weight, grad_output, options)
    _input_grad.launch(blocks(out.size, THREADS), THREADS, (out, grad_output, weight, shape))


def weight_grad(out: Any, grad_output: Any, x: Any, *options: int) -> None:
    """One block for each element of ``out`` (O, C/groups, KH, KW); it adds over all outputs as a tree."""
    shape = shape_fields(x, out, grad_output, options)
    _weight_grad.launch(out.size, THREADS, (out, grad_output, x, shape))


def shape_fields(
    x: Any, weight: Any, output: Any, options: tuple[int, ...], bias: Any | None = None
) -> unchanging:
    """The fields of struct Conv2dShape, from the arrays; ValueError if they do not fit together."""
    return fields_of(x.shape, weight.shape, output.shape, options, None if bias is None else bias.shape)


@lru_cache(maxsize=1024)  # the same few convolutions come in every step of a training
def fields_of(
    x: tuple, weight: tuple, output: tuple, options: tuple[int, ...], bias: tuple | None = None
) -> unchanging:
    """The same, from the arrays' shapes."""
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups = options
    if not len(x) == len(weight) == len(output) == 4:
        raise ValueError("conv2d kernel: input, weight and output must have 4 dimensions")
    (N, C, H, W), (O, channels, KH, KW), (_, _, OH, OW) = x, weight, output  # noqa: E741
    if min(stride_h, stride_w, dilation_h, dilation_w, groups) < 1 or min(pad_h, pad_w) < 0:
        raise ValueError("conv2d kernel: stride, dilation and groups must be at least 1, and padding 0")
    if min(KH, KW, OH, OW) < 1:
        raise ValueError(
            f"conv2d kernel: kernel and output must have at least size 1, got {(KH, KW)} and {(OH, OW)}"
        )
    if output[:2] != (N, O) or channels * groups != C or O % groups:
        raise ValueError(
            f"conv2d kernel: input {x}, weight {weight}, output {output} and {groups} groups do not fit "
            "together"
        )
    if bias is not None and bias != (O,):
        raise ValueError(f"conv2d kernel: bias has shape {bias}, expected ({O},)")
    sizes = {"N": N, "C": C, "H": H, "W": W, "O": O, "OH": OH, "OW": OW, "KH": KH, "KW": KW}
    return unchanging(sizes | dict(zip(OPTIONS, options, strict=True)))


def largest_phase(shape: Mapping[str, int]) -> tuple[int, int, int]:
    """(how many phases the gradient for the input has, the pixels of the largest, its taps): a pixel's place
    within the stride says which taps reach it."""
    pixels, phases, apart = shape["N"], 1, tap_steps(shape)
    for size, stride in ((shape["H"], shape["stride_h"]), (shape["W"], shape["stride_w"])):
        phases *= min(stride, size)
        pixels *= blocks(size, stride)
    return phases, pixels, blocks(shape["KH"], apart["step_h"]) * blocks(shape["KW"], apart["step_w"])


def tap_steps(shape: Mapping[str, int]) -> unchanging:
    """The fields of struct TapSteps."""
    return _tap_steps(shape["stride_h"], shape["stride_w"], shape["dilation_h"], shape["dilation_w"])


@lru_cache(maxsize=256)
def _tap_steps(stride_h: int, stride_w: int, dilation_h: int, dilation_w: int) -> unchanging:
    steps = unchanging()
    for axis, stride, dilation in (("h", stride_h, dilation_h), ("w", stride_w, dilation_w)):
        common = math.gcd(stride, dilation)
        steps[f"step_{axis}"], steps[f"output_step_{axis}"] = stride // common, dilation // common
    return steps
