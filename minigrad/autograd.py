"""Reverse-mode automatic differentiation: the walk back along the graph that ops record.

Nodes are numbered as they are made, and an op's inputs exist before its output does. So decreasing number
*is* a topological order, and the walk is a loop over a heap: take the youngest node, apply its op's rule,
send the results along its edges. The graph itself is in :mod:`minigrad.graph`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np

from minigrad.anomaly import check_gradients, detect_anomaly, set_detect_anomaly
from minigrad.devices import Device, cpu, explain, find_card
from minigrad.dispatch import enter_quiet, leave_quiet
from minigrad.function import Function
from minigrad.grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from minigrad.gradient_parts import PartedGradient
from minigrad.graph import (
    LARGE,
    Node,
    as_variable,
    mark_written,
    mode,
    tensor_class,
    wrap,
    written_cell,
)
from minigrad.graph import Variable as _Variable
from minigrad.kernels.arguments import is_contiguous
from minigrad.kernels.channels_last import copied, is_channels_last, nhwc
from minigrad.kernels.cpu import elementwise, memory
from minigrad.kernels.cpu.small import total
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import get_op
from minigrad.variable import Variable

__all__ = [
    "Function",
    "Node",
    "Variable",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "grad",
    "inference_mode",
    "is_grad_enabled",
    "mark_written",
    "mode",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
    "tensor_class",
    "wrap",
    "written_cell",
]

_KERNEL_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def run_backward(
    roots: Sequence[_Variable],
    grad_roots: Sequence[_Variable],
    *,
    targets: Sequence[_Variable] | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> list:
    """Send ``grad_roots`` back from ``roots``.

    With ``targets`` None, gradients are added to the ``grad`` of every leaf reached, and an empty list is
    returned. Otherwise nothing is changed and the gradient of each target (or None) is returned.

    On the way gradients are tensors if their own graph is wanted (``create_graph``), else bare arrays.
    """
    wanted = None if targets is None else _towards(targets, roots)
    captured = {(t._node.number, t._index): None for t in targets or () if t._node is not None}
    edges = [root if root._node is None else (root._node, root._index) for root in roots]
    grads = [grad if create_graph else grad._array for grad in grad_roots]

    quiet = enter_quiet()
    before, mode.grad = mode.grad, create_graph
    targets_before, mode.targets = mode.targets, captured
    autocast, mode.autocast = mode.autocast, None  # gradients have the dtypes of the forward pass
    left: list = []
    try:
        with cpu.active() if roots and roots[0].device is cpu else contextlib.nullcontext():
            leaves = _walk(edges, grads, wanted, captured, retain_graph, create_graph, left)
            for slot in leaves.values():
                if slot[1]._hooks:
                    slot[0] = _run_hooks(slot[1]._hooks, slot[0], slot[1].device)
            if targets is None:
                for slot in leaves.values():
                    if slot[1].device.is_one_of_several:
                        left.append(slot[1].device.use())
                    _accumulate(slot, create_graph)
                return []
    except Exception as error:
        explained = explain(error)
        if explained is error:
            raise
        raise explained from error
    finally:
        if left:
            left[0].use()
        mode.grad, mode.autocast, mode.targets = before, autocast, targets_before
        leave_quiet(quiet)
    found = [
        leaves.get(id(t), (None,))[0] if t._node is None else captured[t._node.number, t._index]
        for t in targets
    ]
    return [g if g is None else as_variable(g, t.device) for g, t in zip(found, targets, strict=True)]


def _walk(edges, grads, wanted, captured, retain_graph, create_graph, left) -> dict[int, list]:
    """Send ``grads`` along ``edges``, and on through all nodes behind: at each time the youngest.

    Bare arrays are computed with on CuPy's current card, so it is always that of the node at hand. To
    ``left`` go the devices that were current before; the first of them is the caller's.

    Returns:
        By the leaves' ids, [the gradient, the leaf].
    """
    leaves: dict[int, list] = {}
    pending: dict[int, list] = {}  # by a node's number: [its outputs' gradients so far ..., the node]
    youngest = 0  # the largest of the pending numbers, or 0; in a chain of ops it is the only one
    others: list[int] = []  # a heap of the other pending numbers, negated
    anomaly = mode.anomaly
    here = cpu
    while True:
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            edge = edges[i]
            index = 0
            if type(edge) is tuple:
                edge, index = edge
            if type(edge) is Node:
                node = edge
                slot = pending.get(node.number)
                if slot is None:
                    slot = pending[node.number] = [None] * len(node.outputs)
                    slot.append(node)
                    if node.number > youngest:
                        if youngest:
                            heappush(others, -youngest)
                        youngest = node.number
                    else:
                        heappush(others, -node.number)
            else:
                slot = leaves.get(id(edge))
                if slot is None:
                    slot = leaves[id(edge)] = [None, edge]
            if slot[index] is None:
                slot[index] = grad
            else:
                _add_to(slot, index, grad)
        slot = grads = grad = None  # hold no gradient longer than it is needed
        if not youngest:
            for slot in leaves.values():
                _complete(slot)
            return leaves

        grads = pending.pop(youngest)
        youngest = -heappop(others) if others else 0
        node = grads.pop()
        _complete(grads)
        if node.device is not here:
            here = node.device
            if here.is_one_of_several:
                left.append(here.use())
        if node.hooks:
            grads = [_run_hooks(node.hooks.get(i), g, node.output_device) for i, g in enumerate(grads)]
        edges = needed = node.edges
        if wanted is not None:
            needed = _needed_edges(node, grads, wanted, captured)
        if needed is None:
            grads = []
            continue
        rest = None
        if node.op.add_gradient is not None and not create_graph and not anomaly:
            rest = _add_in_place(node, needed[0], grads[0], pending, leaves)
        if rest is not None:
            grads = rest
        else:
            grads = node.gradients(grads, needed, create_graph)
            if anomaly:
                check_gradients(node, grads)
        if not retain_graph:
            node.free()


def _add_in_place(node: Node, edge: Any, grad: Any, pending: dict, leaves: dict) -> list | None:
    """For an op that looks at a part of its input: add the gradient to what was sent along ``edge`` before.

    Returns:
        What is still to be sent, a list; None, and nothing done, if the op's rule has to find it.
    """
    index = 0
    if type(edge) is tuple:
        edge, index = edge
    slot = pending.get(edge.number) if type(edge) is Node else leaves.get(id(edge))
    node.check_usable()
    own = node.inputs[0]
    shape, dtype = own if type(own) is tuple else (own.shape, own.dtype)
    part = None if node.op.part is None else node.op.part(shape, **node.attrs)
    if slot is None or slot[index] is None:
        if part is None:
            return None
        gathered = PartedGradient(shape, dtype, node.device, part[0])
        gathered.write(part, grad)
        return [gathered]
    if type(slot[index]) is PartedGradient:
        if part is not None and slot[index].write(part, grad):
            return []
        slot[index] = slot[index].whole()
    if type(slot[index]) is not np.ndarray or not _is_owned(slot, index):
        return None
    node.op.add_gradient(slot[index], grad, **node.attrs)
    return []


def _complete(grads: list) -> None:
    """Put arrays in the places of gradients that came in parts."""
    for i, grad in enumerate(grads):
        if type(grad) is PartedGradient:
            grads[i] = grad.whole()


def _needed_edges(node: Node, grads: list, wanted: set, captured: dict) -> list | None:
    """Note the gradients of targets among the node's outputs; its edges, with None for those not ``wanted``.

    Returns None if none of the edges is.
    """
    for index, grad in enumerate(grads):
        if (node.number, index) in captured:
            captured[node.number, index] = grad
    needed = [edge if edge is not None and _target_key(edge) in wanted else None for edge in node.edges]
    return needed if any(edge is not None for edge in needed) else None


def _references(slot: list, index: int) -> int:
    """A count of the references to ``slot[index]``: if there is no other, it is ``_HELD_BY_SLOT``."""
    return sys.getrefcount(slot[index])


def _base_references(array: Any) -> int:
    """The same for the array that ``array`` is a view of, to which the caller refers too."""
    return sys.getrefcount(array.base)


def _references_to_base_of_view() -> int:
    array = np.empty(2).reshape(1, 2)
    whole = array.base  # noqa: F841
    return _base_references(array)


_HELD_BY_SLOT = _references([object()], 0)
_HELD_BY_VIEW = _references_to_base_of_view()


def _is_owned(slot: list, index: int, last: bool = False) -> bool:
    """Whether ``slot[index]``, an array, perhaps reshaped, may be written to and nobody else refers to it.

    It has to be C-contiguous, or where images lie channels ``last``, to do so, too."""
    if _references(slot, index) != _HELD_BY_SLOT:
        return False
    array = slot[index]
    if isinstance(array, np.generic):  # NumPy's sums of all elements
        return False
    if not is_contiguous(nhwc(array) if last else array):
        return False
    if isinstance(array, np.ndarray) and not array.flags.writeable:  # CuPy's all are
        return False
    whole = array.base  # None, or what a reshaped array is a view of
    return whole is None or (
        type(whole) is type(array)
        and whole.base is None
        and whole.size == array.size
        and _base_references(array) == _HELD_BY_VIEW
    )


def _suits_kernels(array: Any) -> bool:
    """Whether the elementwise kernels take the array, and gain by their vectors and threads."""
    return (
        type(array) is np.ndarray
        and array.size >= LARGE
        and array.dtype in _KERNEL_DTYPES
        and array.flags.aligned
    )


def _add_to(slot: list, index: int, grad: Any) -> None:
    """Add ``grad``, a tensor or an array, to ``slot[index]``, the gradient that came before it."""
    if type(slot[index]) is PartedGradient:
        slot[index] = slot[index].whole()
    if _suits_kernels(grad) and _suits_kernels(slot[index]):
        owned = _is_owned(slot, index)
        sent = slot[index]
        slot[index] = sent if owned else memory.empty(grad.shape, grad.dtype)
        elementwise.add(slot[index], sent, grad, get_num_threads())
    elif not isinstance(grad, (np.ndarray, np.generic, _Variable)):
        # CuPy's sums take longer to launch than our kernel; it adds floats of 16 bits one by one, where ours
        # takes vectors; and it keeps no image channels last.
        card = find_card(grad.data.device_id)
        slot[index] = get_op("add")._compute(card, grad.dtype, [slot[index], grad], {})
    else:
        slot[index] = total(slot[index], grad)


def _accumulate(slot: list, create_graph: bool) -> None:
    """Add the gradient to the leaf's ``grad``; ``slot`` is [the gradient, the leaf]."""
    # The array becomes the leaf's own only if the slot alone refers to it. Otherwise two gradients, or a
    # gradient and a saved value, would share memory.
    owned = not create_graph and _is_owned(slot, 0, is_channels_last(slot[1]._array))
    grad, leaf = slot
    if create_graph:
        leaf.grad = grad.clone() if leaf.grad is None else leaf.grad + grad
    elif leaf.grad is None:
        leaf.grad = as_variable(grad if owned else _copy(grad, leaf._array), leaf.device)
    else:
        before = leaf.grad._array
        if (
            _suits_kernels(before)
            and before.flags.carray
            and (before.shape, before.dtype) == (grad.shape, grad.dtype)
        ):
            elementwise.add(before, before, grad, get_num_threads())
        else:
            before += grad
        mark_written(leaf.grad)


