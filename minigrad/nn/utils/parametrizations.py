"""Weights by length and direction, and weights of norm 1: ``torch.nn.utils.parametrizations``."""

from __future__ import annotations

from minigrad.nn.functional import normalize
from minigrad.nn.module import Module
from minigrad.nn.utils.matrix_norms import (
    as_matrix,
    default_dim,
    norm_except,
    random_directions,
    turn,
    with_norm,
    with_unit_norm,
)
from minigrad.nn.utils.parametrize import register_parametrization
from minigrad.tensor import Tensor

__all__ = ["spectral_norm", "weight_norm"]


class _WeightNorm(Module):
    def __init__(self, dim: int | None):
        super().__init__()
        self.dim = dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return with_norm(v, g, self.dim)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return norm_except(weight, self.dim), weight


class _SpectralNorm(Module):
    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, n_power_iterations: int, dim: int, eps: float):
        super().__init__()
        if not -weight.ndim <= dim < weight.ndim:
            raise IndexError(f"spectral_norm: dim {dim} is out of range for a weight of shape {weight.shape}")
        if n_power_iterations < 1:
            raise ValueError(f"spectral_norm: n_power_iterations must be positive, got {n_power_iterations}")
        self.n_power_iterations, self.dim, self.eps = n_power_iterations, dim % weight.ndim, eps
        if weight.ndim > 1:
            matrix = as_matrix(weight.detach(), self.dim)
            u, v = random_directions(matrix, eps)
            self.register_buffer("_u", u)
            self.register_buffer("_v", v)
            self._power_method(matrix, 15)

    def _power_method(self, matrix: Tensor, iterations: int) -> None:
        for _ in range(iterations):
            turn(self._u, matrix.detach() @ self._v, self.eps)
            turn(self._v, matrix.detach().T @ self._u, self.eps)

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return normalize(weight, dim=0, eps=self.eps)
        if self.training:
            self._power_method(as_matrix(weight, self.dim), self.n_power_iterations)
        return with_unit_norm(weight, self.dim, self._u, self._v)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Train the lengths and the directions of the rows of a weight apart; https://arxiv.org/abs/1602.07868.

    The weight is g v / ||v||, where g is ``module.parametrizations.weight.original0`` and v ``original1``.

    Args:
        module: the layer, which is changed, and returned.
        name: of the weight.
        dim: along which each position has a length of its own; None or -1: the weight has one.
    """
    return register_parametrization(module, name, _WeightNorm(dim), unsafe=True)


def spectral_norm(
    module: Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> Module:
    """Divide a weight by its largest singular value, so that the layer stretches no distance;
    https://arxiv.org/abs/1802.05957.

    The value is found by the power method, which goes on from where it was at each forward in training mode.

    Args:
        module: the layer, which is changed, and returned.
        name: of the weight, which is taken as a matrix.
        n_power_iterations: steps of the power method at each forward.
        eps: what norms are at least.
        dim: of the weight, the rows of the matrix; by default that of the outputs.

    Raises:
        ValueError, IndexError: ``n_power_iterations`` is not positive, or ``dim`` out of range.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"spectral_norm: {type(module).__name__} has no tensor {name!r}")
    dim = default_dim(module) if dim is None else dim
    return register_parametrization(module, name, _SpectralNorm(weight, n_power_iterations, dim, eps))
