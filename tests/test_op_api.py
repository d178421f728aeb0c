"""The op object as its users meet it: definition, gradients, errors; and the checks of minigrad.testing."""

import numpy as np
import pytest

import minigrad as mg
from minigrad.dispatch import Spec
from minigrad.graph import LARGE
from minigrad.testing import case, check_op, gradcheck, gradgradcheck

pytestmark = pytest.mark.usefixtures("forget_ops")


def make_swish(gradient=None):
    @mg.op
    def swish(xp, x, *, beta=1.0):
        """x sigmoid(beta x)."""
        return x / (1 + xp.exp(-beta * x))

    def rule(g, y, x, *, beta):
        s = mg.sigmoid(x * beta)
        return g * (s + x * beta * s * (1.0 - s))

    swish.grad(gradient or rule)
    return swish


# ---- definition and call ----------------------------------------------------------------------------------


def test_an_op_of_ones_own(device):
    swish = make_swish()
    x = mg.tensor([-1.0, 0.0, 2.0], device=device, requires_grad=True)
    y = swish(x, beta=2.0)
    y.sum().backward()
    np.testing.assert_allclose(
        y.detach().to("cpu").numpy(), [-1 / (1 + np.e**2), 0, 2 / (1 + np.e**-4)], rtol=1e-6
    )
    assert x.grad.shape == (3,) and y.grad_fn == "swish"
    assert mg.get_op("swish") is swish and swish.__doc__ == "x sigmoid(beta x)." and "swish(x)" in repr(swish)


def test_defaults_of_attributes():
    swish = make_swish()
    assert (
        swish(mg.ones(1)).item() == swish(mg.ones(1), beta=1.0).item() != swish(mg.ones(1), beta=2.0).item()
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda op: op(), "'swish'.*1 input .*got 0"),
        (lambda op: op(mg.ones(1), mg.ones(1)), "'swish'.*1 input .*got 2.*by name: beta"),
        (lambda op: op(mg.ones(1), gamma=1.0), "gamma"),
        (lambda op: op(mg.ones(1), beta=1.0, gamma=1.0), "'swish'.*'gamma'.*beta"),
        (lambda op: op("text"), "'swish'.*str"),
        (lambda op: op(None), "'swish'.*None"),
        (lambda op: op(object()), "'swish'.*object"),
        (lambda op: op(1j), "'swish'.*complex"),
    ],
)
def test_wrong_calls(call, words):
    with pytest.raises(TypeError, match=words):
        call(make_swish())


def test_a_misnamed_attribute_among_those_with_types():
    @mg.op
    def scaled(xp, x, *, by: float = 2.0):
        return x * by

    with pytest.raises(TypeError, match="op 'scaled' has no attribute 'bye'; its attributes: by"):
        scaled(mg.ones(1), bye=3.0)


@pytest.mark.parametrize(
    ("register", "words"),
    [
        (
            lambda op: op.kernel("cpu", name="own")(lambda out, x: None),
            r"kernel 'own': a kernel is.*\(out, x, \*, beta\), got one of \(out, x\)",
        ),
        (
            lambda op: op.kernel("cpu", name="own", when=lambda x: True)(lambda out, x, *, beta: None),
            r"kernel 'own': when is.*\(x, \*, beta\)",
        ),
        (
            lambda op: op.grad(lambda g, x, *, beta: g),
            r"a gradient rule is a function of \(g, y, x, \*, beta\)",
        ),
        (lambda op: op.grad(x=lambda g, y, x: g), r"a gradient rule.*got one of \(g, y, x\)"),
        (
            lambda op: op.shape(lambda x, y, *, beta: x.shape),
            r"the shape rule is a function of \(x, \*, beta\)",
        ),
        (lambda op: op.dtype(lambda x: x.dtype), r"the dtype rule is a function of \(x, \*, beta\)"),
    ],
)
def test_functions_of_other_parameters_than_the_op_s(register, words):
    swish = make_swish()
    with pytest.raises(TypeError, match=f"op 'swish'.*{words}"):
        register(swish)
    assert mg.list_kernels("swish") == [] and swish(mg.ones(1)).shape == (1,)


def test_the_names_of_minigrad_s_own_ops_are_taken():
    with pytest.raises(ValueError, match=r'an op \'relu\' already.*@mg.get_op\("relu"\).kernel\("cpu"\)'):
        mg.op(lambda xp, x: x * 0, name="relu")
    assert mg.relu(mg.ones(1)).item() == 1
    assert make_swish() is not make_swish()  # one's own may be defined anew


