"""Functions of tensors under PyTorch's names, each against NumPy and, where it is installed, PyTorch.

A row is the inputs (shapes, filled with normal random numbers, or arrays), the call, written for either
module, and what NumPy computes. PyTorch is asked for the gradients, too.
"""

import math
from functools import partial

import numpy as np
import pytest

import minigrad as mg

RNG = np.random.default_rng(7)
ERRORS = np.array([0.0, 1e-30, -1e-9, 0.3, -0.7, 1.01, -1.02, 1.5, -2.5, 3.3])
PROBABILITIES = RNG.uniform(0.1, 0.9, (3, 4))
ABOVE_ONE = PROBABILITIES + 1.0
ROWS = np.array([2, 0, 2])
PLACES = RNG.integers(0, 4, (2, 3))
MASK = RNG.random((3, 4)) < 0.5
TWICE = RNG.permutation(24).reshape(4, 6) / 4.0  # no ties
ZEROS = np.array([[1.5, 0.0, 2.0, -1.0], [0.0, 3.0, 0.0, 2.0], [1.0, 2.0, -3.0, 0.5]])


def scattered(x, src, add=False):
    out = x.copy()
    for i, j in np.ndindex(*PLACES.shape):
        out[i, PLACES[i, j]] = src[i, j] + (out[i, PLACES[i, j]] if add else 0)
    return out


def scattered_first(x, src):
    """The first two rows, with one element of each replaced."""
    out = x[:2].copy()
    for i in range(2):
        out[i, PLACES[i, 0]] = src[i, 0]
    return out


def filled(x, index, value):
    out = x.copy()
    out[:, index] = value
    return out


def added(x, source):
    out = x.copy()
    np.add.at(out, (slice(None), ROWS), source)
    return out


