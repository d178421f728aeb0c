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
import heapq
import itertools
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_next_number = itertools.count().__next__


class Variable:
    """An array and its place in the graph. :class:`minigrad.Tensor` adds arithmetic and methods to it.

    Attributes:
        _array: the NumPy or CuPy array.
        device: where it lives.
        requires_grad: whether a gradient flows to it.
        grad: for a leaf, the gradient accumulated so far, or None.
        _node, _index: the node that made it, and which of the node's outputs it is; None for a leaf.
        _version: a one-element list that counts writes to its memory, shared by all views of it.
        _is_view: whether it shows another tensor's memory.
        _hooks: functions called with its gradient, by their handle's number.
    """

    # Defaults of the class, so that making a tensor sets only what differs: it is made once for every op.
    _array: Any
    device: Device = cpu
    requires_grad: bool = False
    grad: Any = None
    _node: Node | None = None
    _index: int = 0
    _version: list[int] | None = None
    _is_view: bool = False
    _hooks: dict[int, Callable] | None = None

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
    out = _tensor_class.__new__(_tensor_class)
    out._array = array
    out.device = device
    return out


def version_cell(variable: Variable) -> list[int]:
    """The counter of writes to the variable's memory; views of the same memory share it."""
    cell = variable._version
    if cell is None:
        cell = variable._version = [0]
    return cell


class Node:
    """One application of an op: a vertex of the graph.

    Attributes:
        number: the order of creation.
        op: the :class:`minigrad.op.Op` that was applied, with its keyword arguments ``attrs``.
        inputs: for each input what the gradient rule is given: the tensor where the rule asked for it,
            else a :class:`Spec`; None once the node has been freed.
        edges: for each input, where its gradient goes: ``None``, a leaf tensor, or (node, output index).
        needs: for each input, whether ``edges`` leads anywhere, as a bit mask.
        outputs: for each output, its array where the rule asked for it, else a :class:`Spec`.
        versions: pairs (counter, its value when saved) for everything saved.
        hooks: for each output that has any, its hooks; shared with the output tensor.
        stack: where the op was called, in anomaly mode.
    """

    __slots__ = (
        "attrs",
        "device",
        "edges",
        "hooks",
        "inputs",
        "needs",
        "number",
        "op",
        "outputs",
        "stack",
        "versions",
    )

    def __init__(self, op, attrs, device, needs, args, outputs, save_inputs, save_outputs):
        self.number = _next_number()
        self.op = op
        self.attrs = attrs
        self.device = device
        self.needs = needs
        self.hooks = None
        self.stack = traceback.extract_stack()[:-3] if mode.anomaly else None

        inputs, edges, versions = [], [], []
        for arg, save in zip(args, save_inputs, strict=True):
            if not isinstance(arg, Variable):
                inputs.append(arg)
                edges.append(None)
                continue
            if save:
                inputs.append(arg)
                cell = version_cell(arg)
                versions.append((cell, cell[0]))
            else:
                inputs.append(Spec(arg._array.shape, arg._array.dtype))
            if not arg.requires_grad:
                edges.append(None)
            elif arg._node is None:
                edges.append(arg)
            else:
                edges.append((arg._node, arg._index))
        self.inputs = inputs
        self.edges = edges

        kept = []
        for index, out in enumerate(outputs):
            array = out._array
            if save_outputs:
                kept.append(array)
                cell = version_cell(out)
                versions.append((cell, cell[0]))
            else:
                kept.append(Spec(array.shape, array.dtype))
            if array.dtype.kind == "f":
                out.requires_grad = True
                out._node = self
                out._index = index
        self.outputs = kept
        self.versions = versions

    def free(self) -> None:
        """Drop everything saved: the node cannot be passed again."""
        self.inputs = self.outputs = None
        self.edges = self.versions = ()

    def output_variables(self) -> Any:
        """The outputs as the rule sees them: a tensor tied to this node (or a Spec) each; one, or a tuple."""
        restored = []
        for index, kept in enumerate(self.outputs):
            if not isinstance(kept, Spec):
                kept = wrap(kept, self.device)
                if kept.dtype.kind == "f":
                    kept.requires_grad = True
                    kept._node = self
                    kept._index = index
            restored.append(kept)
        return restored[0] if len(restored) == 1 else tuple(restored)

    def gradients(self, grad_outputs: Sequence, needs: int) -> Sequence:
        """Apply the op's rule: for each input whose bit is set in ``needs`` its gradient, else None."""
        if self.inputs is None:
            raise RuntimeError(
                f"the graph was freed when it was walked the first time (at op {self.op.name!r}): "
                "pass retain_graph=True to the first backward()"
            )
        for cell, version in self.versions:
            if cell[0] != version:
                raise RuntimeError(
                    f"a tensor that the gradient of {self.op.name!r} needs was changed in place after the op "
                    "ran; use the out-of-place form of that change, or clone() the tensor before it"
                )
        if len(self.outputs) == 1:
            g = grad_outputs[0]
        else:
            g = tuple(
                _zeros(spec.shape, spec.dtype, self.device)
                if grad is None and spec.dtype.kind == "f"
                else grad
                for grad, spec in zip(grad_outputs, self.outputs, strict=True)
            )
        found = self.op.apply_gradient(g, self.output_variables(), self.inputs, self.attrs, needs)
        return [None if grad is None else self._fit(grad, i) for i, grad in enumerate(found)]

    def _fit(self, grad: Any, i: int) -> Any:
        """``grad`` in the shape and dtype of input ``i``: the one place where broadcasting is undone."""
        wanted = self.inputs[i]
        if not isinstance(grad, Variable):
            raise TypeError(
                f"the gradient of {self.op.name!r} for {self.op.input_name(i)!r} must be a Tensor, "
                f"got {type(grad).__name__}"
            )
        if grad.device is not self.device:
            raise RuntimeError(
                f"the gradient of {self.op.name!r} for {self.op.input_name(i)!r} is on {grad.device}, "
                f"expected {self.device}"
            )
        if grad._array.shape != wanted.shape:
            grad = unbroadcast(grad, wanted.shape, self.op, i)
        if grad._array.dtype != wanted.dtype:
            grad = grad.to(wanted.dtype)
        return grad


