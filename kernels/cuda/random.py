"""Launches ``random.cu``: uniform and normal numbers, and dropout, on a card or on the simulator.

Arrays are C-contiguous, of any shape, float32 or float64; for *dropout_block* also float16 or bfloat16.
The numbers depend on seed and offset (integers in [0, 2^64), or the same live pair) and on their place in
the array alone: ``minigrad.kernels.philox`` computes the same, bit for bit, but for the normal ones, where
each device rounds its own logarithm, sine and cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..launch import CudaKernel, blocks
from ..source import CudaSource
from .live import Live
from .vector import VECTOR_BYTES

THREADS = 256  # in a block
FOUR = 4  # elements for each thread of the block rungs, as in random.cu

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_uniform_naive = CudaKernel(_source, "fill_naive<T, UNIFORM>")
_uniform_block = CudaKernel(_source, "fill_block<T, UNIFORM>")
_normal_naive = CudaKernel(_source, "fill_naive<T, NORMAL>")
_normal_block = CudaKernel(_source, "fill_block<T, NORMAL>")
_dropout_naive = CudaKernel(_source, "dropout_naive<T>")
_dropout_block = CudaKernel(_source, "dropout_block<T>")


def uniform_naive(out: Any, seed: int, offset: int) -> None:
    """Uniform numbers in [0, 1), each by a thread of its own: the definition."""
    _uniform_naive.launch(blocks(out.size, THREADS), THREADS, (out, out.size, *_stream(seed, offset)))


def uniform_block(out: Any, seed: int, offset: int) -> None:
    """Uniform numbers in [0, 1), four by each thread: no random word is thrown away."""
    _uniform_block.launch(blocks(out.size, FOUR * THREADS), THREADS, (out, out.size, *_stream(seed, offset)))


def normal_naive(out: Any, seed: int, offset: int) -> None:
    """Normal numbers of mean 0 and variance 1, each by a thread of its own: the definition."""
    _normal_naive.launch(blocks(out.size, THREADS), THREADS, (out, out.size, *_stream(seed, offset)))


def normal_block(out: Any, seed: int, offset: int) -> None:
    """Normal numbers of mean 0 and variance 1, four by each thread: no random word is thrown away."""
    _normal_block.launch(blocks(out.size, FOUR * THREADS), THREADS, (out, out.size, *_stream(seed, offset)))


def dropout_naive(out: Any, x: Any, threshold: int, scale: float, seed: int, offset: int) -> None:
    """``x`` times ``scale``, or 0 where the element's random word is below ``threshold``: the definition."""
    arguments = (out, x, _size(out, x), threshold, scale, *_stream(seed, offset))
    _dropout_naive.launch(blocks(out.size, THREADS), THREADS, arguments)


def dropout_block(out: Any, x: Any, threshold: int, scale: float, seed: int, offset: int) -> None:
    """16 bytes for each thread, or four float64: no random word is thrown away."""
    arguments = (out, x, _size(out, x), threshold, scale, *_stream(seed, offset))
    elements = max(VECTOR_BYTES // out.itemsize, FOUR)
    _dropout_block.launch(blocks(out.size, elements * THREADS), THREADS, arguments)


def _stream(seed: Any, offset: Any) -> tuple[int, int, Any]:
    """The last arguments of the kernels; seed and offset may be the same :class:`Live`, a pair."""
    return (0, 0, seed.words) if isinstance(seed, Live) else (seed, offset, None)


def _size(out: Any, x: Any) -> int:
    if out.shape != x.shape:
        raise ValueError(f"dropout kernel: out has shape {out.shape}, x has {x.shape}")
    return out.size