FUNCTIONS = {
    "asinh": ([(3, 4)], lambda m, x: m.asinh(x), np.arcsinh),
    "acosh": ([ABOVE_ONE], lambda m, x: m.acosh(x), np.arccosh),
    "atanh": ([PROBABILITIES], lambda m, x: x.atanh(), np.arctanh),
    "exp2": ([(3, 4)], lambda m, x: m.exp2(x), np.exp2),
    "atan2": ([(3, 4), (4,)], lambda m, y, x: m.atan2(y, x), np.arctan2),
    "atan2 at the origin": (
        [np.zeros(3), np.array([0.0, -0.0, -1.0])],
        lambda m, y, x: m.atan2(y, x),
        np.arctan2,
    ),
    "hypot": ([(3, 4), (4,)], lambda m, x, y: m.hypot(x, y), np.hypot),
    "fmod": ([(3, 4), ABOVE_ONE], lambda m, x, y: m.fmod(x, y), np.fmod),
    "frac": ([(3, 4)], lambda m, x: m.frac(x), lambda x: x - np.trunc(x)),
    "lerp": ([(3, 4), (3, 4), (4,)], lambda m, a, b, w: m.lerp(a, b, w), lambda a, b, w: a + w * (b - a)),
    "lerp by a number": ([(3, 4), (3, 4)], lambda m, a, b: a.lerp(b, 0.3), lambda a, b: a + 0.3 * (b - a)),
    "addcmul": (
        [(4,), (3, 4), (3, 4)],
        lambda m, x, a, b: m.addcmul(x, a, b, value=0.5),
        lambda x, a, b: x + 0.5 * a * b,
    ),
    "addcdiv": (
        [(3, 4), (3, 4), ABOVE_ONE],
        lambda m, x, a, b: m.addcdiv(x, a, b, value=2),
        lambda x, a, b: x + 2 * a / b,
    ),
    "logaddexp": (
        [(3, 4), (3, 4)],
        lambda m, x, y: m.logaddexp(x * 500, y),
        lambda x, y: np.logaddexp(500 * x, y),
    ),
    "xlogy": ([ZEROS, ABOVE_ONE], lambda m, x, y: m.xlogy(x, y), lambda x, y: x * np.log(y)),
    "logit": ([PROBABILITIES], lambda m, x: m.logit(x), lambda x: np.log(x / (1 - x))),
    "nan_to_num": (
        [np.array([np.nan, np.inf, -np.inf, 1.0])],
        lambda m, x: m.nan_to_num(x, 2.0, neginf=-7.0),
        lambda x: np.nan_to_num(x, nan=2.0, neginf=-7.0),
    ),
    "lgamma": (
        [np.array([0.3, 1.0, 4.5, 30.0, -1.5, -0.2])],
        lambda m, x: m.lgamma(x) + x.lgamma(),
        lambda x: 2 * np.vectorize(math.lgamma)(x),
    ),
    "erfinv": (
        [np.vectorize(math.erf)(ERRORS)],
        lambda m, x: m.erfinv(x) + x.erfinv(),
        lambda x: 2 * ERRORS,
    ),
    "digamma": (  # of -1/2, 1/2, 1 and 4: https://dlmf.nist.gov/5.4
        [np.array([-0.5, 0.5, 1.0, 4.0])],
        lambda m, x: m.digamma(x),
        lambda x: np.array([2 - 2 * math.log(2), -2 * math.log(2), 0, 11 / 6]) - np.euler_gamma,
    ),
    "polygamma": (
        [np.array([-1.5, 0.5, 1.0, 2.0])],
        lambda m, x: m.polygamma(1, x),
        lambda x: math.pi**2 * np.array([1 / 2, 1 / 2, 1 / 6, 1 / 6]) + [4 + 4 / 9, 0, 0, -1],
    ),
    "cummax": ([(3, 4)], lambda m, x: m.cummax(x, 1).values, lambda x: np.maximum.accumulate(x, 1)),
    "cummin": ([(3, 4)], lambda m, x: x.cummin(0)[0], lambda x: np.minimum.accumulate(x, 0)),
    "masked_scatter": (
        [(2, 3), (4,)],
        lambda m, x, s: m.masked_scatter(x, m.tensor([True, False, True]), s),
        lambda x, s: np.array([[s[0], x[0, 1], s[1]], [s[2], x[1, 1], s[3]]]),
    ),
    "hsplit": (
        [(2, 4)],
        lambda m, x: m.hsplit(x, 2)[1] * m.vsplit(x, [1])[0].T[2:].T,
        lambda x: x[:, 2:] * x[:1, 2:],
    ),
    "diagflat": ([(2, 2)], lambda m, x: m.diagflat(x, 1), lambda x: np.diagflat(x, 1)),
    "swapdims": ([(2, 3, 4)], lambda m, x: x.swapdims(0, -1), lambda x: x.swapaxes(0, -1)),
    "cumprod": ([(3, 4)], lambda m, x: m.cumprod(x, 1), lambda x: x.cumprod(1)),
    "cumprod of zeros": ([ZEROS], lambda m, x: x.cumprod(0), lambda x: x.cumprod(0)),
    "diff": ([(3, 4)], lambda m, x: m.diff(x, n=2), lambda x: np.diff(x, n=2)),
    "diagonal": ([(3, 4, 3)], lambda m, x: m.diagonal(x, 1, 2, 0), lambda x: x.diagonal(1, 2, 0)),
    "diag of a vector": ([(3,)], lambda m, x: m.diag(x, -1), lambda x: np.diag(x, -1)),
    "diag of a matrix": ([(3, 5)], lambda m, x: m.diag(x, 2), lambda x: np.diag(x, 2)),
    "diag_embed": ([(2, 3)], lambda m, x: m.diag_embed(x), lambda x: np.stack([np.diag(row) for row in x])),
    "trace": ([(3, 5)], lambda m, x: m.trace(x), np.trace),
    "scatter": (
        [(4, 6), (2, 1)],
        lambda m, x, s: m.scatter(x, 1, m.tensor(PLACES[:, :1]), s),
        lambda x, s: np.concatenate([scattered_first(x, s), x[2:]]),
    ),
    "scatter_add": (
        [(4, 6), (2, 3)],
        lambda m, x, s: m.scatter_add(x, 1, m.tensor(PLACES), s),
        lambda x, s: scattered(x, s, add=True),
    ),
    "scatter a number": (
        [(4, 6)],
        lambda m, x: x.scatter(1, m.tensor(PLACES), 2.5),
        lambda x: scattered(x, np.full((2, 3), 2.5)),
    ),
    "index_select": ([(2, 4, 3)], lambda m, x: m.index_select(x, -2, m.tensor(ROWS)), lambda x: x[:, ROWS]),
    "index_add": ([(2, 4), (2, 3)], lambda m, x, s: m.index_add(x, 1, m.tensor(ROWS), s), added),
    "index_add scaled": (
        [(2, 4), (2, 3)],
        lambda m, x, s: x.index_add(1, m.tensor(ROWS), s, alpha=3),
        lambda x, s: added(x, 3 * s),
    ),
    "index_copy": (
        [(2, 4), (2, 2)],
        lambda m, x, s: m.index_copy(x, 1, m.tensor(ROWS[:2]), s),
        lambda x, s: filled(x, ROWS[:2], s),
    ),
    "index_fill": (
        [(2, 4)],
        lambda m, x: m.index_fill(x, 1, m.tensor(ROWS), -1.0),
        lambda x: filled(x, ROWS, -1.0),
    ),
    "masked_fill": (
        [(2, 3, 4)],
        lambda m, x: m.masked_fill(x, m.tensor(MASK), 9),
        lambda x: np.where(MASK, 9, x),
    ),
    "masked_select": (
        [(2, 1, 4)],
        lambda m, x: m.masked_select(x, m.tensor(MASK)),
        lambda x: np.broadcast_to(x, (2, 3, 4))[np.broadcast_to(MASK, (2, 3, 4))],
    ),
    "take": (
        [(3, 4)],
        lambda m, x: m.take(x, m.tensor([[5, -1], [5, 0]])),
        lambda x: x.ravel()[[[5, -1], [5, 0]]],
    ),
    "roll": ([(3, 4)], lambda m, x: m.roll(x, (1, -6), (0, 1)), lambda x: np.roll(x, (1, -6), (0, 1))),
    "roll flat": ([(3, 4)], lambda m, x: x.roll(5), lambda x: np.roll(x, 5)),
    "movedim": (
        [(2, 3, 4, 5)],
        lambda m, x: m.movedim(x, (0, -1), (-1, 1)),
        lambda x: np.moveaxis(x, (0, -1), (-1, 1)),
    ),
    "unflatten": ([(2, 12)], lambda m, x: m.unflatten(x, 1, (3, -1)), lambda x: x.reshape(2, 3, 4)),
    "tile": ([(2, 3)], lambda m, x: m.tile(x, (2, 1, 2)), lambda x: np.tile(x, (2, 1, 2))),
    "tile less": ([(2, 3)], lambda m, x: x.tile(2), lambda x: np.tile(x, 2)),
    "repeat_interleave": ([(2, 3)], lambda m, x: m.repeat_interleave(x, 2), lambda x: np.repeat(x, 2)),
    "repeat_interleave by counts": (
        [(2, 3)],
        lambda m, x: x.repeat_interleave(m.tensor([2, 0, 1]), 1),
        lambda x: np.repeat(x, [2, 0, 1], 1),
    ),
    "narrow": ([(3, 5)], lambda m, x: m.narrow(x, 1, -3, 2), lambda x: x[:, 2:4]),
    "select": ([(3, 5)], lambda m, x: m.select(x, 1, -2), lambda x: x[:, -2]),
    "hstack": ([(2, 3), (2, 1)], lambda m, *x: m.hstack(x), lambda *x: np.hstack(x)),
    "hstack of vectors": ([(2,), (3,)], lambda m, *x: m.hstack(x), lambda *x: np.hstack(x)),
    "vstack": ([(3,), (2, 3)], lambda m, *x: m.vstack(x), lambda *x: np.vstack(x)),
    "meshgrid": (
        [(2,), (3,), ()],
        lambda m, *x: m.meshgrid(*x, indexing="ij"),
        lambda *x: np.meshgrid(*x, indexing="ij"),
    ),
    "meshgrid xy": ([(2,), (3,)], lambda m, *x: m.meshgrid(*x, indexing="xy"), lambda *x: np.meshgrid(*x)),
    "mv": ([(2, 3), (3,)], lambda m, a, b: m.mv(a, b), np.matmul),
    "addmm": (
        [(3,), (2, 4), (4, 3)],
        lambda m, c, a, b: m.addmm(c, a, b, beta=0.5, alpha=2),
        lambda c, a, b: 0.5 * c + 2 * a @ b,
    ),
    "baddbmm": (
        [(5, 2, 3), (5, 2, 4), (5, 4, 3)],
        lambda m, c, a, b: m.baddbmm(c, a, b),
        lambda c, a, b: c + a @ b,
    ),
    "inner": ([(2, 3), (4, 3)], lambda m, a, b: m.inner(a, b), np.inner),
    "tensordot": (
        [(2, 3, 4), (4, 3, 5)],
        lambda m, a, b: m.tensordot(a, b, dims=([1, 2], [1, 0])),
        lambda a, b: np.tensordot(a, b, ([1, 2], [1, 0])),
    ),
    "tensordot of last axes": ([(2, 3, 4), (3, 4, 5)], lambda m, a, b: m.tensordot(a, b, 2), np.tensordot),
    "kthvalue": (
        [TWICE],
        lambda m, x: tuple(m.kthvalue(x, 2, 1)),
        lambda x: (np.sort(x, 1)[:, 1], np.argsort(x, 1)[:, 1]),
    ),
    "median": (
        [TWICE],
        lambda m, x: tuple(m.median(x, 0, keepdim=True)),
        lambda x: (np.sort(x, 0)[1:2], np.argsort(x, 0)[1:2]),
    ),
    "median of all": ([TWICE], lambda m, x: m.median(x), lambda x: np.sort(x.ravel())[11]),
    "median of NaN": ([np.array([1.0, np.nan, 0.0])], lambda m, x: m.median(x), lambda x: np.nan),
    "quantile": (
        [TWICE],
        lambda m, x: m.quantile(x, m.tensor([0.1, 0.5, 1.0], dtype=m.float64), 1),
        lambda x: np.quantile(x, [0.1, 0.5, 1.0], 1),
    ),
    "quantile of all": (
        [TWICE],
        lambda m, x: m.quantile(x, 0.3, keepdim=True),
        lambda x: np.quantile(x, 0.3, keepdims=True),
    ),
    "quantile, nearest": (
        [TWICE],
        lambda m, x: m.quantile(x, 0.45, 0, interpolation="nearest"),
        lambda x: np.quantile(x, 0.45, 0, method="nearest"),
    ),
    "quantile, midpoint": (
        [TWICE],
        lambda m, x: m.quantile(x, 0.45, 0, interpolation="midpoint"),
        lambda x: np.quantile(x, 0.45, 0, method="midpoint"),
    ),
    "count_nonzero": ([ZEROS], lambda m, x: m.count_nonzero(x, dim=1), lambda x: np.count_nonzero(x, 1)),
    "cdist": (
        [(2, 3, 4), (5, 4)],
        lambda m, a, b: m.cdist(a, b),
        lambda a, b: np.sqrt(((a[:, :, None] - b) ** 2).sum(-1)),
    ),
    "cdist to itself": (
        [(3, 4)],
        lambda m, a: m.cdist(a, a),
        lambda a: np.sqrt(((a[:, None] - a) ** 2).sum(-1)),
    ),
    "cdist by sums": (
        [(3, 4), (5, 4)],
        lambda m, a, b: m.cdist(a, b, p=1.0),
        lambda a, b: np.abs(a[:, None] - b).sum(-1),
    ),
    "cosine_similarity": (
        [(3, 4), (1, 4)],
        lambda m, a, b: m.cosine_similarity(a, b),
        lambda a, b: (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1),
    ),
    "logsumexp": ([(3, 4)], lambda m, x: m.logsumexp(x, (0, 1)), lambda x: np.log(np.exp(x).sum())),
    "prod": ([ZEROS], lambda m, x: m.prod(x, 1), lambda x: x.prod(1)),
    "std": ([(3, 4)], lambda m, x: m.std(x, 1, correction=2), lambda x: x.std(1, ddof=2)),
    "where": ([(3, 4), ()], lambda m, x, y: m.where(m.tensor(MASK), x, y), lambda x, y: np.where(MASK, x, y)),
    "amax": ([TWICE], lambda m, x: m.amax(x, (0, 1)), np.max),
}


