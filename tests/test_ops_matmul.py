"""Matrix multiplication: NumPy's rules for vectors and batches, every rung, gradients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad.dispatch import Spec, kernel_table
from minigrad.kernels import cuda, sim

SHAPES = [
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((6, 1, 2, 3), (5, 3, 4)),
    ((0, 3), (3, 4)),
    ((2, 0), (0, 4)),
    ((2, 3), (3, 0)),
    ((0, 2, 3), (0, 3, 4)),
    ((0,), (0,)),
    ((5, 2, 0), (0, 4)),
]


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64], ids=str)
@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_value(a, b, dtype, device, rng):
    a, b = rng.standard_normal(a).astype(dtype), rng.standard_normal(b).astype(dtype)
    product = mg.tensor(a, device=device) @ mg.tensor(b, device=device)
    assert product.dtype == dtype and product.device is device
    wanted = np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64)))
    mg.testing.assert_close(product, wanted, length=3, magnitude=2.0)


@pytest.mark.parametrize(("a", "b"), [s for s in SHAPES if 0 not in (*s[0], *s[1])])
def test_gradient(a, b, check_gradients):
    check_gradients(mg.matmul, a, b)


@pytest.mark.parametrize(("a", "b"), [s for s in SHAPES if 0 in (*s[0], *s[1])])
def test_gradient_of_what_is_empty(a, b):
    a, b = mg.ones(a, requires_grad=True), mg.ones(b, requires_grad=True)
    (a @ b).sum().backward()
    for t in (a, b):
        assert t.grad.shape == t.shape and (t.grad == 0.0).all()


def test_definition(rng):
    """The definition as loops, so that not everything leans on NumPy's product."""
    a, b = rng.standard_normal((4, 6)), rng.standard_normal((6, 5))
    product = (mg.tensor(a) @ mg.tensor(b)).numpy()
    for i, j in np.ndindex(4, 5):
        assert product[i, j] == pytest.approx(sum(a[i, k] * b[k, j] for k in range(6)), rel=1e-12)


def strided(rng, shape, how, dtype):
    """A random matrix with other strides: transposed, every second element, reversed, or one row repeated."""
    m, n = shape

    def draw(*size):
        return rng.standard_normal(size).astype(dtype)

    if how == "transposed":
        return draw(n, m).T
    if how == "sliced":
        return draw(2 * m, 3 * n)[::2, 1::3]
    if how == "reversed":
        return draw(m, n)[::-1, ::-1]
    if how == "repeated":
        return np.broadcast_to(draw(1, n), shape)
    return draw(m, n)


LAYOUTS = ["contiguous", "transposed", "sliced", "reversed", "repeated"]


@settings(max_examples=120)
@given(
    st.tuples(*[st.integers(0, 70)] * 3),
    st.sampled_from(LAYOUTS),
    st.sampled_from(LAYOUTS),
    st.sampled_from([k.name for k in mg.list_kernels("matmul", "cpu")]),
    st.sampled_from([np.float32, np.float64]),
)
def test_any_size_layout_and_rung(sizes, layout_a, layout_b, rung, dtype):
    m, n, k = sizes
    rng = np.random.default_rng(0)
    a, b = strided(rng, (m, k), layout_a, dtype), strided(rng, (k, n), layout_b, dtype)
    with mg.use_kernel("matmul", rung):
        product = mg.from_numpy(a) @ mg.from_numpy(b)
    wide = a.astype(np.float64), b.astype(np.float64)
    magnitude = np.sqrt((wide[0] ** 2) @ (wide[1] ** 2))
    mg.testing.assert_close(product, wide[0] @ wide[1], length=k, magnitude=magnitude)


@given(st.data())
def test_any_batch(data):
    full = data.draw(st.lists(st.integers(0, 3), max_size=3))
    sides = []
    for _ in range(2):
        kept = full[data.draw(st.integers(0, len(full))) :]
        sides.append([1 if data.draw(st.booleans()) else n for n in kept])
    a, b = np.random.default_rng(0).standard_normal((*sides[0], 2, 3)), np.ones((*sides[1], 3, 4))
    np.testing.assert_allclose((mg.tensor(a) @ mg.tensor(b)).numpy(), np.matmul(a, b), rtol=1e-12)