def test_a_missing_attribute():
    @mg.op
    def scaled(xp, x, *, factor):
        return x * factor

    with pytest.raises(TypeError, match=r"'scaled' needs the attribute 'factor'"):
        scaled(mg.ones(1))


def test_plain_numbers_and_arrays_are_inputs_too():
    swish = make_swish()
    for x in (1.0, 1, np.float32(1.0), np.ones(1, np.float32), [1.0]):
        assert float(swish(x)) == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-6)


def test_an_op_as_a_method():
    class Layer:
        act = make_swish()

    assert Layer().act.__self__.__class__ is Layer and Layer.act is mg.get_op("swish")


@pytest.mark.parametrize(
    ("define", "error", "words"),
    [
        (lambda: mg.op(lambda: 0, name="bad"), TypeError, "'bad'.*`xp`"),
        (lambda: make_swish().kernel("tpu"), ValueError, "'swish'.*tpu"),
        (lambda: make_swish().kernel(), ValueError, "'swish'"),
        (lambda: make_swish().kernel("cpu", layout="nchw"), ValueError, "'nchw'"),
        (lambda: make_swish().grad(z=lambda *a: None), ValueError, "no input 'z'.*x"),
        (lambda: mg.get_op("no_such_op"), ValueError, "no_such_op.*matmul"),
    ],
)
def test_wrong_definitions(define, error, words):
    with pytest.raises(error, match=words):
        define()


def test_a_shape_rule_refuses_and_describes():
    @mg.op
    def pairs(xp, x):
        return x[..., ::2] + x[..., 1::2]

    @pairs.shape
    def _(x):
        if x.shape[-1] % 2:
            raise ValueError(f"pairs: the last size must be even, got shape {x.shape}")
        return *x.shape[:-1], x.shape[-1] // 2

    @pairs.kernel("cpu")
    def _(out, x):
        assert out.shape == (2, 3)
        out[...] = x[..., ::2] + x[..., 1::2]

    assert pairs(mg.ones(2, 6)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"pairs.*even.*\(5,\)"):
        pairs(mg.ones(5))


def test_a_reference_that_contradicts_its_shape_rule():
    @mg.op
    def liar(xp, x):
        return x[:1]

    liar.shape(lambda x: x.shape)
    with pytest.raises(RuntimeError, match=r"'liar'.*\(1,\).*\(3,\)"):
        liar(mg.ones(3))


@pytest.mark.parametrize("returned", [None, 3, 3.5])
def test_a_shape_rule_that_returns_no_shape(returned):
    swish = make_swish()
    swish.shape(lambda x, *, beta: returned)
    with pytest.raises(TypeError, match=f"op 'swish': the shape rule returns a shape .*returned {returned}"):
        swish(mg.ones(3))


def test_a_reference_that_returns_something_else():
    text = mg.op(lambda xp, x: "text", name="text")
    with pytest.raises(TypeError, match=r"op 'text': the reference must return an array.*str 'text'"):
        text(mg.ones(1))
    for count in 1, 3:
        halves = mg.op(lambda xp, x, *, n: (x,) * n if n > 1 else x, name="halves", outputs=("left", "right"))
        with pytest.raises(RuntimeError, match=rf"2 outputs \(left, right\).*reference returned {count}"):
            halves(mg.ones(1), n=count)


def test_check_op_misses_a_shape_rule():
    row_sum = mg.op(lambda xp, x: x.sum(-1), name="row_sum")
    row_sum.kernel("cpu", name="own")(lambda out, x: np.sum(x, -1, out=out))
    with pytest.raises(
        AssertionError, match=r"has the shape \(3, 4\).*returned \(3,\): define @row_sum.shape"
    ):
        check_op(row_sum, [case((3, 4))], devices=["cpu"])


def test_rules_per_input_run_only_where_needed():
    ran = []

    @mg.op
    def product(xp, x, y):
        return x * y

    product.grad(
        x=lambda g, _z, _x, y: (ran.append("x"), g * y)[1], y=lambda g, _z, x, _y: (ran.append("y"), g * x)[1]
    )
    product(mg.ones(2, requires_grad=True), mg.ones(2)).sum().backward()
    assert ran == ["x"]


def test_names_with_an_underscore_arrive_as_specs():
    seen = {}

    @mg.op
    def product(xp, x, y):
        return x * y

    def rule(g, _z, _x, y):
        seen.update(x=_x, y=y)
        return g * y

    product.grad(x=rule)
    product(mg.ones(2, requires_grad=True), mg.ones(3, 2)).sum().backward()
    assert tuple(seen["x"]) == ((2,), np.dtype("f4")) and seen["x"].ndim == 1 and seen["x"].size == 2
    assert isinstance(seen["y"], mg.Tensor)


