"""Changes in place: ``x[index] = value``, ``x += y``, and the methods whose names end in an underscore.

Where no gradient is involved, the values are overwritten and that is all. Otherwise the tensor becomes the
output of the op that computed its new value. If that would change a value that another tensor or the graph
still needs, the change is refused before it happens; or it is noted (:func:`minigrad.graph.mark_written`),
and ``backward()`` raises if it comes to need the old value.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.autograd import check_history, mark_written, mode, wrap
from minigrad.devices import cpu
from minigrad.dispatch import enter_quiet, leave_quiet
from minigrad.dtypes import is_floating
from minigrad.graph import Node, Variable, make_others_stale
from minigrad.op import get_op
from minigrad.ops import activation, arithmetic, elementwise, index, shape, special
from minigrad.recording import recorder

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["InPlace"]


def _writing(ufunc: np.ufunc) -> Callable:
    """``write(out, x, y)``, by NumPy."""

    def write(out, x, y):
        quiet = enter_quiet()
        try:
            ufunc(x, y, out=out)
        finally:
            leave_quiet(quiet)

    return write


_WRITING: dict[Any, tuple] = {
    elementwise.add: (elementwise.add, _writing(np.add)),
    elementwise.sub: (elementwise.sub, _writing(np.subtract)),
    elementwise.mul: (elementwise.mul, _writing(np.multiply)),
    elementwise.div: (get_op("div"), _writing(np.divide)),
}
"""For each arithmetic function the op that has its kernels, and a NumPy function that takes ``out``."""


def _need_gradient(operands: tuple) -> bool:
    for operand in operands:  # noqa: SIM110 - any() would make a generator, which takes as long as all of this
        if isinstance(operand, Variable) and operand.requires_grad:
            return True
    return False


def _unary(op: Callable) -> Callable:
    """The method that replaces a tensor's elements by ``op`` of them."""
    name = getattr(op, "name", getattr(op, "__name__", "op"))

    def method(self: Any) -> Tensor:
        return self._in_place(op)

    method.__name__, method.__doc__ = f"{name}_", f"self = {name}(self)"
    return method


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of ``shape`` broadcasts to the shape ``to``."""
    pairs = zip(shape[::-1], to[::-1], strict=False)
    return len(shape) <= len(to) and all(size in (1, wanted) for size, wanted in pairs)


def _first_input(node: Node) -> Any:
    """Where the gradient of the node's first input goes: a node, a leaf or None."""
    edge = node.edges[0]
    return edge[0] if isinstance(edge, tuple) else edge