def test_nan_and_infinity_flow():
    a = mg.tensor([[1.0, np.nan], [np.inf, 1.0], [0.0, 1.0]])
    b = mg.tensor([[1.0, 0.0], [2.0, 3.0]])
    np.testing.assert_array_equal((a @ b).numpy(), [[np.nan, np.nan], [np.inf, np.nan], [2.0, 3.0]])


def test_integers():
    product = mg.tensor([[1, 2], [3, 4]]) @ mg.tensor([[5, 6], [7, 8]])
    assert product.dtype == mg.int64 and product.tolist() == [[19, 22], [43, 50]]


def test_an_array_on_either_side():
    a, b = np.ones((2, 3), np.float32), mg.ones(3, 2)
    assert (a @ b).tolist() == [[3.0, 3.0], [3.0, 3.0]]


@pytest.mark.parametrize(
    ("a", "b", "error", "words"),
    [
        (mg.ones(2, 3), mg.ones(4, 5), ValueError, r"\(2, 3\).*\(4, 5\).*3 is not 4"),
        (mg.ones(3), mg.ones(4), ValueError, "3 is not 4"),
        (mg.ones(2, 2, 3), mg.ones(5, 3, 4), ValueError, r"batch.*\(2, 2, 3\).*\(5, 3, 4\)"),
        (mg.ones(()), mg.ones(3), ValueError, "at least one dimension"),
        (mg.ones(2, 2), mg.ones(2, 2, dtype=mg.float64), TypeError, "a is float32, b is float64"),
        (mg.ones(2, 2), 3.0, TypeError, "two tensors.*float"),
    ],
)
def test_bad_arguments(a, b, error, words):
    with pytest.raises(error, match=words):
        mg.matmul(a, b)


def test_dtypes_are_not_mixed():
    for dtype in (mg.float64, mg.int64):
        with pytest.raises(TypeError, match=f"a is {dtype}, b is float32"):
            mg.ones(2, 3, dtype=dtype) @ mg.ones(3, 2)


def test_products_by_the_number_of_dimensions():
    a, b = mg.tensor([1.0, 2.0]), mg.tensor([3.0, 4.0])
    assert mg.dot(a, b).item() == 11.0 and mg.outer(a, b).tolist() == [[3.0, 4.0], [6.0, 8.0]]
    assert mg.mm(mg.ones(2, 3), mg.ones(3, 2)).tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert mg.bmm(mg.ones(5, 2, 3), mg.ones(5, 3, 4)).shape == (5, 2, 4)
    with pytest.raises(ValueError, match=r"mm: both tensors need 2 dimension\(s\), got shapes \(2,\) and"):
        mg.mm(a, b)


def chosen(a, b, device="sim", dtype=np.float32):
    """The kernel that multiplies matrices of these shapes."""
    operands = [Spec(shape, np.dtype(dtype)) for shape in (a, b)]
    return kernel_table("matmul").choose(device, np.dtype(dtype), operands, {}).name


def test_the_best_kernel_for_the_shapes_is_chosen():
    assert chosen((100, 100), (100, 100)) == chosen((7, 64, 9), (9, 40)) == "warp_tile"
    assert chosen((100, 100), (100, 100), dtype=np.float64) == "vectorized"
    assert chosen((128, 784), (784, 20)) == "split_k"  # of 4 tiles, for a card of a hundred multiprocessors
    assert chosen((10, 100), (100, 128)) == chosen((3, 8, 100), (100, 10)) == "skinny"
    assert chosen((16, 4096), (4096, 4096)) == chosen((4096, 4096), (4096, 16)) == "skinny"
    # Where vectors would be copied first, for a matrix that is not large:
    assert chosen((10, 101), (101, 128)) == chosen((128, 100), (100, 10)) == "tiled"
    assert chosen((128, 784), (784, 10)) == "split_k"
    assert chosen((100, 1), (1, 10)) == chosen((0, 600), (600, 5)) == "tiled"
    assert chosen((1, 4096), (4096, 10)) == chosen((6, 10, 4096), (6, 4096, 1)) == "gemv"
    assert chosen((1, 10**6), (10**6, 1)) == chosen((64, 10**6), (10**6, 64)) == "split_k"
    assert chosen((500, 1, 10**6), (10**6, 1)) == "gemv"  # many products fill the card as they are
    assert chosen((4096, 4096), (4096, 4096)) == "warp_tile"
    assert chosen((128, 4096), (4096, 4096)) == "split_k"
    half = np.float16
    assert chosen((1, 4096), (4096, 10), dtype=half) == chosen((6, 9, 4096), (4096, 1), dtype=half) == "gemv"
    assert chosen((1, 10**6), (10**6, 1), dtype=half) == "split_k"


