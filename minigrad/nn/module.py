"""The module: a part of a network, with its parameters, its buffers and the modules inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from minigrad.autograd import no_grad
from minigrad.conversions import arguments_of_to
from minigrad.devices import Device, find_card
from minigrad.devices import device as find_device
from minigrad.dtypes import bfloat16, is_floating, to_dtype
from minigrad.memory_format import MemoryFormat
from minigrad.nn.hooks import Hooked
from minigrad.nn.parameter import Parameter
from minigrad.recording import recorder
from minigrad.tensor import Tensor

__all__ = ["IncompatibleKeys", "Module"]

PARAMETER, BUFFER, MODULE = "parameter", "buffer", "module"
_EXPECTED = {PARAMETER: "nn.Parameter or None", BUFFER: "a Tensor or None", MODULE: "nn.Module or None"}


class IncompatibleKeys(NamedTuple):
    """What :meth:`Module.load_state_dict` found to differ."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not (self.missing_keys or self.unexpected_keys):
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


class Module(Hooked):
    """The base class of all layers and networks.

    A subclass calls ``super().__init__()``, assigns parameters and other modules to its attributes, and
    defines ``forward``; it is then called like a function::

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.hidden = nn.Linear(784, 128)
                self.out = nn.Linear(128, 10)

            def forward(self, x):
                return self.out(F.relu(self.hidden(x)))

    What is registered stays an ordinary attribute, as fast to read as any other. The module only notes, in
    ``_roles``, which attributes are parameters, buffers and modules, in the order of their registration.

    Attributes:
        training: whether dropout, batch normalisation and the like behave as in training; see :meth:`train`.
    """

    training: bool = True

    def __init__(self) -> None:
        self._roles: dict[str, str] = {}
        self._unsaved: set[str] = set()  # the buffers that are not part of the state_dict

    # ---- registration ----------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        roles = self.__dict__.get("_roles")
        if isinstance(value, (Parameter, Module)):
            if roles is None:
                raise AttributeError(
                    f"{type(self).__name__}: call super().__init__() before {name!r} is assigned"
                )
            self._enter(name, value, PARAMETER if isinstance(value, Parameter) else MODULE)
            return
        role = roles.get(name) if roles else None
        if role is not None and value is not None and not (role == BUFFER and isinstance(value, Tensor)):
            raise TypeError(
                f"{type(self).__name__}.{name} is a {role}: expected {_EXPECTED[role]}, "
                f"got {type(value).__name__}"
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._roles.pop(name, None)
        self._unsaved.discard(name)

    def _enter(self, name: str, value: Any, role: str) -> None:
        """Note that the attribute ``name`` has this role, and set it."""
        if self._roles.get(name) != role:
            self._roles.pop(name, None)
            self._unsaved.discard(name)
        self._roles[name] = role
        self.__dict__[name] = value

    def _check_new_name(self, name: str, role: str) -> None:
        if "_roles" not in self.__dict__:
            raise AttributeError(
                f"{type(self).__name__}: call super().__init__() before registering {name!r}"
            )
        if not isinstance(name, str):
            raise TypeError(f"the name of a {role} is a string, got {type(name).__name__}")
        if not name or "." in name:
            raise KeyError(f"the name of a {role} must not be empty or contain a dot, got {name!r}")
        if hasattr(self, name) and self._roles.get(name) != role:
            raise KeyError(f"{type(self).__name__} has an attribute {name!r} already")

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter; None keeps its place for later."""
        self._check_new_name(name, PARAMETER)
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"register_parameter: expected {_EXPECTED[PARAMETER]}, got {type(param).__name__}"
            )
        self._enter(name, param, PARAMETER)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that belongs to the state but is not trained, such as a running mean.

        Args:
            name: the attribute's name.
            tensor: its value; None keeps the place for later.
            persistent: whether it is part of the :meth:`state_dict`.
        """
        self._check_new_name(name, BUFFER)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"register_buffer: expected {_EXPECTED[BUFFER]}, got {type(tensor).__name__}")
        self._enter(name, tensor, BUFFER)
        (self._unsaved.discard if persistent else self._unsaved.add)(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a module under a name that need not be an identifier."""
        self._check_new_name(name, MODULE)
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module: expected {_EXPECTED[MODULE]}, got {type(module).__name__}")
        self._enter(name, module, MODULE)

    register_module = add_module

    # ---- what is inside --------------------------------------------------------------------------------

    def _registered(self, role: str, empty: bool = False) -> list[tuple[str, Any]]:
        """This module's own (name, value) pairs of one role, the places of None too if ``empty``."""
        own, names = self.__dict__, (name for name, r in self._roles.items() if r == role)
        return [(name, own[name]) for name in names if empty or own[name] is not None]

    @property
    def _parameters(self) -> Mapping[str, Parameter | None]:
        """This module's own parameters, to read; this name and the next two are in many programs."""
        return MappingProxyType(dict(self._registered(PARAMETER, empty=True)))

    @property
    def _buffers(self) -> Mapping[str, Tensor | None]:
        """This module's own buffers, to read."""
        return MappingProxyType(dict(self._registered(BUFFER, empty=True)))

    @property
    def _modules(self) -> Mapping[str, Module | None]:
        """The modules directly inside this one, to read."""
        return MappingProxyType(dict(self._registered(MODULE, empty=True)))

    def named_modules(
        self, memo: set[int] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """(path, module) for this module, whose path is ``prefix``, and all inside it, outer ones first."""
        memo = set() if memo is None else memo
        if id(self) in memo:
            return
        if remove_duplicate:
            memo.add(id(self))
        yield prefix, self
        for name, module in self._registered(MODULE):
            yield from module.named_modules(memo, _join(prefix, name), remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) for the modules directly inside this one, each once."""
        seen: set[int] = set()
        for name, module in self._registered(MODULE):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly inside this one, each once."""
        return (module for _, module in self.named_children())

    def _named_tensors(
        self, role: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        inside = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in inside if recurse else [(prefix, self)]:
            for name, tensor in module._registered(role):
                if id(tensor) not in seen:
                    if remove_duplicate:
                        seen.add(id(tensor))
                    yield _join(path, name), tensor

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) pairs; a parameter that is used in two places comes once."""
        return self._named_tensors(PARAMETER, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, of the modules inside too unless ``recurse`` is False; each once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """(path, buffer) pairs, each buffer once."""
        return self._named_tensors(BUFFER, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers, of the modules inside too unless ``recurse`` is False; each once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """The module at a path such as ``"features.0"``; the module itself at ``""``."""
        module = self
        for name in target.split(".") if target else ():
            if module._roles.get(name) != MODULE:
                raise AttributeError(f"{type(module).__name__} has no module {name!r} (path {target!r})")
            module = module.__dict__[name]
        return module

    def get_parameter(self, target: str) -> Tensor:
        """The parameter at a path such as ``"features.0.weight"``."""
        return self._get_tensor(target, PARAMETER)

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at a path such as ``"features.1.running_mean"``."""
        return self._get_tensor(target, BUFFER)

    def _get_tensor(self, target: str, role: str) -> Tensor:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if module._roles.get(name) != role:
            raise AttributeError(f"{type(module).__name__} has no {role} {name!r} (path {target!r})")
        return module.__dict__[name]

    # ---- saving and loading ----------------------------------------------------------------------------

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Tensor]:
        """Path to tensor for all parameters and persistent buffers.

        The tensors share memory with the module's own: copy them (``copy.deepcopy``) to keep a snapshot.
        With ``keep_vars`` they are the parameters themselves rather than detached.
        """
        state = {}
        for path, module in self.named_modules(remove_duplicate=False):
            kept = [(name, b) for name, b in module._registered(BUFFER) if name not in module._unsaved]
            for name, tensor in module._registered(PARAMETER) + kept:
                state[prefix + _join(path, name)] = tensor if keep_vars else tensor.detach()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> IncompatibleKeys:
        """Copy ``state_dict`` into the parameters and buffers, converted to their dtype and device.

        Args:
            state_dict: what :meth:`state_dict` gave, here or in PyTorch, as tensors.
            strict: whether keys that are missing or too many are an error.

        Raises:
            RuntimeError: keys or shapes do not fit. All that is wrong is listed, and nothing was loaded; but
                lazy layers have the sizes of the state.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict: expected a dict of tensors, got {type(state_dict).__name__}")
        for path, module in self.named_modules():
            module._before_loading(state_dict, _join(path, ""))
        own = self.state_dict(keep_vars=True)
        missing = [key for key in own if key not in state_dict]
        unexpected = [key for key in state_dict if key not in own]
        problems = []
        if strict and missing:
            problems.append(f"missing keys: {', '.join(map(repr, missing))}")
        if strict and unexpected:
            problems.append(f"unexpected keys: {', '.join(map(repr, unexpected))}")
        pairs = [(key, target, state_dict[key]) for key, target in own.items() if key in state_dict]
        problems += [text for key, target, value in pairs if (text := _misfit(key, target, value))]
        if problems:
            raise RuntimeError(
                f"load_state_dict: the state does not fit {type(self).__name__}:"
                + "".join(f"\n    {problem}" for problem in problems)
            )
        # Converted before anything is written, so that running out of memory changes nothing.
        converted = [(target, value.detach().to(target.device, target.dtype)) for _, target, value in pairs]
        with no_grad():
            for target, value in converted:
                target.copy_(value)
        return IncompatibleKeys(missing, unexpected)

    def _before_loading(self, state: Mapping[str, Any], prefix: str) -> None:
        """Prepare for what ``state`` holds for this module, under names that begin with ``prefix``."""

    # ---- mode, device, dtype, gradients ----------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Put this module and all inside it into training mode, or with False into evaluation mode."""
        if not isinstance(mode, bool):
            raise ValueError(f"train: mode must be a bool, got {mode!r}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Put this module and all inside it into evaluation mode. Gradients are another matter: no_grad()."""
        return self.train(False)

    def to(
        self,
        *args: Any,
        device: str | Device | None = None,
        dtype: Any = None,
        non_blocking: bool = False,
        memory_format: MemoryFormat | None = None,
    ) -> Self:
        """Move all parameters and buffers to a device, or change the dtype of the floating ones.

        ``to("cuda")``, ``to(mg.float64)``, ``to("cuda", mg.float32)``, ``to(tensor)``. The parameters stay
        the same objects, so an optimizer that was made before keeps working. ``non_blocking`` and
        ``memory_format`` are as in :meth:`minigrad.Tensor.to`, the latter for tensors of four dimensions: on
        tensor cores convolutions read weights without a copy if they are channels last.
        """
        device, dtype, non_blocking = arguments_of_to(args, device, dtype, non_blocking)
        device = None if device is None else find_device(device)
        dtype = None if dtype is None else to_dtype(dtype)
        if dtype is not None and not is_floating(dtype):
            raise TypeError(f"to: the dtype of a module is a floating one, got {dtype}")

        def moved(tensor: Tensor) -> Tensor:
            floating = dtype if tensor.is_floating_point() else None
            order = memory_format if tensor.ndim == 4 else None
            return tensor.detach().to(device, floating, non_blocking=non_blocking, memory_format=order)

        tensors = {id(t): t for _, t in (*self.named_parameters(), *self.named_buffers())}.values()
        with no_grad():
            changed = [(t, moved(t), None if t.grad is None else moved(t.grad)) for t in tensors]
        for tensor, value, grad in changed:
            tensor.data = value
            tensor.grad = grad
        return self

    def cpu(self) -> Self:
        """Move everything to the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | str | Device | None = None) -> Self:
        """Move everything to a CUDA device: a name or number, by default the current card."""
        return self.to(find_card(device))

    def float(self) -> Self:
        """Convert to float32."""
        return self.to(dtype=np.float32)

    def double(self) -> Self:
        """Convert to float64."""
        return self.to(dtype=np.float64)

    def half(self) -> Self:
        """Convert to float16."""
        return self.to(dtype=np.float16)

    def bfloat16(self) -> Self:
        """Convert to bfloat16; ImportError without the package ml_dtypes."""
        return self.to(dtype=bfloat16())

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters, or freeze them."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or with ``set_to_none=False`` set them to zero."""
        if recorder.current is not None:
            gradients = recorder.current.gradients
            (gradients.replaces if set_to_none else gradients.reads)(self.parameters())
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad = parameter.grad.detach()
                parameter.grad.zero_()

    def apply(self, fn: Callable[[Module], None]) -> Self:
        """Call ``fn`` with each module inside, the innermost first, and with this one at last."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # ---- printing --------------------------------------------------------------------------------------

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """The arguments that the module is printed with."""
        return ""

    def __repr__(self) -> str:
        inner = [(name, repr(module)) for name, module in self._registered(MODULE, empty=True)]
        return format_module(type(self).__name__, self.extra_repr(), inner)


def format_module(name: str, extra: str, inner: list[tuple[str, str]]) -> str:
    """How a module prints: its name and arguments, and the modules inside on indented lines."""
    if not inner:
        return f"{name}({extra})"
    lines = ([extra] if extra else []) + [f"({key}): {text}" for key, text in inner]
    indented = "".join("\n  " + line.replace("\n", "\n  ") for line in lines)
    return f"{name}({indented}\n)"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _misfit(key: str, target: Tensor, value: Any) -> str | None:
    """Why ``value`` cannot be loaded into ``target``, or None."""
    if not isinstance(value, Tensor):
        return f"{key}: expected a Tensor, got {type(value).__name__}"
    if value.shape != target.shape:
        return f"{key}: the state has shape {value.shape}, the module {target.shape}"
    if not getattr(target._array.flags, "writeable", True):
        return f"{key}: the module's tensor is read-only"
    return None
