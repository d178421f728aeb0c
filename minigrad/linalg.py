"""Linear algebra, under PyTorch's names (``torch.linalg``): norms, systems of equations, decompositions.

Matrices are the last two dimensions; those in front are a batch. They are float32 or float64, and NumPy's
LAPACK, or CuPy's, computes with them.
"""

from __future__ import annotations

import builtins
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.linalg import LinAlgError

from minigrad.argument_errors import explain_arguments
from minigrad.autograd import mode, wrap
from minigrad.op import op
from minigrad.ops import squares
from minigrad.ops.diagonal import diag_embed
from minigrad.ops.elementwise import abs, tril, triu, where
from minigrad.ops.matmul import matmul
from minigrad.ops.reduce import amax, amin, sum
from minigrad.ops.shape import movedim

__all__ = [
    "LinAlgError",
    "cholesky",
    "det",
    "eigh",
    "eigvalsh",
    "inv",
    "lstsq",
    "matrix_norm",
    "matrix_power",
    "matrix_rank",
    "multi_dot",
    "norm",
    "pinv",
    "qr",
    "slogdet",
    "solve",
    "solve_triangular",
    "svd",
    "svdvals",
    "vector_norm",
]


class SLogDet(NamedTuple):
    """det = sign exp(logabsdet)"""

    sign: Any
    logabsdet: Any


class Eigh(NamedTuple):
    """Eigenvalues in rising order, and the eigenvectors as columns."""

    eigenvalues: Any
    eigenvectors: Any


class QR(NamedTuple):
    """A = Q R, with orthonormal columns and an upper triangle."""

    Q: Any
    R: Any


class SVD(NamedTuple):
    """A = U diag(S) Vh, with singular values in falling order."""

    U: Any
    S: Any
    Vh: Any


class LstSq(NamedTuple):
    """The solution, the sum of its squared errors, the rank and the singular values of the matrix."""

    solution: Any
    residuals: Any
    rank: Any
    singular_values: Any


# ---- norms ------------------------------------------------------------------------------------------------


def norm(A: Any, ord: Any = None, dim: Any = None, keepdim: bool = False) -> Any:
    """The norm of vectors; of matrices, if ``ord`` is given and ``dim``, or all there are, are two axes."""
    axes = tuple(range(A.ndim)) if dim is None else dim
    if ord is not None and isinstance(axes, (tuple, list)) and len(axes) == 2:
        return matrix_norm(A, ord, axes, keepdim)
    return vector_norm(A, 2 if ord is None else ord, dim, keepdim)


def vector_norm(x: Any, ord: float = 2, dim: Any = None, keepdim: bool = False) -> Any:
    """sum(abs(x)^ord)^(1 / ord) over ``dim``, and its limits for infinity and 0."""
    return squares.norm(x, ord, dim, keepdim)


def matrix_norm(A: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False) -> Any:
    """The norm of matrices that ``ord`` names.

    ``"fro"``: the root of the sum of squares; 1 and -1: the largest and the smallest sum of a column's
    magnitudes; inf and -inf: of a row's; 2, -2 and ``"nuc"``: the largest, the smallest and the sum of the
    singular values, which have no gradient here.
    """
    if not isinstance(dim, (tuple, list)) or len(dim) != 2:
        raise ValueError(f"linalg.matrix_norm: dim must be two axes, got {dim!r:.60}")
    if ord == "fro":
        return squares.norm(A, 2, tuple(dim), keepdim)
    if ord in (2, -2, "nuc"):
        found = {2: amax, -2: amin, "nuc": sum}[ord](svdvals(movedim(A, tuple(dim), (-2, -1))), -1)
    elif ord in (1, -1, math.inf, -math.inf):
        magnitudes = abs(movedim(A, tuple(dim), (-2, -1)))
        found = (amax if ord > 0 else amin)(sum(magnitudes, -2 if ord in (1, -1) else -1), -1)
    else:
        raise ValueError(f"matrix_norm: ord is 'fro', 'nuc', inf, -inf, 1, -1, 2 or -2, got {ord!r}")
    if not keepdim:
        return found
    reduced = [d % A.ndim for d in dim]
    return found.reshape([1 if axis in reduced else size for axis, size in enumerate(A.shape)])