class InPlace(Variable):
    """What changes a tensor's own memory."""

    _retained: Any = None  # the number of the node whose gradient retain_grad() keeps

    def _check_writable(self, name: str, *operands: Any) -> None:
        """Raise if the change would go wrong: read-only memory, or values that the graph needs."""
        if not getattr(self._array.flags, "writeable", True):  # CuPy knows no read-only arrays
            raise ValueError(
                f"{name}: the tensor's memory is read-only (a broadcast view, or a read-only array)"
            )
        if not mode.grad or not (self.requires_grad or _need_gradient(operands)):
            return
        if self.requires_grad and self._node is None:
            raise RuntimeError(f"{name}: a leaf that requires a gradient is changed in place; use no_grad()")
        if self.requires_grad:
            check_history(self)
        if self._is_shared() and not self._has_history_to_change():
            raise RuntimeError(
                f"{name}: another tensor shows the same memory (a view, a detached one, or a value saved for "
                "the gradient of an op), and the graph needs it as it is; use the out-of-place form, or "
                "clone() first"
            )

    def _is_shared(self) -> bool:
        """Whether anything else shows this memory: besides this tensor, it refers to the time of a write."""
        if self._written is None:
            return False
        recorded = recorder.current is not None and id(self._written) in recorder.current.cells
        return sys.getrefcount(self._written) > 2 + recorded  # with the call's argument

    def _has_history_to_change(self) -> bool:
        """Whether a change may be recorded though others show the same memory: those are stale then.

        Not if this tensor is no part of the graph, so that others would not know that they are now; nor if it
        is a view of a leaf, whose gradient would lack the change, or of what the gradient of an op needs.
        """
        node = self._node
        while node is not None:
            if any(cell is self._written for cell in node.written):
                return False
            if not node.op.view:
                return True
            if len(node.edges) != 1:  # of a Function: an output may show any of the inputs
                return False
            (edge,) = node.edges
            if isinstance(edge, Variable):
                return edge._written is not self._written  # the view is a copy
            node = edge[0] if isinstance(edge, tuple) else edge
        return False

    def _is_part_of(self: Any, value: Any, raw: Any) -> bool:
        """Whether ``value`` is ``self[raw]`` after a change in place, the last one: ``x[2:5] *= y``.

        Python writes it back then, and this tensor, stale meanwhile, learns of the change.
        """
        cell: list[int] | None = self._written
        if cell is None or len(cell) == 1 or not isinstance(value, Variable) or value._written is not cell:
            return False
        node = value._node
        if node is None or self._node is None or node.number != cell[1] or not index.is_basic(raw):
            return False
        while isinstance(node, Node) and not node.op.view:  # what changed the part ...
            node = _first_input(node)
        while isinstance(node, Node) and node.op.view and node is not self._node:  # ... since it was taken
            node = _first_input(node)
        part: Any = wrap(self._array[index.with_ellipsis(raw)], self.device)
        whole: Any = value
        same = (part.shape, part._array.strides) == (whole.shape, whole._array.strides)
        return node is self._node and same and part.data_ptr() == whole.data_ptr()

    def _before(self: Any) -> Any:
        """Another tensor in this memory, with the history that this one has now."""
        before = wrap(self._array, self.device)
        before.requires_grad, before._node, before._index = self.requires_grad, self._node, self._index
        return before

    def _adopt(self: Any, result: Tensor) -> Tensor:
        """Take the place of ``result`` in the graph; its value has been written to this tensor's memory."""
        mark_written(self)
        if result._node is not None:
            self._node = result._node
            self._index = result._index
            self.requires_grad = True
            if self._is_shared():
                make_others_stale(self)
            if self._retained is not None:
                self.retain_grad()
        return self

    def _in_place(self: Any, op: Callable, *operands: Any) -> Tensor:
        """``self = op(self, *operands)``, written into this tensor's memory."""
        name = getattr(op, "name", getattr(op, "__name__", "op")) + "_"
        self._check_writable(name, *operands)
        if op in _WRITING and self._can_write_over(operands):
            others = [o._array if isinstance(o, Variable) else o for o in operands]
            kernel_op, write = _WRITING[op]
            kernel = kernel_op.kernels.choose("cpu", self.dtype, [self._array, *others], {})
            run = write if kernel is None else kernel.run
            run(self._array, self._array, *others)
            mark_written(self)
            return self
        # The op is applied to a second variable with this memory. If a gradient rule needs the old value, it
        # becomes a copy; and the node cannot refer to this tensor, which will refer to the node: a cycle.
        before = self._before()
        result = op(before, *(before if operand is self else operand for operand in operands))
        if result._node is not None and any(saved is before for saved in result._node.inputs):
            with self.device.active():
                before._array = self._array.copy()
        if result.shape != self.shape:
            raise ValueError(
                f"{name}: the result has shape {result.shape}, which does not fit into {self.shape}"
            )
        both_floating = is_floating(result.dtype) and is_floating(self.dtype)
        if not both_floating and not np.can_cast(result.dtype, self.dtype, "same_kind"):
            raise TypeError(
                f"{name}: a result of {result.dtype} cannot be stored in a tensor of {self.dtype}"
            )
        if result.dtype != self.dtype:
            result = elementwise.cast(result, dtype=self.dtype)
        if self.device.is_card:
            with self.device.active():
                self._array[...] = result._array
        else:
            self._array[...] = result._array
        return self._adopt(result)

    def _can_write_over(self: Any, operands: tuple) -> bool:
        """Whether a kernel may write the result straight into this tensor's memory.

        Not if the graph needs the old value, an operand overlaps that memory, or the result would have
        another dtype or shape.
        """
        array = self._array
        if self.device is not cpu or array.dtype.kind != "f" or not array.flags.c_contiguous:
            return False
        if mode.grad and (self.requires_grad or _need_gradient(operands)):
            return False
        for operand in operands:
            if isinstance(operand, Variable):
                other = operand._array
                if other.dtype != array.dtype or operand.device is not cpu:
                    return False
                owners = other.base is None and array.base is None  # of memory: quicker than to compare it
                if other is not array and not owners and np.may_share_memory(other, array):
                    return False
                if other.shape != array.shape and not _broadcasts(other.shape, array.shape):
                    return False
            elif type(operand) not in (int, float, bool):
                return False
        return True

    def add_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """self += alpha other"""
        return self._in_place(elementwise.add, elementwise.times(alpha, other, self))

    def sub_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """self -= alpha other"""
        return self._in_place(elementwise.sub, elementwise.times(alpha, other, self))

    def mul_(self, other: Any) -> Tensor:
        """self *= other"""
        return self._in_place(elementwise.mul, other)

    def div_(self, other: Any) -> Tensor:
        """self /= other"""
        return self._in_place(elementwise.div, other)

    def pow_(self, other: Any) -> Tensor:
        """self **= other"""
        return self._in_place(elementwise.pow, other)

    def __setitem__(self: Any, key: Any, value: Any) -> None:
        if isinstance(value, Variable):
            value = value if value.dtype == self.dtype else elementwise.cast(value, dtype=self.dtype)
        elif hasattr(value, "__array__") or isinstance(value, (list, tuple)):
            value = wrap(self.device.from_numpy(np.asarray(value, self.dtype)), self.device)
        raw = index.raw_index(key, copy=mode.grad)
        target = self
        if self._is_part_of(value, raw):
            target = self._before()
        else:
            self._check_writable("__setitem__", value)
        self._adopt(index.setitem(target, index.in_order_of_numpy(value, raw, self._array), index=raw))

    __iadd__ = add_
    __isub__ = sub_
    __imul__ = mul_
    __itruediv__ = div_
    __ipow__ = pow_

    def _become(self: Any, view: Callable, *arguments: Any) -> Tensor:
        """``self = view(self, *arguments)``: another shape of the same memory; no element is written."""
        self._check_writable(f"{view.__name__}_")
        before = self._before()
        result = view(before, *arguments)
        self._array = result._array
        if result._node is not None:
            self._node, self._index = result._node, result._index
        return self

    def unsqueeze_(self, dim: int) -> Tensor:
        """self = unsqueeze(self, dim)"""
        return self._become(shape.unsqueeze, dim)

    def squeeze_(self, dim: Any = None) -> Tensor:
        """self = squeeze(self, dim)"""
        return self._become(shape.squeeze, dim)

    def transpose_(self, dim0: int, dim1: int) -> Tensor:
        """self = transpose(self, dim0, dim1)"""
        return self._become(shape.transpose, dim0, dim1)

    def t_(self) -> Tensor:
        """self = t(self)"""
        return self._become(shape.transpose, 0, 1)

    def addmm_(self: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
        """self = beta self + alpha mat1 @ mat2"""
        product = mat1 @ mat2 if alpha == 1 else (mat1 @ mat2) * alpha
        return (self if beta == 1 else self.mul_(beta)).add_(product)

    def index_put_(self: Any, indices: tuple, values: Any, accumulate: bool = False) -> Tensor:
        """self[indices] = values; with ``accumulate`` they are added, those of one place all."""
        if not accumulate:
            self[indices] = values
            return self
        positions = index.raw_index(tuple(indices), copy=True)
        shape = self._array[positions].shape
        values = values if isinstance(values, Variable) else wrap(np.asarray(values, self.dtype), self.device)
        sums = index.scatter_index(values.expand(shape), index=positions, shape=self.shape)
        return self.add_(sums)

    def tril_(self, diagonal: int = 0) -> Tensor:
        """self = tril(self, diagonal)"""
        return self._in_place(elementwise.tril, diagonal)

    def triu_(self, diagonal: int = 0) -> Tensor:
        """self = triu(self, diagonal)"""
        return self._in_place(elementwise.triu, diagonal)

    def fill_diagonal_(self: Any, fill_value: Any) -> Tensor:
        """The elements whose indices are all the same become ``fill_value``."""
        places = np.arange(min(self.shape))
        self[(places,) * self.ndim] = fill_value
        return self

    def remainder_(self, other: Any) -> Tensor:
        """self = remainder(self, other)"""
        return self._in_place(elementwise.remainder, other)

    def lerp_(self, end: Any, weight: Any) -> Tensor:
        """self = self + weight (end - self)"""
        return self._in_place(arithmetic.lerp, end, weight)

    def addcmul_(self, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
        """self += value tensor1 tensor2"""
        return self._in_place(elementwise.add, tensor1 * tensor2 * value)

    def addcdiv_(self, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
        """self += value tensor1 / tensor2"""
        return self._in_place(elementwise.add, tensor1 / tensor2 * value)

    abs_, neg_, sign_ = _unary(elementwise.abs), _unary(elementwise.neg), _unary(elementwise.sign)
    exp_, log_, log1p_ = _unary(elementwise.exp), _unary(elementwise.log), _unary(elementwise.log1p)
    sqrt_, rsqrt_, square_ = _unary(elementwise.sqrt), _unary(elementwise.rsqrt), _unary(elementwise.square)
    sin_, cos_, reciprocal_ = _unary(elementwise.sin), _unary(elementwise.cos), _unary(elementwise.reciprocal)
    erf_, erfinv_ = _unary(elementwise.erf), _unary(special.erfinv)
    floor_, ceil_, round_ = _unary(elementwise.floor), _unary(elementwise.ceil), _unary(elementwise.round)
    sigmoid_, tanh_, relu_ = _unary(activation.sigmoid), _unary(activation.tanh), _unary(activation.relu)

    def clamp_(self, min: Any = None, max: Any = None) -> Tensor:
        """self = clamp(self, min, max)"""
        return self._in_place(elementwise.clamp, min, max)

    clip_ = clamp_

    def clamp_min_(self, min: Any) -> Tensor:
        """self = max(self, min)"""
        return self.clamp_(min=min)

    def clamp_max_(self, max: Any) -> Tensor:
        """self = min(self, max)"""
        return self.clamp_(max=max)

    def fill_(self: Any, value: Any) -> Tensor:
        """Every element becomes ``value``."""
        self[...] = value
        return self

    def zero_(self) -> Tensor:
        """Every element becomes 0."""
        return self.fill_(0)

    def copy_(self: Any, other: Tensor) -> Tensor:
        """Take over the values of ``other``, which is broadcast, and converted in dtype and device."""
        self[...] = other.to(self.device)
        return self

    def normal_(self, mean: Any = 0.0, std: Any = 1.0, *, generator: Any = None) -> Tensor:
        """Fill with normal random numbers."""
        from minigrad.creation import randn

        drawn = randn(self.shape, generator=generator, dtype=self.dtype, device=self.device)
        return self.copy_(drawn * std + mean)

    def uniform_(self, low: Any = 0.0, high: Any = 1.0, *, generator: Any = None) -> Tensor:
        """Fill with uniform random numbers in [low, high)."""
        from minigrad.creation import rand

        drawn = rand(self.shape, generator=generator, dtype=self.dtype, device=self.device)
        return self.copy_(drawn * (high - low) + low)

    def exponential_(self, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
        """Fill with numbers whose density is lambd exp(-lambd x)."""
        from minigrad.creation import rand

        if not lambd > 0:
            raise ValueError(f"exponential_: lambd must be above 0, got {lambd}")
        drawn = rand(self.shape, generator=generator, dtype=self.dtype, device=self.device)
        return self.copy_(elementwise.log1p(-drawn) * (-1.0 / lambd))

    def random_(self, low: int, high: int | None = None, *, generator: Any = None) -> Tensor:
        """Fill with whole numbers in [low, high), or in [0, low)."""
        from minigrad.creation import randint

        low, high = (0, low) if high is None else (low, high)
        return self.copy_(randint(low, high, self.shape, generator=generator, device=self.device))

    def bernoulli_(self, p: Any = 0.5, *, generator: Any = None) -> Tensor:
        """Fill with 1, with probability ``p`` (a number, or a tensor that is broadcast), and 0."""
        from minigrad.creation import rand

        return self.copy_(rand(self.shape, generator=generator, device=self.device) < p)
