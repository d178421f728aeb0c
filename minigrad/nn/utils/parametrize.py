"""Parameters that are computed, at each use, from others: ``torch.nn.utils.parametrize``.

A parametrized ``layer.weight`` is a property of a class made for the layer. What is trained and saved stands
in ``layer.parametrizations.weight``: the module that computes the weight, and what it computes it from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from minigrad.autograd import no_grad
from minigrad.nn.container import ModuleDict, ModuleList
from minigrad.nn.module import BUFFER, PARAMETER, Module
from minigrad.nn.parameter import Parameter
from minigrad.tensor import Tensor

__all__ = ["ParametrizationList", "is_parametrized", "register_parametrization", "remove_parametrizations"]


class ParametrizationList(ModuleList):
    """The modules that compute one tensor, one after the other, from what is trained.

    Args:
        modules: the first is given the original tensors, each other one what came out before it.
        original: the tensor as it was. What is trained in its place comes from the modules'
            ``right_inverse(tensor)``, where they have one, the last one's first.

    Attributes:
        original, or original0, original1, ...: what is trained, one tensor or several.
    """

    def __init__(self, modules: Iterable[Module], original: Tensor):
        super().__init__(modules)
        with no_grad():
            value: Any = self._inverse(original)
        self.is_tensor = isinstance(value, Tensor)
        if self.is_tensor and value is not original:
            original.data = value
        parts = [original] if self.is_tensor else list(value)
        self._names = ["original"] if self.is_tensor else [f"original{i}" for i in range(len(parts))]
        for name, part in zip(self._names, parts, strict=True):
            _register(self, name, part, like=original)

    def _inverse(self, value: Any) -> Any:
        for module in reversed(self):
            if hasattr(module, "right_inverse"):
                value = module.right_inverse(value)
        return value

    def originals(self) -> list[Tensor]:
        """What is trained."""
        return [getattr(self, name) for name in self._names]

    def right_inverse(self, value: Tensor) -> None:
        """Change the originals so that ``value`` is computed from them, as far as the modules can."""
        with no_grad():
            found = self._inverse(value)
            for own, new in zip(self.originals(), [found] if self.is_tensor else found, strict=True):
                own.copy_(new)

    def forward(self) -> Tensor:
        """The tensor."""
        first, *others = self
        value = first(*self.originals())
        for module in others:
            value = module(value)
        return value


class _Parametrized:
    """What the class of a module with computed tensors adds to the module's own class."""

    _base: type
    _computed: tuple[str, ...]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._computed:
            self.parametrizations[name].right_inverse(value)  # type: ignore[attr-defined]
        else:
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple:
        return _new_instance, (self._base, self._computed), self.__dict__


def _value(module: Any, name: str) -> Tensor:
    return module.parametrizations[name]()


@functools.cache
def _parametrized_class(base: type, names: tuple[str, ...]) -> type:
    """A subclass of the module class ``base`` whose tensors with these names are computed."""
    own: dict[str, Any] = {"_base": base, "_computed": names, "__module__": base.__module__}
    for name in names:
        own[name] = property(functools.partial(_value, name=name))
    return type(f"Parametrized{base.__name__}", (_Parametrized, base), own)


def _new_instance(base: type, names: tuple[str, ...]) -> Any:
    cls: Any = _parametrized_class(base, names)
    return cls.__new__(cls)


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Whether ``module`` has a computed tensor, or one of this name."""
    computed = getattr(module, "_computed", ())
    return bool(computed) if tensor_name is None else tensor_name in computed


def register_parametrization(
    module: Module, tensor_name: str, parametrization: Module, *, unsafe: bool = False
) -> Module:
    """Have a parameter, or a buffer, computed by ``parametrization`` from now on.

    Args:
        module: what owns it.
        tensor_name: its name there.
        parametrization: a module from a tensor to a tensor. If it has a method ``right_inverse``, what that
            makes of the tensor, one or several others, is trained, and given to ``parametrization``.
        unsafe: whether it may change the shape or dtype.

    Returns:
        The module.

    Raises:
        ValueError: the module has no such tensor, or the shape or dtype would change.
    """
    owner: Any = module  # its parametrizations are not declared
    if is_parametrized(owner, tensor_name):
        chain = owner.parametrizations[tensor_name]
        value = chain().detach()
        if not unsafe:
            _check_same(tensor_name, value, parametrization(value))
        if hasattr(parametrization, "right_inverse"):
            chain.right_inverse(parametrization.right_inverse(value))
        chain.append(parametrization)
        return module
    if owner._roles.get(tensor_name) not in (PARAMETER, BUFFER):
        raise ValueError(f"register_parametrization: {type(module).__name__} has no tensor {tensor_name!r}")
    original = getattr(owner, tensor_name)
    before = original.detach().clone()
    chain = ParametrizationList([parametrization], original)
    if not unsafe:
        _check_same(tensor_name, before, chain())
    delattr(owner, tensor_name)
    if not is_parametrized(owner):
        owner.parametrizations = ModuleDict()
    owner.parametrizations[tensor_name] = chain
    _set_computed(owner, [*getattr(owner, "_computed", ()), tensor_name])
    return module


def remove_parametrizations(module: Module, tensor_name: str, leave_parametrized: bool = True) -> Module:
    """Make a computed tensor an ordinary one again.

    Args:
        module: what owns it.
        tensor_name: its name there.
        leave_parametrized: whether it keeps the computed value, rather than that of the original.

    Returns:
        The module.

    Raises:
        ValueError: it is not computed, or the original is wanted and there are several.
    """
    owner: Any = module
    if not is_parametrized(owner, tensor_name):
        raise ValueError(f"remove_parametrizations: {type(module).__name__} computes no {tensor_name!r}")
    chain = owner.parametrizations[tensor_name]
    if not (leave_parametrized or chain.is_tensor):
        raise ValueError(
            "remove_parametrizations: leave_parametrized=False needs a single original tensor; "
            f"{tensor_name!r} has {len(chain.originals())}"
        )
    value = getattr(owner, tensor_name).detach()
    original = chain.originals()[0]
    if chain.is_tensor and leave_parametrized:
        original.data = value
    del owner.parametrizations[tensor_name]
    _set_computed(owner, [name for name in owner._computed if name != tensor_name])
    if not is_parametrized(owner):
        del owner.parametrizations
    _register(owner, tensor_name, original if chain.is_tensor else value, like=original)
    return module


def _set_computed(module: Any, names: list[str]) -> None:
    """Give ``module`` the class that computes the tensors of these names, its own if there are none."""
    base: Any = getattr(module, "_base", type(module))
    module.__class__ = _parametrized_class(base, tuple(names)) if names else base


def _register(module: Module, name: str, value: Tensor, like: Tensor) -> None:
    """Register ``value`` as what ``like`` is: a parameter, or a buffer."""
    if not isinstance(like, Parameter):
        module.register_buffer(name, value)
    elif isinstance(value, Parameter):
        module.register_parameter(name, value)
    else:
        module.register_parameter(name, Parameter(value, like.requires_grad))


def _check_same(name: str, before: Tensor, after: Tensor) -> None:
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        raise ValueError(
            f"register_parametrization: {name} of shape {before.shape} and dtype {before.dtype} would become "
            f"one of {after.shape} and {after.dtype}; unsafe=True allows it"
        )
