"""The older forms of the parametrizations: the weight is computed by a hook before each forward.

They save their tensors under other names than :mod:`~minigrad.nn.utils.parametrizations`, which are to be
preferred: these are for networks that were written with them.
"""

from __future__ import annotations

from typing import Any

from minigrad.autograd import no_grad
from minigrad.nn.hooks import FORWARD_PRE
from minigrad.nn.module import PARAMETER, Module
from minigrad.nn.parameter import Parameter
from minigrad.nn.utils.matrix_norms import (
    as_matrix,
    default_dim,
    norm_except,
    random_directions,
    turn,
    with_norm,
    with_unit_norm,
)
from minigrad.tensor import HookHandle, Tensor

__all__ = ["remove_spectral_norm", "remove_weight_norm", "spectral_norm", "weight_norm"]


class _WeightHook:
    """Computes a module's tensor ``name`` from the tensors ``name + suffix``."""

    what: str
    suffixes: tuple[str, ...]
    handle: HookHandle

    def __init__(self, name: str, dim: int | None):
        self.name, self.dim = name, dim

    def __call__(self, module: Module, args: Any) -> None:
        setattr(module, self.name, self.compute(module, module.training))

    def compute(self, module: Module, training: bool) -> Tensor:
        raise NotImplementedError

    def parts(self, module: Module) -> list[Tensor]:
        return [getattr(module, self.name + suffix) for suffix in self.suffixes]

    def install(self, module: Module, *parts: Tensor) -> Module:
        """Put the parts in place of the tensor."""
        delattr(module, self.name)
        for suffix, part in zip(self.suffixes, parts, strict=True):
            if isinstance(part, Parameter):
                module.register_parameter(self.name + suffix, part)
            else:
                module.register_buffer(self.name + suffix, part)
        with no_grad():
            setattr(module, self.name, self.compute(module, False))
        self.handle = module.register_forward_pre_hook(self)
        return module

    def remove(self, module: Module) -> Module:
        """Put a parameter, which is what the tensor is now, in place of the parts."""
        with no_grad():
            weight = Parameter(self.compute(module, False))
        for name in (self.name, *(self.name + suffix for suffix in self.suffixes)):
            delattr(module, name)
        self.handle.remove()
        module.register_parameter(self.name, weight)
        return module


class _WeightNorm(_WeightHook):
    what, suffixes = "weight_norm", ("_g", "_v")

    def compute(self, module: Module, training: bool) -> Tensor:
        g, v = self.parts(module)
        return with_norm(v, g, self.dim)


class _SpectralNorm(_WeightHook):
    what, suffixes = "spectral_norm", ("_orig", "_u", "_v")

    def __init__(self, name: str, dim: int, n_power_iterations: int, eps: float):
        super().__init__(name, dim)
        self.rows, self.n_power_iterations, self.eps = dim, n_power_iterations, eps

    def compute(self, module: Module, training: bool) -> Tensor:
        weight, u, v = self.parts(module)
        matrix = as_matrix(weight.detach(), self.rows)
        for _ in range(self.n_power_iterations if training else 0):
            turn(v, matrix.T @ u, self.eps)
            turn(u, matrix @ v, self.eps)
        return with_unit_norm(weight, self.rows, u, v)


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """As :func:`.parametrizations.weight_norm`; trained are ``weight_g`` and ``weight_v``."""
    weight = _parameter(module, name, _WeightNorm)
    with no_grad():
        g, v = Parameter(norm_except(weight, dim)), Parameter(weight.detach().clone())
    return _WeightNorm(name, dim).install(module, g, v)


def remove_weight_norm(module: Module, name: str = "weight") -> Module:
    """Take :func:`weight_norm` away: the weight keeps the value that it has."""
    return _hook_of(module, name, _WeightNorm).remove(module)


def spectral_norm(
    module: Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> Module:
    """As :func:`.parametrizations.spectral_norm`; trained is ``weight_orig``.

    ``weight_u`` and ``weight_v`` start at random, so the first few divisors are too small.
    """
    weight = _parameter(module, name, _SpectralNorm)
    if n_power_iterations < 1:
        raise ValueError(f"spectral_norm: n_power_iterations must be positive, got {n_power_iterations}")
    dim = default_dim(module) if dim is None else dim
    u, v = random_directions(as_matrix(weight.detach(), dim), eps)
    return _SpectralNorm(name, dim, n_power_iterations, eps).install(module, weight, u, v)


def remove_spectral_norm(module: Module, name: str = "weight") -> Module:
    """Take :func:`spectral_norm` away: the weight keeps the value that it has."""
    return _hook_of(module, name, _SpectralNorm).remove(module)


def _hooks(module: Module, kind: type[_WeightHook]) -> dict[str, Any]:
    found = (hook.function for hook in module._hooks_of(FORWARD_PRE))
    return {hook.name: hook for hook in found if isinstance(hook, kind)}


def _hook_of(module: Module, name: str, kind: type[_WeightHook]) -> Any:
    hooks = _hooks(module, kind)
    if name not in hooks:
        raise ValueError(f"remove_{kind.what}: {type(module).__name__}.{name} has none")
    return hooks[name]


def _parameter(module: Module, name: str, kind: type[_WeightHook]) -> Parameter:
    """The parameter that is to be computed from now on."""
    if name in _hooks(module, kind):
        raise RuntimeError(f"{kind.what}: {type(module).__name__}.{name} has one already")
    if module._roles.get(name) != PARAMETER or getattr(module, name) is None:
        raise ValueError(f"{kind.what}: {type(module).__name__} has no parameter {name!r}")
    return getattr(module, name)