EQUATIONS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("bij,bjk", (5, 2, 3), (5, 3, 4)),
    ("ij->ji", (2, 3)),
    ("ij", (2, 3)),
    ("ba", (2, 3)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("iij->j", (3, 3, 2)),
    ("i,j->ij", (2,), (3,)),
    ("ij,kj,lj->ikl", (2, 3), (4, 3), (5, 3)),
    ("...ij,...jk->...ik", (2, 1, 3, 4), (5, 4, 2)),
    ("b...,b...->...", (2, 3, 4), (2, 3, 4)),
    ("...", (2, 3)),
    ("i...->...", (2, 3)),
    ("ijk,k->", (2, 3, 4), (4,)),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("bqhd,bkhd->bhqk", (2, 4, 3, 5), (2, 6, 3, 5)),
    ("i,i->", (0,), (0,)),
    ("ij,ij->ij", (2, 1), (2, 3)),
]
FUNCTIONS |= {
    f"einsum {equation}": (
        list(shapes),
        lambda m, *x, equation=equation: m.einsum(equation, *x),
        lambda *x, equation=equation: np.einsum(equation, *x),
    )
    for equation, *shapes in EQUATIONS
}


HOLES = np.array([[1.5, np.nan, 2.0, -1.0], [np.nan, 3.0, 0.5, 2.0]])
FUNCTIONS |= {
    "kron": ([(2, 3), (4, 1, 2)], lambda m, x, y: m.kron(x, y), np.kron),
    "kron of vectors": ([(2,), (3,)], lambda m, x, y: x.kron(y), np.kron),
    "block_diag": (
        [(2, 3), (1, 2), (), (2,)],
        lambda m, *x: m.block_diag(*x),
        lambda a, b, c, d: np.concatenate([
            np.pad(a, ((0, 0), (0, 5))),
            np.pad(b, ((0, 0), (3, 3))),
            np.pad(c.reshape(1, 1), ((0, 0), (5, 2))),
            np.pad(d.reshape(1, 2), ((0, 0), (6, 0))),
        ]),
    ),
    "cartesian_prod": (
        [(2,), (3,), (2,)],
        lambda m, *x: m.cartesian_prod(*x),
        lambda a, b, c: np.array([(i, j, k) for i in a for j in b for k in c]),
    ),
    "combinations": (
        [(4,)],
        lambda m, x: m.combinations(x, 3),
        lambda x: np.array([x[[0, 1, 2]], x[[0, 1, 3]], x[[0, 2, 3]], x[[1, 2, 3]]]),
    ),
    "combinations with replacement": (
        [(2,)],
        lambda m, x: m.combinations(x, with_replacement=True),
        lambda x: x[[[0, 0], [0, 1], [1, 1]]],
    ),
    "column_stack": ([(3,), (3, 2)], lambda m, *x: m.column_stack(x), lambda *x: np.column_stack(x)),
    "dstack": ([(2, 3), (2, 3)], lambda m, *x: m.dstack(x), lambda *x: np.dstack(x)),
    "dstack of vectors": ([(3,), (3,)], lambda m, *x: m.dstack(x), lambda *x: np.dstack(x)),
    "row_stack": ([(3,), (2, 3)], lambda m, *x: m.row_stack(x), lambda *x: np.vstack(x)),
    **{
        f"rot90 {k}": (
            [(2, 3, 4)],
            lambda m, x, k=k: m.rot90(x, k, (2, 0)),
            lambda x, k=k: np.rot90(x, k, (2, 0)),
        )
        for k in (-1, 0, 1, 2, 3)
    },
    "tensor_split": ([(7, 2)], lambda m, x: m.tensor_split(x, 3), lambda x: np.array_split(x, 3)),
    "tensor_split at": (
        [(2, 7)],
        lambda m, x: x.tensor_split((2, 2, -2, 9), dim=1),
        lambda x: (x[:, :2], x[:, 2:2], x[:, 2:5], x[:, 5:], x[:, 7:]),
    ),
    "cross": ([(4, 3), (4, 3)], lambda m, x, y: m.cross(x, y, dim=-1), np.cross),
    "cross along 0": ([(3, 2), (3, 2)], lambda m, x, y: x.cross(y, dim=0), partial(np.cross, axis=0)),
    "nansum": ([HOLES], lambda m, x: m.nansum(x), np.nansum),
    "nanmean": ([HOLES], lambda m, x: x.nanmean(1, keepdim=True), lambda x: np.nanmean(x, 1)[:, None]),
    "aminmax": ([(3, 4)], lambda m, x: m.aminmax(x, dim=1), lambda x: (x.min(1), x.max(1))),
    "cov": ([(3, 9)], lambda m, x: m.cov(x), np.cov),
    "cov of a vector": ([(9,)], lambda m, x: x.cov(correction=0), lambda x: np.cov(x, ddof=0)),
    "corrcoef": ([(3, 9)], lambda m, x: m.corrcoef(x), np.corrcoef),
    "trapezoid": ([(3, 5)], lambda m, y: m.trapezoid(y, dx=0.5), partial(np.trapezoid, dx=0.5)),
    "trapezoid at places": (
        [(3, 5), (5,)],
        lambda m, y, x: m.trapezoid(y, x),
        lambda y, x: np.trapezoid(y, x),
    ),
    "trapz": ([(3, 5), (3, 5)], lambda m, y, x: m.trapz(y, x), np.trapezoid),
}  # fmt: skip


