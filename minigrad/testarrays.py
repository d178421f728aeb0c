"""Arrays for tests: every memory layout, garbage around them, comparison to within rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.devices import Device
from minigrad.dtypes import is_floating
from minigrad.tensor import Tensor

# ---- values -----------------------------------------------------------------------------------------------


def tolerance(dtype: Any, length: int = 1) -> float:
    """The relative error that a sum of ``length`` terms may have in ``dtype``: 8 eps sqrt(length).

    Rounding errors are like a random walk of ``length`` steps of at most eps/2; the factor leaves room for a
    few more roundings for each term (a product, an exponential). The bound is relative to the magnitude of
    the terms, not to that of their sum, which may have cancelled.
    """
    return 8.0 * float(np.finfo(dtype).eps) * math.sqrt(max(length, 1))


def assert_close(
    actual: Any, expected: Any, length: int = 1, what: str = "result", magnitude: Any = None
) -> None:
    """Raise an AssertionError unless the array ``actual`` equals ``expected`` to within its dtype's rounding.

    Args:
        actual: the array or tensor under test; its dtype sets the tolerance, and integers must be equal.
        expected: what it should be, in float64.
        length: how many terms are summed for one element: see :func:`tolerance`.
        what: how the message calls the array.
        magnitude: how large the terms are that each element is the sum of; by default the root mean square
            of all that is expected.
    """
    actual, expected = to_numpy(actual), to_numpy(expected)
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: wrong shape\n  Expect {expected.shape}\n  Actual {actual.shape}")
    if actual.dtype.kind != expected.dtype.kind:
        raise AssertionError(f"{what}: wrong kind\n  Expect {expected.dtype}\n  Actual {actual.dtype}")
    if not is_floating(actual.dtype):
        _report(what, actual, expected, (actual != expected).astype(float), np.zeros(actual.shape))
        return
    finite = np.isfinite(expected)
    if magnitude is None:
        magnitude = np.sqrt(np.mean(expected[finite].astype(np.float64) ** 2)) if finite.any() else 0.0
    smallest = float(np.finfo(actual.dtype).smallest_subnormal)
    with np.errstate(all="ignore"):
        allowed = tolerance(actual.dtype, length) * (np.abs(expected) + magnitude) + smallest
        difference = np.abs(actual.astype(np.float64) - expected)
        # In the smaller dtype a finite value may overflow; otherwise NaN and infinities are where they were.
        special = ~finite | ~np.isfinite(expected.astype(actual.dtype))
    same = (actual == expected.astype(actual.dtype)) | (np.isnan(actual) & np.isnan(expected))
    difference = np.where(special, np.where(same, 0.0, np.inf), difference)
    difference = np.where(np.isnan(difference), np.inf, difference)
    _report(what, actual, expected, difference, np.where(special, 0.0, allowed))


def _report(
    what: str, actual: np.ndarray, expected: np.ndarray, difference: np.ndarray, allowed: np.ndarray
) -> None:
    wrong = difference > allowed
    if not wrong.any():
        return
    with np.errstate(all="ignore"):
        severity = np.where(wrong, difference / np.maximum(allowed, 1e-300), -1.0)
    worst = tuple(int(k) for k in np.unravel_index(np.argmax(severity), wrong.shape))
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.size} elements differ; the worst is {worst}\n"
        f"  Expect {expected[worst]!r}\n"
        f"  Actual {actual[worst]!r}\n"
        f"  difference {difference[worst]:.3g}, allowed {allowed[worst]:.3g}"
    )


def assert_same_bits(a: np.ndarray, b: np.ndarray, what: str) -> None:
    """Raise an AssertionError with the message ``what`` unless both arrays are the same, bit for bit."""
    if a.shape != b.shape or a.dtype != b.dtype or a.tobytes() != b.tobytes():
        raise AssertionError(what)


# ---- memory layouts -------------------------------------------------------------------------------------

GUARD = 520
"""Bytes before and after an array under test; no multiple of 16, so that it is aligned to 8 and no more."""


def guarded(xp: Any, like: Any, garbage: int) -> tuple:
    """(memory as bytes, a C-contiguous array of ``like``'s shape and dtype in its midst)."""
    memory = xp.full(like.nbytes + 2 * GUARD, garbage, np.uint8)
    return memory, memory[GUARD : GUARD + like.nbytes].view(like.dtype).reshape(like.shape)


def in_garbage(xp: Any, array: Any) -> Any:
    """A copy of ``array`` with garbage (NaN, for floats) right before and after it in memory."""
    _, view = guarded(xp, array, 0xFF)
    view[...] = array
    return view


def _transposed(xp: Any, array: Any) -> Any:
    return in_garbage(xp, array.T).T


def _sliced(xp: Any, array: Any) -> Any:
    """Every second element of a larger array, the others garbage."""
    _, pairs = guarded(xp, xp.empty((*array.shape, 2), array.dtype), 0xFF)
    view = pairs[..., 1]
    view[...] = array
    return view


def _reversed(xp: Any, array: Any) -> Any:
    everywhere = (..., *(slice(None, None, -1),) * array.ndim)
    return in_garbage(xp, array[everywhere])[everywhere]


def _repeated(xp: Any, array: Any) -> Any:
    """The first row of ``array`` again and again, with stride 0; read-only."""
    return array if 0 in array.shape or array.ndim == 0 else xp.broadcast_to(array[:1], array.shape)


_MAKERS = {
    "contiguous": in_garbage,
    "transposed": _transposed,
    "sliced": _sliced,
    "negative stride": _reversed,
    "stride 0": _repeated,
}
LAYOUTS = tuple(_MAKERS)
"""The memory layouts that :func:`check_op` tries."""


def tensor_in_layout(array: np.ndarray, device: Device, layout: str) -> Tensor:
    """A tensor on ``device`` with ``array``'s values and one of the ``LAYOUTS``."""
    with device.active():
        return wrap(_MAKERS[layout](device.xp, device.xp.asarray(array)), device)


def like(array: Any, other: Tensor, requires_grad: bool = False, layout: str = "contiguous") -> Tensor:
    """``array`` as a tensor of ``other``'s dtype, on its device."""
    made = tensor_in_layout(np.asarray(array, other.dtype), other.device, layout)
    return made.requires_grad_() if requires_grad else made


def to_numpy(value: Any) -> np.ndarray:
    """A tensor (also one that requires a gradient) or anything like an array as a NumPy array."""
    if isinstance(value, Tensor):
        return value.device.to_numpy(value.detach()._array)
    return np.asarray(value)