def _copy(array: Any, like: Any) -> Any:
    """A copy in C order, or where ``like`` lies channels last, in that one."""
    if not _suits_kernels(array) or is_channels_last(like):
        return copied(array, like)
    out = memory.empty(array.shape, array.dtype)
    elementwise.copy(out, array, get_num_threads())
    return out


def _towards(targets: Sequence[_Variable], roots: Sequence[_Variable]) -> set:
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
    if isinstance(edge, _Variable):
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
            if not isinstance(replaced, _Variable):
                raise TypeError(f"a hook returns a tensor or None, got {type(replaced).__name__}")
            if replaced.shape != tensor.shape:
                raise ValueError(f"a hook returned shape {replaced.shape}, expected {tensor.shape}")
            tensor = replaced
    return tensor if isinstance(grad, _Variable) else tensor._array


# ---- public functions -----------------------------------------------------------------------------------


def backward(
    tensors: _Variable | Sequence[_Variable],
    grad_tensors: _Variable | Sequence[_Variable | None] | None = None,
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
    outputs: _Variable | Sequence[_Variable],
    inputs: _Variable | Sequence[_Variable],
    grad_outputs: _Variable | Sequence[_Variable | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool = False,
) -> tuple:
    """The gradient of the sum of ``outputs`` with respect to each of ``inputs``; no ``grad`` is changed.

    Args: as in :func:`backward`; ``allow_unused`` gives None for an input that does not take part;
        ``only_inputs``, there for PyTorch's sake, must be true.

    Raises:
        RuntimeError: an input takes no part in the outputs, and ``allow_unused`` is not set.
    """
    if not only_inputs:
        raise ValueError("grad: only_inputs=False is not supported; use backward()")
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
    return [tensors] if isinstance(tensors, _Variable) else list(tensors)


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
        started.append(g if g.dtype == root.dtype else g.to(root.dtype))
    return started
