"""The CUDA kernels of layer, group and batch norm and their gradients, against NumPy in float64."""

import itertools
from functools import partial

import numpy as np
import pytest

from minigrad.kernels import sim
from minigrad.kernels.cuda import (
    batch_norm,
    batch_norm_cluster,
    batch_norm_registers,
    channel_sums,
    norm,
    norm_registers,
)
from minigrad.kernels.source import computed_dtype
from minigrad.ops.norm import Running

EPS = 1e-3
DTYPES = [np.float32, np.float64]
HALVES = ["float16", "bfloat16"]
ROWS = [(1, 1), (3, 33), (70, 5), (2, 1500), (2, 3000), (300, 40), (0, 4)]
GROUPS = [
    (1, 1, 1, 1),
    (3, 2, 3, 5),
    (2, 1, 3, 500),
    (2, 3, 1, 33),
    (70, 2, 2, 1),
    (4, 1, 2, 1100),
    (2, 2, 3, 264),
    (0, 2, 3, 4),
]
CHANNELS = [
    (2, 1, 1), (3, 5, 7), (300, 40, 1), (70, 3, 2), (4, 2, 1100), (3, 2, 1096), (1, 3, 300), (2, 3, 33),
]  # fmt: skip

# Of each problem, in the shape of x that the kernels are given: over which axes the mean is, and the shape of
# weight and bias beside x.
LAYER = ROWS, (1,), lambda shape: (1, shape[1])
GROUP = GROUPS, (2, 3), lambda shape: (1, *shape[1:3], 1)
BATCH = CHANNELS, (0, 2), lambda shape: (1, shape[1], 1)
OF_VECTORS = [(3, 4, 16), (1, 5, 2048), (17, 1, 200), (9, 4, 264), (40, 2, 24), (5, 3, 7)], *BATCH[1:]
OF_FEATURES = [
    (2, 1, 1), (300, 40, 1), (7, 33, 1), (129, 16, 1), (600, 8, 1), (3, 1072, 1), (5, 2128, 1), (2000, 3, 1),
    (4, 2, 7),
], *BATCH[1:]  # fmt: skip

RUNGS = {
    **{f"layer {r}": (LAYER, partial(norm.layer_norm, r), partial(norm.layer_norm_grad, r))
       for r in ("naive", "warp", "block")},
    "layer registers": (LAYER, norm_registers.layer_norm, norm_registers.layer_norm_grad),
    **{f"group {r}": (GROUP, partial(norm.group_norm, r), partial(norm.group_norm_grad, r))
       for r in ("naive", "warp", "block")},
    "group registers": (GROUP, norm_registers.group_norm, norm_registers.group_norm_grad),
    "batch naive": (BATCH, batch_norm.batch_norm_naive, batch_norm.batch_norm_grad_naive),
    "batch split": (BATCH, batch_norm.batch_norm_split, batch_norm.batch_norm_grad_split),
    "batch cluster": (OF_VECTORS, batch_norm_cluster.batch_norm_cluster,
                      batch_norm_cluster.batch_norm_grad_cluster),
    "batch registers": (OF_FEATURES, batch_norm_registers.batch_norm_registers,
                        batch_norm_registers.batch_norm_grad_registers),
}  # fmt: skip
PROBLEMS = [
    (name, shape, dtype)
    for name, ((shapes, *_), *_) in RUNGS.items()
    for shape in shapes
    for dtype in (DTYPES if name.endswith(("naive", "warp")) else DTYPES + HALVES)
]


class Problem:
    """Inputs in ``dtype`` and, in float64, what comes of them. Beside 16 bits, parameters are float32."""

    def __init__(self, name, shape, dtype, offset=0.0, affine=True):
        (_, self.axes, parameters), self.kernel, self.grad_kernel = RUNGS[name]
        if dtype == "bfloat16":
            dtype = pytest.importorskip("ml_dtypes").bfloat16
        self.dtype, self.computed = np.dtype(dtype), computed_dtype(np.dtype(dtype))
        self.dtypes = [self.dtype, self.computed, self.computed]
        rng = np.random.default_rng(0)
        self.beside = parameters(shape)
        self.x, self.grad = (rng.standard_normal(shape).astype(self.dtype) for _ in range(2))
        self.weight, self.bias = (rng.standard_normal(self.beside).astype(self.computed) for _ in range(2))
        self.x += self.x.dtype.type(offset)
        self.count = int(np.prod([shape[axis] for axis in self.axes]))
        wide = self.x.astype(np.float64)
        self.mean = wide.mean(self.axes, keepdims=True)
        self.rstd = 1 / np.sqrt(wide.var(self.axes, keepdims=True) + EPS)
        self.normal = (wide - self.mean) * self.rstd
        self.w, self.b = (self.weight, self.bias) if affine else (np.ones(1), np.zeros(1))
        self.parameters = (self.weight.ravel(), self.bias.ravel()) if affine else (None, None)
        self.shapes = [shape, self.mean.size, self.mean.size]
        self.eps = np.finfo(self.computed).eps

    def forward(self, run, **options):
        """y, mean and rstd, in shapes that broadcast."""
        args = self.x, *self.parameters, EPS
        found = run(self.kernel, self.shapes, self.dtypes, *args, **options)
        return found[0], *(f.reshape(self.mean.shape) for f in found[1:])