def test_a_few_columns_along_k_are_read_where_they_lie(rng):
    """As of a small linear layer's weight, transposed; if they do not lie so, they are not copied for it."""
    if not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    x, weight = (mg.tensor(rng.standard_normal(shape), mg.float32, "sim") for shape in ((40, 100), (10, 100)))
    along_k, across = weight.T, weight.T.contiguous()
    for columns, expected in ((along_k, "matmul_skinny"), (across, "matmul_tiled")):
        with sim.profile() as launches:
            x @ columns
        assert [launch.kernel.partition("<")[0] for launch in launches] == [expected]
    of_each = {kernel_table("matmul").decides(x._array, b._array) for b in (along_k, across)}
    assert len(of_each) == 2  # a card remembers a choice for each


def test_products_that_tensor_cores_are_for(monkeypatch):
    """All but those with few rows or columns; in TF32 those of a long K and few results neither."""
    monkeypatch.setattr(cuda.matmul_tensor_core, "is_supported", lambda array: True)
    monkeypatch.setattr(cuda.matmul_wgmma, "is_supported", lambda array: False)
    monkeypatch.setattr("minigrad.precision._precision", "high")
    for dtype in (np.float16, np.float32):
        assert chosen((128, 10**6), (10**6, 128), dtype=dtype) == "tensor_core"
        assert chosen((20, 30), (30, 20), dtype=dtype) == "tensor_core"
        assert chosen((1, 4096), (4096, 10), dtype=dtype) == "gemv"
        assert chosen((8, 4096), (4096, 4096), dtype=dtype) == "skinny"
        assert chosen((3, 10**4), (10**4, 4), dtype=dtype) == "skinny"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shapes", [((40,), (40, 36)), ((2, 35, 48), (48,)), ((9000,), (9000,))])
def test_vectors_in_16_bits(shapes, dtype, rng):
    if not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if not hasattr(mg, dtype):
        pytest.skip("bfloat16 needs ml_dtypes")
    a, b = (mg.tensor(rng.standard_normal(shape)).to(getattr(mg, dtype)) for shape in shapes)
    with sim.profile() as launches:
        product = a.to("sim") @ b.to("sim")
    assert all(launch.kernel.startswith(("gemv_", "split_k_sum")) for launch in launches) and launches
    exact = a.to(mg.float64).numpy() @ b.to(mg.float64).numpy()
    rounding = 2.0**-11 if dtype == "float16" else 2.0**-8
    error = np.abs(product.to("cpu").to(mg.float64).numpy() - exact)
    length = shapes[0][-1]
    assert (error <= rounding * np.abs(exact) + 2.0**-24 * length * length**0.5).all()


@pytest.mark.parametrize("shapes", [((40, 33), (33, 36)), ((2, 1, 50), (50, 6)), ((3, 520), (520, 4))])
@pytest.mark.parametrize("rung", [k.name for k in mg.list_kernels("matmul", "sim")])
def test_every_kernel_on_the_simulator(rung, shapes, rng):
    if not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    a, b = (rng.standard_normal(shape) for shape in shapes)
    with mg.use_kernel("matmul", rung):
        product = mg.tensor(a, device="sim") @ mg.tensor(b, device="sim")
    bound = (a.shape[-1] + 2) * np.finfo(np.float64).eps * (abs(a) @ abs(b))
    assert (np.abs(product.numpy() - a @ b) <= bound).all()