# ---- with gradients ---------------------------------------------------------------------------------------


@op(name="inv")
def _inv(xp, x):
    """The inverses of square matrices."""
    return xp.linalg.inv(x)


@_inv.grad
def _(g, y, _x):
    return -(y.mT @ g @ y.mT)


@op(name="solve")
def _solve(xp, a, b):
    """(..., n, n) and (..., n, k) -> (..., n, k): the x of a x = b."""
    return xp.linalg.solve(a, b)


@_solve.grad
def _(g, y, a, _b):
    grad_b = _solve(a.mT, g)
    return -(grad_b @ y.mT), grad_b


@op(name="det")
def _det(xp, x):
    """The determinants of square matrices."""
    return xp.asarray(xp.linalg.det(x))


_det.shape(lambda x: x.shape[:-2])
_det.grad(x=lambda g, y, x: (g * y)[..., None, None] * _inv(x).mT)


@op(name="logabsdet")
def _logabsdet(xp, x):
    """The logarithms of the magnitudes of determinants."""
    return xp.asarray(xp.linalg.slogdet(x)[1])


_logabsdet.shape(lambda x: x.shape[:-2])
_logabsdet.grad(x=lambda g, _y, x: g[..., None, None] * _inv(x).mT)


@op(name="cholesky")
def _cholesky(xp, x):
    """The lower triangles L of L L^T = x, for symmetric matrices that are positive definite."""
    return xp.linalg.cholesky(x)


@_cholesky.grad
def _(g, y, _x):
    # Murray, https://arxiv.org/abs/1602.07527: the lower triangle of L^T g, its diagonal halved, between the
    # inverses of L^T and L; symmetric, as x is.
    inside = tril(y.mT @ g)
    inside = (inside + tril(inside, -1)) * 0.5
    inverse = _inv(y)
    found = inverse.mT @ inside @ inverse
    return (found + found.mT) * 0.5


def inv(A: Any) -> Any:
    """The inverse; LinAlgError if there is none."""
    return _inv(_square("inv", A))


def solve(A: Any, B: Any) -> Any:
    """The X of A X = B, for B (..., n) or (..., n, k); LinAlgError if A is singular."""
    _square("solve", A)
    if B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1]):
        return solve(A, B.unsqueeze(-1)).squeeze(-1)
    if B.shape[-2] != A.shape[-1]:
        raise ValueError(f"solve: A has shape {A.shape}, B {B.shape}: {A.shape[-1]} rows are expected")
    batch = np.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    return _solve(A.expand(*batch, *A.shape[-2:]), B.expand(*batch, *B.shape[-2:]))