def test_bitwise_functions():
    a, b = np.array([6, 3, 0], np.int64), np.array([5, 1, 7], np.int64)
    x, y = mg.tensor(a), mg.tensor(b)
    assert mg.bitwise_and(x, y).tolist() == (a & b).tolist() == x.bitwise_and(y).tolist()
    assert mg.bitwise_or(x, y).tolist() == (a | b).tolist()
    assert mg.bitwise_xor(x, 1).tolist() == (a ^ 1).tolist()
    assert mg.bitwise_not(x).tolist() == (~a).tolist()
    assert mg.bitwise_not(mg.tensor([True, False])).tolist() == [False, True]


@pytest.mark.parametrize("limits", [(), (-1.0, 1.5)])
def test_histograms(limits):
    x = RNG.standard_normal((30, 4))
    found = mg.histc(mg.tensor(x), 7, *limits)
    span = limits or (x.min(), x.max())
    assert found.tolist() == np.histogram(x, 7, span)[0].tolist() and found.dtype == mg.float64
    torch = pytest.importorskip("torch")
    assert found.tolist() == torch.histc(torch.tensor(x), 7, *limits).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mg.block_diag(mg.ones(1, 2, 3)), "block_diag: tensor 0 has more than two dimensions"),
        (lambda: mg.cartesian_prod(mg.ones(2), mg.ones(2, 2)), "cartesian_prod: expected vectors, tensor 1"),
        (lambda: mg.combinations(mg.ones(2, 2)), "combinations: expected a vector"),
        (lambda: mg.cross(mg.ones(2), mg.ones(3)), "cross: dim -1 must have size 3"),
        (lambda: mg.rot90(mg.ones(2, 2), dims=(1, -1)), "rot90: dims must be two different ones"),
        (lambda: mg.tensor_split(mg.ones(2), 0), "tensor_split: the number of pieces must be positive"),
        (lambda: mg.cov(mg.ones(1, 2, 3)), "cov: expected at most two dimensions"),
        (lambda: mg.histc(mg.ones(2), 0), "histc: needs bins of at least 1"),
    ],
)
def test_combining_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def drawn(inputs):
    rng = np.random.default_rng(3)
    return [x if isinstance(x, np.ndarray) else rng.standard_normal(x) for x in inputs]


