"""Arrays for tests: every memory layout, garbage around them, comparison to within rounding."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minigrad.autograd import wrap
from minigrad.devices import Device
from minigrad.dtypes import finfo, is_floating
from minigrad.kernels.channels_last import nchw
from minigrad.tensor import Tensor

# ---- values -----------------------------------------------------------------------------------------------


def tolerance(dtype: Any, length: int = 1) -> float:
    """The relative error that a sum of ``length`` terms may have in ``dtype``: 8 eps sqrt(length).

    Rounding errors are like a random walk of ``length`` steps of at most eps/2; the factor leaves room for a
    few more roundings for each term (a product, an exponential). The bound is relative to the magnitude of
    the terms, not to that of their sum, which may have cancelled.
    """
    return 8.0 * float(finfo(dtype).eps) * math.sqrt(max(length, 1))


class Errors(NamedTuple):
    """By how much an array differs from what it should be; all three have its shape.

    Attributes:
        difference: the distance of each element, infinite where NaN or infinities are not where they should.
        allowed: what rounding explains of it.
        share: the difference over what is allowed: up to 1 is right.
    """

    difference: np.ndarray
    allowed: np.ndarray
    share: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        return self.difference > self.allowed

    @property
    def worst(self) -> tuple[int, ...]:
        return tuple(int(k) for k in np.unravel_index(np.argmax(self.share), self.share.shape))


def errors_of(actual: np.ndarray, expected: np.ndarray, length: int = 1, magnitude: Any = None) -> Errors:
    """How far ``actual`` is from ``expected``, an array of its shape; see :func:`assert_close`."""
    if not is_floating(actual.dtype):
        different = np.where(actual != expected, np.inf, 0.0)
        return Errors(different, np.zeros(actual.shape), different)
    finite = np.isfinite(expected)
    if magnitude is None:
        magnitude = np.sqrt(np.mean(expected[finite].astype(np.float64) ** 2)) if finite.any() else 0.0
    smallest = float(finfo(actual.dtype).smallest_subnormal)
    with np.errstate(all="ignore"):
        allowed = tolerance(actual.dtype, length) * (np.abs(expected) + magnitude) + length * smallest
        difference = np.abs(actual.astype(np.float64) - expected)
        # In the smaller dtype a finite value may overflow; otherwise NaN and infinities are where they were.
        rounded = expected.astype(actual.dtype)
        special = ~finite | ~np.isfinite(rounded)
        same = (actual == rounded) | (np.isnan(actual) & np.isnan(expected))
        difference = np.where(special, np.where(same, 0.0, np.inf), difference)
        difference = np.where(np.isnan(difference), np.inf, difference)
        allowed = np.where(special, 0.0, allowed)
        share = np.where(difference > 0, difference / np.maximum(allowed, 1e-300), 0.0)
    return Errors(difference, allowed, share)


def check_type(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Raise an AssertionError unless ``actual`` has the shape and the kind of dtype of ``expected``."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: wrong shape\n  Expect {expected.shape}\n  Actual {actual.shape}")
    floating = is_floating(actual.dtype) and is_floating(expected.dtype)
    if actual.dtype.kind != expected.dtype.kind and not floating:
        raise AssertionError(f"{what}: wrong kind\n  Expect {expected.dtype}\n  Actual {actual.dtype}")


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
    check_type(actual, expected, what)
    errors = errors_of(actual, expected, length, magnitude)
    if errors.wrong.any():
        raise AssertionError(describe_errors(what, actual, expected, errors))


def describe_errors(what: str, actual: np.ndarray, expected: np.ndarray, errors: Errors) -> str:
    """The message of :func:`assert_close`: how many elements differ, and the worst of them."""
    worst = errors.worst
    return (
        f"{what}: {int(errors.wrong.sum())} of {actual.size} elements differ; the worst is {worst}\n"
        f"  Expect {expected[worst]!r}\n"
        f"  Actual {actual[worst]!r}\n"
        f"  difference {errors.difference[worst]:.3g}, allowed {errors.allowed[worst]:.3g}"
    )


def assert_same_bits(a: np.ndarray, b: np.ndarray, what: str) -> None:
    """Raise an AssertionError with the message ``what`` unless both arrays are the same, bit for bit."""
    if a.shape != b.shape or a.dtype != b.dtype or a.tobytes() != b.tobytes():
        raise AssertionError(what)


# ---- memory layouts -------------------------------------------------------------------------------------

GUARD = 520
"""Bytes before and after an array under test; no multiple of 16, so that it is aligned to 8 and no more."""

NAN, HUGE, LOW = 0xFF, 0x7E, 0xFE
"""Garbage, a byte that is repeated: as a float NaN, a huge number, a huge negative one."""


def guarded(xp: Any, shape: tuple, dtype: Any, garbage: int) -> tuple:
    """(memory as bytes, a C-contiguous array of ``shape`` and ``dtype`` in its midst), all ``garbage``."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = xp.full(nbytes + 2 * GUARD, garbage, np.uint8)
    return memory, memory[GUARD : GUARD + nbytes].view(dtype).reshape(shape)


