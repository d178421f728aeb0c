"""Sums of gradients, for :mod:`minigrad.autograd`: in place where nobody else uses the memory."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from minigrad.devices import find_card
from minigrad.gradient_parts import PartedGradient
from minigrad.graph import LARGE, Variable, as_variable, mark_written
from minigrad.kernels.arguments import is_contiguous
from minigrad.kernels.channels_last import copied, is_channels_last, nhwc
from minigrad.kernels.cpu import elementwise, memory
from minigrad.kernels.cpu.small import total
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import get_op

__all__ = ["accumulate", "add_to", "is_owned"]

_KERNEL_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def _references(slot: list, index: int) -> int:
    """The reference count of ``slot[index]``: ``_HELD_BY_SLOT`` if the slot alone refers to it."""
    return sys.getrefcount(slot[index])


def _base_references(array: Any) -> int:
    """The reference count of the array that ``array`` is a view of; the caller holds one reference, too."""
    return sys.getrefcount(array.base)


def _references_to_base_of_view() -> int:
    array = np.empty(2).reshape(1, 2)
    whole = array.base  # noqa: F841
    return _base_references(array)


_HELD_BY_SLOT = _references([object()], 0)
_HELD_BY_VIEW = _references_to_base_of_view()


def is_owned(slot: list, index: int, last: bool = False) -> bool:
    """Whether ``slot[index]`` is an array that may be changed in place, since nobody else uses its memory.

    It must be writable, and C-contiguous, or with ``last`` channels last. It may be a reshaped view of an
    array that nothing else refers to.
    """
    if _references(slot, index) != _HELD_BY_SLOT:
        return False
    array = slot[index]
    if isinstance(array, np.generic):  # NumPy's sums of all elements
        return False
    if not is_contiguous(nhwc(array) if last else array):
        return False
    if isinstance(array, np.ndarray) and not array.flags.writeable:  # CuPy's all are
        return False
    whole = array.base  # None, or what a reshaped array is a view of
    return whole is None or (
        type(whole) is type(array)
        and whole.base is None
        and whole.size == array.size
        and _base_references(array) == _HELD_BY_VIEW
    )


def _suits_kernels(array: Any) -> bool:
    """Whether the CPU's elementwise kernels take the array, and are faster than NumPy for its size."""
    return (
        type(array) is np.ndarray
        and array.size >= LARGE
        and array.dtype in _KERNEL_DTYPES
        and array.flags.aligned
    )


def add_to(slot: list, index: int, grad: Any) -> None:
    """Add ``grad``, a tensor or an array, to ``slot[index]``, the gradient that came before it."""
    if type(slot[index]) is PartedGradient:
        slot[index] = slot[index].whole()
    if _suits_kernels(grad) and _suits_kernels(slot[index]):
        owned = is_owned(slot, index)
        sent = slot[index]
        slot[index] = sent if owned else memory.empty(grad.shape, grad.dtype)
        elementwise.add(slot[index], sent, grad, get_num_threads())
    elif not isinstance(grad, (np.ndarray, np.generic, Variable)):
        # A CuPy array. CuPy's own addition takes longer to launch than our kernel, is slower for 16-bit
        # floats, and does not keep images channels last.
        card = find_card(grad.data.device_id)
        slot[index] = get_op("add")._compute(card, grad.dtype, [slot[index], grad], {})
    else:
        slot[index] = total(slot[index], grad)


def accumulate(slot: list, create_graph: bool) -> None:
    """Add the gradient to the leaf's ``grad``; ``slot`` is [the gradient, the leaf]."""
    # The array becomes the leaf's own only if the slot alone refers to it. Otherwise two gradients, or a
    # gradient and a saved value, would share memory.
    owned = not create_graph and is_owned(slot, 0, is_channels_last(slot[1]._array))
    grad, leaf = slot
    if create_graph:
        leaf.grad = grad.clone() if leaf.grad is None else leaf.grad + grad
    elif leaf.grad is None:
        leaf.grad = as_variable(grad if owned else _copy(grad, leaf._array), leaf.device)
    else:
        before = leaf.grad._array
        if (
            _suits_kernels(before)
            and before.flags.carray
            and (before.shape, before.dtype) == (grad.shape, grad.dtype)
        ):
            elementwise.add(before, before, grad, get_num_threads())
        else:
            before += grad
        mark_written(leaf.grad)


def _copy(array: Any, like: Any) -> Any:
    """A copy in C order, or where ``like`` lies channels last, in that one."""
    if not _suits_kernels(array) or is_channels_last(like):
        return copied(array, like)
    out = memory.empty(array.shape, array.dtype)
    elementwise.copy(out, array, get_num_threads())
    return out
