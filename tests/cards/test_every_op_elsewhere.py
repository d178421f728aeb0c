"""Every op, and the gradient of every op, on a card while another one is current."""

import importlib.util
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from minigrad.testing import Case
from minigrad.testing.cases import as_cases, draw

_spec = importlib.util.spec_from_file_location("every_op", Path(__file__).parents[1] / "test_every_op.py")
every_op = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(every_op)


def results(op, case, device):
    """The outputs of one call, and the gradients of their squares' sum."""
    rng, inputs = np.random.default_rng(0), []
    for value in case.inputs:
        drawn = draw(value, np.dtype(np.float32), rng)
        if isinstance(drawn, np.ndarray):
            drawn = mg.tensor(drawn, device=device)
            drawn.requires_grad = drawn.is_floating_point() and op.differentiable
        inputs.append(drawn)
    outputs = op(*inputs, **case.attrs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    differentiable = [y for y in outputs if y.requires_grad]
    if differentiable:
        sum((y * y).sum() for y in differentiable).backward()
    return outputs + [x.grad for x in inputs if isinstance(x, mg.Tensor) and x.grad is not None]


def reference_alone(name):
    """A context in which the op runs its reference on cards, whatever kernels it has."""
    return mg.use_kernel(name, "reference", "cuda") if mg.list_kernels(name) else nullcontext()


@pytest.mark.parametrize(
    "kernels", [lambda name: nullcontext(), reference_alone], ids=["kernels", "reference"]
)
@pytest.mark.parametrize("name", sorted(every_op.CASES))
def test_op(cupy, card_of, name, kernels):
    op = mg.get_op(name)
    first = next(iter(every_op.CASES[name] or as_cases(op, None)[3:]))
    case = first if isinstance(first, Case) else mg.testing.case(*first)
    expected = results(op, case, "cpu")
    with kernels(name):
        found = results(op, case, "cuda:1")
    assert len(expected) == len(found) and mg.cuda.current_device() == 0
    for there, here in zip(found, expected, strict=True):
        assert card_of(there) == 1
        # How exact kernels are is tested elsewhere; here, that they computed the same thing.
        np.testing.assert_allclose(there.detach().numpy(), here.detach().numpy(), rtol=1e-3, atol=1e-4)