def assert_within(actual, expected, bound):
    """To within the bound and, in 16 bits, one rounding more."""
    assert actual.shape == np.shape(expected)
    if actual.itemsize == 2:
        unit, smallest = (2.0**-11, 2.0**-25) if actual.dtype == np.float16 else (2.0**-8, 2.0**-134)
        bound = bound + unit * (np.abs(expected) + bound) + smallest
    off = np.abs(actual.astype(np.float64) - expected)
    assert (off <= bound).all(), off.max()


@pytest.mark.parametrize(("name", "shape", "dtype"), PROBLEMS)
def test_forward(run, name, shape, dtype):
    for affine in (True, False):
        p = Problem(name, shape, dtype, affine=affine)
        y, mean, rstd = p.forward(run)
        # A sum of n terms has n roundings, and a few follow: those of the mean are in units of the mean
        # magnitude, those of the variance relative.
        relative = (8 + p.count) * p.eps
        size = np.abs(p.x.astype(np.float64)).mean(p.axes, keepdims=True)
        assert_within(mean, p.mean, relative * size)
        # The variance changes by the square of what the mean is off, far less than its own roundings.
        assert_within(rstd, p.rstd, relative * p.rstd)
        bound = np.abs(p.w) * relative * (size * p.rstd + np.abs(p.normal)) + 2 * p.eps * np.abs(p.b)
        assert_within(y, p.normal * p.w + p.b, bound)


@pytest.mark.parametrize(("name", "shape", "dtype"), PROBLEMS)
def test_gradients(run, name, shape, dtype):
    for affine in (True, False):
        p = Problem(name, shape, dtype, affine=affine)
        statistics = [s.astype(p.computed).ravel() for s in (p.mean, p.rstd)]
        mean, rstd = (s.astype(np.float64).reshape(p.mean.shape) for s in statistics)
        shapes = [shape, p.weight.size, p.weight.size]
        args = p.grad, p.x, *statistics, p.parameters[0]
        dx, dweight, dbias = run(p.grad_kernel, shapes, p.dtypes, *args)
        grad, normal = p.grad.astype(np.float64), (p.x.astype(np.float64) - mean) * rstd
        shared = tuple(axis for axis, n in enumerate(p.beside) if n == 1)

        relative = (8 + p.count) * p.eps
        a = grad * p.w
        averages = [z.mean(p.axes, keepdims=True) for z in (a, a * normal)]
        sizes = [np.abs(z).mean(p.axes, keepdims=True) for z in (a, a * normal)]
        bound = relative * rstd * (np.abs(a) + sizes[0] + (1 + np.abs(normal)) * sizes[1])
        assert_within(dx, rstd * (a - averages[0] - normal * averages[1]), bound)
        relative = (8 + grad.size // max(p.weight.size, 1)) * p.eps
        for found, terms in ((dweight, grad * normal), (dbias, grad)):
            wanted, size = (
                z.sum(shared).ravel() for z in (terms, np.abs(terms) + np.abs(mean * rstd * grad))
            )
            assert_within(found, wanted, relative * size)


@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@pytest.mark.parametrize("shape", [(70, 5), (33, 256), (35, 520)])
def test_gradients_of_many_rows_by_a_block(run, shape, dtype, monkeypatch):
    monkeypatch.setattr(norm_registers, "ENOUGH_BLOCKS", 3)
    test_gradients(run, "layer registers", shape, dtype)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("cluster", batch_norm_cluster.CLUSTERS)
def test_batch_norm_by_clusters_of_each_size(backend, run, cluster, persistent, monkeypatch):
    if not batch_norm_cluster.is_supported(backend.put(np.zeros(1))):
        pytest.skip("clusters need a card of compute capability 9.0")
    problem, *launches = RUNGS["batch cluster"]
    monkeypatch.setitem(RUNGS, "batch cluster", (problem, *(partial(f, cluster=cluster) for f in launches)))
    monkeypatch.setattr(batch_norm_cluster, "PERSISTENT", persistent)
    if persistent:  # one cluster takes all channels
        monkeypatch.setattr(batch_norm_cluster, "multiprocessors", lambda x: 1)
    for dtype in (np.float32, np.float16):
        test_forward(run, "batch cluster", (19, 5, 1064), dtype)
        test_gradients(run, "batch cluster", (19, 5, 1064), dtype)


def test_elements_unlike_those_that_a_block_looks_at_first(backend, run):
    """A block takes deviations from the mean of its first vectors: here 1024 elements far from the rest."""
    if not batch_norm_cluster.is_supported(backend.put(np.zeros(1))):
        pytest.skip("clusters need a card of compute capability 9.0")
    x = np.random.default_rng(0).standard_normal((6, 1, 8192)).astype(np.float32)
    x[0, 0, :1024] += 1000
    outs = [x.shape, 1, 1]
    _, mean, rstd = run(
        partial(batch_norm_cluster.batch_norm_cluster, cluster=1), outs, "f4", x, None, None, EPS
    )
    eps, exact = np.finfo(np.float32).eps, x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(), rtol=64 * eps)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(exact.var() + EPS), rtol=64 * eps)