def test_a_rule_that_uses_what_it_named_with_an_underscore():
    swish = make_swish(lambda g, _y, _x, *, beta: g * _x)
    with pytest.raises(TypeError, match=r"op 'mul'.*shape and dtype alone.*underscore"):
        swish(mg.ones(3, requires_grad=True)).sum().backward()


def test_integer_inputs_get_no_gradient():
    @mg.op
    def pick(xp, x, index):
        return x[index]

    def rule(g, _y, _x, index):
        found = mg.zeros(*_x.shape, dtype=g.dtype)
        found[index] = g
        return found

    pick.grad(x=rule)
    x = mg.ones(3, requires_grad=True)
    pick(x, mg.tensor([1])).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


def test_an_op_that_is_not_differentiable():
    @mg.op(differentiable=False)
    def steps(xp, x):
        return xp.floor(x)

    assert not steps(mg.ones(1, requires_grad=True)).requires_grad


def test_several_outputs():
    @mg.op
    def both(xp, x):
        return xp.sin(x), xp.cos(x)

    @both.grad
    def _(g, y, x):
        return g[0] * y[1] - g[1] * y[0]

    x = mg.tensor([0.3, 0.4], mg.float64, requires_grad=True)
    assert gradcheck(both, [x]) and gradgradcheck(both, [x])
    assert gradcheck(lambda x: both(x)[1], [x]) and gradgradcheck(lambda x: both(x)[0], [x])


def test_a_joint_rule_may_ask_which_inputs_need_a_gradient():
    asked = []

    @mg.op
    def weighted(xp, x, y, *, weight):
        return x + weight * y

    @weighted.grad
    def _(g, _y, _x, _other, *, weight, needed=None):
        asked.append(needed)
        return [g if needed[0] else None, g * weight if needed[1] else None]

    x, y = mg.ones(2, requires_grad=True), mg.ones(2, requires_grad=True)
    weighted(x, y, weight=3.0).sum().backward()
    weighted(x.detach(), y, weight=3.0).sum().backward()
    assert asked == [(True, True), (False, True)]
    assert x.grad.tolist() == [1, 1] and y.grad.tolist() == [6, 6]


def test_a_rule_for_several_inputs_together_runs_where_all_need_a_gradient():
    ran = []

    @mg.op
    def product(xp, x, y, z):
        return x * y * z

    product.grad(
        x=lambda g, _p, _x, y, z: ran.append("x") or g * y * z,
        y=lambda g, _p, x, _y, z: ran.append("y") or g * x * z,
        z=lambda g, _p, x, y, _z: g * x * y,
    )

    @product.grad_together("y", "x")
    def _(g, _p, x, y, z):
        ran.append("together")
        scaled = g * z
        return scaled * x, scaled * y

    values = 2.0, 3.0, 5.0
    for needed in ("xyz", "yx", "x", "yz"):
        inputs = {
            name: mg.tensor([value], requires_grad=name in needed)
            for name, value in zip("xyz", values, strict=True)
        }
        product(*inputs.values()).sum().backward()
        for name, value in zip("xyz", values, strict=True):
            assert name not in needed or inputs[name].grad.item() == 30.0 / value
    assert ran == ["together", "together", "x", "y"]
    check_op(product, [case((3,), (3,), (3,))])
    with pytest.raises(ValueError, match=r"no input 'w'; it has: x, y, z"):
        product.grad_together("x", "w")


def test_what_is_not_saved_and_what_has_no_gradient():
    seen = []

    @mg.op(saved_outputs=(1,), materialize_grads=False)
    def both(xp, x):
        return xp.sin(x), xp.cos(x)

    @both.grad
    def _(g, y, _x):
        seen.append((g[1], type(y[0])))
        return g[0] * y[1]

    x = mg.tensor([0.3, 0.4], mg.float64, requires_grad=True)
    sine, _ = both(x)
    with mg.no_grad():
        sine.zero_()
    sine.sum().backward()
    assert seen == [(None, Spec)]
    np.testing.assert_allclose(x.grad.numpy(), np.cos([0.3, 0.4]))


def test_no_dtypes_are_mixed_without_promotion():
    @mg.op
    def plus(xp, x, y):
        return x + y

    with pytest.raises(TypeError, match=r"plus.*x is float32, y is float64"):
        plus(mg.ones(1), mg.ones(1, dtype=mg.float64))


# ---- check_op (see test_check_op.py) ----------------------------------------------------------------------


def kernel_of(run, **options):
    swish = make_swish()
    swish.kernel("cpu", name="under_test", **options)(run)
    return swish


