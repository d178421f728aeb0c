"""minigrad.func beside torch.func: derivatives and batches of functions, calls with other parameters."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import func

X = np.random.default_rng(3).standard_normal((3, 4))


def cubes(lib):
    return lambda x: (x**3).sum()


CALLS = {
    "grad": lambda lib, x: lib.func.grad(cubes(lib))(x),
    "grad of grad": lambda lib, x: lib.func.grad(lambda x: lib.func.grad(cubes(lib))(x).cos().sum())(x),
    "second argument": lambda lib, x: lib.func.grad(lambda a, b: (a * b * b).sum(), argnums=1)(x, x + 1),
    "both": lambda lib, x: sum(lib.func.grad(lambda a, b: (a * b * b).sum(), argnums=(0, -1))(x, x + 1)),
    "dict": lambda lib, x: lib.func.grad(lambda d: (d["a"] * d["b"][0]).sum())({"a": x, "b": (x * 2,)})["b"][
        0
    ],
    "aux": lambda lib, x: sum(lib.func.grad(lambda x: (x.sum() ** 2, x * 5), has_aux=True)(x)),
    "value": lambda lib, x: sum(lib.func.grad_and_value(cubes(lib))(x)),
    "unused": lambda lib, x: lib.func.grad(lambda a, b: b.sum())(x, x),
    "constant": lambda lib, x: lib.func.grad(lambda y: (x * y).sum())(x),
    "vjp": lambda lib, x: lib.func.vjp(lambda a, b: a @ b.T, x, x * 2)[1](lib.ones(3, 3, dtype=x.dtype))[1],
    "jacrev": lambda lib, x: lib.func.jacrev(lambda x: x.softmax(-1))(x),
    "jacfwd": lambda lib, x: lib.func.jacfwd(lambda x, y: (x * y).sum(0), argnums=1)(x, x * 2),
    "hessian": lambda lib, x: lib.func.hessian(cubes(lib))(x),
    "vmap": lambda lib, x: lib.vmap(lambda row: row @ row)(x),
    "vmap axes": lambda lib, x: lib.func.vmap(lambda a, b: a * b, in_dims=(1, None), out_dims=1)(x, x[:, 0]),
    "vmap of a tuple": lambda lib, x: sum(lib.vmap(lambda a: (a.sum(), a.max()))(x)),
    "vmap of grad": lambda lib, x: lib.vmap(lib.func.grad(lambda a, b: (a * b).sin().sum()), (None, 0))(
        x[0], x
    ),
    "vmap of a dict": lambda lib, x: lib.vmap(lambda d: d["a"] - d["b"], ({"a": 0, "b": None},))(
        {"a": x, "b": x[0]}
    ),
    "jacobian": lambda lib, x: lib.autograd.functional.jacobian(lambda x: x.exp().sum(1), x),
    "jacobians": lambda lib, x: sum(
        lib.autograd.functional.jacobian(lambda a, b: (a * b).sum(1), (x, x * 2))
    ),
    "functional hessian": lambda lib, x: lib.autograd.functional.hessian(cubes(lib), x),
    "mixed": lambda lib, x: lib.autograd.functional.hessian(lambda a, b: (a * b * b).sum(), (x, x + 1))[0][1],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("name", CALLS)
def test_derivatives_are_pytorch_s(name):
    torch = pytest.importorskip("torch")
    ours, theirs = (CALLS[name](lib, lib.tensor(X)) for lib in (mg, torch))
    assert not ours.requires_grad or name == "aux"  # in which the function's own product is
    np.testing.assert_allclose(ours.detach().numpy(), theirs.numpy(), rtol=1e-10, atol=1e-12)


def test_gradients_through_gradients():
    """What a parameter outside does to a gradient inside, as physics-informed networks and MAML need it."""
    weight = mg.tensor(2.0, requires_grad=True)
    slope = func.grad(lambda x: weight * x**3)(mg.tensor(3.0))
    slope.backward()
    assert slope.item() == 54 and weight.grad.item() == 27
    weight.grad = None
    step = weight - 0.5 * func.grad(lambda w: (w * 3 - 1) ** 2)(weight)  # w - 3 (3 w - 1)
    step.backward()
    assert weight.grad.item() == 1 - 9


def test_a_call_with_other_parameters():
    model = mg.nn.Sequential(mg.nn.Linear(4, 4), mg.nn.BatchNorm1d(4))
    model.add_module("tied", mg.nn.Linear(4, 4))
    model.tied.weight = model[0].weight
    x, before = mg.tensor(X, dtype=mg.float32), {k: v.clone() for k, v in model.state_dict().items()}
    weight = mg.eye(4, requires_grad=True)
    zeros = {name: mg.zeros(4) for name in ("0.bias", "tied.bias")}
    out = func.functional_call(model.eval(), ({"0.weight": weight}, zeros), (x,))
    np.testing.assert_allclose(out.detach().numpy(), X, rtol=1e-4)  # the running variance is 1, and eps 1e-5
    out.sum().backward()
    assert weight.grad is not None and model[0].weight.grad is None
    assert all(mg.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(AttributeError, match=r"no parameter or buffer '0\.wait'"):
        func.functional_call(model, {"0.wait": weight}, x)


def test_vmap_puts_each_of_several_results_where_it_is_told():
    rows, columns = func.vmap(lambda x: (x, x * 2), out_dims=(0, 1))(mg.ones(2, 3))
    assert rows.shape == (2, 3) and columns.shape == (3, 2)


def test_errors():
    with pytest.raises(ValueError, match="must return one number"):
        func.grad(lambda x: x)(mg.ones(2))
    with pytest.raises(ValueError, match="one size along their axes"):
        func.vmap(lambda a, b: a)(mg.ones(2), mg.ones(3))