def test_blocks_of_a_cluster():
    of = batch_norm_cluster.blocks_of_cluster
    image = (64, 64, 56, 56)
    assert of(image, 4, 1, 132) == 8  # 98 KB a block
    assert of(image, 4, 2, 132) == 16  # 98 KB a block
    assert of(image, 2, 1, 132) == 8  # 4 would have room, too, but not fill the card twice
    assert of((64, 64, 112, 112), 4, 1, 132) == 16  # 196 KB: one block on a multiprocessor
    assert of((64, 64, 112, 112), 4, 2, 132) is None
    assert of((64, 1024, 4, 4), 4, 1, 132) == of((64, 1024, 4, 2), 4, 1, 132) == 1
    assert of((16, 9, 169, 170), 8, 1, 132) == 16  # 224.5 KB
    assert of((16, 9, 170, 170), 8, 1, 132) is None  # 225.8 KB, beside the sums of a block
    assert of((64, 512, 7, 7), 4, 1, 132) is None  # 49 elements are no whole vectors
    assert of((2, 64, 56, 56), 4, 1, 132) is None  # 128 blocks
    assert of((64, 2, 56, 56), 4, 1, 132) is None
    assert of((64, 64), 4, 1, 132) is None
    with sim.architecture("sm_80"):
        assert not batch_norm_cluster.takes(np.empty((64, 64, 16), np.float32), 1)
    assert batch_norm_cluster.takes(np.empty((64, 64, 16), np.float32), 1)


@pytest.mark.parametrize("name", [name for name in RUNGS if name != "batch naive"])
def test_a_large_offset(run, name):
    """What is lost is what rounding the mean costs, a few units of 1e4 eps, not the digits of a long sum."""
    shape = {"layer": (3, 1500), "group": (2, 1, 3, 500), "batch": (4, 2, 500)}[name.split()[0]]
    p = Problem(name, shape, np.float32, offset=1e4)
    y, mean, rstd = p.forward(run)
    # batch split: a thread has 4 elements, then 5 + 3 + 1 steps combine the means.
    place = (13 if name == "batch split" else 2) * p.eps * 1e4
    assert_within(mean, p.mean, place)
    # 500 or 1500 squares make a variance of about 1, and the mean's error is added to it squared.
    assert_within(rstd, p.rstd, (1500 * p.eps + place**2) * p.rstd)
    bound = np.abs(p.w) * (
        place * p.rstd + (1500 * p.eps + place**2) * np.abs(p.normal)
    ) + 4 * p.eps * np.abs(p.b)
    assert_within(y, p.normal * p.w + p.b, bound)


@pytest.mark.parametrize("name", RUNGS)
def test_nan_and_infinity_stay_where_their_statistics_reach(run, name):
    shape = {"layer": (4, 40), "group": (2, 2, 2, 20), "batch": (3, 4, 20)}[name.split()[0]]
    p = Problem(name, shape, np.float32)
    for value in (np.nan, np.inf):
        p.x[(1,) * len(shape)] = value
        y, mean, _ = p.forward(run, fill=77)
        reached = ~np.isfinite(p.x).all(p.axes, keepdims=True)
        assert np.array_equal(~np.isfinite(mean), reached)
        assert np.array_equal(np.isnan(y), np.broadcast_to(reached, shape))


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("shape", CHANNELS)
def test_batch_norm_with_given_statistics(run, dtype, shape):
    p = Problem("batch split", shape, dtype)
    var = np.abs(p.grad).max((0, 2)).astype(p.computed)
    mean = p.bias.ravel()
    column = (1, -1, 1)
    y = run(batch_norm.batch_norm_inference, shape, p.dtype, p.x, mean, var, *p.parameters, EPS)
    rstd = 1 / np.sqrt(var.astype(np.float64) + EPS)
    scale = (rstd * p.weight.ravel()).reshape(column)
    centred = p.x.astype(np.float64) - mean.reshape(column)
    size = np.abs(scale * centred) + np.abs(p.bias)
    assert_within(y, centred * scale + p.bias, 8 * p.eps * size)
    plain = run(batch_norm.batch_norm_inference, shape, p.dtype, p.x, mean, var, None, None, EPS)
    assert_within(plain, centred * rstd.reshape(column), 8 * p.eps * np.abs(centred * rstd.reshape(column)))
    found = run(batch_norm.batch_norm_weight_grad, shape[1], p.computed, p.grad, p.x, mean)
    terms = p.grad.astype(np.float64) * centred
    assert_within(found, terms.sum((0, 2)), (8 + p.count) * p.eps * np.abs(terms).sum((0, 2)))


