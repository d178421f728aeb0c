"""What all optimizers share: groups of parameters with their options, the state kept for each parameter."""

from __future__ import annotations

import copy
import math
import numbers
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minigrad.autograd import enable_grad, mark_written, wrap
from minigrad.devices import Device
from minigrad.dispatch import Kernel, empty_channels_last, kernel_table, parse_dtypes
from minigrad.dtypes import is_half
from minigrad.kernels.channels_last import is_channels_last, nhwc
from minigrad.kernels.cuda.live import Live
from minigrad.recording import Recording, recorder, recording_on
from minigrad.tensor import Tensor

__all__ = ["Optimizer", "Update", "check_number", "in_each_step", "live_number", "refuse_first_step"]

# What a kernel of an Update takes: the arrays of one parameter, or lists of those of many.
STRIDED, LISTS = "strided", "lists"

# The numbers among what is remembered for a parameter. PyTorch saves them as tensors.
NUMBERS: dict[str, type] = {"step": int, "mu_product": float}


class Optimizer:
    """The base class. A subclass says in :meth:`update` how one parameter changes, or in :meth:`update_all`
    how those of a group do.

    Args:
        params: tensors to optimize, or dicts ``{"params": tensors, "lr": ...}`` whose options differ.
        defaults: the options of groups that do not set them.

    Attributes:
        param_groups: dicts with ``"params"``, a list, and the options; they may be changed between steps.
        state: for each parameter what the optimizer remembers, a dict.

    Raises:
        ValueError: there are no parameters, one comes twice or is not a leaf, or an option is out of range.
        TypeError: something that is no tensor.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], defaults: dict[str, Any]):
        if isinstance(params, (Tensor, Mapping)):
            raise TypeError(
                f"{type(self).__name__}: params must be a list of tensors or of dicts, "
                f"got a single {type(params).__name__}"
            )
        if hasattr(params, "parameters"):
            raise TypeError(
                f"{type(self).__name__}: params must be a list of tensors, got a {type(params).__name__}: "
                "pass its .parameters()"
            )
        self.defaults = defaults
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        groups: list[Any] = list(params)
        if not groups:
            raise ValueError(f"{type(self).__name__}: the list of parameters is empty")
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)

    # ---- what a subclass defines -----------------------------------------------------------------------

    def check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError if an option of ``group`` is out of range."""

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...] | None:
        """The tensors that the state of each parameter of ``group`` has, all of the parameter's shape.

        A state that is loaded is checked for them. None, the default: nothing is known.
        """
        return None

    def constants(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options that a recorded step holds as they were; if one changes, it is recorded again."""
        return {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}

    def update(self, param: Tensor, grad: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change ``param`` in place.

        Args:
            param: the parameter.
            grad: its gradient, an array of its device, shape and dtype, which must not be changed.
            state: what is remembered for this parameter; empty at first.
            group: the options.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither update() nor step()")

    def update_all(self, params: list[Tensor], grads: list[Any], group: dict[str, Any]) -> None:
        """Change the parameters of a group that have gradients; by default :meth:`update` each."""
        for param, grad in zip(params, grads, strict=True):
            self.update(param, grad, self.state[param], group)

    def _started(self, params: list[Tensor], group: dict[str, Any], value: float = 0.0) -> list[dict]:
        """The states of ``params``; a new one is at step 0, its tensors filled with ``value``."""
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            if not state:
                refuse_first_step(param)
                state["step"] = 0
                with param.device.active():
                    for name in self.state_names(group) or ():
                        filled = empty_like(param)
                        filled.fill(value)
                        state[name] = wrap(filled, param.device)
        return states

    def _count_step(self, params: list[Tensor]) -> None:
        """Add 1 to the steps of ``params``, and in each replay of a recorded step again."""

        def advance() -> None:
            for param in params:
                self.state[param]["step"] += 1

        in_each_step(params[0].device, advance)

    # ---- use -------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change every parameter that has a gradient.

        ``closure``, if given, computes the loss and its gradients first; its result is returned.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        if recorder.current is not None:
            self._take_part(recorder.current)
        updates = []  # all gradients are checked before a parameter changes
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                maximize = group.get("maximize", False)
                updates.append((params, [gradient_of(param, maximize) for param in params], group))
        for params, grads, group in updates:
            self.update_all(params, grads, group)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or with ``set_to_none=False`` set them to zero."""
        if recorder.current is not None:
            gradients = recorder.current.gradients
            (gradients.replaces if set_to_none else gradients.reads)(self._parameters())
        for group in self.param_groups:
            for param in group["params"]:
                if set_to_none:
                    param.grad = None
                elif param.grad is not None:
                    param.grad = param.grad.detach().zero_()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, for instance of a layer that is trained from now on.

        Args:
            param_group: ``{"params": tensors, ...}`` with the options in which it differs from the defaults.
        """
        name = type(self).__name__
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise TypeError(f'{name}: a parameter group is a dict with "params", got {param_group!r:.60}')
        params = param_group["params"]
        if isinstance(params, (set, frozenset)):
            raise TypeError(f"{name}: parameters must have an order, and a set has none; give a list")
        params = [params] if isinstance(params, Tensor) else list(params)
        group = {**self.defaults, **param_group, "params": params}
        seen = {id(p) for other in self.param_groups for p in other["params"]}
        for i, param in enumerate(params):
            if not isinstance(param, Tensor):
                raise TypeError(f"{name}: parameter {i} is not a tensor but a {type(param).__name__}")
            if not param.is_leaf:
                raise ValueError(
                    f"{name}: parameter {i} (shape {param.shape}) is not a leaf: the op "
                    f"{param.grad_fn!r} made it; optimize what it was made from"
                )
            if not getattr(param._array.flags, "writeable", True):  # CuPy knows no read-only arrays
                raise ValueError(
                    f"{name}: parameter {i} (shape {param.shape}) lies in read-only memory (a broadcast "
                    "view, or a read-only array): give a clone() of it"
                )
            if id(param) in seen:
                raise ValueError(f"{name}: parameter {i} (shape {param.shape}) comes twice")
            seen.add(id(param))
        self.check_options(group)
        self.param_groups.append(group)

    # ---- saving and loading ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """``{"state": ..., "param_groups": ...}``, with parameters replaced by their numbers.

        Tensors in it share memory with the optimizer's: copy them to keep a snapshot.
        """
        numbers_of = {id(p): i for i, p in enumerate(self._parameters())}
        groups = [
            {**group, "params": [numbers_of[id(p)] for p in group["params"]]} for group in self.param_groups
        ]
        state = {numbers_of[id(p)]: dict(s) for p, s in self.state.items() if s}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave for parameters in the same order.

        Raises:
            ValueError: it is no such state, the groups differ in number or size, an option is out of range,
                or the state is of another optimizer or of parameters of other shapes; nothing is changed.
        """
        name = type(self).__name__
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError(
                f'{name}: a state is a dict with "state" and "param_groups", as state_dict() gives it; '
                f"got {state_dict!r:.60}"
            )
        saved = list(state_dict["param_groups"])
        sizes = [len(group["params"]) for group in self.param_groups]
        saved_sizes = [len(group["params"]) for group in saved]
        if sizes != saved_sizes:
            raise ValueError(
                f"{name}: the state is of parameter groups of sizes {saved_sizes}, the optimizer has {sizes}"
            )
        groups = [
            {**self.defaults, **copy.deepcopy(dict(new)), "params": own["params"]}
            for new, own in zip(saved, self.param_groups, strict=True)
        ]
        for group in groups:
            self.check_options(group)
        parameter_of = dict(
            zip((n for group in saved for n in group["params"]), self._parameters(), strict=True)
        )
        names_of = {param: self.state_names(group) for group in groups for param in group["params"]}
        state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for number, values in state_dict["state"].items():
            if number not in parameter_of:
                raise ValueError(f"{name}: the state has no parameter with the number {number!r}")
            param = parameter_of[number]
            if (problem := _misfit(values, param, names_of[param])) is not None:
                raise ValueError(f"{name}: the state of parameter {number} {problem}")
            state[param] = {key: _own_copy(key, value, param) for key, value in values.items()}
        self.param_groups, self.state = groups, state

    def _take_part(self, recording: Recording) -> None:
        """Have a captured step watch what it takes from here, and undo what it counts in vain."""
        recording.watch(self._what_is_recorded, self._what_differs)
        recording.kept[id(self.state)] = self.state  # so that no later state has its id
        recording.gradients.reads(self._parameters())
        if recording.makes_a_graph:
            counts = [
                (state, {name: state[name] for name in NUMBERS if name in state})
                for state in self.state.values()
            ]
            recording.undo.append(lambda: [state.update(numbers) for state, numbers in counts])

    def _what_is_recorded(self) -> list:
        """What a recorded step takes from here, but for learning rates and counts, which it reads anew."""
        options = [self.constants(group) for group in self.param_groups]
        return [*options, [len(group["params"]) for group in self.param_groups], id(self.state)]

    def _what_differs(self, before: list, now: list) -> str:
        """Which option differs between two answers of :meth:`_what_is_recorded`."""
        for old, new in zip(before[:-2], now[:-2], strict=False):
            for name in new:
                if name not in old or new[name] != old[name]:
                    return f"{name!r} of the optimizer {type(self).__name__}"
        return f"the state of the optimizer {type(self).__name__}"

    def _parameters(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def __repr__(self) -> str:
        lines = []
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([f"{type(self).__name__} (", *lines, ")"])


class Update:
    """How parameters change, in place: a reference in NumPy terms that runs anywhere, and kernels.

    It is to optimizers what an :class:`minigrad.op.Op` is to tensors, and :func:`minigrad.use_kernel` works
    in the same way; but it writes into its arrays, and knows no gradient.

    Args:
        reference: ``reference(xp, param, *arrays, **options)``, elementwise; an array may be None.
        name: the name that its kernels are told by.
    """

    def __init__(self, reference: Callable[..., None], name: str):
        self.name = name
        self.reference = reference
        self.kernels = kernel_table(name)

    def kernel(
        self, *devices: str, name: str, dtypes: str = "f4 f8", takes: Callable | None = None
    ) -> Callable:
        """Decorator: register ``run(param, *arrays, **options)``; it runs where all are contiguous.

        With ``takes``, the kernel is one for many parameters: each argument is a list, and so is each option
        that differs between parameters. It runs where ``takes(params, *lists)`` is true.
        """

        def register(run: Callable[..., None]) -> Callable[..., None]:
            summary = (run.__doc__ or "").partition("\n")[0]
            layout, when = (STRIDED, _contiguous) if takes is None else (LISTS, takes)
            self.kernels.add(
                Kernel(self.name, name, devices, parse_dtypes(dtypes), run, layout, when, summary)
            )
            return run

        return register

    def __call__(self, params: list[Tensor], *columns: list, each: dict[str, list], **options: Any) -> None:
        """Change ``params``.

        Args:
            params: the parameters.
            columns: for each array of the formula a list, with an entry for each parameter.
            each: the options that differ between parameters, as lists.
            options: those that do not.
        """
        arrays = _in_memory_order([[param._array for param in params], *columns])
        if self._together(params, arrays, each, options):
            return
        for i, param in enumerate(params):
            row = [column[i] for column in arrays]
            own = {name: values[i] for name, values in each.items()}
            columns_of_one = [[array] for array in row]
            if not self._together([param], columns_of_one, {k: [v] for k, v in own.items()}, options):
                self._alone(param, row, {**own, **options})

    def _together(self, params: list, columns: Sequence[list], each: dict, options: dict) -> bool:
        """Change all parameters in one call, if a kernel takes them so; the first column is their arrays."""
        device = params[0].device
        kernel = next(iter(self.kernels.candidates(device.type, columns[0][0].dtype)), None)
        if kernel is None or kernel.layout != LISTS or any(param.device is not device for param in params):
            return False
        assert kernel.when is not None
        if not kernel.when(*columns):
            return False
        with device.active():
            kernel.run(*columns, **each, **options)
        for param in params:
            mark_written(param)
        return True

    def _alone(self, param: Tensor, arrays: list, options: dict) -> None:
        device = param.device
        with device.active():
            self._change(device, arrays, options)
        mark_written(param)

    def _change(self, device: Device, arrays: list, options: dict) -> None:
        """Run a kernel that takes the arrays of a parameter, its own the first, or the reference."""
        dtype = arrays[0].dtype
        for kernel in self.kernels.candidates(device.type, dtype):
            if kernel.layout != LISTS and kernel.when is not None and kernel.when(*arrays):
                kernel.run(*arrays, **options)
                return
        if is_half(dtype):
            self._change_in_float32(device, arrays, options)
            return
        with np.errstate(all="ignore"):
            options = {name: _placed(value, dtype) for name, value in options.items()}
            self.reference(device.xp, *arrays, **options)

    def _change_in_float32(self, device: Device, arrays: list, options: dict) -> None:
        """:meth:`_change` for a parameter of 16 bits: on copies in float32, which are rounded at the end."""
        wide = [None if a is None else a.astype(np.float32) for a in arrays]
        self._change(device, wide, options)
        for own, changed in zip(arrays, wide, strict=True):
            if own is not None:
                own[...] = changed


def empty_like(param: Tensor) -> Any:
    """A new array as ``param`` is, and as it lies, whose elements are not set."""
    if is_channels_last(param._array):
        return empty_channels_last(param.device, param.shape, param.dtype)
    return param.device.empty(param.shape, param.dtype)


def check_number(owner: str, name: str, value: Any, below: float = math.inf) -> None:
    """Raise ValueError unless 0 <= value < below; NaN is refused."""
    if not isinstance(value, numbers.Real) or not 0.0 <= float(value) < below:
        raise ValueError(f"{owner}: {name} must be a number in [0, {below}), got {value!r}")


def live_number(device: Device, read: Callable[[], float]) -> Any:
    """``read()``; in a step that is being recorded, a :class:`Live` that each replay reads anew."""
    recording = recording_on(device)
    return float(read()) if recording is None else recording.live("d", lambda: (float(read()),))


def in_each_step(device: Device, action: Callable[[], None]) -> None:
    """``action()``, and in each replay of a step that is being recorded, again."""
    recording = recording_on(device)
    if recording is not None:
        recording.before_replay.append(action)
    action()


def refuse_first_step(param: Tensor) -> None:
    """Raise CaptureError if a graph is being made: what starts with zeros would do so in each replay."""
    recording = recording_on(param.device)
    if recording is not None:
        recording.refuse(
            f"the first step of a parameter of shape {param.shape}", "let more steps run before: warmup="
        )


def _in_memory_order(columns: list[list]) -> list[list]:
    """The arrays of parameters and of their states, transposed to (N, H, W, C) where stored like that."""
    last = [is_channels_last(own) for own in columns[0]]
    if not any(last):
        return columns
    return [
        [nhwc(a) if is_last and a is not None else a for a, is_last in zip(column, last, strict=True)]
        for column in columns
    ]


def _contiguous(*arrays: Any) -> bool:
    return all(a is None or a.flags.c_contiguous for a in arrays)


def gradient_of(param: Tensor, maximize: bool = False) -> Any:
    """The array of ``param.grad``, checked, and negated for an ascent."""
    grad = param.grad
    if not isinstance(grad, Tensor):
        raise TypeError(f"the gradient of a parameter must be a tensor, got {type(grad).__name__}")
    own, array = param._array, grad._array
    if grad.device is not param.device or array.shape != own.shape:
        raise ValueError(
            f"the gradient (shape {grad.shape}, on {grad.device}) does not fit its parameter "
            f"(shape {param.shape}, on {param.device})"
        )
    if array.dtype is not own.dtype and array.dtype != own.dtype:
        array = grad.detach().to(param.dtype)._array
    if not maximize:
        return array
    with param.device.active():
        return param.device.xp.asarray(-array)  # NumPy gives a scalar for zero dimensions


def _placed(value: Any, dtype: np.dtype) -> Any:
    """A live number as a 0-d array of ``dtype``, to compute with; anything else as it is."""
    if isinstance(value, Live) and value.format == "d":
        return value.words[0].astype(dtype)
    return value


def _misfit(values: Mapping[str, Any], param: Tensor, names: tuple[str, ...] | None) -> str | None:
    """Why saved values cannot be the state of ``param``, or None."""
    if not isinstance(values, Mapping):
        return f"must be a dict, got {type(values).__name__}"
    if names is None or not values:
        return None
    for name in NUMBERS.keys() & values.keys():
        number = values[name]
        if isinstance(number, Tensor) and number.numel() == 1:
            number = number.item()
        if not isinstance(number, numbers.Real) or not 0 <= float(number) < math.inf:
            return f"has {name!r} {values[name]!r:.60}, which must be a finite number of at least 0"
    missing = [name for name in names if not isinstance(values.get(name), Tensor)]
    if missing:
        return f"lacks {', '.join(map(repr, missing))}: it is of another optimizer, or of other options"
    for name, value in values.items():
        if isinstance(value, Tensor) and name not in NUMBERS and value.shape != param.shape:
            return f"has {name!r} of shape {value.shape}, the parameter has {param.shape}"
    return None


def _own_copy(name: str, value: Any, param: Tensor) -> Any:
    """A copy of a saved value, tensors on the parameter's device and, if floating, of its dtype."""
    if name in NUMBERS:
        return NUMBERS[name](value)
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    dtype = param.dtype if value.is_floating_point() else None
    return value.detach().to(device=param.device, dtype=dtype, copy=True)
