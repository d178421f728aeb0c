"""What an op may have beside the common: typed attributes, inputs without gradient, hidden outputs, writing
in place; and functions that stand in for a built-in's kernels."""

from typing import Literal

import numpy as np
import pytest

import minigrad as mg
from minigrad.op import _ops
from minigrad.testing import gradcheck, gradgradcheck

pytestmark = pytest.mark.usefixtures("forget_ops")


# ---- attributes with types --------------------------------------------------------------------------------


def make_typed(seen):
    @mg.op(differentiable=False)
    def typed(
        xp,
        x,
        *,
        beta: float = 1.0,
        steps: int = 1,
        flag: bool = False,
        mode: Literal["up", "down"] = "up",
        sizes: tuple[int, ...] = (),
        pair: tuple[int, float] = (1, 1.0),
        maybe: float | None = None,
        anything: object = None,
    ):
        seen.update(beta=beta, steps=steps, flag=flag, mode=mode, sizes=sizes, pair=pair, maybe=maybe)
        return x

    return typed


def test_attributes_are_converted():
    seen = {}
    make_typed(seen)(
        mg.ones(1),
        beta=2,
        steps=np.int64(3),
        flag=np.bool_(True),
        mode="down",
        sizes=[1, 2],
        pair=[3, 4],
        maybe=5,
    )
    wanted = {
        "beta": 2.0,
        "steps": 3,
        "flag": True,
        "mode": "down",
        "sizes": (1, 2),
        "pair": (3, 4.0),
        "maybe": 5.0,
    }
    assert seen == wanted
    assert all(type(seen[name]) is type(wanted[name]) for name in wanted) and type(seen["pair"][1]) is float
    make_typed(seen)(mg.ones(1), maybe=None)
    assert seen["maybe"] is None and seen["beta"] == 1.0


@pytest.mark.parametrize(
    ("attrs", "error", "words"),
    [
        ({"beta": "two"}, TypeError, "'beta' is float, got str 'two'"),
        ({"beta": True}, TypeError, "'beta' is float, got bool True"),
        ({"steps": 1.5}, TypeError, "'steps' is int, got float 1.5"),
        ({"steps": True}, TypeError, "'steps' is int, got bool"),
        ({"flag": 1}, TypeError, "'flag' is bool, got int 1"),
        ({"mode": "left"}, ValueError, r"'mode' is Literal\['up', 'down'\], got str 'left'"),
        ({"sizes": 3}, TypeError, r"'sizes' is tuple\[int, \.\.\.\], got int 3"),
        ({"sizes": (1, "2")}, TypeError, "'sizes' is"),
        ({"pair": (1,)}, ValueError, r"'pair' is tuple\[int, float\], got tuple"),
        ({"maybe": "x"}, TypeError, "'maybe' is float | None, got str"),
    ],
)
def test_wrong_attributes(attrs, error, words):
    with pytest.raises(error, match=words) as found:
        make_typed({})(mg.ones(1), **attrs)
    assert "op 'typed'" in str(found.value)


def test_minigrad_s_own_ops_do_not_pay_for_options():
    """But for attention, whose masks get no gradient: it computes for long."""
    assert {op.name for op in _ops.values() if op.has_options} == {"attention", "attention_grad"}


# ---- inputs that get no gradient, outputs that are not returned -------------------------------------------


def test_an_input_that_is_not_differentiable(device):
    @mg.op(non_differentiable=("mask",))
    def masked(xp, x, mask):
        return x * mask

    masked.grad(x=lambda g, _y, _x, mask: g * mask)
    x = mg.tensor([1.0, 2.0], device=device, requires_grad=True)
    mask = mg.tensor([0.0, 3.0], device=device, requires_grad=True)
    masked(x, mask).sum().backward()
    assert x.grad.tolist() == [0.0, 3.0] and mask.grad is None
    assert not masked(x.detach(), mask).requires_grad
    y = masked(x, mask)
    with mg.no_grad():
        mask.mul_(2.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_outputs_for_the_gradient_alone(device):
    @mg.op(outputs=("y", "root"), returns=1)
    def root_of_square_plus_one(xp, x):
        root = xp.sqrt(x * x + 1)
        return root - 1, root

    @root_of_square_plus_one.grad
    def _(g, y, x):
        return (g[0] + g[1]) * x / y[1]

    x = mg.tensor([0.5, -2.0], mg.float64, device=device, requires_grad=True)
    assert gradcheck(root_of_square_plus_one, [x]) and gradgradcheck(root_of_square_plus_one, [x])
    x = mg.tensor([3.0], device=device, requires_grad=True)
    y = root_of_square_plus_one(x)
    assert isinstance(y, mg.Tensor)
    y.backward(mg.ones(1, device=device))
    assert x.grad.tolist() == pytest.approx([3 / 10**0.5])


def test_more_returned_than_there_are():
    @mg.op(returns=3)
    def two(xp, x):
        return x, x

    with pytest.raises(RuntimeError, match="'two' returns 3 of its outputs, and the reference gave 2"):
        two(mg.ones(1))


# ---- writing in place -------------------------------------------------------------------------------------


@pytest.fixture
def decay():
    @mg.op(in_place="x")
    def decay(xp, rate, x):
        return x * rate

    decay.grad(x=lambda g, _y, rate, _x: g * rate, rate=lambda g, _y, _rate, x: g * x)
    return decay


def test_an_op_that_writes_its_input(decay, device):
    x = mg.tensor([1.0, 2.0], device=device)
    view = x[1:]
    assert decay(0.5, x) is x and x.tolist() == [0.5, 1.0] and view.tolist() == [1.0]


def test_the_gradient_goes_through_what_was_written(decay):
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    rate = mg.tensor([3.0, 4.0], requires_grad=True)
    y = x * 2.0
    decay(rate, y)
    y.sum().backward()
    assert x.grad.tolist() == [6.0, 8.0] and rate.grad.tolist() == [2.0, 4.0]


def test_writes_that_are_refused(decay):
    leaf = mg.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="decay_: a leaf that requires a gradient"):
        decay(0.5, leaf)
    with pytest.raises(TypeError, match=r"'decay' writes its input 'x': expected a tensor, got float"):
        decay(mg.ones(1), 3.0)
    x = mg.ones(2)
    y = (x * mg.ones(2, requires_grad=True)).sum()
    decay(0.5, x)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


