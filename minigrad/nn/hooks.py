"""The hooks of a module: functions of the user's that see what goes through it, forward and backward.

The gradients of a module's outputs are known, all together, when the walk back enters it, and those of its
inputs when it leaves. So a call with backward hooks sends its inputs, and its outputs, through a gate: an op
that changes nothing, and whose rule hands the gradients to the hooks.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from minigrad.autograd import Node, is_grad_enabled
from minigrad.op import op
from minigrad.tensor import HookHandle, Tensor

__all__ = ["Hooked"]

FORWARD_PRE, FORWARD, BACKWARD_PRE, BACKWARD = "forward pre", "forward", "backward pre", "backward"

_next_handle = itertools.count().__next__


class _Hook(NamedTuple):
    """A function, and how it is called."""

    function: Callable
    with_kwargs: bool = False
    always_call: bool = False


class Hooked:
    """What is called like a function, and calls the hooks that are registered before and after."""

    _hooks: dict[str, dict[int, _Hook]] | None = None  # by their kinds, and by their handles' numbers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; every subclass defines it."""
        raise NotImplementedError(f"module {type(self).__name__} does not define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._hooks is None:
            return self.forward(*args, **kwargs)
        waiting = dict(self._hooks.get(FORWARD, ()))  # not called yet
        output = None
        try:
            for pre_hook in self._hooks_of(FORWARD_PRE):
                args, kwargs = self._call_pre_hook(pre_hook, args, kwargs)
            backward = _BackwardCall(self, self._hooks_of(BACKWARD_PRE), self._hooks_of(BACKWARD))
            output = self.forward(*backward.watch_inputs(args), **kwargs)
            for number in list(waiting):
                replaced = self._call_hook(waiting.pop(number), args, kwargs, output)
                output = output if replaced is None else replaced
        except Exception:
            for hook in waiting.values():
                if hook.always_call:
                    self._call_after_error(hook, args, kwargs, output)
            raise
        return backward.watch_outputs(output)

    def _hooks_of(self, kind: str) -> list[_Hook]:
        return list((self._hooks or {}).get(kind, {}).values())

    def _call_pre_hook(self, hook: _Hook, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """What the hook makes of the arguments."""
        if not hook.with_kwargs:
            replaced = hook.function(self, args)
            if replaced is None:
                return args, kwargs
            return (replaced if isinstance(replaced, tuple) else (replaced,)), kwargs
        replaced = hook.function(self, args, kwargs)
        if replaced is None:
            return args, kwargs
        if not isinstance(replaced, tuple) or len(replaced) != 2:
            raise RuntimeError(
                f"{type(self).__name__}: a forward pre-hook with kwargs returns None or (args, kwargs), "
                f"got {replaced!r}"
            )
        return replaced

    def _call_hook(self, hook: _Hook, args: tuple, kwargs: dict, output: Any) -> Any:
        if hook.with_kwargs:
            return hook.function(self, args, kwargs, output)
        return hook.function(self, args, output)

    def _call_after_error(self, hook: _Hook, args: tuple, kwargs: dict, output: Any) -> None:
        """Call a hook although forward has failed; an error of its own must not hide the first."""
        try:
            self._call_hook(hook, args, kwargs, output)
        except Exception as error:
            warnings.warn(
                f"{type(self).__name__}: a forward hook with always_call failed after an error: {error!r}",
                stacklevel=3,
            )

    # ---- registration ----------------------------------------------------------------------------------

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> HookHandle:
        """Call ``hook(module, args)`` before forward; what it returns, if anything, replaces ``args``.

        Args:
            hook: the function.
            prepend: whether it is called before the hooks that are there, rather than after them.
            with_kwargs: call ``hook(module, args, kwargs)``, which returns None or ``(args, kwargs)``.
        """
        return self._add_hook(FORWARD_PRE, _Hook(hook, with_kwargs), prepend)

    def register_forward_hook(
        self,
        hook: Callable[..., Any],
        *,
        prepend: bool = False,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> HookHandle:
        """Call ``hook(module, args, output)`` after forward; what it returns, if anything, is the output.

        Args:
            hook: the function.
            prepend: whether it is called before the hooks that are there, rather than after them.
            with_kwargs: call ``hook(module, args, kwargs, output)``.
            always_call: call it although forward, or a hook before it, raises; ``output`` is then what there
                is, None before forward has returned, and what the hook returns is ignored.
        """
        return self._add_hook(FORWARD, _Hook(hook, with_kwargs, always_call), prepend)

    def register_full_backward_pre_hook(
        self, hook: Callable[[Any, tuple], Any], prepend: bool = False
    ) -> HookHandle:
        """Call ``hook(module, grad_output)`` when the gradients of the module's outputs are known.

        ``grad_output`` is a tuple with an entry for each output: its gradient, or None for what is no tensor
        or gets none. What the hook returns, a tuple like it or a tensor, if anything, replaces it.
        """
        return self._add_hook(BACKWARD_PRE, _Hook(hook), prepend)

    def register_full_backward_hook(
        self, hook: Callable[[Any, tuple, tuple], Any], prepend: bool = False
    ) -> HookHandle:
        """Call ``hook(module, grad_input, grad_output)`` when the gradients of the module's inputs are known.

        Both are tuples, with an entry for each positional argument and for each output: its gradient, or None
        for what is no tensor or gets none. What the hook returns, if anything, replaces ``grad_input``. If no
        input requires a gradient, the hook is called when those of the outputs are known.
        """
        return self._add_hook(BACKWARD, _Hook(hook), prepend)

    register_backward_hook = register_full_backward_hook  # PyTorch's older name

    def _add_hook(self, kind: str, hook: _Hook, prepend: bool) -> HookHandle:
        if self._hooks is None:
            self._hooks = {}
        hooks = self._hooks.setdefault(kind, {})
        number = _next_handle()
        others = dict(hooks) if prepend else {}
        if prepend:
            hooks.clear()
        hooks[number] = hook
        hooks.update(others)
        return HookHandle(hooks, number)


class _BackwardCall:
    """One call of a module, as its backward hooks see it."""

    def __init__(self, module: Hooked, pre_hooks: Sequence[_Hook], hooks: Sequence[_Hook]):
        self.module = module
        self.pre_hooks, self.hooks = pre_hooks, hooks
        self.arguments = 0
        self.input_gets_gradient = False
        self.grad_output: tuple | None = None  # from when the walk back enters the module to when it leaves

    def watch_inputs(self, args: tuple) -> tuple:
        if not self.hooks:
            return args
        self.arguments = len(args)
        watched = _through_gate(args, self._leave)
        self.input_gets_gradient = watched is not args
        return watched

    def watch_outputs(self, output: Any) -> Any:
        if not self.hooks and not self.pre_hooks:
            return output
        if isinstance(output, Tensor):
            return _through_gate((output,), self._enter)[0]
        if isinstance(output, tuple):
            watched = _through_gate(output, self._enter)
            return type(output)(*watched) if hasattr(output, "_fields") else watched
        warnings.warn(
            f"{type(self.module).__name__}: backward hooks are called for an output that is a tensor or a "
            f"tuple of tensors, got {type(output).__name__}",
            stacklevel=3,
        )
        return output

    def _enter(self, grad_output: tuple) -> tuple:
        for hook in self.pre_hooks:
            replaced = hook.function(self.module, grad_output)
            if replaced is not None:
                grad_output = self._check(replaced, grad_output, "grad_output")
        if self.input_gets_gradient:
            self.grad_output = grad_output
        else:
            self._call_hooks((None,) * self.arguments, grad_output)
        return grad_output

    def _leave(self, grad_input: tuple) -> tuple:
        grad_output, self.grad_output = self.grad_output, None
        # Without: the gradient has come past the outputs, by a tensor that forward has put elsewhere.
        return grad_input if grad_output is None else self._call_hooks(grad_input, grad_output)

    def _call_hooks(self, grad_input: tuple, grad_output: tuple) -> tuple:
        for hook in self.hooks:
            replaced = hook.function(self.module, grad_input, grad_output)
            if replaced is not None:
                grad_input = self._check(replaced, grad_input, "grad_input")
        return grad_input

    def _check(self, replaced: Any, before: tuple, name: str) -> tuple:
        """What a hook returned, as a tuple; an error if that has an entry that does not fit."""
        after = (replaced,) if isinstance(replaced, Tensor) else tuple(replaced)
        expected, got = _shapes(before), _shapes(after)
        if len(got) != len(expected) or any(got[i] not in (None, expected[i]) for i in range(len(got))):
            raise RuntimeError(
                f"{type(self.module).__name__}: a backward hook returned a {name} of the shapes {got}, "
                f"expected {expected}"
            )
        return after


def _shapes(grads: Iterable[Tensor | None]) -> list[tuple[int, ...] | None]:
    return [None if grad is None else tuple(grad.shape) for grad in grads]


@op(name="gate", view=True, materialize_grads=False)
def _gate(xp, *tensors, see):
    return tensors


@_gate.grad
def _(g, _y, *_tensors, see):
    return see(g if isinstance(g, tuple) else (g,))


def _through_gate(values: tuple, see: Callable[[tuple], tuple]) -> tuple:
    """``values`` with its tensors passed through a gate, whose rule is ``see``, if any requires a gradient.

    ``see`` is given a gradient or None for each of the values, and returns what takes their place.
    """
    places = [i for i, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    if not places or not is_grad_enabled():
        return values
    tensors = [values[i] for i in places]
    passed = [tensor.detach() for tensor in tensors]

    def see_all(grads: tuple) -> list:
        whole: list = [None] * len(values)
        for place, grad in zip(places, grads, strict=True):
            whole[place] = grad
        seen = see(tuple(whole))
        return [seen[place] for place in places]

    # Not by a call of the op, which would take tensors of one dtype alone.
    Node(_gate, {"see": see_all}, tensors[0].device, tensors, passed, [False] * len(passed), False)
    watched = list(values)
    for place, tensor in zip(places, passed, strict=True):
        watched[place] = tensor
    return tuple(watched)
