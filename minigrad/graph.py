"""The graph that ops record: variables (tensors without their methods), and the nodes that made them.

An op of which an input requires a gradient records a :class:`Node`: the op, what its gradient rules need, and
for each input an edge to the node that made it, or to the input itself if it is a leaf. A tensor refers to
its node; a node never refers to the tensors that it made. So there are no reference cycles, and a graph is
freed as soon as the last tensor that came from it is.

A rule may need a tensor as it was in the forward pass. Every write to a tensor's memory is noted (PyTorch
calls this its version), and :meth:`Node.check_usable` raises if there was one since.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from minigrad.devices import Device, cpu
from minigrad.dispatch import Spec
from minigrad.dtypes import is_floating
from minigrad.recording import recorder

__all__ = [
    "Node",
    "Variable",
    "as_variable",
    "check_history",
    "make_others_stale",
    "mark_cells_written",
    "mark_written",
    "mode",
    "tensor_class",
    "wrap",
    "written_cell",
]


LARGE = 32768
"""From this many elements on, gradients are computed by kernels; below, NumPy's operators are faster."""


class _Mode(threading.local):
    """The state of the current thread that changes what ops do."""

    grad = True  # whether the graph is recorded
    anomaly = False  # whether to look for NaN after each op
    autocast: Any = None  # see minigrad.mixed_precision
    bare: Device | None = None  # while a gradient rule computes on bare arrays: their device
    targets: Any = ()  # in autograd.grad: the inputs that an op made, as (the node's number, output index)


mode = _Mode()
_tick = itertools.count(1).__next__  # one clock, for when nodes were made and when memory was written to
_last_write = 0  # when any tensor was last written to in place
_any_stale = False  # whether there ever was a tensor with an older history than its values


class _Defaults:
    """The attributes of a new variable, at the class: each op makes one, and sets only those that differ."""

    device: Device = cpu
    requires_grad: bool = False
    grad: Any = None
    _node: Node | None = None
    _index: int = 0
    _written: list[int] | None = None
    _hooks: dict[int, Callable] | None = None


class Variable(_Defaults):
    """An array and its place in the graph. :class:`minigrad.Tensor` adds arithmetic and methods to it.

    Attributes:
        _array: the NumPy or CuPy array.
        device: where it lives.
        requires_grad: whether a gradient flows to it.
        grad: for a leaf, the gradient accumulated so far, or None.
        _node, _index: the node that made it, and which of the node's outputs it is; None for a leaf.
        _written: a list with the time of the last write to its memory; behind it, after a change in place
            that the graph records while others show the memory too, the number of the node that stands for
            its values since. Views of the same memory share the list. None if there was no write, and no
            view.
        _hooks: functions called with its gradient, by their handle's number.
    """

    _array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by the user rather than by an op that recorded a node."""
        return self._node is None


_tensor_class: type[Variable] = Variable


def tensor_class(cls: type) -> type:
    """Class decorator: results of ops are instances of ``cls``, which lives one floor above."""
    global _tensor_class
    _tensor_class = cls
    return cls


def wrap(array: Any, device: Device) -> Any:
    """A new leaf tensor around ``array``, which is not copied."""
    out = Variable.__new__(_tensor_class)
    out._array = array
    out.device = device
    return out


def as_variable(value: Any, device: Device) -> Any:
    """``value``, a tensor, an array, or what NumPy makes of zero dimensions, as a tensor."""
    if isinstance(value, Variable):
        return value
    return wrap(value if type(value) is device.array_type else device.xp.asarray(value), device)


def written_cell(variable: Variable) -> list[int]:
    """The list that holds the time of the last write to the variable's memory, made if there is none yet."""
    cell = variable._written
    if cell is None:
        cell = variable._written = [0]
    return cell


def mark_written(variable: Variable) -> None:
    """Note that the variable's memory was written to: gradient rules that need its old value now raise."""
    global _last_write
    cell = written_cell(variable)
    cell[0] = _last_write = _tick()
    if recorder.current is not None and recorder.current.makes_a_graph:
        recorder.current.cells[id(cell)] = cell


def mark_cells_written(cells: Iterable[list[int]]) -> None:
    """As :func:`mark_written`, for the cells of variables that a replayed step writes to."""
    global _last_write
    _last_write = _tick()
    for cell in cells:
        cell[0] = _last_write


def make_others_stale(variable: Variable) -> None:
    """Note that what else shows this memory has values by now that are not in its history."""
    global _any_stale
    assert variable._node is not None
    written_cell(variable)[1:] = [variable._node.number]
    _any_stale = True


def check_history(variable: Variable) -> None:
    """Raise if the variable's values were changed, with a gradient, through another one in its memory."""
    cell, node = variable._written, variable._node
    if cell is not None and node is not None and len(cell) > 1 and cell[1] > node.number:
        raise RuntimeError(
            f"a tensor of shape {variable.shape} was changed in place through another one that shows the "
            "same memory (a view of it, or what it is a view of), and its history does not know; go on with "
            "that other one, or clone() before the change"
        )


