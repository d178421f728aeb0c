"""The class :class:`Tensor`: an array on a device, with operators, methods and a gradient.

Its base classes are layers of one object: :class:`~minigrad.graph.Variable` (the array and its place in the
graph), :mod:`minigrad.operators` (``+``, ``@``), :mod:`minigrad.inplace` (``add_``), :mod:`minigrad.methods`
(functions of PyTorch as methods), :mod:`minigrad.conversions` (``to``) and :mod:`minigrad.numpy_protocol`
(``numpy``). What an operation computes, and its gradient, is in :mod:`minigrad.ops`; ``backward`` is in
:mod:`minigrad.autograd`.
"""

from __future__ import annotations

import itertools
import numbers
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minigrad import autograd
from minigrad.autograd import mark_written, mode, wrap, written_cell
from minigrad.conversions import Conversions
from minigrad.devices import Device
from minigrad.dtypes import is_floating
from minigrad.kernels import channels_last
from minigrad.memory_format import MemoryFormat, contiguous_format, preserve_format
from minigrad.methods import Methods
from minigrad.numpy_protocol import NumpyProtocol
from minigrad.operators import Operators
from minigrad.ops import (
    activation,
    cumulative,
    elementwise,
    index,
    join,
    matmul,
    order,
    reduce,
    shape,
    short_names,
    softmax,
    squares,
)
from minigrad.printing import format_array
from minigrad.promotion import get_default_dtype

__all__ = ["Tensor", "is_tensor"]

_next_handle = itertools.count().__next__


