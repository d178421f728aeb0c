"""Tensors of 16 bits: float16 and bfloat16 on every device, computed with in float32 and rounded once."""

import copy
import pickle

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.nn import functional as F

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of a number near 1: the largest relative error of one rounding."""

SMALLEST = 2.0**-24  # the smallest float16; of bfloat16 it is smaller


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes")
        return mg.bfloat16
    return mg.float16


def drawn(rng, shape, half, device, **options):
    return mg.tensor(rng.standard_normal(shape), dtype=half, device=device, **options)


def wide(tensor):
    """A tensor's values in float64."""
    return tensor.detach().cpu().double().numpy()


def assert_rounded(actual, exact, half, slack=2.0**-18):
    """``actual`` is ``exact`` (float64), computed to within ``slack`` relative to it and rounded once."""
    assert actual.dtype == half
    allowed = (UNIT[half.name] + slack) * np.abs(exact) + SMALLEST
    np.testing.assert_array_less(np.abs(wide(actual) - exact), allowed + 1e-300)


def test_making_and_converting(device, half):
    for x in (
        *(mg.zeros(2, 3, dtype=half, device=device), mg.ones(2, 3, dtype=half, device=device)),
        *(mg.full((2, 3), 1.5, dtype=half, device=device), mg.randn(2, 3, dtype=half, device=device)),
        *(mg.rand(2, 3, dtype=half, device=device), mg.empty(2, 3, dtype=half, device=device)),
        *(mg.arange(6, dtype=half, device=device), mg.linspace(0, 1, 6, dtype=half, device=device)),
        *(mg.eye(3, dtype=half, device=device), mg.tensor([1.0, 2.5], dtype=half, device=device)),
    ):
        assert x.dtype == half and x.is_floating_point()
        assert mg.zeros_like(x).dtype == x.new_ones(2).dtype == half
    values = np.array([1.0, -2.5, 1 + 3 * UNIT[half.name], np.inf, -np.inf, np.nan, 1e30], np.float32)
    x = mg.tensor(values, device=device)
    with np.errstate(over="ignore"):
        expected = values.astype(half)
    for y in (x.to(half), x.to(half.name), x.type(half), x.double().to(half), getattr(x, _method(half))()):
        assert y.dtype == half
        np.testing.assert_array_equal(wide(y), expected.astype(np.float64))
        np.testing.assert_array_equal(wide(y.float()), expected.astype(np.float64))
    integers = mg.tensor([-3, 0, 200], device=device)
    assert integers.to(half).long().tolist() == [-3, 0, 200]
    assert integers.to(half).bool().tolist() == [True, False, True]


def _method(half):
    return "half" if half == np.float16 else "bfloat16"


def test_conversions_of_views(device, half, rng):
    x = mg.tensor(rng.standard_normal((37, 41)), dtype=mg.float32, device=device)
    expected = x.cpu().numpy().astype(half)
    np.testing.assert_array_equal(wide(x.T.to(half)), expected.T.astype(np.float64))
    np.testing.assert_array_equal(wide(x[::2, 1:].to(half)), expected[::2, 1:].astype(np.float64))
    np.testing.assert_array_equal(wide(x.to(half).T.float()), expected.T.astype(np.float64))
    assert x[:0].to(half).shape == (0, 41)


def test_promotion(half):
    x = mg.ones(2, dtype=half)
    other = mg.float16 if half != mg.float16 else getattr(mg, "float64")  # noqa: B009
    assert (x + mg.ones(2, dtype=other)).dtype == (mg.float32 if half != mg.float16 else mg.float64)
    for y, expected in (
        (mg.ones(2), mg.float32),
        (mg.ones(2, dtype=mg.float64), mg.float64),
        (mg.ones(2, dtype=mg.int64), half),
        (mg.ones(2, dtype=mg.bool), half),
        (mg.ones((), dtype=mg.float64), half),
        (2.5, half),
        (2, half),
        (True, half),
    ):
        assert (x * y).dtype == (y * x).dtype == expected
    assert (mg.ones((), dtype=half) + mg.ones(())).dtype == mg.float32
    assert (x > 0).dtype == mg.bool and x.argmax().dtype == mg.int64
    assert mg.where(x > 0, x, 0.0).dtype == mg.concat([x, x]).dtype == half
    assert mg.concat([x, mg.ones(2)]).dtype == mg.float32


