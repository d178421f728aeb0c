"""Methods of a tensor that are functions of :mod:`minigrad.ops`, under the names and orders of PyTorch.

Those that :mod:`minigrad.tensor` spells out itself are not here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.inplace import InPlace
from minigrad.ops import (
    arithmetic,
    combining,
    cumulative,
    diagonal,
    einsum,
    elementwise,
    join,
    matmul,
    order,
    reduce,
    scatter,
    shape,
    short_names,
    special,
    statistics,
    unique,
)

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["Methods"]


def _of_linalg(name: str) -> Callable:
    """The method that is a function of :mod:`minigrad.linalg`, which loads when it is first called."""

    def method(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(import_module("minigrad.linalg"), name)(self, *args, **options)

    method.__name__, method.__doc__ = name, f"See :func:`minigrad.linalg.{name}`."
    return method


class Methods(InPlace):
    """What computes a new tensor from this one, and what writes at numbered positions of it."""

    asinh, acosh, atanh, exp2 = arithmetic.asinh, arithmetic.acosh, arithmetic.atanh, arithmetic.exp2
    asin, acos, atan, sinh, cosh = (
        elementwise.asin,
        elementwise.acos,
        elementwise.atan,
        elementwise.sinh,
        elementwise.cosh,
    )
    log2, log10, trunc, frac = elementwise.log2, elementwise.log10, elementwise.trunc, arithmetic.frac
    atan2, hypot, fmod, remainder = (
        arithmetic.atan2,
        arithmetic.hypot,
        arithmetic.fmod,
        elementwise.remainder,
    )
    lerp, addcmul, addcdiv, logaddexp = (
        arithmetic.lerp,
        arithmetic.addcmul,
        arithmetic.addcdiv,
        arithmetic.logaddexp,
    )
    logit, xlogy, nan_to_num = arithmetic.logit, arithmetic.xlogy, arithmetic.nan_to_num
    logical_and, logical_or, logical_xor = (
        elementwise.logical_and,
        elementwise.logical_or,
        elementwise.logical_xor,
    )
    erfinv, lgamma, digamma = special.erfinv, special.lgamma, special.digamma
    cumprod, cummax, cummin, diff = (
        cumulative.cumprod,
        cumulative.cummax,
        cumulative.cummin,
        cumulative.diff,
    )
    diagonal, diag, diag_embed, trace = (
        diagonal.diagonal,
        diagonal.diag,
        diagonal.diag_embed,
        diagonal.trace,
    )
    mv, addmm, baddbmm, inner = matmul.mv, matmul.addmm, matmul.baddbmm, einsum.inner
    kthvalue, median, mode, quantile = order.kthvalue, order.median, order.mode, order.quantile
    bincount, unique_consecutive, unique = unique.bincount, unique.unique_consecutive, unique.unique
    true_divide = elementwise.div
    count_nonzero = reduce.count_nonzero
    nansum, nanmean, aminmax = statistics.nansum, statistics.nanmean, statistics.aminmax
    cov, corrcoef, histc = statistics.cov, statistics.corrcoef, statistics.histc
    kron, cross, rot90, tensor_split = (
        combining.kron,
        combining.cross,
        combining.rot90,
        combining.tensor_split,
    )
    bitwise_left_shift, bitwise_right_shift = elementwise.bitwise_left_shift, elementwise.bitwise_right_shift
    hsplit, vsplit, dsplit, diagflat = (
        short_names.hsplit,
        short_names.vsplit,
        short_names.dsplit,
        short_names.diagflat,
    )
    bitwise_and, bitwise_or, bitwise_xor, bitwise_not = (
        elementwise.bitwise_and,
        elementwise.bitwise_or,
        elementwise.bitwise_xor,
        elementwise.bitwise_not,
    )
    index_select, index_add, index_copy, index_fill = (
        scatter.index_select,
        scatter.index_add,
        scatter.index_copy,
        scatter.index_fill,
    )
    masked_select, masked_fill, take = scatter.masked_select, scatter.masked_fill, scatter.take
    masked_scatter = scatter.masked_scatter
    scatter, scatter_add, scatter_reduce = scatter.scatter, scatter.scatter_add, scatter.scatter_reduce
    narrow, select, roll, repeat_interleave = join.narrow, join.select, join.roll, join.repeat_interleave
    movedim, moveaxis, swapaxes, swapdims, unflatten, ravel = (
        shape.movedim,
        shape.movedim,
        shape.transpose,
        shape.transpose,
        shape.unflatten,
        shape.ravel,
    )

    square, sign, logical_not = elementwise.square, elementwise.sign, elementwise.logical_not
    isnan, isinf, isfinite = elementwise.isnan, elementwise.isinf, elementwise.isfinite
    negative, absolute, multiply, divide, subtract, floor_divide = (
        elementwise.neg,
        elementwise.abs,
        elementwise.mul,
        elementwise.div,
        elementwise.sub,
        elementwise.floor_divide,
    )
    greater, greater_equal, less, less_equal, not_equal = (
        elementwise.gt,
        elementwise.ge,
        elementwise.lt,
        elementwise.le,
        elementwise.ne,
    )
    clamp_min, clamp_max, dist = short_names.clamp_min, short_names.clamp_max, short_names.dist
    broadcast_to, fliplr, flipud = shape.broadcast_to, short_names.fliplr, short_names.flipud

    inverse, pinverse, det, slogdet, logdet = (
        _of_linalg("inv"),
        _of_linalg("pinv"),
        _of_linalg("det"),
        _of_linalg("slogdet"),
        _of_linalg("logdet"),
    )
    cholesky, qr, matrix_power, svd = (
        _of_linalg("cholesky"),
        _of_linalg("qr"),
        _of_linalg("matrix_power"),
        short_names.svd,
    )

    def tile(self, *dims: Any) -> Tensor:
        """Repeated along each axis, as a copy; missing counts in front are 1."""
        return shape.tile(self, dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims)

    def new_zeros(self: Any, *size: Any, dtype: Any = None) -> Tensor:
        """Zeros of another shape, with this tensor's device, and its dtype unless given."""
        from minigrad.creation import zeros

        return zeros(*size, dtype=dtype or self.dtype, device=self.device)

    def new_ones(self: Any, *size: Any, dtype: Any = None) -> Tensor:
        """Ones of another shape, with this tensor's device, and its dtype unless given."""
        from minigrad.creation import ones

        return ones(*size, dtype=dtype or self.dtype, device=self.device)

    def new_tensor(self: Any, data: Any, dtype: Any = None) -> Tensor:
        """A tensor of ``data``, with this tensor's device, and its dtype unless given."""
        from minigrad.creation import tensor

        return tensor(data, dtype or self.dtype, self.device)

    def reshape_as(self: Any, other: Tensor) -> Tensor:
        """In ``other``'s shape."""
        return self.reshape(other.shape)

    def bernoulli(self: Any, *, generator: Any = None) -> Tensor:
        """1 with this tensor's elements as probabilities, else 0: see :func:`minigrad.bernoulli`."""
        from minigrad.creation import bernoulli

        return bernoulli(self, generator=generator)

    def new_full(self: Any, size: Any, fill_value: Any, *, dtype: Any = None) -> Tensor:
        """``fill_value`` in another shape, with this tensor's device, and its dtype unless given."""
        from minigrad.creation import full

        return full(size, fill_value, dtype=dtype or self.dtype, device=self.device)

    def new_empty(self: Any, *size: Any, dtype: Any = None) -> Tensor:
        """Uninitialised, of another shape, with this tensor's device, and its dtype unless given."""
        from minigrad.creation import empty

        return empty(*size, dtype=dtype or self.dtype, device=self.device)

    def multinomial(
        self: Any, num_samples: int, replacement: bool = False, *, generator: Any = None
    ) -> Tensor:
        """Numbers drawn with this tensor's elements as probabilities: see :func:`minigrad.multinomial`."""
        from minigrad.creation import multinomial

        return multinomial(self, num_samples, replacement, generator=generator)

    def argwhere(self: Any) -> Tensor:
        """The indices (n, ndim) of what is not 0."""
        return self.nonzero()

    def get_device(self: Any) -> int:
        """The number of its card, -1 on another device."""
        return self.device.index if self.is_cuda else -1

    def unfold(self: Any, dimension: int, size: int, step: int = 1) -> Tensor:
        """Windows of ``size`` elements along ``dimension``, ``step`` apart: their elements as a last axis."""
        axis = dimension % max(self.ndim, 1)
        if not 0 < size <= self.shape[axis] or step < 1:
            raise ValueError(f"unfold: no windows of {size}, {step} apart, along {self.shape[axis]} elements")
        starts = np.arange(0, self.shape[axis] - size + 1, step)
        windows = self[(*(slice(None),) * axis, starts[:, None] + np.arange(size))]
        return shape.movedim(windows, axis + 1, -1)

    def masked_fill_(self, mask: Tensor, value: Any) -> Tensor:
        """Elements where ``mask`` is true become ``value``."""
        return self._in_place(scatter.masked_fill, mask, value)

    def masked_scatter_(self, mask: Tensor, source: Tensor) -> Tensor:
        """Elements where ``mask`` is true become those of ``source``, in their order."""
        return self._in_place(scatter.masked_scatter, mask, source)

    def scatter_(self, dim: int, index: Tensor, src: Any, *, reduce: str | None = None) -> Tensor:
        """``src`` is written at the positions ``index`` along ``dim``: see :func:`minigrad.scatter`."""
        written = scatter.scatter_add if reduce == "add" else scatter.scatter
        return self._in_place(written, dim, index, src)

    def scatter_add_(self, dim: int, index: Tensor, src: Tensor) -> Tensor:
        """``src`` is added at the positions ``index`` along ``dim``: see :func:`minigrad.scatter_add`."""
        return self._in_place(scatter.scatter_add, dim, index, src)

    def scatter_reduce_(
        self, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
    ) -> Tensor:
        """See :func:`minigrad.scatter_reduce`."""

        def scatter_reduce(x: Any, index: Tensor, src: Tensor) -> Any:
            return scatter.scatter_reduce(x, dim, index, src, reduce, include_self=include_self)

        return self._in_place(scatter_reduce, index, src)

    def index_add_(self, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
        """alpha times ``source`` is added at the numbers ``index`` along ``dim``."""
        return self._in_place(scatter.index_add, dim, index, source if alpha == 1 else source * alpha)

    def index_copy_(self, dim: int, index: Tensor, source: Tensor) -> Tensor:
        """``source`` is written at the numbers ``index`` along ``dim``."""
        return self._in_place(scatter.index_copy, dim, index, source)

    def index_fill_(self, dim: int, index: Tensor, value: Any) -> Tensor:
        """``value`` is written at the numbers ``index`` along ``dim``."""
        return self._in_place(scatter.index_fill, dim, index, value)
