"""Reverse-mode automatic differentiation: the graph that ops record, and the walk back along it.

Every op whose inputs need a gradient records a :class:`Node`: the op, what its gradient rule needs, and an
edge to where each input came from. Nodes are numbered as they are made, and an op's inputs exist before its
output does. So decreasing number *is* a topological order, and :func:`run_backward` is a loop over a heap:
take the youngest node, apply its op's rule, send the results along its edges.

Nothing here refers back from a node to the tensor it made, so graphs hold no reference cycles: they are
freed the moment the last tensor that needs them goes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np

from minigrad.devices import Device, cpu
from minigrad.dispatch import Spec, enter_quiet, leave_quiet

__all__ = [
    "Node",
    "Variable",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "grad",
    "is_grad_enabled",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
]


class _Mode(threading.local):
    """What holds for the ops of the current thread."""

    grad = True  # record the graph?
    anomaly = False  # look for NaN after each op?


mode = _Mode()
_tick = itertools.count(1).__next__  # numbers nodes and writes: the graph's clock
_last_write = 0


class _Defaults:
    """What a variable is until told otherwise: making one, which every op does, sets only what differs."""

    device: Device = cpu
    requires_grad: bool = False
    grad: Any = None
    _node: Node | None = None
    _index: int = 0
    _written: list[int] | None = None
    _is_view: bool = False
    _hooks: dict[int, Callable] | None = None


class Variable(_Defaults):
    """An array and its place in the graph. :class:`minigrad.Tensor` adds arithmetic and methods to it.

    Attributes:
        _array: the NumPy or CuPy array.
        device: where it lives.
        requires_grad: whether a gradient flows to it.
        grad: for a leaf, the gradient accumulated so far, or None.
        _node, _index: the node that made it, and which of the node's outputs it is; None for a leaf.
        _written: a one-element list with the time of the last write to its memory, shared by all that show
            this memory; None if there was none.
        _is_view: whether it shows another tensor's memory.
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
_new = Variable.__new__


def tensor_class(cls: type) -> type:
    """Class decorator: results of ops are instances of ``cls``, which lives one floor above."""
    global _tensor_class
    _tensor_class = cls
    return cls


def wrap(array: Any, device: Device) -> Any:
    """A new leaf tensor around ``array``, which is not copied."""
    out = _new(_tensor_class)
    out._array = array
    out.device = device
    return out


def as_variable(value: Any, device: Device) -> Any:
    """``value``, a tensor, an array, or what NumPy makes of zero dimensions, as a tensor."""
    if isinstance(value, Variable):
        return value
    return wrap(value if type(value) is device.array_type else device.xp.asarray(value), device)


def written_cell(variable: Variable) -> list[int]:
    """Where the time of the last write to the variable's memory stands; views of the memory share it."""
    cell = variable._written
    if cell is None:
        cell = variable._written = [0]
    return cell


def mark_written(variable: Variable) -> None:
    """Note that the variable's memory has been written to: what was saved of it is no longer valid."""
    global _last_write
    written_cell(variable)[0] = _last_write = _tick()