def as_tuple(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values(name):
    check_values(name, mg)


@pytest.mark.parametrize("name", ["scatter", "scatter_add", "index_add", "masked_select", "median", "take"])
def test_values_on_each_device(name, device):
    class OnDevice:
        """The module, whose ``tensor`` makes tensors of the device."""

        def __getattr__(self, key):
            return partial(mg.tensor, device=device) if key == "tensor" else getattr(mg, key)

    check_values(name, OnDevice())


def check_values(name, module):
    inputs, call, expected = FUNCTIONS[name]
    arrays = drawn(inputs)
    found = as_tuple(call(module, *(module.tensor(a) for a in arrays)))
    with np.errstate(all="ignore"):
        wanted = as_tuple(expected(*arrays))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == np.shape(other)
        np.testing.assert_allclose(one.cpu().numpy(), other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    inputs, call, _ = FUNCTIONS[name]
    results = []
    for module in (mg, torch):
        tensors = [module.tensor(a, requires_grad=True) for a in drawn(inputs)]
        outputs = as_tuple(call(module, *tensors))
        floating = [y for y in outputs if y.requires_grad]
        if floating:
            weights = drawn([tuple(y.shape) for y in floating])
            sum((y * module.tensor(w)).sum() for y, w in zip(floating, weights, strict=True)).backward()
        results.append([y.detach() for y in outputs] + [x.grad for x in tensors])
    for mine, theirs in zip(*results, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert str(mine.dtype) == str(theirs.dtype).removeprefix("torch.")
            np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-9, atol=1e-11)


def test_writing_in_place():
    x = mg.zeros(2, 4)
    assert x.scatter_(1, mg.tensor([[1], [3]]), 2.0) is x
    x.scatter_add_(1, mg.tensor([[1, 1], [0, 0]]), mg.ones(2, 2))
    assert x.tolist() == [[0, 4, 0, 0], [2, 0, 0, 2]]
    x.index_add_(1, mg.tensor([0, 0]), mg.ones(2, 2), alpha=2)
    x.index_fill_(1, mg.tensor([2]), 7).index_copy_(0, mg.tensor([1]), mg.ones(1, 4))
    assert x.tolist() == [[4, 4, 7, 0], [1, 1, 1, 1]]
    assert x.masked_fill_(x > 3, -1).tolist() == [[-1, -1, -1, 0], [1, 1, 1, 1]]
    numbers = mg.tensor([1, 2])
    assert numbers.masked_fill(numbers > 1, 0.0).dtype == mg.int64


def test_counting():
    x = mg.tensor([[3, 1, 3], [0, 1, 3]])
    values, inverse, counts = mg.unique(x, return_inverse=True, return_counts=True)
    assert values.tolist() == [0, 1, 3] and counts.tolist() == [1, 2, 3]
    assert inverse.tolist() == [[2, 1, 2], [0, 1, 2]]
    assert mg.unique(mg.tensor([[1, 2], [0, 1], [1, 2]]), dim=0).tolist() == [[0, 1], [1, 2]]
    assert x.reshape(-1).bincount(minlength=6).tolist() == [1, 2, 0, 3, 0, 0]
    assert mg.bincount(mg.tensor([1, 1]), mg.tensor([0.5, 1.0])).tolist() == [0.0, 1.5]
    edges = mg.tensor([1.0, 3.0, 3.0])
    assert mg.searchsorted(edges, mg.tensor([[3.0, 0.0]])).tolist() == [[1, 0]]
    rows, values = mg.tensor([[1.0, 3.0, 3.0], [0.0, 5.0, 7.0]]), mg.tensor([[3.0, 0.0], [6.0, 7.0]])
    assert mg.searchsorted(rows, values).tolist() == [[1, 0], [2, 2]]
    assert mg.searchsorted(rows, values, right=True).tolist() == [[3, 0], [2, 3]]
    with pytest.raises(ValueError, match="as many rows as values"):
        mg.searchsorted(rows, edges)
    assert mg.bucketize(mg.tensor([3.0, 4.0]), edges, right=True).tolist() == [3, 3]


def test_ranges():
    assert mg.logspace(0, 2, 3).tolist() == [1.0, 10.0, 100.0]
    np.testing.assert_array_equal(mg.tril_indices(2, 3, 1).numpy(), np.stack(np.tril_indices(2, 1, 3)))
    np.testing.assert_array_equal(mg.triu_indices(2, 3).numpy(), np.stack(np.triu_indices(2, 0, 3)))


def test_multinomial_draws_as_often_as_the_weights_say():
    weights = mg.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 0.0]])
    drawn = mg.multinomial(weights, 4000, replacement=True)
    shares = np.stack([np.bincount(row, minlength=3) for row in drawn.numpy()]) / 4000
    np.testing.assert_allclose(shares, [[0.25, 0, 0.75], [0.5, 0.5, 0]], atol=0.04)  # 5 standard deviations
    firsts = [mg.multinomial(weights, 2) for _ in range(200)]
    assert all(set(row) == {0, 2} for row in (f[0].tolist() for f in firsts))
    assert 20 < sum(f[0, 0].item() == 0 for f in firsts) < 80
    with pytest.raises(ValueError, match="multinomial: a row has fewer than 3 weights above 0"):
        weights.multinomial(3)
    with pytest.raises(ValueError, match="finite and not negative"):
        mg.multinomial(-weights, 1)


