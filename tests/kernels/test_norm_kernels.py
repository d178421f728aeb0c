"""The CPU kernels of layer, group and batch norm and their gradients, against NumPy in float64."""

import numpy as np
import pytest
from in_one_test import in_one_test

EPS = 1e-3
ROWS = [(1, 1), (3, 33), (70, 5), (2, 5000), (300, 40), (129, 256)]
GROUPS = [(1, 1, 1, 1), (3, 2, 3, 5), (2, 1, 3, 1000), (2, 3, 1, 33), (70, 2, 2, 1), (6, 3, 4, 64)]
CHANNELS = [
    (2, 1, 1),
    (3, 5, 7),
    (300, 40, 1),
    (70, 3, 2),
    (4, 2, 5000),
    (9, 270, 4),
    (40, 300, 1),
    (8, 33, 49),
]

# By the kernel's name: shapes of x, over which axes the mean is, and the shape of weight and bias beside x.
PROBLEMS = {
    "layer_norm": (ROWS, (1,), lambda shape: (1, shape[1])),
    "group_norm": (GROUPS, (2, 3), lambda shape: (1, *shape[1:3], 1)),
    "batch_norm": (CHANNELS, (0, 2), lambda shape: (1, shape[1], 1)),
}
CASES = [(name, shape) for name, (shapes, *_) in PROBLEMS.items() for shape in shapes]


@pytest.fixture
def norm(kernel_module):
    return kernel_module("norm")


class Problem:
    """Inputs in ``dtype`` and, in float64, what comes of them."""

    def __init__(self, name, shape, dtype, offset=0.0, affine=True):
        _, self.axes, beside = PROBLEMS[name]
        rng = np.random.default_rng()
        self.beside = beside(shape)
        draw = [shape, shape, self.beside, self.beside]
        self.x, self.grad, self.weight, self.bias = (rng.standard_normal(s).astype(dtype) for s in draw)
        self.x += self.x.dtype.type(offset)
        self.count = int(np.prod([shape[axis] for axis in self.axes]))
        wide = self.x.astype(np.float64)
        self.mean = wide.mean(self.axes, keepdims=True)
        self.rstd = 1 / np.sqrt(wide.var(self.axes, keepdims=True) + EPS)
        self.normal = (wide - self.mean) * self.rstd
        self.w, self.b = (self.weight, self.bias) if affine else (np.ones(1), np.zeros(1))
        self.parameters = (self.weight, self.bias) if affine else (None, None)
        self.eps = np.finfo(dtype).eps

    def forward(self, kernel, threads):
        y, mean, rstd = np.full_like(self.x, 77), *np.full((2, *self.mean.shape), 77, self.x.dtype)
        kernel(y, mean, rstd, self.x, *self.parameters, EPS, threads)
        return y, mean, rstd

    def gradients(self, kernel, threads):
        dx, dweight, dbias = np.full_like(self.x, 77), *np.full((2, *self.beside), 77, self.x.dtype)
        statistics = (s.astype(self.x.dtype) for s in (self.mean, self.rstd))
        kernel(dx, dweight, dbias, self.grad, self.x, *statistics, self.parameters[0], threads)
        return dx, dweight, dbias


def assert_within(actual, expected, bound):
    assert actual.shape == np.shape(expected)
    assert (np.abs(actual - expected) <= bound).all(), np.abs(actual - expected).max()


@in_one_test("threads", [1, 2, 3])
@in_one_test("affine", [True, False])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_forward(norm, name, shape, dtype, affine, threads):
    p = Problem(name, shape, dtype, affine=affine)
    y, mean, rstd = p.forward(getattr(norm, name), threads)
    # A sum of n terms has n roundings, and a few follow: those of the mean are in units of the mean
    # magnitude, those of the variance relative.
    relative = (8 + p.count) * p.eps
    size = np.abs(p.x).mean(p.axes, keepdims=True)
    assert_within(mean, p.mean, relative * size)
    # The variance changes by the square of what the mean is off, far less than its own roundings.
    assert_within(rstd, p.rstd, relative * p.rstd)
    bound = np.abs(p.w) * relative * (size * p.rstd + np.abs(p.normal)) + 2 * p.eps * np.abs(p.b)
    assert_within(y, p.normal * p.w + p.b, bound)


