"""Launches ``conv2d_parts.cu``, and says into how many parts the sums of a convolution are cut.

Parts are float32, in arrays that lie as the result does, one after the other.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..channels_last import is_channels_last
from ..launch import CudaKernel, blocks, strided
from ..source import CudaSource
from .matmul_tensor_core import ELEMENTS, element_of
from .split_k import add_up

THREADS = 256
PART_THREADS, OWN = 8, 8  # as in conv2d_parts.cu
LONGEST_PART = 1 << 30  # kernels count on in 32 bits
ENOUGH_BLOCKS = 1024  # as many as an H200 holds at a time, about: 132 multiprocessors x 8 blocks

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_add_taps = {element: CudaKernel(_source, f"conv2d_add_taps<{element}>") for element in ELEMENTS}
_add_few_taps = {element: CudaKernel(_source, f"conv2d_add_few_taps<{element}>") for element in ELEMENTS}


@lru_cache(maxsize=1024)
def cut_into_parts(length: int, tiles: int, at_a_time: int, shortest: int, step: int = 1) -> tuple[int, int]:
    """Into how many parts to cut sums of ``length``, and the length of one, a multiple of ``step``.

    As many as make no more blocks of ``tiles`` than a card has ``at_a_time``, but none below ``shortest``.
    """
    wanted = max(min(at_a_time // max(tiles, 1), length // shortest), blocks(length, LONGEST_PART), 1)
    part = max(blocks(blocks(length, wanted), step), 1) * step
    return max(blocks(length, part), 1), part


def add_results(out: Any, partial: Any, bias: Any = None, relu: bool = False) -> None:
    """out (N, C, H, W) = the sum of the parts, plus the bias of its channel, and through ReLU if so."""
    _, channels, height, width = out.shape
    plane = 1 if is_channels_last(out) else height * width
    add_up(out, partial, bias, relu, channels, plane)


def add_taps(out: Any, partial: Any) -> None:
    """out (O, C/groups, KH, KW) = the sum over the parts of ``partial`` (parts, KH KW O C/groups)."""
    taps, run = out.shape[2] * out.shape[3], out.shape[1] if is_channels_last(out) else 1
    arguments = (strided(out), partial, out.size // taps, taps, len(partial), run)
    if len(partial) < PART_THREADS:
        _add_few_taps[element_of(out)].launch(blocks(out.size, THREADS * OWN), THREADS, arguments)
    else:
        _add_taps[element_of(out)].launch(blocks(out.size, 32), (32, PART_THREADS), arguments)