class Node:
    """One application of an op: a vertex of the graph.

    Attributes:
        number: when it was made, by the graph's clock.
        op: the :class:`minigrad.op.Op` that was applied, with its keyword arguments ``attrs``.
        device: where its inputs are.
        inputs: for each input the tensor itself where a rule asked for it, else its shape and dtype; numbers
            and None as they are. None once the node has been freed.
        edges: for each input where its gradient goes: None, a leaf tensor, a node (to its first output), or
            (node, output index).
        outputs: for each output its array where the rule asked for it, else a :class:`Spec`, or None if it
            is the only one (its gradient has its shape).
        written: where the times of writes to the saved outputs stand.
        hooks: for each output that has any, its hooks by their handles' numbers.
        stack: where the op was called, in anomaly mode.
    """

    hooks: dict[int, dict[int, Callable]] | None = None
    stack: list | None = None

    def __init__(self, op, attrs, device, args, outputs, save_inputs, save_outputs):
        self.number = _tick()
        self.op = op
        self.attrs = attrs
        self.device = device
        self.inputs = inputs = []
        self.edges = edges = []
        for arg, save in zip(args, save_inputs):  # noqa: B905 (as long as each other; strict costs time here)
            if isinstance(arg, Variable):
                variable = arg
                if save:
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
            self.outputs = (None,)
            self.written = ()
            variable = outputs[0]
            variable.requires_grad = True
            variable._node = self

    def _keep_outputs(self, outputs: Sequence, save: bool) -> None:
        self.outputs = [out._array if save else Spec(out.shape, out.dtype) for out in outputs]
        self.written = [written_cell(out) for out in outputs] if save else ()
        for index, out in enumerate(outputs):
            if out.dtype.kind == "f":
                out.requires_grad = True
                out._node = self
                out._index = index

    def free(self) -> None:
        """Drop everything saved: the node cannot be passed again."""
        self.inputs = None
        self.edges = self.written = ()
        self.outputs = (None,) * len(self.outputs)

    def check_usable(self) -> None:
        """Raise if the node was freed, or something it saved has been written to since."""
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
        """Apply the op's rules: for each input whose entry in ``needed`` is not None its gradient, else None.

        Gradients go in and come out as tensors if ``create_graph``, else as bare arrays.
        """
        if self.inputs is None or _last_write > self.number:
            self.check_usable()
        op = self.op
        bare = op.arithmetic_rules and not create_graph
        if bare:  # the rules use nothing but the operators that arrays have too: spare it the tensors
            inputs = [v._array if isinstance(v, Variable) else v for v in self.inputs]
            found = op.apply_gradient(grad_outputs[0], self.outputs[0], inputs, self.attrs, needed)
        else:
            inputs = [Spec(*v) if type(v) is tuple else v for v in self.inputs]
            g, y = self._rule_arguments(grad_outputs)
            found = op.apply_gradient(g, y, inputs, self.attrs, needed)
        for i, grad in enumerate(found):
            if grad is None:
                continue
            if not bare:
                grad = found[i] = self._checked(grad, i, create_graph)
            wanted = inputs[i]
            if type(wanted) is tuple:
                shape, dtype = wanted
            else:
                shape, dtype = wanted.shape, wanted.dtype
            if grad.shape != shape:
                grad = found[i] = unbroadcast(grad, shape, op, i)
            if grad.dtype is not dtype and grad.dtype != dtype:
                found[i] = grad.to(dtype) if create_graph else grad.astype(dtype)
        return found

    def _rule_arguments(self, grad_outputs: Sequence) -> tuple[Any, Any]:
        """The gradients and the outputs as the rule sees them: tensors (or Specs), in tuples if several."""
        outputs, grads = [], []
        for index, (kept, grad) in enumerate(zip(self.outputs, grad_outputs, strict=True)):
            if grad is None and kept is not None and kept.dtype.kind == "f":
                with self.device.active():
                    grad = self.device.xp.zeros(kept.shape, kept.dtype)
            grads.append(grad if grad is None else as_variable(grad, self.device))
            if kept is not None and not isinstance(kept, Spec):
                kept = wrap(kept, self.device)
                if kept.dtype.kind == "f":
                    kept.requires_grad = True
                    kept._node = self
                    kept._index = index
            outputs.append(kept)
        if len(outputs) == 1:
            return grads[0], outputs[0]
        return tuple(grads), tuple(outputs)

    def _checked(self, grad: Any, i: int, create_graph: bool) -> Any:
        """What a rule returned for input ``i``, as a tensor or a bare array."""
        if not isinstance(grad, Variable) or grad.device is not self.device:
            got = f"a tensor on {grad.device}" if isinstance(grad, Variable) else type(grad).__name__
            raise TypeError(
                f"the gradient of {self.op.name!r} for {self.op.input_name(i)!r} must be a tensor on "
                f"{self.device}, got {got}"
            )
        return grad if create_graph else grad._array


def unbroadcast(grad: Any, shape: tuple[int, ...], op: Any, i: int) -> Any:
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
    return grad.sum((*range(extra), *stretched)).reshape(shape)


# ---- the walk -----------------------------------------------------------------------------------------


