"""Launches ``optim_many.cu``: one step of an optimizer for many parameters, on a card or on the simulator.

Each argument that is a list has an entry for each parameter. All arrays are of one dtype, float32 or float64,
in a step also float16 or bfloat16, on one device, C-contiguous, and as large as their parameter: see
:func:`fits`. There is one launch for 64 parameters, and for those that are at the same step.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import launch
from ..arguments import address, is_contiguous
from ..launch import CudaKernel, blocks
from ..source import CudaSource
from . import workspace
from .live import Live
from .optim import adam_arguments, number_and_words
from .reduce import ENOUGH_BLOCKS, part_of
from .vector import VECTOR_BYTES

THREADS = 256  # as in optim.cuh
CAPACITY = 64  # parameters of a launch, as in optim_many.cu
COLUMNS = ("param", "grad", "state", "other_state")  # of the table, in the order of the arguments

_source = CudaSource(Path(__file__).with_suffix(".cu"))
_sgd = CudaKernel(_source, "sgd_steps<T>")
_momentum = CudaKernel(_source, "momentum_steps<T>")
_adam = CudaKernel(_source, "adam_steps<T>")
_squares = CudaKernel(_source, "squares_of_gradients<T>")
_clip = CudaKernel(_source, "clip_gradients<T>")


def fits(params: Sequence, *columns: Sequence) -> bool:
    """Whether a launch can change the ``params``, all on one device: they, and what lies beside each (it may
    be None), are contiguous and of one dtype, and each beside a parameter is as large as it."""
    dtype = params[0].dtype
    for column in (params, *columns):
        for param, array in zip(params, column, strict=True):
            if array is None:
                continue
            if array.dtype != dtype or array.size != param.size or not is_contiguous(array):
                return False
    return True


def sgd_step(
    params: Sequence,
    grads: Sequence,
    momentum_buffers: Sequence,
    first_step: Sequence[bool],
    lr: float | Live,
    momentum: float | Live,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Stochastic gradient descent; the arguments are those of ``optim.sgd_step``."""
    (lr_now, live), (momentum_now, live_momentum) = number_and_words(lr), number_and_words(momentum)
    if momentum_buffers[0] is None:
        _launch(_sgd, (params, grads), lr_now, weight_decay, live)
        return
    for is_first, *rows in _alike(first_step, params, grads, momentum_buffers):
        if is_first:
            for velocity in rows[-1]:
                velocity.fill(0)
        new_share = 1 if is_first else 1 - dampening
        factors = lr_now, momentum_now, new_share, weight_decay, bool(nesterov), live, live_momentum
        _launch(_momentum, rows, *factors)


def adam_step(
    params: Sequence,
    grads: Sequence,
    exp_avgs: Sequence,
    exp_avg_sqs: Sequence,
    step: Sequence[int | Live],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Adam, or AdamW if ``decoupled``; the arguments are those of ``optim.adam_step``."""
    for number, *rows in _alike(step, params, grads, exp_avgs, exp_avg_sqs):
        _launch(_adam, rows, *adam_arguments(lr, beta1, beta2, eps, weight_decay, decoupled, number))


def _alike(numbers: Sequence, *columns: Sequence) -> Iterator[tuple]:
    """(number, *columns) with the rows that have this number."""
    if all(number == numbers[0] for number in numbers):
        yield numbers[0], *columns
        return
    rows = defaultdict(list)
    for number, *row in zip(numbers, *columns, strict=True):
        rows[number].append(row)
    for number, those in rows.items():
        yield number, *zip(*those, strict=True)


def squares(grads: Sequence) -> Any:
    """A new array of partial sums, whose sum is that of the squares of all elements of ``grads``.

    However many elements there are, the sums are few.
    """
    length = _length(grads)
    partial = workspace(grads[0], sum(blocks(grad.size, length) for grad in grads))
    start = 0
    for table, total, part in _tables((("grad", grads),), length):
        _launch_with_table(_squares, total, part, partial[start : start + total], table, length)
        start += total
    return partial


def clip(grads: Sequence, partial: Any, max_norm: float) -> Any:
    """Scale all ``grads`` so that their norm, the root of the sum of ``partial``, is at most ``max_norm``.

    Returns:
        The norm as it was, a new array of no dimensions.
    """
    norm, length = workspace(grads[0], ()), _length(grads)
    for table, total, part in _tables((("grad", grads),), length):
        _launch_with_table(_clip, total, part, norm, partial, table, length, partial.size, max_norm)
    return norm


def _length(grads: Sequence) -> int:
    """How many elements of a gradient a block has, where all are walked by few blocks."""
    return part_of(sum(grad.size for grad in grads), ENOUGH_BLOCKS, _per_block(grads[0]))


def _launch(kernel: CudaKernel, columns: Sequence[Sequence], *factors: Any) -> None:
    tables = _tables(tuple(zip(COLUMNS, columns, strict=False)), _per_block(columns[0][0]))
    for table, total, part in tables:
        _launch_with_table(kernel, total, part, part[0], table, *factors)


def _tables(columns: tuple, per_block: int) -> Iterator[tuple[dict, int, list]]:
    """For each launch: the table of its ``columns``, (name, arrays) each; its blocks, of ``per_block``
    elements each; and all its arrays."""
    for start in range(0, len(columns[0][1]), CAPACITY):
        parts = {name: arrays[start : start + CAPACITY] for name, arrays in columns}
        sizes = tuple([array.size for array in next(iter(parts.values()))])
        layout, total = _layout(sizes, per_block)
        addresses = {name: _padded([address(array) for array in parts.get(name, ())]) for name in COLUMNS}
        yield addresses | layout, total, [array for part in parts.values() for array in part]


@lru_cache(maxsize=256)  # the sizes are the same in every step of a training
def _layout(sizes: tuple[int, ...], per_block: int) -> tuple[dict, int]:
    """The fields of the table that follow from the sizes of its arrays; and its blocks."""
    total, before = 0, []
    for size in sizes:
        before.append(total)
        total += blocks(size, per_block)
    return {"size": _padded(sizes), "blocks_before": _padded(before), "count": len(sizes)}, total


def _launch_with_table(kernel: CudaKernel, total: int, arrays: list, *arguments: Any) -> None:
    if launch.keep is not None:
        launch.keep(arrays)
    with _reading_addresses(arrays[0]):
        kernel.launch(total, THREADS, arguments)


def _per_block(array: Any) -> int:
    """How many elements a block has that gives each of its threads a vector."""
    return THREADS * (VECTOR_BYTES // array.itemsize)


def _padded(numbers: Sequence[int]) -> list[int]:
    return [*numbers, *[0] * (CAPACITY - len(numbers))]


def _reading_addresses(param: Any) -> contextlib.AbstractContextManager:
    """The simulator's checks know only of arrays that are arguments, not of addresses in a table."""
    if not isinstance(param, np.ndarray):
        return contextlib.nullcontext()
    from .. import sim

    return sim.checks(False)