@in_one_test("threads", [1, 2, 3])
@in_one_test("affine", [True, False])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_gradients(norm, name, shape, dtype, affine, threads):
    p = Problem(name, shape, dtype, affine=affine)
    dx, dweight, dbias = p.gradients(getattr(norm, f"{name}_grad"), threads)
    mean, rstd = (s.astype(dtype).astype(np.float64) for s in (p.mean, p.rstd))
    grad, normal = p.grad.astype(np.float64), (p.x - mean) * rstd
    shared = tuple(axis for axis, n in enumerate(p.beside) if n == 1)

    relative = (8 + p.count) * p.eps
    a = grad * p.w
    averages = [z.mean(p.axes, keepdims=True) for z in (a, a * normal)]
    sizes = [np.abs(z).mean(p.axes, keepdims=True) for z in (a, a * normal)]
    bound = relative * rstd * (np.abs(a) + sizes[0] + (1 + np.abs(normal)) * sizes[1])
    assert_within(dx, rstd * (a - averages[0] - normal * averages[1]), bound)
    relative = (8 + grad.size // p.weight.size) * p.eps
    for found, terms in ((dweight, grad * normal), (dbias, grad)):
        wanted, size = (
            z.sum(shared, keepdims=True) for z in (terms, np.abs(terms) + np.abs(mean * rstd * grad))
        )
        assert_within(found, wanted, relative * size)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_large_offset(norm, name):
    """What is lost is what rounding the mean costs, a few units of 1e4 eps, not the digits of a long sum."""
    shape = {"layer_norm": (3, 5000), "group_norm": (2, 1, 3, 1600), "batch_norm": (4, 2, 1200)}[name]
    p = Problem(name, shape, np.float32, offset=1e4)
    y, mean, rstd = p.forward(getattr(norm, name), 1)
    # A block has 2048 elements in at least 16 chains, whose partial sums are rounded in their own place, and
    # the halves of a vector are added: 128 + 4 roundings of mean magnitudes below 1e4 eps / 2 each.
    place = 132 * p.eps * 1e4 / 2
    assert_within(mean, p.mean, place)
    # The squares make a variance of about 1, and the mean's error is added to it squared.
    assert_within(rstd, p.rstd, (132 * p.eps + place**2) * p.rstd)
    bound = np.abs(p.w) * (place * p.rstd + (132 * p.eps + place**2) * np.abs(p.normal)) + 4 * p.eps * np.abs(
        p.b
    )
    assert_within(y, p.normal * p.w + p.b, bound)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", PROBLEMS)
def test_nan_and_infinity_stay_where_their_statistics_reach(norm, dtype, name, value):
    for shape in PROBLEMS[name][0][1:]:
        p = Problem(name, shape, dtype)
        p.x[(1,) * len(shape) if min(shape) > 1 else (0,) * len(shape)] = value
        y, mean, _ = p.forward(getattr(norm, name), 2)
        reached = ~np.isfinite(p.x).all(p.axes, keepdims=True)
        assert np.array_equal(~np.isfinite(mean), reached)
        assert np.array_equal(np.isnan(y), np.broadcast_to(reached, shape))


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", CHANNELS)
def test_batch_norm_with_given_statistics(norm, dtype, shape, threads):
    p = Problem("batch_norm", shape, dtype)
    var, mean, column = np.abs(p.grad).max((0, 2)), p.bias.ravel(), (1, -1, 1)
    y, plain = np.full_like(p.x, 77), np.full_like(p.x, 77)
    norm.batch_norm_inference(y, p.x, mean, var, *p.parameters, EPS, threads)
    norm.batch_norm_inference(plain, p.x, mean, var, None, None, EPS, threads)
    rstd = 1 / np.sqrt(var.astype(np.float64) + EPS).reshape(column)
    centred = p.x.astype(np.float64) - mean.reshape(column)
    normal = centred * rstd
    assert_within(plain, normal, 8 * p.eps * np.abs(normal))
    assert_within(y, normal * p.weight + p.bias, 8 * p.eps * (np.abs(normal * p.weight) + np.abs(p.bias)))
    found = np.full(shape[1], 77, dtype)
    norm.batch_norm_grad(None, found, None, p.grad, p.x, mean, None, None, threads)
    terms = p.grad * centred
    assert_within(found, terms.sum((0, 2)), (8 + p.count) * p.eps * np.abs(terms).sum((0, 2)))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer_norm", (600, 100)),
        ("group_norm", (9, 5, 4, 300)),
        ("batch_norm", (9, 20, 300)),
        ("batch_norm", (300, 200, 1)),
    ],
)
def test_the_same_threads_give_the_same_bits(norm, dtype, name, shape):
    p = Problem(name, shape, dtype)

    def bits(threads):
        arrays = p.forward(getattr(norm, name), threads) + p.gradients(getattr(norm, f"{name}_grad"), threads)
        return [array.tobytes() for array in arrays]

    assert bits(3) == bits(3)
    one = bits(1)
    assert bits(2)[:4] == one[:4]  # only sums over rows depend on how many threads there are
    if name != "layer_norm":
        assert bits(2) == one


def test_what_does_not_fit_is_refused(norm):
    x, row = np.ones((3, 4), np.float32), np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"rstd must have 3 elements, got \(2,\)"):
        norm.layer_norm(x.copy(), row, row[:2].copy(), x, None, None, EPS, 1)
    with pytest.raises(ValueError, match=r"expected 3 dimensions with elements, got \(3, 4\)"):
        norm.batch_norm(x, row, row, x, None, None, EPS, 1)
    with pytest.raises(ValueError, match=r"expected 4 dimensions with elements, got \(0, 2, 3, 4\)"):
        empty = np.empty((0, 2, 3, 4))
        norm.group_norm(empty, row, row, empty, None, None, EPS, 1)
    with pytest.raises(TypeError, match="input has dtype float64"):
        norm.layer_norm(x.copy(), row, row.copy(), x, x[0].astype(np.float64), None, EPS, 1)
    with pytest.raises(ValueError, match="contiguous"):
        norm.layer_norm(x.copy(), row, row.copy(), np.ones((4, 3), np.float32).T, None, None, EPS, 1)