X = mg.zeros(3, 4)
BAD = [
    (lambda: mg.einsum("ij,jk->ik", X, X), ValueError, r"the axes 'j' of 'ij,jk->ik' have the sizes 4 and 3"),
    (lambda: mg.einsum("ij", X, X), ValueError, "names 1 operands, but there are 2 tensors"),
    (lambda: mg.einsum("ijk->i", X), ValueError, "'ijk' in 'ijk->i' does not name the axes of a tensor of 2"),
    (lambda: mg.einsum("ij->iz", X), ValueError, "'z' in the output"),
    (
        lambda: mg.scatter(X, 1, mg.zeros(3, 1), X),
        TypeError,
        "index must be a tensor of integers, got float32",
    ),
    (
        lambda: mg.scatter(X, 1, mg.tensor([[4]]), X),
        IndexError,
        "index 4 is out of bounds for dim 1, which has 4",
    ),
    (lambda: mg.scatter_add(X, 1, mg.tensor([0]), X), ValueError, "need as many dimensions"),
    (
        lambda: mg.scatter_add(X, 1, mg.zeros(4, 1, dtype=mg.int64), X),
        ValueError,
        "must not be larger than src",
    ),
    (
        lambda: mg.index_add(X, 0, mg.tensor([0]), X),
        ValueError,
        r"source must have shape \(1, 4\), got \(3, 4\)",
    ),
    (lambda: mg.index_select(X, 0, mg.tensor([3])), IndexError, "index 3 is out of bounds for dim 0"),
    (lambda: mg.masked_select(X, X), TypeError, "mask must be a bool tensor, got float32"),
    (lambda: mg.diag(mg.zeros(2, 2, 2)), ValueError, "diag: expected a vector or a matrix"),
    (lambda: mg.quantile(X, 1.5), ValueError, r"q must be a number in \[0, 1\]"),
    (lambda: mg.kthvalue(X, 0), ValueError, "k = 0 does not fit"),
    (lambda: mg.cdist(X, mg.zeros(3, 5)), ValueError, r"got shapes \(3, 4\) and \(3, 5\)"),
    (lambda: mg.narrow(X, 1, 3, 2), ValueError, "start 3 and length 2 do not fit"),
    (lambda: mg.tensordot(X, X, 1), ValueError, "do not pair axes of one size"),
    (lambda: mg.roll(X, (1, 2), (0,)), ValueError, "differ in length"),
    (lambda: mg.bincount(mg.tensor([-1])), ValueError, "must not be negative, got -1"),
    (lambda: mg.polygamma(1.5, mg.ones(2)), ValueError, "polygamma: n must be an integer of at least 0"),
    (lambda: mg.movedim(X, (0, 1), 0), ValueError, "differ in length"),
    (lambda: mg.trapezoid(X, dim=2), IndexError, "trapezoid: dim 2 is out of range"),
    (lambda: mg.cross(X, X, dim=2), IndexError, "cross: dim 2 is out of range"),
    (lambda: mg.rot90(mg.tensor(1.0)), IndexError, "rot90: dim 0 is out of range"),
    (lambda: mg.gather(X, 2, mg.zeros(1, 1).long()), IndexError, "gather: dim 2 is out of range"),
    (lambda: mg.cumsum(X, (0, 1)), TypeError, r"cumsum: dim must be an integer, got \(0, 1\)"),
    (lambda: mg.cumprod(X, None), TypeError, "cumprod: dim must be an integer, got None"),
    (lambda: mg.cat([X], 1.0), TypeError, "concat: dim must be an integer, got 1.0"),
    (lambda: mg.sort(X, (0, 1)), TypeError, r"argsort: dim must be an integer, got \(0, 1\)"),
    (lambda: X.transpose(0, "a"), TypeError, "transpose: dim must be an integer, got 'a'"),
]