def solve_triangular(A: Any, B: Any, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    """The X of A X = B, or of X A = B if not ``left``, for a triangle A: the other one is not looked at."""
    if not left:
        return solve_triangular(A.mT, B.mT, upper=not upper, unitriangular=unitriangular).mT
    A = triu(A) if upper else tril(A)
    if unitriangular:
        A = A - diag_embed(A.diagonal(0, -2, -1) - 1)
    return solve(A, B)


def cholesky_solve(B: Any, L: Any, upper: bool = False) -> Any:
    """The X of A X = B, by the L of A = L L^T, or with ``upper`` by its transpose."""
    lower = L.mT if upper else L
    return solve_triangular(lower.mT, solve_triangular(lower, B, upper=False), upper=True)


def det(A: Any) -> Any:
    """The determinant; its gradient needs an inverse."""
    return _det(_square("det", A))


def slogdet(A: Any) -> SLogDet:
    """The sign of the determinant, and the logarithm of its magnitude, which does not overflow."""
    _square("slogdet", A)
    with A.device.active(), np.errstate(all="ignore"):
        sign = A.device.xp.asarray(A.device.xp.linalg.slogdet(A._array)[0])
    return SLogDet(wrap(sign, A.device), _logabsdet(A))


def logdet(A: Any) -> Any:
    """The logarithm of the determinant; NaN where that is negative."""
    sign, logabsdet = slogdet(A)
    return where(sign < 0, math.nan, logabsdet)


def cholesky(A: Any, *, upper: bool = False) -> Any:
    """The L of A = L L^T, or its transpose; LinAlgError if A is not positive definite."""
    lower = _cholesky(_square("cholesky", A))
    return lower.mT if upper else lower


def matrix_power(A: Any, n: int) -> Any:
    """A multiplied by itself, ``n`` factors; of its inverse, if ``n`` is negative."""
    if not isinstance(n, (int, np.integer)):
        raise TypeError(f"linalg.matrix_power: n must be an integer, got {n!r:.60}")
    _square("matrix_power", A)
    if n == 0:
        with A.device.active():
            one = wrap(A.device.xp.eye(A.shape[-1], dtype=A.dtype), A.device)
        return one.expand(A.shape).clone()
    square, power, left = inv(A) if n < 0 else A, None, builtins.abs(int(n))
    while True:  # the product of those squares whose powers add up to n
        if left & 1:
            power = square if power is None else matmul(power, square)
        left >>= 1
        if not left:
            return power
        square = matmul(square, square)


def multi_dot(tensors: Any) -> Any:
    """The product of matrices, from left to right."""
    product = tensors[0]
    for factor in tensors[1:]:
        product = matmul(product, factor)
    return product


# ---- without ----------------------------------------------------------------------------------------------


def eigh(A: Any, UPLO: str = "L") -> Eigh:
    """Eigenvalues and eigenvectors of symmetric matrices, of which one triangle is read; no gradient."""
    return Eigh(*_decomposed("eigh", A, lambda xp, a: xp.linalg.eigh(a, UPLO)))


def eigvalsh(A: Any, UPLO: str = "L") -> Any:
    """The eigenvalues of symmetric matrices; no gradient."""
    return eigh(A, UPLO).eigenvalues


def qr(A: Any, mode: str = "reduced") -> QR:
    """The QR decomposition, ``"reduced"`` or ``"complete"``; no gradient."""
    return QR(*_decomposed("qr", A, lambda xp, a: xp.linalg.qr(a, mode)))


def svd(A: Any, full_matrices: bool = True) -> SVD:
    """The singular value decomposition; no gradient. LinAlgError if an element is infinite or NaN."""

    def decompose(xp: Any, a: Any) -> Any:
        if not xp.isfinite(a).all():  # for infinities LAPACK may search without end
            raise LinAlgError("linalg.svd: an element is infinite or NaN")
        return xp.linalg.svd(a, full_matrices)

    return SVD(*_decomposed("svd", A, decompose))


def svdvals(A: Any) -> Any:
    """The singular values, in falling order; no gradient."""
    return svd(A, full_matrices=False).S


def matrix_rank(A: Any, *, rtol: float | None = None) -> Any:
    """How many singular values are above the largest one times ``rtol``, by default max(m, n) eps."""
    values = svdvals(A)
    return (values > values[..., :1] * _tolerance(A, rtol)).sum(-1)


def pinv(A: Any, *, rtol: float | None = None) -> Any:
    """The pseudo-inverse of Moore and Penrose, by the singular values above the largest times ``rtol``."""
    u, s, vh = svd(A, full_matrices=False)
    kept = s > s[..., :1] * _tolerance(A, rtol)
    return (vh.mT * s.reciprocal().where(kept, 0.0).unsqueeze(-2)) @ u.mT


def lstsq(A: Any, B: Any, rcond: float | None = None, *, driver: str | None = None) -> LstSq:
    """The X for which |A X - B|^2 is the least, by the pseudo-inverse; no gradient."""
    X = matmul(pinv(A, rtol=rcond), B)
    error = matmul(A, X) - B
    return LstSq(X, sum(error * error, -2), matrix_rank(A, rtol=rcond), svdvals(A))


def _tolerance(A: Any, rtol: float | None) -> float:
    return max(A.shape[-2:]) * float(np.finfo(A.dtype).eps) if rtol is None else rtol


def _decomposed(name: str, A: Any, decompose: Any) -> tuple:
    if mode.grad and A.requires_grad:
        raise RuntimeError(f"linalg.{name} has no gradient here; use it inside no_grad(), or detach()")
    with A.device.active():
        return tuple(wrap(A.device.xp.asarray(part), A.device) for part in decompose(A.device.xp, A._array))


def _square(name: str, A: Any) -> Any:
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"linalg.{name}: expected square matrices (..., n, n), got shape {A.shape}")
    return A


explain_arguments(globals())