def right(out, x, *, beta):
    np.divide(x, 1 + np.exp(-beta * x), out=out)


CASES = [case((3, 5)), case((0,)), case((7,), beta=2.0), case(())]


def test_check_op_passes_what_is_right(device):
    check_op(kernel_of(right), CASES, devices=[device])
    check_op(kernel_of(right, layout="strided"), CASES, devices=[device])


def is_inaccurate(out, x, *, beta):
    right(out, x, beta=beta)
    out *= 1 + 40 * np.finfo(out.dtype).eps


def test_check_op_leaves_the_kernels_as_they_were():
    swish = kernel_of(is_inaccurate)
    before = mg.list_kernels("swish")
    with pytest.raises(AssertionError):
        check_op(swish, CASES, devices=["cpu"])
    assert mg.list_kernels("swish") == before and mg.get_kernel("swish") == "under_test"


def test_check_op_wants_every_kernel_to_run():
    with pytest.raises(AssertionError, match="no case made kernel 'under_test' run"):
        check_op(kernel_of(right, when=lambda x, *, beta: x.size > 10**6), CASES, devices=["cpu"])


@pytest.mark.parametrize(
    "rule",
    [
        lambda g, y, x, *, beta: g * y,
        lambda g, y, x, *, beta: g * 0.0,
        lambda g, y, x, *, beta: mg.ones(*x.shape, dtype=x.dtype),
    ],
)
def test_check_op_finds_a_wrong_gradient(rule):
    with pytest.raises(AssertionError, match=r"gradient for input 0 is wrong(.|\n)*Expect(.|\n)*Actual"):
        check_op(make_swish(rule), CASES, devices=["cpu"])


def test_check_op_finds_a_wrong_second_gradient():
    def rule(g, y, x, *, beta):
        s = mg.sigmoid(x * beta).detach()  # the first gradient is right, but its own is cut off
        return g * (s + x * beta * s * (1.0 - s))

    with pytest.raises(AssertionError, match="gradgradcheck"):
        check_op(make_swish(rule), CASES, devices=["cpu"])


def test_check_op_needs_cases_where_shapes_follow_a_rule():
    with pytest.raises(ValueError, match="'matmul' needs cases"):
        check_op(mg.get_op("matmul"))
    check_op(mg.get_op("relu"), devices=["cpu"])


# ---- gradcheck --------------------------------------------------------------------------------------------


def test_gradcheck_shows_the_worst_element():
    @mg.op
    def off(xp, x):
        return x * x

    wrong = np.array([1.0, 1.0, 1.5, 1.0])
    off.grad(x=lambda g, _y, x: g * x * 2.0 * mg.tensor(wrong))
    x = mg.tensor([1.0, 2.0, 3.0, 4.0], mg.float64, requires_grad=True)
    with pytest.raises(AssertionError, match=r"worst element is \(2,\) of shape \(4,\)"):
        gradcheck(off, [x])


@pytest.mark.parametrize("wrong", [[17], [3, 30]])
def test_gradcheck_of_some_elements_moves_all_of_them(wrong):
    """Two errors of one size, too, whose signs differ: a gradient with two elements exchanged."""
    errors = np.zeros(40)
    errors[wrong] = [0.01, -0.01][: len(wrong)]

    @mg.op
    def off(xp, x):
        return x * 2.0

    off.grad(x=lambda g, _y, x: g * 2.0 + mg.tensor(errors))
    x = mg.ones(40, dtype=mg.float64, requires_grad=True)
    with pytest.raises(AssertionError, match=r"a random move of all elements of shape \(40,\)"):
        gradcheck(off, [x], elements=1, seed=0)


def test_gradcheck_needs_float64_and_something_to_check():
    with pytest.raises(TypeError, match=r"float64.*float32"):
        gradcheck(mg.exp, [mg.ones(1, requires_grad=True)])
    with pytest.raises(ValueError, match="no input requires"):
        gradcheck(mg.exp, [mg.ones(1, dtype=mg.float64)])


def test_gradcheck_finds_a_function_that_changes_its_input():
    def rude(x):
        with mg.no_grad():
            x.add_(1.0)
        return x * 2.0

    with pytest.raises(AssertionError, match="changed its input 0"):
        gradcheck(rude, [mg.ones(2, dtype=mg.float64, requires_grad=True)])


def test_gradcheck_finds_a_gradient_that_was_cut():
    x = mg.tensor([0.5, 2.0], mg.float64, requires_grad=True)
    with pytest.raises(AssertionError, match="wrong"):
        gradcheck(lambda x: x * x.detach(), [x])
    with pytest.raises(AssertionError, match="wrong"):
        gradcheck(lambda x: x.detach() * 3.0, [x])


