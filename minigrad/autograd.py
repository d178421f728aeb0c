"""Reverse-mode automatic differentiation: :func:`backward`, :func:`grad`, and the walk back along the graph.

The forward pass has left a graph (:mod:`minigrad.graph`): each op that was applied is a node, whose edges
lead to the nodes that made its inputs, or to leaves, such as parameters. Nodes are numbered as they are made,
so an input's node has a smaller number than the output's. Decreasing numbers therefore *are* a topological
order, and :func:`_walk` is a loop:

1. take the pending node with the largest number; nothing can add to its outputs' gradients any more;
2. apply its op's gradient rules: they give the gradients of its inputs;
3. add each of these to what has come along the same edge so far, at a node (now pending) or at a leaf.

At the end the leaves' gradients are added to their ``grad``. What avoids copies, by adding in place where it
may, is in :mod:`minigrad.gradient_sums`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np

from minigrad.anomaly import check_gradients, detect_anomaly, set_detect_anomaly
from minigrad.devices import Device, cpu, explain
from minigrad.dispatch import enter_quiet, leave_quiet
from minigrad.function import Function
from minigrad.grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from minigrad.gradient_parts import PartedGradient
from minigrad.gradient_sums import accumulate, add_to, is_owned
from minigrad.graph import (
    Node,
    as_variable,
    check_history,
    mark_written,
    mode,
    tensor_class,
    wrap,
    written_cell,
)
from minigrad.graph import Variable as _Variable
from minigrad.recording import recorder
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


def backward(
    tensors: _Variable | Sequence[_Variable],
    grad_tensors: _Variable | Sequence[_Variable | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    *,
    inputs: _Variable | Sequence[_Variable] | None = None,
) -> None:
    """Add the gradient of the sum of ``tensors`` to the ``grad`` of every leaf that requires a gradient.

    Args:
        tensors: what to differentiate; each must require a gradient.
        grad_tensors: for each the gradient to start with, a tensor of the same shape; by default 1, for
            tensors of one element only.
        retain_graph: keep the graph for another walk; by default as ``create_graph``.
        create_graph: record a graph of the gradients, so that they can be differentiated again.
        inputs: the tensors whose ``grad`` to add to, leaves or not, instead of all leaves.

    Raises:
        RuntimeError: a tensor requires no gradient, or has several elements and no gradient to start with;
            the graph was freed by an earlier walk; or a tensor that a rule needs was changed in place since.
        ValueError: a gradient to start with has another shape or device than its tensor; or there are no
            ``inputs``.
    """
    roots = _as_list(tensors)
    grads = [None] * len(roots) if grad_tensors is None else _as_list(grad_tensors)
    retain = create_graph if retain_graph is None else retain_graph
    targets = None if inputs is None else _targets("backward", inputs)
    if targets is not None and not targets:
        raise ValueError("backward: inputs must not be empty")
    found = run_backward(
        roots,
        _root_gradients("backward", roots, grads),
        targets=targets,
        retain_graph=retain,
        create_graph=create_graph,
    )
    # Each once: of a target twice in inputs, and of one whose gradient retain_grad() has added.
    added = {id(target): (target, gradient) for target, gradient in zip(targets or (), found, strict=True)}
    for target, gradient in added.values():
        if gradient is not None and (target._node is None or target._retained != target._node.number):
            if recorder.current is not None:
                recorder.current.gradients.reads([target])
            with target.device.active():
                accumulate([gradient if create_graph else gradient._array, target], create_graph)


def _targets(caller: str, inputs: Any) -> list:
    """``inputs`` as a list, each of which requires a gradient."""
    targets = _as_list(inputs)
    for i, target in enumerate(targets):
        if not target.requires_grad:
            raise RuntimeError(f"{caller}: input {i} does not require a gradient")
    return targets


def grad(
    outputs: _Variable | Sequence[_Variable],
    inputs: _Variable | Sequence[_Variable],
    grad_outputs: _Variable | Sequence[_Variable | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    materialize_grads: bool = False,
) -> tuple:
    """The gradient of the sum of ``outputs`` with respect to each of ``inputs``; no ``grad`` is changed.

    Args:
        outputs, grad_outputs, retain_graph, create_graph: as the arguments of :func:`backward`.
        inputs: tensors that require a gradient, leaves or not.
        only_inputs: must be True; it is an argument of PyTorch's.
        allow_unused: return None for an input that the outputs do not depend on;
        materialize_grads: or zeros.

    Raises:
        RuntimeError: as for :func:`backward`; or the outputs do not depend on an input, or it does not
            require a gradient.
    """
    if not only_inputs:
        raise ValueError("grad: only_inputs=False is not supported; use backward()")
    roots, targets = _as_list(outputs), _targets("grad", inputs)
    grads = [None] * len(roots) if grad_outputs is None else _as_list(grad_outputs)
    found = run_backward(
        roots,
        _root_gradients("grad", roots, grads),
        targets=targets,
        retain_graph=create_graph if retain_graph is None else retain_graph,
        create_graph=create_graph,
    )
    for i, g in enumerate(found):
        if g is None:
            if materialize_grads:
                with targets[i].device.active():
                    found[i] = wrap(targets[i].device.xp.zeros_like(targets[i]._array), targets[i].device)
            elif not allow_unused:
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
        check_history(root)
        if g is None:
            if root._array.size != 1:
                raise RuntimeError(
                    f"{caller}: a gradient to start with can be left out for one element only, "
                    f"the tensor has shape {root.shape}; take its mean() or sum(), or pass a gradient"
                )
            with root.device.active():
                g = wrap(root.device.xp.ones(root.shape, root.dtype), root.device)
        elif g.shape != root.shape:
            raise ValueError(f"{caller}: the gradient has shape {g.shape}, the tensor {root.shape}")
        elif g.device is not root.device:
            raise ValueError(f"{caller}: the gradient is on {g.device}, the tensor on {root.device}")
        started.append(g if g.dtype == root.dtype else g.to(root.dtype))
    return started


# ---- the walk back -----------------------------------------------------------------------------------------


def run_backward(
    roots: Sequence[_Variable],
    grad_roots: Sequence[_Variable],
    *,
    targets: Sequence[_Variable] | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> list:
    """Walk back from ``roots``, whose gradients are ``grad_roots``.

    Without ``targets``, gradients are added to the ``grad`` of every leaf that is reached, and an empty list
    is returned. With targets no ``grad`` changes, and the gradient of each target (or None) is returned.

    Gradients are bare arrays on the way; tensors if ``create_graph``, which records how they are computed.
    """
    wanted = None if targets is None else _on_the_way(targets, roots)
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
                if recorder.current is not None:
                    recorder.current.gradients.reads(slot[1] for slot in leaves.values())
                for slot in leaves.values():
                    if slot[1].device.is_one_of_several:
                        left.append(slot[1].device.use())
                    accumulate(slot, create_graph)
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
    """The loop that the module's text describes, from ``grads``, which belong to ``edges``, to the leaves.

    Args:
        edges: where each gradient goes: a leaf, a node (to its first output), or (node, output index).
        grads: the gradients, or None.
        wanted, captured: with targets, what :func:`_on_the_way` returned, and the places for the gradients of
            those targets that are outputs of a node.
        left: gets the cards that were CuPy's current one before the walk switched to a node's card.

    Returns:
        By the leaves' ids, [the gradient, the leaf].
    """
    leaves: dict[int, list] = {}
    pending: dict[int, list] = {}  # by the node's number: [the gradient so far of each output ..., the node]
    youngest = 0  # the largest of the pending numbers, or 0
    others: list[int] = []  # a heap of the other pending numbers, negated; empty in a chain of ops
    anomaly = mode.anomaly
    here = cpu
    while True:
        # Add the gradients to what came along their edges before.
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
                add_to(slot, index, grad)
        slot = grads = grad = None  # so that memory is freed as soon as possible
        if not youngest:
            for slot in leaves.values():
                _complete(slot)
            return leaves

        # Take the youngest node, and find its inputs' gradients.
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
    """For an op that selects elements of its input, such as ``x[3:5]``: add their gradient in place.

    Its rule would make an array of the input's shape, zero but for the selected elements, to be added to the
    gradient that came along ``edge`` before.

    Returns:
        The gradients that are still to be sent, in a list; None if nothing was done: apply the rule.
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
    if type(slot[index]) is not np.ndarray or not is_owned(slot, index):
        return None
    node.op.add_gradient(slot[index], grad, **node.attrs)
    return []


def _complete(grads: list) -> None:
    """Replace the gradients that were gathered part by part by their arrays."""
    for i, grad in enumerate(grads):
        if type(grad) is PartedGradient:
            grads[i] = grad.whole()


def _needed_edges(node: Node, grads: list, wanted: set, captured: dict) -> list | None:
    """Put the gradients of those of the node's outputs that are targets into ``captured``.

    Returns:
        The node's edges, with None for those that lead to no target; None if none does.
    """
    for index, grad in enumerate(grads):
        if (node.number, index) in captured:
            captured[node.number, index] = grad
    needed = [edge if edge is not None and _target_key(edge) in wanted else None for edge in node.edges]
    return needed if any(edge is not None for edge in needed) else None


def _on_the_way(targets: Sequence[_Variable], roots: Sequence[_Variable]) -> set:
    """The nodes between ``roots`` and ``targets``, by their numbers, and the targets themselves.

    Of a target that is a leaf it is the id, of another the number of the node that made it.
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
    """``grad`` as ``hooks`` leave it, a tensor or a bare array as before; hooks are given a tensor."""
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
