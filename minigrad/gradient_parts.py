"""The gradient of a tensor that was used in parts, such as the pieces that ``split`` returns.

The gradient that comes from one part is zero outside of it. To make such an array for each part and to add
them up would pass over the whole tensor's memory twice for every part; here each part is written to its place
in one array.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.devices import Device

__all__ = ["Part", "PartedGradient"]

Part = tuple[int, int, int]
"""(axis, start, stop): the elements from ``start`` to before ``stop`` along one axis."""


class PartedGradient:
    """One array, to which each part's gradient is written; what no part has written is set to 0 in the end.

    Args:
        shape, dtype, device: of the tensor.
        axis: along which the parts lie.
    """

    __slots__ = ("_array", "_axis", "_gaps")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, device: Device, axis: int):
        self._array = device.empty(shape, dtype)
        self._axis = axis
        self._gaps = [(0, shape[axis])]  # what no part wrote yet

    def write(self, part: Part, grad: Any) -> bool:
        """Write the gradient of ``part``; False, and nothing done, if some of it was written before."""
        axis, start, stop = part
        if axis != self._axis:
            return False
        for i, (first, last) in enumerate(self._gaps):
            if first <= start and stop <= last:
                target = self._between(start, stop)
                target[...] = grad if grad.ndim == target.ndim else grad.reshape(target.shape)
                self._gaps[i : i + 1] = [(a, b) for a, b in ((first, start), (stop, last)) if a < b]
                return True
        return False

    def whole(self) -> Any:
        """The array, with zeros where there was no part."""
        for start, stop in self._gaps:
            self._between(start, stop)[...] = 0
        self._gaps.clear()
        return self._array

    def _between(self, start: int, stop: int) -> Any:
        return self._array[(slice(None),) * self._axis + (slice(start, stop),)]