_NOT_KEPT: list = [None]
"""The outputs of a node with one output that no rule looks at."""


class Node:
    """One application of an op: a vertex of the graph. PyTorch's ``grad_fn``.

    Attributes:
        number: when it was made, by the graph's clock.
        op: the :class:`minigrad.op.Op` that was applied, with its keyword arguments ``attrs``.
        device: where its inputs are.
        output_device: where its outputs are: on another one only if the op moves between devices.
        inputs: for each input the tensor if a rule needs it, else (shape, dtype); numbers and None as they
            are. The list is None once the node has been freed.
        edges: for each input where its gradient goes: a leaf tensor, a node (to its first output), (node,
            output index), or None if it requires no gradient.
        outputs: for each output its array if a rule needs it, else its :class:`Spec`, or None if it is the
            only output (the shape and dtype are those of its gradient).
        written: for each saved output the list with the time of the last write to it.
        hooks: for each output that has any, its hooks by their handles' numbers.
        stack: where the op was called, in anomaly mode.
    """

    __slots__ = (
        *("__weakref__", "attrs", "device", "edges", "hooks", "inputs", "number", "op", "output_device"),
        *("outputs", "stack", "written"),
    )

    def __init__(self, op, attrs, device, args, outputs, save_inputs, save_outputs):
        if _any_stale:
            for arg in args:
                if isinstance(arg, Variable):
                    check_history(arg)
        self.number = _tick()
        self.op = op
        self.attrs = attrs
        self.device = self.output_device = device
        self.hooks = self.stack = None
        self.inputs = inputs = []
        self.edges = edges = []
        for i, arg in enumerate(args):
            if isinstance(arg, Variable):
                variable = arg  # a name whose type the compiled engine knows
                if save_inputs[i]:
                    inputs.append(variable)
                else:
                    array = variable._array
                    inputs.append((array.shape, array.dtype))
                if not variable.requires_grad:
                    edges.append(None)
                elif variable._node is None:
                    edges.append(variable)
                else:
                    index = variable._index
                    edges.append((variable._node, index) if index else variable._node)
            else:
                inputs.append(arg)
                edges.append(None)

        if save_outputs or len(outputs) > 1:
            self._keep_outputs(outputs, save_outputs)
        else:
            self.outputs = _NOT_KEPT
            self.written = ()
            variable = outputs[0]
            variable.requires_grad = True
            variable._node = self

    def _keep_outputs(self, outputs: Sequence, save: bool) -> None:
        if len(outputs) == 1 and self.op.saved_outputs is None:  # as below, but quicker
            variable = outputs[0]
            self.outputs = [variable._array]
            self.written = [written_cell(variable)]
            variable.requires_grad = True
            variable._node = self
            return
        saved = range(len(outputs)) if self.op.saved_outputs is None else self.op.saved_outputs
        saved = saved if save else ()
        self.outputs = [
            out._array if i in saved else Spec(out.shape, out.dtype) for i, out in enumerate(outputs)
        ]
        self.written = [written_cell(outputs[i]) for i in saved]
        for index, out in enumerate(outputs):
            if is_floating(out.dtype):
                out.requires_grad = True
                out._node = self
                out._index = index

    def free(self) -> None:
        """Drop all that was saved, so that no second walk can pass here; the edges stay.

        A conversion of dtype has saved nothing, and may be passed again: under autocast several losses share
        the conversion of a weight.
        """
        if self.op.name == "cast":
            return
        self.inputs = None
        self.written = ()
        if self.outputs is not _NOT_KEPT:
            self.outputs = [None] * len(self.outputs)

    def check_usable(self) -> None:
        """Raise if the node was freed, or something it saved has been written to since."""
        if self.inputs is not None and _last_write <= self.number:
            return
        if self.inputs is None:
            raise RuntimeError(
                f"the graph was freed when it was walked the first time (at op {self.op.name!r}): "
                "pass retain_graph=True to the first backward()"
            )
        cells = [v._written for v in self.inputs if isinstance(v, Variable) and v._written]
        if any(cell[0] > self.number for cell in (*cells, *self.written)):
            raise RuntimeError(
                f"a tensor that the gradient of {self.op.name!r} needs was changed in place after the op "
                "ran; use the out-of-place form of that change, or clone() the tensor before it"
            )

    def gradients(self, grad_outputs: Sequence, needed: Sequence, create_graph: bool) -> list:
        """The gradients of the inputs, from those of the outputs, by the op's rules.

        Args:
            grad_outputs: for each output its gradient, or None: tensors if ``create_graph``, else arrays.
            needed: for each input an edge, or None if its gradient is not needed.

        Returns:
            For each input its gradient, in the input's shape and dtype, as a tensor or a bare array as those
            that were given; or None.
        """
        if self.inputs is None or _last_write > self.number:
            self.check_usable()
        op = self.op
        # Rules are written for tensors. Some run on bare arrays too, which saves the time to make tensors.
        # Those that call nothing but ops always do. Those with operators such as g * y, which on arrays are
        # NumPy's, do where our kernels would be neither faster (small arrays) nor more exact (16-bit floats,
        # with which ops compute in float32).
        bare = False
        if not create_graph:
            if op.ops_alone:
                bare = len(grad_outputs) == 1 or _is_first_alone(grad_outputs)
            elif op.arithmetic_rules:
                g = grad_outputs[0]
                bare = g.dtype.itemsize > 2 and (g.size < LARGE or self.device is not cpu)
        if bare:
            if op.arithmetic_rules:  # which look at no shapes
                inputs = [v._array if isinstance(v, Variable) else v for v in self.inputs]
            else:
                inputs = [_bare(v) for v in self.inputs]
            g, y = grad_outputs[0], self.outputs[0]
            if len(grad_outputs) > 1:
                g, y = tuple(grad_outputs), tuple(self.outputs)
            mode.bare = self.device
            try:
                found = op.apply_gradient(g, y, inputs, self.attrs, needed)
            finally:
                mode.bare = None
        else:
            inputs = [Spec(*v) if type(v) is tuple else v for v in self.inputs]
            g, y = self._rule_arguments(grad_outputs)
            found = op.apply_gradient(g, y, inputs, self.attrs, needed)
        for i, grad in enumerate(found):
            if grad is None:
                continue
            if not bare:
                self._check_gradient(grad, i)
            elif type(grad) is not self.device.array_type:  # operators make a scalar of zero dimensions
                grad = self.device.xp.asarray(grad)
            wanted = inputs[i]
            if type(wanted) is tuple:
                shape, dtype = wanted
            else:
                shape, dtype = wanted.shape, wanted.dtype
            if grad.shape != shape:
                grad = unbroadcast(grad, shape, op, i, self.device)
            if not bare and not create_graph:
                grad = grad._array
            if grad.dtype is not dtype and grad.dtype != dtype:
                grad = grad.to(dtype) if create_graph else grad.astype(dtype)
            found[i] = grad
        return found

    def _rule_arguments(self, grad_outputs: Sequence) -> tuple[Any, Any]:
        """The arguments g and y of the rules: tensors (or Specs), in tuples if there are several outputs."""
        outputs, grads = [], []
        for index, (kept, grad) in enumerate(zip(self.outputs, grad_outputs, strict=True)):
            if grad is None and self.op.materialize_grads and kept is not None and is_floating(kept.dtype):
                with self.output_device.active():
                    grad = self.output_device.xp.zeros(kept.shape, kept.dtype)
            grads.append(grad if grad is None else as_variable(grad, self.output_device))
            if kept is not None and not isinstance(kept, Spec):
                kept = wrap(kept, self.output_device)
                if is_floating(kept.dtype):
                    kept.requires_grad = True
                    kept._node = self
                    kept._index = index
            outputs.append(kept)
        if len(outputs) == 1:
            return grads[0], outputs[0]
        return tuple(grads), tuple(outputs)

    def _check_gradient(self, grad: Any, i: int) -> None:
        """Raise if what a rule returned for input ``i`` is not a tensor on the right device."""
        if not isinstance(grad, Variable) or grad.device is not self.device:
            got = f"a tensor on {grad.device}" if isinstance(grad, Variable) else type(grad).__name__
            raise TypeError(
                f"the gradient of {self.op.name!r} for {self.op.input_name(i)!r} must be a tensor on "
                f"{self.device}, got {got}"
            )