def test_statistics_of_one_variable_and_of_nothing():
    assert mg.cov(mg.ones(1, 3)).shape == mg.corrcoef(mg.ones(1, 3)).shape == ()
    assert mg.cov(mg.ones(2, 0)).isnan().all()
    assert mg.nansum(mg.tensor([1, 2])).item() == 3 and mg.nansum(mg.tensor([1, 2])).dtype == mg.int64


def test_a_multiple_is_added_in_the_dtype_of_the_sum():
    x, half = mg.zeros(1), mg.tensor([300.0]).half()
    for found in (x.add(half, alpha=300), -x.sub(half, alpha=300), x.clone().add_(half, alpha=300)):
        assert found.item() == 90_000.0 and found.dtype == mg.float32
    assert mg.addcmul(x, half, mg.ones(1), value=300).item() == 90_000.0


def test_more_differences_than_elements():
    assert mg.diff(mg.ones(2, 3), n=2**60).shape == (2, 0)


@pytest.mark.parametrize("function", [mg.atan2, mg.hypot, mg.logaddexp])
def test_integers_beside_floats_take_their_dtype(function):
    assert function(mg.ones(2).half(), mg.ones(2).int()).dtype == mg.float16
    assert function(mg.ones(2).int(), mg.ones(2).double()).dtype == mg.float64
    assert function(mg.ones(2).int(), mg.ones(2).int()).dtype == mg.float32


@pytest.mark.parametrize(("first", "second"), [("i8", "f2"), ("f2", "i8"), ("f2", "f4"), ("i8", "i8")])
def test_similarities_of_two_dtypes(first, second):
    x, y = RNG.integers(1, 9, (4, 5)), RNG.integers(1, 9, (4, 5))
    found = mg.cosine_similarity(mg.tensor(x.astype(first)), mg.tensor(y.astype(second)))
    expected = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=4 * np.finfo(found.dtype).eps)
    assert found.dtype == (mg.float16 if {first, second} == {"i8", "f2"} else mg.float32)


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_tensor_split_at_indices_that_go_back():
    pieces = mg.tensor_split(mg.arange(5), (3, 1))
    assert [piece.tolist() for piece in pieces] == [[0, 1, 2], [], [1, 2, 3, 4]]


def test_the_extrema_of_aminmax_have_names():
    found = mg.aminmax(mg.arange(3))
    assert found.min.item() == 0 and found.max.item() == 2