MOVING = {
    **{name: RUNGS[name][1] for name in ("batch naive", "batch split", "batch registers")},
    "batch cluster": partial(batch_norm_cluster.batch_norm_cluster, cluster=2),
}


@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
@pytest.mark.parametrize("shape", [(4, 5, 16), (9, 40, 264), (70, 300, 2), (70, 300, 1)], ids=str)
@pytest.mark.parametrize("name", MOVING)
def test_running_statistics_follow_the_batch(backend, name, shape, dtype):
    if name == "batch naive" and dtype == "float16":
        pytest.skip("the naive rung takes no halves")
    if name == "batch cluster" and (
        shape[2] < 16 or not batch_norm_cluster.is_supported(backend.put(np.zeros(1)))
    ):
        pytest.skip("clusters take planes of vectors, on compute capability 9.0")
    dtype, channels = np.dtype(dtype), shape[1]
    rng, computed = np.random.default_rng(0), computed_dtype(dtype)
    x = (3 * rng.standard_normal(shape)).astype(dtype)
    x[:, 0] = 1  # of a constant channel the variance is 0: what rounding leaves below counts as 0
    means, variances = rng.standard_normal(channels).astype(computed), rng.random(channels).astype(computed)
    for batches in (None, np.array(6)):
        own, mean, rstd = (backend.put(a.copy()) for a in (means, means, means))
        var, y = backend.put(variances.copy()), backend.put(np.empty_like(x))
        counted = batches if batches is None else backend.put(batches)
        running = Running(own, var, counted, momentum=0.3, unbiased=1.25)
        MOVING[name]((y, mean, rstd), backend.put(x), None, None, EPS, running)
        own, var, mean, rstd = map(backend.get, (own, var, mean, rstd))
        assert batches is None or backend.get(counted) == 7
        eps, spread = np.finfo(computed).eps, (1 / rstd.astype(np.float64) ** 2 - EPS).clip(min=0)
        assert_within(own, 0.7 * means + 0.3 * mean, 4 * eps * np.abs([means, mean]).max(0))
        assert_within(var, 0.7 * variances + 0.375 * spread, 8 * eps * (1 + variances + spread))


def test_what_does_not_fit_is_refused():
    x, row = np.ones((3, 4), np.float32), np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"layer norm kernel: expected two arrays of one shape"):
        norm.layer_norm("warp", (x.copy(), row, row[:2].copy()), x, None, None, EPS)
    with pytest.raises(ValueError, match=r"cannot sum the channels of \(3, 4, 1\) and \(3, 4, 1\) to \(3,\)"):
        channel_sums.split((row, row), x[..., None], x[..., None], None, None, (0, 1))
    with pytest.raises(ValueError, match=r"x \(samples, channels, area\) = \(3, 4, 1\)"):
        batch_norm.batch_norm_split((x[..., None], row, row), x[..., None], None, None, EPS)
    with pytest.raises(TypeError, match="expects an array of float32, got one of float64"):
        norm.layer_norm("naive", (x.copy(), row, row.copy()), x, x[0].astype(np.float64), None, EPS)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, np.float32) for name in RUNGS]
    + [(name, np.float16) for name in ("layer registers", "group registers", "batch split", "batch cluster")],
)
def test_every_thread_order_gives_the_same_bits_and_every_access_is_right(name, dtype):
    shape = {"layer": (40, 130), "group": (3, 2, 2, 35), "batch": (4, 2, 1100)}[name.split()[0]]
    if dtype == np.float16:  # in whole vectors
        shape = *shape[:-1], -(-shape[-1] // 8) * 8
    p = Problem(name, shape, dtype)

    def results():
        y, dx = np.empty_like(p.x), np.empty_like(p.x)
        mean, rstd = np.empty((2, p.mean.size), np.float32)
        sums = np.empty((2, p.weight.size), np.float32)
        p.kernel((y, mean, rstd), p.x, *p.parameters, EPS)
        p.grad_kernel((dx, *sums), p.grad, p.x, mean, rstd, p.parameters[0])
        return b"".join(array.tobytes() for array in (y, mean, rstd, dx, sums))

    first = results()
    for seed, workers in itertools.product((1, 2, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert results() == first
    with sim.checks():
        assert results() == first