def _is_first_alone(grads: Sequence) -> bool:
    """Whether all gradients but the first are None."""
    for grad in grads[1:]:  # noqa: SIM110 - all() would make a generator, at each node
        if grad is not None:
            return False
    return True


def _bare(value: Any) -> Any:
    """An input as a rule sees it that computes on arrays: the array, or a Spec where only that was kept."""
    if isinstance(value, Variable):
        return value._array
    return Spec(*value) if type(value) is tuple else value


def unbroadcast(grad: Any, shape: tuple[int, ...], op: Any, i: int, device: Device) -> Any:
    """Sum ``grad``, a tensor or an array, over the axes along which an input of ``shape`` was broadcast.

    This is the one place where broadcasting is undone.
    """
    extra = grad.ndim - len(shape)
    fits = extra >= 0 and all(n in (1, m) for n, m in zip(shape, grad.shape[extra:], strict=True))
    if not fits:
        raise RuntimeError(
            f"the gradient of {op.name!r} for {op.input_name(i)!r} has shape {grad.shape}, "
            f"expected the input's shape {shape} or one that it broadcasts to"
        )
    stretched = (axis + extra for axis, n in enumerate(shape) if n == 1 and grad.shape[axis + extra] != 1)
    axes = (*range(extra), *stretched)
    if isinstance(grad, Variable) or (device is cpu and grad.size < LARGE and grad.dtype.itemsize > 2):
        summed = grad.sum(axes)
    else:  # by the op's kernels: threads, and sums of 16-bit floats in float32
        from minigrad.op_definition import _ops  # not at the top: it imports this module

        summed = _ops["sum"]._compute(device, grad.dtype, [grad], {"dim": axes, "keepdim": False})
    return summed if summed.shape == shape else summed.reshape(shape)