def unbroadcast(grad: Any, shape: tuple[int, ...], op: Any, i: int) -> Any:
    """Sum ``grad`` over the axes along which an input of ``shape`` was broadcast."""
    extra = grad.ndim - len(shape)
    stretched = (
        [
            axis + extra
            for axis, size in enumerate(shape)
            if size == 1 and grad._array.shape[axis + extra] != 1
        ]
        if extra >= 0
        else []
    )
    summed = grad.sum(dim=(*range(extra), *stretched), keepdim=True) if extra > 0 or stretched else grad
    if extra < 0 or summed._array.shape[extra:] != shape:
        raise RuntimeError(
            f"the gradient of {op.name!r} for {op.input_name(i)!r} has shape {grad._array.shape}, "
            f"expected the input's shape {shape} or one that it broadcasts to"
        )
    return summed.reshape(shape)


def _zeros(shape: tuple[int, ...], dtype: np.dtype, device: Device) -> Any:
    with device.active():
        return wrap(device.xp.zeros(shape, dtype), device)


# ---- the walk -----------------------------------------------------------------------------------------


def run_backward(
    roots: Sequence[Variable],
    grad_roots: Sequence,
    *,
    targets: Sequence[Variable] | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> list:
    """Send ``grad_roots`` back from ``roots``.

    With ``targets`` None, gradients are added to the ``grad`` of every leaf reached, and an empty list is
    returned. Otherwise nothing is changed and the gradient of each target (or None) is returned.
    """
    wanted = None if targets is None else _nodes_towards(targets, roots)
    captured: dict[tuple[int, int], Any] = {}
    heap: list[int] = []
    pending: dict[int, tuple[Node, list]] = {}  # node number -> the node, and its outputs' gradients so far
    leaves: dict[int, list] = {}  # id of a leaf -> [the leaf, its gradient so far]

    def send(edge: Any, grad: Any) -> None:
        if isinstance(edge, Variable):
            slot = leaves.setdefault(id(edge), [edge, None])
            slot[1] = grad if slot[1] is None else slot[1] + grad
            return
        node, index = edge
        entry = pending.get(node.number)
        if entry is None:
            entry = pending[node.number] = (node, [None] * len(node.outputs or (None,)))
            heapq.heappush(heap, -node.number)
        grads = entry[1]
        grads[index] = grad if grads[index] is None else grads[index] + grad

    for root, grad in zip(roots, grad_roots, strict=True):
        send(root if root._node is None else (root._node, root._index), grad)

    with set_grad_enabled(create_graph):
        while heap:
            node, grads = pending.pop(-heapq.heappop(heap))
            if node.hooks:
                _run_node_hooks(node, grads)
            if wanted is not None:
                captured.update({(node.number, i): g for i, g in enumerate(grads) if g is not None})
            edges = node.edges
            needs = node.needs if wanted is None else _needs_towards(node, wanted)
            if wanted is not None and not needs:
                continue
            found = node.gradients(grads, needs)
            if mode.anomaly:
                _check_gradients(node, found)
            if not retain_graph:
                node.free()
            for edge, grad in zip(edges, found, strict=True):
                if grad is not None:
                    send(edge, grad)
            grads = found = grad = None  # hold no gradient longer than it is needed

        for slot in leaves.values():
            if slot[0]._hooks:
                slot[1] = _run_hooks(slot[0]._hooks, slot[1])

    if targets is None:
        for leaf, grad in leaves.values():
            _accumulate(leaf, grad, create_graph)
        return []
    return [
        leaves.get(id(t), (t, None))[1] if t._node is None else captured.get((t._node.number, t._index))
        for t in targets
    ]


def _accumulate(leaf: Variable, grad: Any, create_graph: bool) -> None:
    """Add ``grad`` to ``leaf.grad``. A gradient that something else may refer to is copied first."""
    if leaf.grad is not None:
        if create_graph:
            leaf.grad = leaf.grad + grad
        else:
            quiet = enter_quiet()
            leaf.grad._array += grad._array
            leave_quiet(quiet)
            version_cell(leaf.grad)[0] += 1
    elif create_graph:
        leaf.grad = grad
    else:
        array = grad._array
        # Two references are ours: the name `array`, and the slot of `grad`; the third is the argument's.
        shared = sys.getrefcount(array) > 3 or array.base is not None or not array.flags.c_contiguous
        leaf.grad = wrap(array.copy() if shared else array, leaf.device)


def _nodes_towards(targets: Sequence[Variable], roots: Sequence[Variable]) -> set:
    """The numbers of the nodes, and the ids of the leaves, through which the targets are reached.

    The producing nodes of non-leaf targets are in the set themselves.
    """
    reached: dict[int, Node] = {}
    stack = [root._node for root in roots if root._node is not None]
    while stack:
        node = stack.pop()
        if node.number not in reached:
            reached[node.number] = node
            stack.extend(edge[0] for edge in node.edges if isinstance(edge, tuple))
    wanted = {id(t) if t._node is None else t._node.number for t in targets}
    for number in sorted(reached):  # inputs before outputs
        if any(_edge_key(edge) in wanted for edge in reached[number].edges if edge is not None):
            wanted.add(number)
    return wanted


def _edge_key(edge: Any) -> int:
    return edge[0].number if isinstance(edge, tuple) else id(edge)


def _needs_towards(node: Node, wanted: set) -> int:
    return sum(1 << i for i, edge in enumerate(node.edges) if edge is not None and _edge_key(edge) in wanted)


def _run_node_hooks(node: Node, grads: list) -> None:
    for index, hooks in node.hooks.items():
        if grads[index] is not None:
            grads[index] = _run_hooks(hooks, grads[index])


def _run_hooks(hooks: dict[int, Callable], grad: Any) -> Any:
    for hook in list(hooks.values()):
        replaced = hook(grad)
        if replaced is not None:
            if replaced.shape != grad.shape:
                raise ValueError(f"a hook returned shape {replaced.shape}, expected {grad.shape}")
            grad = replaced
    return grad


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
        started.append(wrap(g._array, root.device) if g.is_leaf else g)
    return started


class set_grad_enabled(contextlib.ContextDecorator):
    """Context manager and decorator: record the graph (or not) in this thread."""

    def __init__(self, enabled: bool):
        self.enabled = bool(enabled)
        self.before: list[bool] = []

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


def check_outputs(op: Any, arrays: Iterable, outputs: Iterable) -> None:
    """In anomaly mode: raise if an output has a NaN although no input has one."""
    if any(_has_nan(out) for out in outputs) and not any(_has_nan(a) for a in arrays):
        raise RuntimeError(f"anomaly mode: {op.name!r} made a NaN from inputs that have none")


def _check_gradients(node: Node, grads: Sequence) -> None:
    for i, g in enumerate(grads):
        if g is not None and _has_nan(g._array):
            where = "".join(traceback.format_list(node.stack)) if node.stack else "  (not recorded)\n"
            raise RuntimeError(
                f"anomaly mode: the gradient of {node.op.name!r} for {node.op.input_name(i)!r} has a NaN; "
                f"the op was called at:\n{where}"
            )


def _has_nan(array: Any) -> bool:
    return (
        getattr(array, "dtype", None) is not None and array.dtype.kind == "f" and bool((array != array).any())
    )