@autograd.tensor_class
class Tensor(Operators, Methods, Conversions, NumpyProtocol):
    """A multi-dimensional array that takes part in automatic differentiation.

    Made by :func:`minigrad.tensor`, :func:`minigrad.zeros` and the like. ``Tensor(data)`` has the default
    dtype; ``Tensor(2, 3)`` has this shape, and is not initialised.

    Attributes:
        requires_grad: whether gradients flow to it.
        grad: for a leaf, its accumulated gradient (a Tensor), or None.
        device: where it lives, a :class:`minigrad.Device`.
    """

    def __init__(self, *data: Any):
        from minigrad.creation import empty, tensor

        if len(data) == 1 and not isinstance(data[0], numbers.Integral):
            made = tensor(data[0], None if isinstance(data[0], Tensor) else get_default_dtype())
        else:
            made = empty(*data or (0,))
        self._array = made._array
        self.device = made.device

    # ---- what it is ------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self._array.ndim

    def dim(self) -> int:
        """The number of dimensions."""
        return self._array.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one dimension."""
        return self._array.shape if dim is None else self._array.shape[dim]

    def numel(self) -> int:
        """The number of elements."""
        return self._array.size

    nelement, ndimension = numel, dim

    def element_size(self) -> int:
        """The bytes of one element."""
        return self._array.itemsize

    @property
    def itemsize(self) -> int:
        """The bytes of one element."""
        return self._array.itemsize

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        return self._array.nbytes

    def data_ptr(self) -> int:
        """The address of the first element."""
        array = self._array
        return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr

    def stride(self, dim: int | None = None) -> Any:
        """How many elements apart neighbours lie in memory, along each dimension or along one."""
        strides = tuple(step // self._array.itemsize for step in self._array.strides)
        return strides if dim is None else strides[dim]

    @property
    def is_cuda(self) -> bool:
        """Whether it lives on a CUDA card."""
        return self.device.type == "cuda"

    def is_floating_point(self) -> bool:
        """Whether the dtype is a floating one."""
        return is_floating(self._array.dtype)

    def is_contiguous(self, memory_format: MemoryFormat = contiguous_format) -> bool:
        """Whether the elements lie in memory in C order without gaps, or in another ``memory_format``."""
        if memory_format is contiguous_format:
            return bool(self._array.flags.c_contiguous)
        return self.ndim == 4 and bool(channels_last.nhwc(self._array).flags.c_contiguous)

    @property
    def T(self) -> Tensor:
        """The matrix transposed: a view."""
        if self.ndim != 2:
            raise ValueError(f"T: needs a matrix, got shape {self.shape}; see mT, permute and transpose")
        return shape.transpose(self, 0, 1)

    @property
    def mT(self) -> Tensor:
        """The last two dimensions transposed: a view."""
        return shape.transpose(self, -2, -1)

    @property
    def grad_fn(self) -> str | None:
        """The name of the op that made it, or None for a leaf."""
        return None if self._node is None else self._node.op.name

    def __repr__(self) -> str:
        array = self.device.to_numpy(self._array)
        text = format_array(array, "tensor(")
        if array.dtype not in (get_default_dtype(), np.int64, np.bool_):
            text += f", dtype={array.dtype}"
        if self.device.type != "cpu":
            text += f", device='{self.device}'"
        if self._node is not None:
            text += f", grad_fn=<{self._node.op.name}>"
        elif self.requires_grad:
            text += ", requires_grad=True"
        return f"tensor({text})"

    def __format__(self, spec: str) -> str:
        """A 0-d tensor as the number that it holds: ``f"{loss:.4f}"``."""
        return format(self.item(), spec) if self.ndim == 0 else object.__format__(self, spec)

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self._array.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    __hash__ = object.__hash__

    # ---- out of the tensor -----------------------------------------------------------------------------

    def item(self) -> Any:
        """The only element, as a Python number."""
        if self._array.size != 1:
            raise ValueError(f"item(): needs a tensor of one element, got shape {self.shape}")
        return self.device.to_numpy(self._array).item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return self.device.to_numpy(self._array).tolist()

    def __bool__(self) -> bool:
        if self._array.size != 1:
            raise ValueError(f"the truth of a tensor of shape {self.shape} is ambiguous; use any() or all()")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"only an integer tensor of one element can be an index, got {self.dtype}")
        return self.item()

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self._node is not None:
            raise RuntimeError("deepcopy: only leaf tensors can be copied with their history; use .detach()")
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        with self.device.active():
            copied._array = channels_last.copied(self._array, self._array)
        copied.device = self.device
        copied.requires_grad = self.requires_grad
        if self.grad is not None:
            copied.grad = self.grad.detach().clone()
        return copied

    def __reduce__(self) -> tuple:
        return _unpickle, (
            type(self),
            self.device.to_numpy(self.detach()._array),
            self.device,
            self.requires_grad,
        )

    # ---- autograd --------------------------------------------------------------------------------------

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        """Add this tensor's gradient to ``grad`` of every leaf behind it: see :func:`autograd.backward`."""
        grads = None if gradient is None else [gradient]
        autograd.backward(self, grads, retain_graph, create_graph, inputs=inputs)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for a gradient, or not; only for leaves of a floating dtype."""
        if requires_grad and not is_floating(self.dtype):
            raise TypeError(f"only floating tensors can require a gradient, got {self.dtype}")
        if not requires_grad and self._node is not None:
            raise RuntimeError("requires_grad_(False): the tensor was made by an op; use detach()")
        self.requires_grad = requires_grad
        return self

    def detach_(self) -> Tensor:
        """Leave the graph: this tensor becomes a leaf that requires no gradient."""
        self._node, self._index, self.requires_grad = None, 0, False
        return self

    def detach(self) -> Tensor:
        """The same memory, outside the graph."""
        out = wrap(self._array, self.device)
        out._written = written_cell(self)
        return out

    @property
    def data(self) -> Tensor:
        """As :meth:`detach`; assigning replaces the array and leaves the graph alone."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if value.shape != self.shape and self._node is not None:
            raise ValueError(f"data: expected shape {self.shape}, got {value.shape}")
        self._array = value._array
        self.device = value.device
        mark_written(self)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> HookHandle:
        """Call ``hook(gradient)`` when this tensor's whole gradient is known; what it returns replaces it."""
        if not self.requires_grad:
            raise RuntimeError("register_hook: the tensor does not require a gradient")
        if self._node is None:
            self._hooks = self._hooks if self._hooks is not None else {}
            hooks = self._hooks
        else:
            self._node.hooks = self._node.hooks if self._node.hooks is not None else {}
            hooks = self._node.hooks.setdefault(self._index, {})
        number = _next_handle()
        hooks[number] = hook
        return HookHandle(hooks, number)

    def retain_grad(self) -> None:
        """Keep the gradient of a tensor that is not a leaf in ``grad`` too."""
        if self._node is None or self._retained == self._node.number:
            return
        number = self._retained = self._node.number
        reference = weakref.ref(self)

        def keep(gradient: Tensor) -> None:
            tensor = reference()
            # After a change in place the tensor is the output of another node, with a hook of its own.
            if tensor is not None and tensor._retained == number:
                tensor.grad = gradient.clone() if tensor.grad is None else tensor.grad + gradient

        self.register_hook(keep)

    def __getitem__(self, key: Any) -> Tensor:
        raw = index.raw_index(key, copy=self.requires_grad and mode.grad)
        found = index.getitem(self, index=raw)
        moved = index.displaced(raw, self.ndim) if type(raw) is tuple and len(raw) > 2 else None
        if moved is None:
            return found
        axes, place = moved
        others = range(axes, found.ndim)
        return shape.permute(found, (*others[:place], *range(axes), *others[place:]))

    # ---- methods that take a shape, as *sizes or as one tuple ------------------------------------------

    def reshape(self, *sizes: Any) -> Tensor:
        """In another shape; one size may be -1."""
        return shape.reshape(self, _one_tuple(sizes))

    def view(self, *sizes: Any) -> Tensor:
        """As :meth:`reshape`, but never a copy."""
        out = shape.reshape(self, _one_tuple(sizes))
        if self.numel() and not self.device.xp.may_share_memory(out._array, self._array):
            raise ValueError(
                f"view: shape {out.shape} needs a copy of this tensor (shape {self.shape}, strides "
                f"{self._array.strides}); use reshape()"
            )
        return out

    def permute(self, *dims: Any) -> Tensor:
        """With the axes in another order: a view."""
        return shape.permute(self, _one_tuple(dims))

    def expand(self, *sizes: Any) -> Tensor:
        """Repeated along axes of size 1, without a copy; -1 keeps a size."""
        return shape.expand(self, _one_tuple(sizes))

    def repeat(self, *sizes: Any) -> Tensor:
        """Repeated along each axis, as a copy."""
        return shape.repeat(self, _one_tuple(sizes))

    def expand_as(self, other: Tensor) -> Tensor:
        """Repeated to ``other``'s shape."""
        return shape.broadcast_to(self, other.shape)

    def view_as(self, other: Tensor) -> Tensor:
        """In ``other``'s shape."""
        return self.view(other.shape)

    def flip(self, *axes: Any, dims: Any = None) -> Tensor:
        """With the order along ``dims`` reversed."""
        return shape.flip(self, _one_tuple(axes) if dims is None else dims)

    # ---- methods that are functions of minigrad.ops ----------------------------------------------------

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        """Each element limited to [min, max]."""
        return elementwise.clamp(self, min=min, max=max)

    def add(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """self + alpha other"""
        return elementwise.add(self, elementwise.times(alpha, other, self))

    def sub(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """self - alpha other"""
        return elementwise.sub(self, elementwise.times(alpha, other, self))

    def where(self, condition: Tensor, other: Any) -> Tensor:
        """This tensor's elements where ``condition`` is true, ``other``'s elsewhere."""
        return elementwise.where(condition, self, other)

    mm, bmm, dot, outer = matmul.mm, matmul.bmm, matmul.dot, matmul.outer

    abs = elementwise.abs
    exp, log, log1p, expm1, sqrt = (
        elementwise.exp,
        elementwise.log,
        elementwise.log1p,
        elementwise.expm1,
        elementwise.sqrt,
    )
    rsqrt, reciprocal, sin, cos, tan = (
        elementwise.rsqrt,
        elementwise.reciprocal,
        elementwise.sin,
        elementwise.cos,
        elementwise.tan,
    )
    floor, ceil, erf, round = elementwise.floor, elementwise.ceil, elementwise.erf, short_names.round
    relu, sigmoid, tanh = activation.relu, activation.sigmoid, activation.tanh
    softmax, log_softmax, logsumexp = softmax.softmax, softmax.log_softmax, softmax.logsumexp
    sum, mean, var, std, prod = reduce.sum, reduce.mean, squares.var, squares.std, reduce.prod
    amax, amin, argmax, argmin = reduce.amax, reduce.amin, reduce.argmax, reduce.argmin
    any, all, norm = reduce.any, reduce.all, squares.norm
    transpose, squeeze, unsqueeze, flatten = shape.transpose, shape.squeeze, shape.unsqueeze, shape.flatten
    gather, take_along_dim, nonzero = index.gather, index.take_along_dim, index.nonzero
    split, chunk, unbind = join.split, join.chunk, join.unbind
    max, min, sort, argsort, topk = order.max, order.min, order.sort, order.argsort, order.topk
    cumsum, tril, triu = cumulative.cumsum, elementwise.tril, elementwise.triu
    maximum, minimum, clip = elementwise.maximum, elementwise.minimum, clamp
    isclose, allclose, equal = elementwise.isclose, elementwise.allclose, elementwise.equal

    def clone(self, *, memory_format: MemoryFormat = preserve_format) -> Tensor:
        """A copy, which gradients flow through."""
        return elementwise.clone(self).contiguous(memory_format)

    def contiguous(self, memory_format: MemoryFormat = contiguous_format) -> Tensor:
        """Itself if contiguous, else a copy in C order.

        With ``memory_format=mg.channels_last``, images (N, C, H, W) are stored as (N, H, W, C). On a card the
        outputs of layers are then stored in the same way, so that convolutions on tensor cores need no
        transposition. ``view()`` may refuse such tensors; ``reshape()`` and ``flatten()`` copy them.
        """
        if memory_format is preserve_format:
            return self
        if memory_format is contiguous_format:
            return self if self.is_contiguous() else shape.contiguous(self)
        return self if channels_last.is_channels_last(self._array) else shape.to_channels_last(self)

    def t(self) -> Tensor:
        """The matrix transposed: a view."""
        return self.T


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a :class:`Tensor`."""
    return isinstance(value, Tensor)


class HookHandle:
    """What :meth:`Tensor.register_hook` returns; :meth:`remove` takes the hook away again."""

    def __init__(self, hooks: dict[int, Any], number: int):
        self._hooks = hooks
        self._number = number

    def remove(self) -> None:
        """Call the hook no more."""
        self._hooks.pop(self._number, None)


def _one_tuple(sizes: tuple) -> tuple:
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def _unpickle(cls: type[Tensor], array: np.ndarray, device: Device, requires_grad: bool) -> Tensor:
    made = cls.__new__(cls)
    made._array = device.from_numpy(array)
    made.device = device
    made.requires_grad = requires_grad
    return made