FUNCTIONS = {
    "add": (2, lambda x, y: x + y, lambda x, y: x + y),
    "mul": (2, lambda x, y: x * y, lambda x, y: x * y),
    "scale": (1, lambda x: x * 0.1, lambda x: x * np.float64(np.float32(0.1))),
    "div": (2, lambda x, y: x / (y * y + 1.0), None),
    "exp": (1, mg.exp, np.exp),
    "sqrt": (1, lambda x: x.abs().sqrt(), lambda x: np.sqrt(np.abs(x))),
    "tanh": (1, mg.tanh, np.tanh),
    "relu": (1, F.relu, lambda x: np.maximum(x, 0)),
    "clamp": (1, lambda x: x.clamp(-0.5, 0.75), lambda x: np.clip(x, -0.5, 0.75)),
    "softmax": (1, lambda x: x.softmax(1), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    "sum": (1, lambda x: (x * x).sum(1), None),
    "mean": (1, lambda x: mg.exp(x).mean(0), None),
    "amax": (1, lambda x: x.amax(1), lambda x: x.max(1)),
}


@pytest.mark.parametrize("name", [name for name, (_, _, exact) in FUNCTIONS.items() if exact])
def test_one_op_is_rounded_once(device, half, rng, name):
    arity, function, exact = FUNCTIONS[name]
    inputs = [drawn(rng, (11, 13), half, device) for _ in range(arity)]
    assert_rounded(function(*inputs), exact(*map(wide, inputs)), half)
    assert_rounded(function(*(x.T for x in inputs)), exact(*(wide(x).T for x in inputs)), half)


def test_sums_are_formed_in_float32(device, half):
    ones = mg.ones(3000, 2, dtype=half, device=device)
    # In bfloat16 a sum of ones would stop at 256, in float16 at 2048.
    assert ones.sum(0).tolist() == [float(np.float64(3000).astype(half))] * 2
    assert mg.full((3000, 2), 60.0, dtype=half, device=device).mean(0).tolist() == [60.0, 60.0]
    large = mg.full((512,), 300.0, dtype=half, device=device)
    assert abs(large.norm().item() / (300.0 * 512**0.5) - 1) < 2 * UNIT[half.name]
    assert large.var().item() == large.std().item() == 0.0
    bias = mg.zeros(2, dtype=half, device=device, requires_grad=True)
    (ones + bias).sum().backward()
    assert bias.grad.dtype == half
    assert bias.grad.tolist() == [float(np.float64(3000).astype(half))] * 2


@pytest.mark.parametrize(
    "shapes",
    [((5, 7), (7, 3)), ((33, 65), (65, 34)), ((2, 9, 8), (2, 8, 5)), ((1, 40), (40, 6)), ((6,), (6,))],
)
def test_products_of_matrices(device, half, rng, shapes):
    a, b = (drawn(rng, shape, half, device, requires_grad=True) for shape in shapes)
    out = a @ b
    terms = np.abs(wide(a)) @ np.abs(wide(b))
    allowed = UNIT[half.name] * np.abs(wide(a) @ wide(b)) + shapes[0][-1] * 2.0**-23 * terms + SMALLEST
    assert out.dtype == half
    assert (np.abs(wide(out) - wide(a) @ wide(b)) <= allowed).all()
    g = drawn(rng, out.shape, half, device)
    out.backward(g)
    assert a.grad.dtype == b.grad.dtype == half
    if len(out.shape) == 2:
        exact = wide(g) @ wide(b).T
        allowed = UNIT[half.name] * np.abs(exact) + out.shape[1] * 2.0**-23 * (
            np.abs(wide(g)) @ np.abs(wide(b).T)
        )
        assert (np.abs(wide(a.grad) - exact) <= allowed + SMALLEST).all()


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 5, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 6)),
    "grouped conv2d": (lambda: nn.Conv2d(4, 4, 3, groups=2), (2, 4, 5, 6)),
    "depthwise conv2d": (lambda: nn.Conv2d(4, 8, 5, stride=2, padding=2, groups=4), (2, 4, 7, 6)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 3, 4)),
    "max_pool2d": (lambda: nn.MaxPool2d(2), (2, 3, 4, 6)),
    "avg_pool2d": (lambda: nn.AvgPool2d(2), (2, 3, 4, 6)),
    "layer_norm": (lambda: nn.LayerNorm(6), (3, 5, 6)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (3, 4, 6)),
    "batch_norm": (lambda: nn.BatchNorm2d(3), (4, 3, 4, 5)),
    "gelu": (lambda: nn.GELU(), (3, 7)),
    "softmax": (lambda: nn.Softmax(1), (3, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_gradients(device, half, rng, name):
    """Beside the same layer in float64, on the same rounded inputs and parameters."""
    make, shape = LAYERS[name]
    layer = make().to(device, half)
    exact = copy.deepcopy(layer).to("cpu", mg.float64)
    x = drawn(rng, shape, half, device, requires_grad=True)
    x64 = x.detach().cpu().double().requires_grad_()
    y, y64 = layer(x), exact(x64)
    assert y.dtype == half
    bound = 4 * UNIT[half.name]
    np.testing.assert_allclose(wide(y), wide(y64), rtol=bound, atol=bound * np.abs(wide(y64)).max())
    g = drawn(rng, y.shape, half, device)
    y.backward(g)
    y64.backward(g.cpu().double())
    for (_, p), (_, p64) in zip(
        [("x", x), *layer.named_parameters()], [("x", x64), *exact.named_parameters()], strict=True
    ):
        assert p.grad.dtype == half
        expected = wide(p64.grad)
        # Each of a few roundings on the way is relative to what is summed.
        np.testing.assert_allclose(
            wide(p.grad), expected, rtol=4 * bound, atol=4 * bound * np.abs(expected).max()
        )
    for (_, b), (_, b64) in zip(layer.named_buffers(), exact.named_buffers(), strict=True):
        np.testing.assert_allclose(wide(b), wide(b64), rtol=bound, atol=bound)


def test_attention_and_lstm(device, half, rng):
    q, k, v = (drawn(rng, (2, 3, 5, 4), half, device, requires_grad=True) for _ in range(3))
    for causal in (False, True):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        exact = F.scaled_dot_product_attention(
            *(t.detach().cpu().double() for t in (q, k, v)), is_causal=causal
        )
        assert out.dtype == half
        np.testing.assert_allclose(wide(out), wide(exact), atol=16 * UNIT[half.name])
    out.sum().backward()
    assert q.grad.dtype == v.grad.dtype == half
    lstm = nn.LSTM(4, 3).to(device, half)
    exact = copy.deepcopy(lstm).to("cpu", mg.float64)
    x = drawn(rng, (5, 2, 4), half, device)
    y, (h, c) = lstm(x)
    y64, _ = exact(x.cpu().double())
    assert y.dtype == h.dtype == c.dtype == half
    np.testing.assert_allclose(wide(y), wide(y64), atol=8 * UNIT[half.name])
    y.sum().backward()
    assert all(p.grad.dtype == half for p in lstm.parameters())


def test_losses(device, half, rng):
    logits = drawn(rng, (6, 5), half, device, requires_grad=True)
    target = mg.tensor(rng.integers(0, 5, 6), device=device)
    loss = F.cross_entropy(logits, target)
    exact = F.cross_entropy(logits.detach().cpu().double(), target.cpu())
    assert_rounded(loss, wide(exact), half)
    loss.backward()
    assert logits.grad.dtype == half
    other = drawn(rng, (6, 5), half, device)
    for function in (F.mse_loss, F.l1_loss):
        exact = function(logits.detach().cpu().double(), other.cpu().double())
        assert_rounded(function(logits.detach(), other), wide(exact), half)


def test_what_is_in_a_tensor(device, half):
    x = mg.tensor([[1.5, -2.0], [0.25, 3.0]], dtype=half, device=device)
    assert x.tolist() == [[1.5, -2.0], [0.25, 3.0]] and x[1, 1].item() == 3.0 and float(x[0, 0]) == 1.5
    assert f"dtype={half.name}" in repr(x) and "1.5" in repr(x)
    assert x.numpy().dtype == half and np.asarray(x, np.float32).tolist() == x.tolist()
    for same in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), x.clone(), x.detach(), x.to(device)):
        assert same.dtype == half and same.tolist() == x.tolist()
    assert mg.stack([x, x]).dtype == x[:, None].dtype == x.T.contiguous().dtype == half
    assert x[mg.tensor([1, 0, 1], device=device)].tolist() == [[0.25, 3.0], [1.5, -2.0], [0.25, 3.0]]
    x[0] = 4.0
    x += 1.0
    x *= mg.full((2,), 2.0, dtype=half, device=device)
    assert x.dtype == half and x.tolist() == [[10.0, 10.0], [2.5, 8.0]]
    x -= mg.ones(2, device=device)  # float32, which is rounded
    assert x.dtype == half and x.tolist() == [[9.0, 9.0], [1.5, 7.0]]
    assert x.sort(1)[0].tolist() == [[9.0, 9.0], [1.5, 7.0]] and x.argmax().item() == 0


