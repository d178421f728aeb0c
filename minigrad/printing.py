"""How tensors print: PyTorch's ``set_printoptions``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.dtypes import is_half

__all__ = ["format_array", "set_printoptions"]

_DEFAULT: dict[str, Any] = {
    "precision": 4,
    "threshold": 200,
    "edgeitems": 3,
    "linewidth": 75,
    "sci_mode": None,
}
_PROFILES = {
    "default": _DEFAULT,
    "short": {**_DEFAULT, "precision": 2, "edgeitems": 2},
    "full": {**_DEFAULT, "threshold": math.inf},
}
_options = dict(_DEFAULT)


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors print.

    Args:
        precision: digits behind the point, 4 at first.
        threshold: from more elements on, only the outer ones are shown; 200 at first.
        edgeitems: how many of these at each end of a dimension, 3 at first.
        linewidth: characters of a line, 75 at first.
        profile: ``"default"``, ``"short"`` or ``"full"``: what is not given here.
        sci_mode: whether numbers have exponents; None, at first: where they differ by much.
    """
    if profile is not None:
        if profile not in _PROFILES:
            raise ValueError(f"set_printoptions: profile is one of {', '.join(_PROFILES)}, got {profile!r}")
        _options.update(_PROFILES[profile])
    given = {"precision": precision, "threshold": threshold, "edgeitems": edgeitems, "linewidth": linewidth}
    _options.update({name: value for name, value in given.items() if value is not None})
    _options["sci_mode"] = sci_mode


def format_array(array: np.ndarray, prefix: str) -> str:
    """The elements as text; further lines are indented as far as ``prefix`` reaches."""
    shown = array.astype(np.float32) if is_half(array.dtype) else array
    if shown.size == 0:
        return "[]" if shown.ndim == 1 else f"[], size={shown.shape}"
    return np.array2string(
        shown,
        separator=", ",
        prefix=prefix,
        threshold=min(_options["threshold"], 2**31),
        edgeitems=_options["edgeitems"],
        max_line_width=_options["linewidth"],
        formatter={"float_kind": _float_format(_outer(shown))},
    )


def _outer(array: np.ndarray) -> np.ndarray:
    """The elements that are shown of a long array."""
    edge = _options["edgeitems"]
    if array.size > _options["threshold"]:
        for axis, size in enumerate(array.shape):
            if size > 2 * edge:
                array = array.take([*range(edge), *range(size - edge, size)], axis)
    return array


def _float_format(array: np.ndarray) -> Callable[[Any], str]:
    """How each element is written, so that all are as wide: PyTorch's rules.

    Whole numbers end in a point. There are exponents where the largest is above 1e8 or 1000 times the
    smallest, or, of numbers not all whole, the smallest below 1e-4; 0, infinities and NaN do not count.
    """
    precision, sci_mode = _options["precision"], _options["sci_mode"]
    sizes = np.abs(array[np.isfinite(array) & (array != 0)]).astype(np.float64)
    whole = bool((sizes == np.ceil(sizes)).all())
    if sci_mode is None and sizes.size:
        low, high = sizes.min(), sizes.max()
        sci_mode = high > 1e8 or high / low > 1000 or (low < 1e-4 and not whole)
    places = f".{precision}e" if sci_mode else ".0f" if whole else f".{precision}f"

    def written(x: Any) -> str:
        return f"{x:{places}}" + "." * bool(whole and not sci_mode and np.isfinite(x))

    width = max(len(written(x)) for x in array.reshape(-1)) if array.ndim else 0
    return lambda x: written(x).rjust(width)
