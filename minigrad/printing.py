"""How tensors print: PyTorch's ``set_printoptions``."""

from __future__ import annotations

import math
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
    precision, sci_mode = _options["precision"], _options["sci_mode"]
    formatter: Any = {"float_kind": lambda x: f"{x:.{precision}e}"} if sci_mode else None
    return np.array2string(
        shown,
        separator=", ",
        prefix=prefix,
        precision=precision,
        threshold=min(_options["threshold"], 2**31),
        edgeitems=_options["edgeitems"],
        max_line_width=_options["linewidth"],
        suppress_small=sci_mode is False,
        formatter=formatter,
    )