def test_indexing_and_its_gradient(device, half):
    x = mg.zeros(5, 3, dtype=half, device=device, requires_grad=True)
    index = mg.tensor([1, 1, 4] * 1000, device=device)
    x[index].sum().backward()
    assert x.grad.dtype == half
    expected = [float(np.float64(n).astype(half)) for n in (0, 2000, 0, 0, 1000)]
    assert x.grad[:, 0].tolist() == expected


@pytest.mark.parametrize(
    "make", [lambda p: mg.optim.SGD(p, 0.1, momentum=0.9), lambda p: mg.optim.AdamW(p, 0.1)]
)
def test_optimizers_compute_in_float32(device, half, rng, make):
    param = drawn(rng, (7, 5), half, device, requires_grad=True)
    param32 = param.detach().float().requires_grad_()
    optimizer, optimizer32 = make([param]), make([param32])
    for _ in range(2):
        grad = drawn(rng, (7, 5), half, device)
        param.grad, param32.grad = grad, grad.float()
        optimizer.step()
        optimizer32.step()
        assert param.dtype == half
        np.testing.assert_allclose(
            wide(param), wide(param32), rtol=8 * UNIT[half.name], atol=8 * UNIT[half.name]
        )


def test_gradients_of_several_uses_are_added(device, half):
    x = mg.tensor([0.5, -1.0, 2.0] * 100, dtype=half, device=device, requires_grad=True)
    (x * 2.0 + x * 3.0 + x.exp() * 0.0).sum().backward()
    assert x.grad.dtype == half and x.grad.tolist() == [5.0] * 300
    (x * 2.0).sum().backward()
    assert x.grad.tolist() == [7.0] * 300


def test_second_gradients(device, half):
    x = mg.tensor([0.5, -1.0, 2.0], dtype=half, device=device, requires_grad=True)
    (first,) = mg.autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = mg.autograd.grad(first.sum(), x)
    assert second.dtype == half and second.tolist() == [3.0, -6.0, 12.0]


def test_without_ml_dtypes_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("minigrad.dtypes.BFLOAT16", None)
    for ask in (lambda: mg.bfloat16, lambda: mg.ones(2).bfloat16(), lambda: mg.ones(2).to("bfloat16")):
        with pytest.raises(ImportError, match=r"minigrad\[bfloat16\]"):
            ask()


def test_modules_change_their_dtype(half):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert getattr(model, _method(half))() is model
    assert all(t.dtype == half for t in model.parameters())
    assert model(mg.ones(2, 3, dtype=half)).dtype == half