# For each layout: (memory as bytes, the array to write the values into, the array in this layout).


def _contiguous(xp: Any, shape: tuple, dtype: Any) -> tuple:
    memory, array = guarded(xp, shape, dtype, NAN)
    return memory, array, array


def _transposed(xp: Any, shape: tuple, dtype: Any) -> tuple:
    memory, array = guarded(xp, shape[::-1], dtype, NAN)
    return memory, array.T, array.T


def _sliced(xp: Any, shape: tuple, dtype: Any) -> tuple:
    """Every second element of a larger array, the others garbage."""
    memory, pairs = guarded(xp, (*shape, 2), dtype, NAN)
    return memory, pairs[..., 1], pairs[..., 1]


def _reversed(xp: Any, shape: tuple, dtype: Any) -> tuple:
    memory, array = guarded(xp, shape, dtype, NAN)
    backwards = array[(..., *(slice(None, None, -1),) * len(shape))]
    return memory, backwards, backwards


def _repeated(xp: Any, shape: tuple, dtype: Any) -> tuple:
    """The first row again and again, with stride 0; read-only."""
    if 0 in shape or not shape:
        return _contiguous(xp, shape, dtype)
    memory, row = guarded(xp, (1, *shape[1:]), dtype, NAN)
    return memory, row, xp.broadcast_to(row, shape)


def _channels_last(xp: Any, shape: tuple, dtype: Any) -> tuple:
    """Images (N, C, H, W) as (N, H, W, C); what is none in C order."""
    if len(shape) != 4:
        return _contiguous(xp, shape, dtype)
    n, c, h, w = shape
    memory, array = guarded(xp, (n, h, w, c), dtype, NAN)
    return memory, nchw(array), nchw(array)


_MAKERS = {
    "contiguous": _contiguous,
    "transposed": _transposed,
    "sliced": _sliced,
    "negative stride": _reversed,
    "stride 0": _repeated,
    "channels last": _channels_last,
}
LAYOUTS = tuple(_MAKERS)
"""The memory layouts that :func:`check_op` tries."""


class PlacedArray:
    """A tensor in one of the ``LAYOUTS`` with garbage around it, whose memory can be filled anew.

    Attributes:
        tensor: what an op is given. It stays the same object, at the same address, when it is filled.
    """

    def __init__(self, values: np.ndarray, device: Device, layout: str):
        self.device = device
        with device.active():
            self._memory, self._target, view = _MAKERS[layout](device.xp, values.shape, values.dtype)
            self.tensor = wrap(view, device)
        self.fill(values)

    def fill(self, values: np.ndarray, garbage: int = NAN) -> None:
        """Put ``values`` in place, ``garbage`` around them (around integers, which may be indices, -1)."""
        first_rows = values[tuple(map(slice, self._target.shape))]
        with self.device.active():
            self._memory[...] = garbage if is_floating(values.dtype) else NAN
            self._target[...] = self.device.xp.asarray(first_rows)
        self._before = self._bytes()

    def is_unchanged(self) -> bool:
        """Whether the memory, with what lies around the array, is as :meth:`fill` left it."""
        return self._bytes() == self._before

    def _bytes(self) -> bytes:
        return self.device.to_numpy(self._memory).tobytes()


def as_laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """The values that an array in this layout shows: with a stride of 0, the first row again and again."""
    repeats = layout == "stride 0" and 0 not in values.shape and values.ndim > 0
    return np.broadcast_to(values[:1], values.shape).copy() if repeats else values


def tensor_in_layout(array: np.ndarray, device: Device, layout: str) -> Tensor:
    """A tensor on ``device`` with ``array``'s values and one of the ``LAYOUTS``."""
    return PlacedArray(array, device, layout).tensor


def like(array: Any, other: Tensor, requires_grad: bool = False, layout: str = "contiguous") -> Tensor:
    """``array`` as a tensor of ``other``'s dtype, on its device."""
    made = tensor_in_layout(np.asarray(array, other.dtype), other.device, layout)
    return made.requires_grad_() if requires_grad else made


def to_numpy(value: Any) -> np.ndarray:
    """A tensor (also one that requires a gradient) or anything like an array as a NumPy array."""
    if isinstance(value, Tensor):
        return value.device.to_numpy(value.detach()._array)
    return np.asarray(value)
