"""``torch.autograd.Function``: an operation whose gradient the user writes, as two static methods.

An op (:func:`minigrad.op`) has a reference, kernels and checks; this is the short form, two static methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.graph import Node, Variable, make_others_stale, mark_written, mode, wrap

__all__ = ["Function", "FunctionContext"]


class FunctionContext:
    """What the forward pass of a :class:`Function` leaves for its backward pass; attributes may be added.

    Attributes:
        needs_input_grad: for each argument of ``apply``, whether its gradient is asked for.
        saved_tensors: in the backward pass, what :meth:`save_for_backward` was given.
    """

    needs_input_grad: tuple[bool, ...]

    def __init__(self, needs_input_grad: tuple[bool, ...]):
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()
        self._non_differentiable: tuple[Any, ...] = ()
        self._dirty: tuple[Any, ...] = ()
        self._materialize = True

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep inputs, outputs or other tensors (or None) as ``saved_tensors``; once, in the forward pass."""
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *outputs: Any) -> None:
        """No gradient flows through these outputs."""
        self._non_differentiable = outputs

    def mark_dirty(self, *inputs: Any) -> None:
        """These inputs were changed in place, and are outputs too."""
        self._dirty = inputs

    def set_materialize_grads(self, value: bool) -> None:
        """Whether the backward pass sees zeros (the default), or None, for outputs that got no gradient."""
        self._materialize = value


class Function:
    """The base class: define ``forward(ctx, *args)`` and ``backward(ctx, *grad_outputs)``, both static; then
    call ``apply(*args)``.

    ``backward`` returns a gradient for each argument of ``forward``, None for those that are no tensors; its
    own ops have gradients too. In the newer form, ``forward(*args)`` sees no context, and
    ``setup_context(ctx, inputs, output)`` fills it.
    """

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """Compute the outputs, a tensor or a tuple; no graph is recorded in here."""
        raise NotImplementedError("a Function must define forward(), a static method")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        """Save what the backward pass needs; for a ``forward`` without a context."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """The gradient for each argument of ``forward``, from that for each output."""
        raise NotImplementedError("a Function must define backward(), a static method")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run ``forward`` on ``args``, and record that ``backward`` is its gradient."""
        needs = tuple([isinstance(arg, Variable) and arg.requires_grad for arg in args])
        ctx = FunctionContext(needs)
        before, mode.grad = mode.grad, False
        try:
            if cls.setup_context is Function.setup_context:
                result = cls.forward(ctx, *args)
            else:
                result = cls.forward(*args)
                cls.setup_context(ctx, args, result)
        finally:
            mode.grad = before
        for changed in ctx._dirty:
            mark_written(changed)
        several = isinstance(result, tuple)
        outputs = [_own(out, args, ctx) for out in (result if several else (result,))]
        if mode.grad and any(needs):
            _record(cls, ctx, args, outputs)
        return tuple(outputs) if several else outputs[0]


class _Rule:
    """What a node asks of the op that made it, for one application of a :class:`Function`."""

    add_gradient = None
    arithmetic_rules = ops_alone = False
    view = True  # an output may show an input's memory: changes of it in place are refused

    def __init__(self, function: type[Function], ctx: FunctionContext, args: tuple, outputs: list):
        self.name = function.__name__
        self.function = function
        self.ctx = ctx
        self.materialize_grads = ctx._materialize
        # Saved inputs and outputs are kept by the node, which notes writes to them; and an output that the
        # context held would hold the node, and so the context.
        self.places = [_place(saved, args, outputs) for saved in ctx.saved_tensors]
        self.others = [
            None if place else saved for place, saved in zip(self.places, ctx.saved_tensors, strict=True)
        ]
        self.saved_outputs = tuple([place[1] for place in self.places if place and place[0] == "output"])
        ctx.saved_tensors = ()

    def input_name(self, i: int) -> str:
        return f"argument {i}"

    def apply_gradient(self, g: Any, y: Any, inputs: Sequence, attrs: dict, needed: Sequence) -> list:
        """The gradient of each input whose entry in ``needed`` is not None; None for the others."""
        kept = {"input": inputs, "output": y if isinstance(y, tuple) else (y,)}
        self.ctx.saved_tensors = tuple(
            kept[place[0]][place[1]] if place else other
            for place, other in zip(self.places, self.others, strict=True)
        )
        try:
            found = self.function.backward(self.ctx, *(g if isinstance(g, tuple) else (g,)))
        finally:
            self.ctx.saved_tensors = ()
        found = list(found) if isinstance(found, (tuple, list)) else [found]
        extra = found[len(needed) :]
        if len(found) < len(needed) or any(grad is not None for grad in extra):
            raise RuntimeError(
                f"{self.name}.backward returned {len(found)} gradients for {len(needed)} arguments of forward"
            )
        return [None if need is None else grad for need, grad in zip(needed, found, strict=False)]


def _record(function: type[Function], ctx: FunctionContext, args: tuple, outputs: list) -> None:
    """Make the node from which the ``outputs`` that have a gradient come."""
    differentiable = [
        isinstance(out, Variable)
        and out.dtype.kind not in "iub"
        and not any(out is other for other in ctx._non_differentiable)
        for out in outputs
    ]
    if not any(differentiable):
        return
    for changed in ctx._dirty:
        if changed.requires_grad and changed.is_leaf:
            raise RuntimeError(
                f"{function.__name__}: a leaf that requires a gradient is changed in place; use no_grad()"
            )
    rule = _Rule(function, ctx, args, outputs)
    saved_inputs = {place[1] for place in rule.places if place and place[0] == "input"}
    device = next(arg.device for arg in args if isinstance(arg, Variable) and arg.requires_grad)
    inputs = tuple([arg if isinstance(arg, Variable) else None for arg in args])
    tensors = [out for out in outputs if isinstance(out, Variable)]
    if len(tensors) != len(outputs):
        raise TypeError(f"{function.__name__}: forward must return tensors, got {outputs!r:.80}")
    keep = [i in saved_inputs for i in range(len(args))]
    Node(rule, {}, device, inputs, tensors, keep, bool(rule.saved_outputs))
    for out, has_gradient in zip(outputs, differentiable, strict=True):
        if not has_gradient:
            out.requires_grad, out._node, out._index = False, None, 0
    for changed in ctx._dirty:
        if changed._node is not None and changed._written is not None:
            make_others_stale(changed)


def _own(output: Any, args: tuple, ctx: FunctionContext) -> Any:
    """``output``, as a tensor of its own if it is an input that was not changed."""
    is_input = any(output is arg for arg in args) and not any(output is dirty for dirty in ctx._dirty)
    return wrap(output._array, output.device) if is_input and isinstance(output, Variable) else output


def _place(saved: Any, args: tuple, outputs: list) -> tuple[str, int] | None:
    """Which input or output a saved tensor is; None if it is another one."""
    for kind, tensors in (("input", args), ("output", outputs)):
        for i, tensor in enumerate(tensors):
            if tensor is saved and isinstance(saved, Variable):
                return kind, i
    return None