def test_gradcheck_of_what_does_not_depend_on_an_input():
    x, y = (mg.ones(2, dtype=mg.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(lambda x, y: x * 2.0, [x, y]) and gradgradcheck(lambda x, y: x * 2.0, [x, y])


# ---- gradient rules on bare arrays ------------------------------------------------------------------------


def test_ops_in_an_arithmetic_rule_take_bare_arrays(device):
    seen = []

    @mg.op(arithmetic=True)
    def doubled_relu(xp, x):
        return 2 * xp.maximum(x, 0)

    @doubled_relu.grad
    def _(g, y, _x):
        found = mg.get_op("relu_grad")(g, y)
        seen.append(type(found))
        return found * 2.0

    x = mg.tensor([-1.0, 3.0], device=device, requires_grad=True)
    doubled_relu(x).sum().backward()
    assert x.grad.tolist() == [0.0, 2.0]
    (g,) = mg.autograd.grad(doubled_relu(x).sum(), x, create_graph=True)
    assert g.tolist() == [0.0, 2.0]
    assert seen == [x.device.array_type, mg.Tensor]


@pytest.mark.parametrize("follow", [mg.sigmoid, mg.tanh, mg.relu, lambda x: x.sigmoid() / x])
def test_rules_on_bare_arrays_keep_arrays_of_zero_dimensions(follow, device):
    # NumPy's operators make scalars of them, which are neither arrays nor tensors.
    @mg.op(arithmetic=True)
    def tripled(xp, x):
        return 3.0 * x

    @tripled.grad
    def _(g, _y, _x):
        return mg.neg(g * -1.0) * 3.0

    found = []
    for shape in ((), (1,)):
        x = mg.full(shape, 2.0, device=device, requires_grad=True)
        (tripled(follow(x)) / 3.0).sum().backward()
        found.append(x.grad.item())
    assert found[0] == found[1]


@pytest.mark.parametrize(("size", "dtype"), [(3, np.float16), (5, np.float32), (LARGE, np.float32)])
def test_rules_of_ops_alone_take_bare_arrays_of_16_bits_and_large_ones_too(size, dtype):
    seen = []

    @mg.op(ops_alone=True)
    def doubled(xp, x):
        return x + x

    @doubled.grad
    def _(g, _y, _x):
        assert (_x.shape, _x.dtype) == ((size,), dtype)
        seen.append(type(g))
        return mg.get_op("add")(g, g)

    x = mg.ones(size, dtype=dtype, requires_grad=True)
    g = mg.ones(size, dtype=dtype)
    doubled(x).backward(g)
    assert x.grad.dtype == dtype and x.grad.tolist() == [2.0] * size
    (with_graph,) = mg.autograd.grad(doubled(x), x, g, create_graph=True)
    assert with_graph.tolist() == [2.0] * size
    assert seen == [np.ndarray, mg.Tensor]


def test_rules_of_ops_alone_take_tensors_where_a_gradient_came_for_another_output():
    seen = []

    @mg.op(ops_alone=True, materialize_grads=False)
    def multiples(xp, x):
        return 2 * x, 3 * x

    @multiples.grad
    def _(g, y, x):
        seen.append([type(array) for array in (*g, *y, x)])
        first, second = g
        add = mg.get_op("add")
        if second is None:
            return add(first, first)
        return second * 3.0 if first is None else add(add(first, first), second * 3.0)

    arrays, tensors, nothing = [np.ndarray] * 3, [mg.Tensor] * 3, type(None)
    for chosen, expected, types in (
        (lambda y, z: y.sum(), 2.0, [np.ndarray, nothing, *arrays]),
        (lambda y, z: z.sum(), 3.0, [nothing, mg.Tensor, *tensors]),
        (lambda y, z: (y + z).sum(), 5.0, [mg.Tensor, mg.Tensor, *tensors]),
    ):
        x = mg.ones(3, requires_grad=True)
        chosen(*multiples(x)).backward()
        assert x.grad.tolist() == [expected] * 3 and seen.pop() == types


def test_outside_of_a_rule_ops_give_tensors_even_after_one_that_failed():
    @mg.op(arithmetic=True)
    def failing(xp, x):
        return x + 1

    @failing.grad
    def _(g, _y, _x):
        raise RuntimeError("no gradient today")

    x = mg.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradient today"):
        failing(x).sum().backward()
    assert isinstance(mg.relu(np.ones(3, np.float32)), mg.Tensor)