def run_backward(
    roots: Sequence[Variable],
    grad_roots: Sequence[Variable],
    *,
    targets: Sequence[Variable] | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> list:
    """Send ``grad_roots`` back from ``roots``.

    With ``targets`` None, gradients are added to the ``grad`` of every leaf reached, and an empty list is
    returned. Otherwise nothing is changed and the gradient of each target (or None) is returned.

    On the way gradients are tensors if their own graph is wanted (``create_graph``), else bare arrays.
    """
    wanted = captured = None
    if targets is not None:
        wanted = _towards(targets, roots)
        captured = {(t._node.number, t._index): None for t in targets if t._node is not None}
    edges = [root if root._node is None else (root._node, root._index) for root in roots]
    grads = [grad if create_graph else grad._array for grad in grad_roots]

    quiet = enter_quiet()
    before, mode.grad = mode.grad, create_graph
    try:
        leaves = _walk(edges, grads, wanted, captured, retain_graph, create_graph)
        for slot in leaves.values():
            if slot[1]._hooks:
                slot[0] = _run_hooks(slot[1]._hooks, slot[0], slot[1].device)
        if targets is None:
            for slot in leaves.values():
                _accumulate(slot, create_graph)
            return []
    finally:
        mode.grad = before
        leave_quiet(quiet)
    found = [
        leaves.get(id(t), (None,))[0] if t._node is None else captured[t._node.number, t._index]
        for t in targets
    ]
    return [g if g is None else as_variable(g, t.device) for g, t in zip(found, targets, strict=True)]


def _walk(edges, grads, wanted, captured, retain_graph, create_graph) -> dict[int, list]:
    """Send ``grads`` along ``edges``, and on through all nodes behind: at each time the youngest.

    Returns:
        By the leaves' ids, [the gradient, the leaf].
    """
    leaves: dict[int, list] = {}
    pending: dict[int, list] = {}  # by a node's number: [its outputs' gradients so far ..., the node]
    youngest: list[int] = []  # a heap of the pending numbers, negated
    anomaly = mode.anomaly
    while True:
        for edge, grad in zip(edges, grads):  # noqa: B905 (as long as each other; strict costs time here)
            if grad is None:
                continue
            index = 0
            if type(edge) is tuple:
                edge, index = edge
            if type(edge) is Node:
                node = edge
                slot = pending.get(node.number)
                if slot is None:
                    slot = pending[node.number] = [None] * len(node.outputs)
                    slot.append(node)
                    heappush(youngest, -node.number)
            else:
                slot = leaves.get(id(edge))
                if slot is None:
                    slot = leaves[id(edge)] = [None, edge]
            sent = slot[index]
            slot[index] = grad if sent is None else sent + grad
        slot = grads = grad = sent = None  # hold no gradient longer than it is needed
        if not youngest:
            return leaves

        grads = pending.pop(-heappop(youngest))
        node = grads.pop()
        if node.hooks:
            grads = [_run_hooks(node.hooks.get(i), g, node.device) for i, g in enumerate(grads)]
        edges = needed = node.edges
        if wanted is not None:
            needed = _needed_edges(node, grads, wanted, captured)
        if needed is None:
            grads = ()
            continue
        grads = node.gradients(grads, needed, create_graph)
        if anomaly:
            _check_gradients(node, grads)
        if not retain_graph:
            node.free()


def _needed_edges(node: Node, grads: list, wanted: set, captured: dict) -> list | None:
    """Note the gradients of targets among the node's outputs; its edges, with None for those not ``wanted``.

    Returns None if none of the edges is.
    """
    is_target = False
    for index, grad in enumerate(grads):
        if (node.number, index) in captured:
            captured[node.number, index] = grad
            is_target = True
    needed = [edge if edge is not None and _target_key(edge) in wanted else None for edge in node.edges]
    if any(edge is not None for edge in needed):
        return needed
    if node.inputs is None and not is_target:
        node.check_usable()
    return None


def _references(slot: list) -> int:
    """A count of the references to ``slot[0]``: if there is no other, it is ``_HELD_BY_SLOT``."""
    return sys.getrefcount(slot[0])


_HELD_BY_SLOT = _references([object()])


def _accumulate(slot: list, create_graph: bool) -> None:
    """Add the gradient to the leaf's ``grad``; ``slot`` is [the gradient, the leaf]."""
    owned = _references(slot) == _HELD_BY_SLOT
    grad, leaf = slot
    if create_graph:
        leaf.grad = grad.clone() if leaf.grad is None else leaf.grad + grad
    elif leaf.grad is not None:
        leaf.grad._array += grad
        mark_written(leaf.grad)
    else:
        # The array becomes the leaf's own only if the slot alone refers to it. Otherwise two gradients, or
        # a gradient and a saved value, would share memory.
        owned = owned and grad.base is None and grad.flags.c_contiguous
        leaf.grad = as_variable(grad if owned else grad.copy(), leaf.device)


def _towards(targets: Sequence[Variable], roots: Sequence[Variable]) -> set:
    """The numbers of the nodes, and the ids of the leaves, through which the targets are reached.

    The producing nodes of non-leaf targets are in the set themselves.
    """
    reached: dict[int, Node] = {}
    stack = [root._node for root in roots if root._node is not None]
    while stack:
        node = stack.pop()
        if node.number not in reached:
            reached[node.number] = node
            stack.extend(
                e[0] if isinstance(e, tuple) else e for e in node.edges if isinstance(e, (Node, tuple))
            )
    wanted = {id(t) if t._node is None else t._node.number for t in targets}
    for number in sorted(reached):  # inputs before outputs
        if any(_target_key(edge) in wanted for edge in reached[number].edges if edge is not None):
            wanted.add(number)
    return wanted


def _target_key(edge: Any) -> int:
    if isinstance(edge, Variable):
        return id(edge)
    return edge[0].number if isinstance(edge, tuple) else edge.number


def _run_hooks(hooks: dict[int, Callable] | None, grad: Any, device: Device) -> Any:
    """``grad`` (a tensor, a bare array, or None) after ``hooks``, which see a tensor."""
    if not hooks or grad is None:
        return grad
    tensor = as_variable(grad, device)
    for hook in list(hooks.values()):
        replaced = hook(tensor)
        if replaced is not None:
            if replaced.shape != tensor.shape:
                raise ValueError(f"a hook returned shape {replaced.shape}, expected {tensor.shape}")
            tensor = replaced
    return tensor if isinstance(grad, Variable) else tensor._array


# ---- public functions -----------------------------------------------------------------------------------


def backward(
    tensors: Variable | Sequence[Variable],
    grad_tensors: Variable | Sequence[Variable | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Add the gradient of the sum of ``tensors`` to the ``grad`` of every leaf that requires one.

    Args:
        tensors: where to start; each must require a gradient.
        grad_tensors: for each the gradient to start with, of the same shape; by default 1, which needs
            tensors of one element.
        retain_graph: keep the graph for another walk (by default, only where ``create_graph`` is set).
        create_graph: record the gradients' own graph, so that they can be differentiated again.
    """
    roots = _as_list(tensors)
    grads = [None] * len(roots) if grad_tensors is None else _as_list(grad_tensors)
    retain = create_graph if retain_graph is None else retain_graph
    run_backward(
        roots, _root_gradients("backward", roots, grads), retain_graph=retain, create_graph=create_graph
    )


def grad(
    outputs: Variable | Sequence[Variable],
    inputs: Variable | Sequence[Variable],
    grad_outputs: Variable | Sequence[Variable | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple:
    """The gradient of the sum of ``outputs`` with respect to each of ``inputs``; no ``grad`` is changed.

    Args: as in :func:`backward`; ``allow_unused`` gives None for an input that does not take part.

    Raises:
        RuntimeError: an input takes no part in the outputs, and ``allow_unused`` is not set.
    """
    roots, targets = _as_list(outputs), _as_list(inputs)
    for i, target in enumerate(targets):
        if not target.requires_grad:
            raise RuntimeError(f"grad: input {i} does not require a gradient")
    grads = [None] * len(roots) if grad_outputs is None else _as_list(grad_outputs)
    found = run_backward(
        roots,
        _root_gradients("grad", roots, grads),
        targets=targets,
        retain_graph=create_graph if retain_graph is None else retain_graph,
        create_graph=create_graph,
    )
    if not allow_unused:
        for i, g in enumerate(found):
            if g is None:
                raise RuntimeError(f"grad: input {i} takes no part in the outputs; pass allow_unused=True")
    return tuple(found)


def _as_list(tensors: Any) -> list:
    return [tensors] if isinstance(tensors, Variable) else list(tensors)


def _root_gradients(caller: str, roots: Sequence, grads: Sequence) -> list:
    if len(roots) != len(grads):
        raise ValueError(f"{caller}: {len(roots)} tensors but {len(grads)} gradients to start with")
    started = []
    for root, g in zip(roots, grads, strict=True):
        if not root.requires_grad:
            raise RuntimeError(f"{caller}: the tensor does not require a gradient and has no graph")
        if g is None:
            if root._array.size != 1:
                raise RuntimeError(
                    f"{caller}: a gradient to start with can be left out for one element only, "
                    f"the tensor has shape {root.shape}"
                )
            with root.device.active():
                g = wrap(root.device.xp.ones(root.shape, root.dtype), root.device)
        elif g.shape != root.shape:
            raise ValueError(f"{caller}: the gradient has shape {g.shape}, the tensor {root.shape}")
        elif g.device is not root.device:
            raise ValueError(f"{caller}: the gradient is on {g.device}, the tensor on {root.device}")
        started.append(g)
    return started


class set_grad_enabled(contextlib.ContextDecorator):
    """Context manager and decorator: record the graph (or not) in this thread."""

    def __init__(self, enabled: bool):
        self.enabled = bool(enabled)
        self.before: list[bool] = []

    def _recreate_cm(self) -> set_grad_enabled:
        return set_grad_enabled(self.enabled)  # for each call of a decorated function: threads share none

    def __enter__(self) -> None:
        self.before.append(mode.grad)
        mode.grad = self.enabled

    def __exit__(self, *exc: object) -> None:
        mode.grad = self.before.pop()


no_grad = functools.partial(set_grad_enabled, False)
enable_grad = functools.partial(set_grad_enabled, True)


def is_grad_enabled() -> bool:
    """Whether ops of this thread record the graph."""
    return mode.grad


# ---- anomaly mode ---------------------------------------------------------------------------------------


def set_detect_anomaly(enabled: bool) -> None:
    """Turn anomaly mode on or off for this thread: see :func:`detect_anomaly`."""
    mode.anomaly = bool(enabled)


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Look for NaN after every op and every gradient rule; the error names the op that made the first one.

    Slow: meant for finding out where a NaN comes from.
    """
    before = mode.anomaly
    mode.anomaly = True
    try:
        yield
    finally:
        mode.anomaly = before


def calling_stack() -> list:
    """Where an op was called: the stack without the engine's own frames, which are not there if compiled."""
    stack = traceback.extract_stack()
    while stack and stack[-1].filename.startswith(_ENGINE):
        stack.pop()
    return stack


_ENGINE = tuple(
    os.path.join(os.path.dirname(__file__), f"{name}.py") for name in ("autograd", "op", "tensor")
)


def check_outputs(op: Any, inputs: Iterable, outputs: Iterable) -> None:
    """In anomaly mode: raise if an output has a NaN although no input has one."""
    if any(_has_nan(out) for out in outputs) and not any(_has_nan(arg) for arg in inputs):
        raise RuntimeError(f"anomaly mode: {op.name!r} made a NaN from inputs that have none")


def _check_gradients(node: Node, grads: Sequence) -> None:
    for i, g in enumerate(grads):
        if g is not None and _has_nan(g):
            where = "".join(traceback.format_list(node.stack)) if node.stack else "  (not recorded)\n"
            raise RuntimeError(
                f"anomaly mode: the gradient of {node.op.name!r} for {node.op.input_name(i)!r} has a NaN; "
                f"the op was called at:\n{where}"
            )


def _has_nan(value: Any) -> bool:
    """Whether a tensor or an array has a NaN; numbers and integers have none."""
    array = getattr(value, "_array", value)
    return (
        getattr(array, "dtype", None) is not None and array.dtype.kind == "f" and bool((array != array).any())
    )
