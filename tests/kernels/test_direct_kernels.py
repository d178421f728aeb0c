"""The functions that allocate an output and run a kernel at once give what the kernel gives, or None."""

import numpy as np
import pytest
from in_one_test import in_one_test

import minigrad as mg
from minigrad.ops.reduce import _sum

THREADS = (1, 2, 3)


def normal(shape, dtype):
    return np.random.default_rng().standard_normal(shape).astype(dtype)


def out_of(run, shape, dtype, *arguments):
    """What a kernel writes to an output of its own."""
    out = np.full(shape, 77, dtype)
    run(out, *arguments)
    return out


def assert_same(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape and found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@in_one_test("threads", THREADS)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        *(((7,), (0,)), ((300, 257), (1,)), ((300, 257), (0,)), ((8, 3, 50, 40), (0, 2, 3))),
        *(((5, 6), ()), ((2, 0), ())),
    ],
)
def test_reductions(kernel_module, dtype, shape, axes, threads):
    reduce, x = kernel_module("reduce"), normal(shape, dtype)
    for name in ("sum", "sum_of_squares", "prod", "max", "min"):
        run = getattr(reduce, name)
        for keepdim in (False, True):
            found = run.new(x, axes, keepdim, threads)
            if x.size == 0:
                assert found is None
                continue
            expected = out_of(run, x.sum(axes, keepdims=keepdim).shape, dtype, x, axes, threads)
            assert_same(found, expected)


@pytest.mark.parametrize(("shape", "axes"), [((70_001,), (0,)), ((30, 257), (1,)), ((30, 257), (0,))])
def test_means_are_sums_divided(kernel_module, dtype, shape, axes):
    run, x = kernel_module("reduce").sum, normal(shape, dtype)
    sums = run.new(x, axes, True, 2)
    assert_same(run.new(x, axes, True, 2, True), sums / dtype(x.size // sums.size))


def test_what_reductions_leave_to_others(kernel_module):
    run, x = kernel_module("reduce").sum, np.ones((4, 5, 6, 7), np.float32)
    for other in (x[:, ::-1], x.astype(np.int64), x.astype(np.float16), x.astype(">f4"), x.tolist(), 1.0):
        assert run.new(other, (1,), False, 1) is None
    assert run.new(x, (1, 3), False, 1) is not None
    assert run.new(np.ones((2, 3, 4, 5, 6), np.float32), (1, 3), False, 1) is None  # kept, reduced, kept, ...


@in_one_test("threads", THREADS)
@pytest.mark.parametrize(
    "sizes", [(32, 32, 32), (1, 1, 1), (33, 65, 129), (0, 3, 2), (3, 0, 2), (200, 90, 150)]
)
def test_products(kernel_module, dtype, sizes, threads):
    matmul, (M, K, N) = kernel_module("matmul"), sizes
    for a in (normal((M, K), dtype), normal((K, M), dtype).T, normal((M, 2 * K), dtype)[:, ::-2]):
        for b in (normal((K, N), dtype), normal((N, K), dtype).T):
            assert_same(matmul.product(a, b, threads), out_of(matmul.threaded, (M, N), dtype, a, b, threads))


def test_what_products_leave_to_others(kernel_module):
    product, a = kernel_module("matmul").product, np.ones((3, 3), np.float32)
    padded = np.zeros((3, 3), [("x", np.float32), ("y", np.int8)])["x"]  # strides of 5 bytes
    others = (a[0], a[None], a[:2], a.astype(np.float64), a.astype(np.float16), a.astype(">f4"), padded, 1.0)
    for other in others:
        assert product(a, other, 1) is None


@in_one_test("threads", THREADS)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "maximum", "lt", "relu_grad"])
def test_functions_of_two(kernel_module, dtype, name, threads):
    run = getattr(kernel_module("elementwise"), name)
    x, column, row = normal((90, 801), dtype), normal((90, 1), dtype), normal((801,), dtype)
    for pair in ((x, x[::-1]), (x, row), (column, row), (x, 2.5), (3, x), (normal((801, 90), dtype).T, x)):
        expected = out_of(run, (90, 801), bool if name == "lt" else dtype, *pair, threads)
        assert_same(run.new(*pair, threads), expected)


@pytest.mark.parametrize("name", ["neg", "relu", "exp", "sqrt"])
def test_functions_of_one(kernel_module, dtype, name):
    run = getattr(kernel_module("elementwise"), name)
    for x in (np.abs(normal((40, 801), dtype)), np.abs(normal((5, 801, 40), dtype)).transpose(2, 0, 1)):
        assert_same(run.new(x, 2), out_of(run, x.shape, dtype, x, 2))


@pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 0, 2), (7,), (5, 9)])
def test_costly_functions_of_any_size(kernel_module, dtype, shape):
    elementwise, x = kernel_module("elementwise"), np.asarray(np.abs(normal(shape, dtype)))
    for name in ("exp", "log", "tanh", "sigmoid", "sin"):
        run = getattr(elementwise, name)
        assert_same(run.new(x, 2), out_of(run, shape, dtype, x, 2))
    assert elementwise.relu.new(x, 2) is None


@pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 0, 2), (7,), (5, 9), (32, 32)])
def test_functions_of_small_arrays(kernel_module, dtype, shape):
    elementwise = kernel_module("elementwise")
    x, y, z = (np.asarray(np.abs(normal(shape, dtype))) for _ in range(3))
    for name, inputs in (
        ("exp", (x,)),
        ("sqrt", (x,)),
        ("lt", (x, y)),
        ("tanh_grad", (x, y)),
        ("larger_share", (x, y, z)),
    ):
        run = getattr(elementwise, name)
        expected = out_of(run, shape, bool if name == "lt" else dtype, *inputs, 1)
        assert_same(run.small(*inputs), expected)


def test_what_small_leaves_to_others(kernel_module):
    elementwise, x = kernel_module("elementwise"), np.ones((6, 5), np.float32)
    others = [x.astype(other) for other in (np.float64, np.int64, np.float16, ">f4")]
    for other in (
        *others,
        x[:5],
        x[::-1],
        x.T,
        x.reshape(5, 6),
        x[None],
        2.0,
        np.float64(2),
        None,
        x.tolist(),
    ):
        assert elementwise.maximum.small(x, other) is None and elementwise.maximum.small(other, x) is None
    for other in (x.T, 2.0, np.ones(1025, np.float32)):
        assert elementwise.exp.small(other) is None
    assert elementwise.exp.small(x, x) is None and elementwise.exp.small() is None
    assert elementwise.where.small(x > 0, x, x) is None and elementwise.clamp.small(x, 0.0, 1.0) is None


def test_what_functions_leave_to_others(kernel_module):
    elementwise, x = kernel_module("elementwise"), np.ones((60, 50), np.float32)
    others = [x.astype(other) for other in (np.float64, np.int64, np.float16, ">f4")]
    for other in (*others, x[:59], np.float64(2), True, None, x.tolist()):
        assert elementwise.mul.new(x, other, 1) is None
    assert elementwise.mul.new(2.0, 3.0, 1) is None and elementwise.mul.new(x[:4], x[:4], 1) is None
    assert elementwise.mul.new(x, np.ones((0, 60, 50), np.float32), 1) is None
    assert elementwise.neg.new(x.astype(np.float16), 1) is None
    assert elementwise.where.new(x > 0, x, x, 1) is None
    with pytest.raises(TypeError, match="takes"):
        elementwise.mul(x, x)


@in_one_test("threads", THREADS)
def test_embeddings(kernel_module, dtype, threads):
    embedding, weight = kernel_module("embedding"), normal((65, 33), dtype)
    numbers = np.random.default_rng().integers(0, 65, (40, 70))
    assert_same(embedding.new(weight, numbers, threads), weight[numbers])
    numbers[3, 4] = 65
    with pytest.raises(IndexError, match="1 of 2800 indices"):
        embedding.new(weight, numbers, threads)
    for other in (numbers.astype(np.int32), numbers[:, ::-1], numbers[:0], numbers.tolist()):
        assert embedding.new(weight, other, threads) is None
    for other in (weight[:, ::-1], weight[0], weight[:, :0], weight.astype(np.float16)):
        assert embedding.new(other, numbers, threads) is None


@pytest.mark.parametrize(
    ("op", "attrs"), [(_sum, {"dim": (1,), "keepdim": False}), (mg.get_op("matmul"), {})]
)
def test_a_selected_kernel_comes_first(op, attrs, monkeypatch):
    direct, calls = op.direct, []

    def watched(*arrays, **attributes):
        calls.append(len(arrays))
        return direct(*arrays, **attributes)

    monkeypatch.setattr(op, "direct", watched)
    inputs = [mg.ones(20, 20)] * op.arity
    expected = op(*inputs, **attrs).numpy()
    assert calls == [op.arity]
    with mg.use_kernel(op.name, "reference"):
        np.testing.assert_array_equal(op(*inputs, **attrs).numpy(), expected)
    assert calls == [op.arity]


def test_an_index_that_is_no_row_is_told_by_its_number():
    with pytest.raises(IndexError, match="index 7 is out of range: weight has 5 rows"):
        mg.nn.functional.embedding(mg.tensor([1, 7]), mg.zeros(5, 3))