# ---- definitions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"non_differentiable": ("mask",)}, "'plus' has no input 'mask'; it has: x, y"),
        ({"in_place": "z"}, "'plus' has no input 'z'"),
        ({"returns": 0}, "'plus': returns is how many"),
    ],
)
def test_wrong_options(options, words):
    def plus(xp, x, y):
        return x + y

    with pytest.raises(ValueError, match=words):
        mg.op(plus, **options)
    assert "plus" not in _ops


def test_wrong_references_and_kernels():
    @mg.op
    def nothing(xp, x):
        pass

    with pytest.raises(TypeError, match="'nothing': the reference returned None"):
        nothing(mg.ones(1))

    @mg.op
    def pair(xp, x):
        return x, x[:1]

    pair.shape(lambda x: [x.shape, x.shape])
    with pytest.raises(RuntimeError, match=r"'pair': the reference returned the shapes \[\(2,\), \(1,\)\]"):
        pair(mg.ones(2))
    with pytest.raises(TypeError, match="'pair': a kernel is a function of arrays, got 3"):
        pair.kernel("cpu", name="three")(3)


# ---- functions in place of kernels ------------------------------------------------------------------------


def test_a_function_replaces_a_built_in_in_its_scope():
    calls = []

    def mine(out, a, b, **attrs):
        calls.append(a.shape)
        np.matmul(a, b, out=out)

    a, b = mg.randn(3, 4), mg.randn(4, 5)
    before = mg.list_kernels("matmul")
    expected = a @ b
    with mg.use_kernel("matmul", mine, device="cpu", dtypes="f4", when=lambda a, b, **_: a.shape[0] > 2):
        np.testing.assert_allclose((a @ b).numpy(), expected.numpy(), rtol=1e-5)
        a[:2] @ b  # the condition does not fit
        a.double() @ b.double()  # nor does the dtype
        with mg.use_kernel("matmul", "naive"):
            a @ b
    a @ b
    assert calls == [(3, 4)] * 2 and mg.list_kernels("matmul") == before


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)])
def test_layers_use_a_function_in_place_of_matmul(shape):
    """Forward and backward: a linear layer is a product and a sum then."""
    calls = []

    def mine(out, a, b):
        calls.append((a.shape, b.shape))
        np.matmul(a, b, out=out)

    layer, x = mg.nn.Linear(5, 4), mg.randn(*shape, requires_grad=True)
    layer(x).square().sum().backward()
    expected = [t.grad.numpy() for t in (x, *layer.parameters())]
    for t in (x, *layer.parameters()):
        t.grad = None
    with mg.use_kernel("matmul", mine):
        layer(x).square().sum().backward()
    assert calls[0] == ((6, 5), (5, 4)) and len(calls) == 3
    for t, wanted in zip((x, *layer.parameters()), expected, strict=True):
        np.testing.assert_allclose(t.grad.numpy(), wanted, rtol=1e-4, atol=1e-5)
    layer(x)
    assert len(calls) == 3


def test_a_function_replaces_what_computes_small_arrays():
    def minus(out, x, y):
        np.subtract(x, y, out=out)

    x = mg.tensor([3.0])
    with mg.use_kernel("add", minus, layout="broadcast"):
        assert (x + x).item() == 0
    assert (x + x).item() == 6


def test_functions_that_use_kernel_refuses():
    with (
        pytest.raises(ValueError, match="'matmul': the layout is one of"),
        mg.use_kernel("matmul", print, layout="x"),
    ):
        pass
    with pytest.raises(ValueError, match="no op is named 'no_such'"), mg.use_kernel("no_such", print):
        pass
