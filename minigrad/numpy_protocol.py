"""How NumPy's functions take tensors, as in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.graph import Variable

__all__ = ["NumpyProtocol"]

_REFLECTED = {
    np.add: "__radd__",
    np.subtract: "__rsub__",
    np.multiply: "__rmul__",
    np.divide: "__rtruediv__",
    np.floor_divide: "__rfloordiv__",
    np.remainder: "__rmod__",
    np.power: "__rpow__",
    np.matmul: "__rmatmul__",
    np.bitwise_and: "__rand__",
    np.bitwise_or: "__ror__",
    np.bitwise_xor: "__rxor__",
    np.left_shift: "__rlshift__",
    np.right_shift: "__rrshift__",
    np.equal: "__eq__",
    np.not_equal: "__ne__",
    np.less: "__gt__",
    np.less_equal: "__ge__",
    np.greater: "__lt__",
    np.greater_equal: "__le__",
}
"""The tensor's method for an operator of NumPy, on whose left stands an array or a number."""


class NumpyProtocol(Variable):
    """What NumPy asks of a tensor that is given to its functions."""

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The array itself (shared memory) on ``cpu`` and ``sim``, a copy from ``cuda``.

        With ``force`` also of a tensor that requires a gradient.

        Of a bfloat16 tensor it has the dtype of the package ml_dtypes, with which NumPy computes as well.
        """
        if self.requires_grad and not force:
            raise RuntimeError("numpy(): the tensor requires a gradient; use .detach().numpy()")
        return self.device.to_numpy(self._array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """What NumPy's functions make of tensors: tensors, on the CPU and without a gradient.

        An operator is the tensor's own: ``array + x`` is ``x.__radd__(array)``.
        """
        are_tensors = [isinstance(x, NumpyProtocol) for x in inputs]
        if ufunc in _REFLECTED and method == "__call__" and not options and are_tensors == [False, True]:
            return getattr(inputs[1], _REFLECTED[ufunc])(inputs[0])
        if any(x.device.type == "cuda" for x in inputs if isinstance(x, NumpyProtocol)):
            raise TypeError(f"np.{ufunc.__name__}: NumPy computes on the CPU; use x.cpu()")
        if any(isinstance(x, NumpyProtocol) for x in options.get("out", ())):
            raise TypeError(f"np.{ufunc.__name__}: out must be an array, got a Tensor; use x.numpy()")
        arrays = [x.numpy() if isinstance(x, NumpyProtocol) else x for x in inputs]
        found = getattr(ufunc, method)(*arrays, **options)
        if found is None or "out" in options:  # np.add.at() and the like write into their arguments
            return found
        from minigrad.creation import from_numpy

        made = [from_numpy(np.asarray(f)) for f in (found if isinstance(found, tuple) else (found,))]
        return tuple(made) if isinstance(found, tuple) else made[0]
