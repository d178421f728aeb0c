"""Which dtype comes out: PyTorch's rules, written down, and checked against PyTorch where it is installed."""

import itertools

import numpy as np
import pytest

import minigrad as mg

DTYPES = [mg.bool, mg.uint8, mg.int8, mg.int32, mg.int64, mg.float16, mg.float32, mg.float64]


@pytest.mark.parametrize(
    ("x", "y", "dtype"),
    [
        (mg.ones(2), mg.ones(2, dtype=mg.float64), mg.float64),
        (mg.ones(2), mg.ones((), dtype=mg.float64), mg.float32),  # 0-d: only a higher kind counts
        (mg.ones(2), 2.5, mg.float32),
        (mg.ones(2, dtype=mg.float64), 2.5, mg.float64),
        (mg.ones(2, dtype=mg.float16), 2.5, mg.float16),
        (mg.tensor([1, 2]), 2.5, mg.float32),
        (mg.tensor([1, 2]), 2, mg.int64),
        (mg.tensor([1, 2], mg.int32), 2, mg.int32),
        (mg.tensor([1, 2], mg.uint8), mg.tensor([1, 2], mg.int8), mg.int16),
        (mg.tensor([1, 2]), mg.ones(2), mg.float32),
        (mg.tensor([1, 2]), mg.ones(()), mg.float32),
        (mg.tensor([1, 2]), mg.ones((), dtype=mg.float64), mg.float64),
        (mg.tensor([True]), 1, mg.int64),
        (mg.tensor([True]), 1.0, mg.float32),
        (mg.tensor([True]), mg.tensor([True]), mg.bool),
        (mg.ones(2), True, mg.float32),
        (mg.ones((), dtype=mg.float64), mg.ones(()), mg.float64),
        (mg.ones(2, dtype=mg.float16), mg.ones(2), mg.float32),
        (mg.ones(2), np.float64(2.5), mg.float32),
        (mg.ones(2), np.ones(2), mg.float64),
    ],
)
def test_results_of_addition(x, y, dtype):
    assert mg.add(x, y).dtype == mg.add(y, x).dtype == dtype


@pytest.mark.parametrize("function", ["add", "mul", "sub", "maximum"])
def test_as_pytorch_does(function):
    torch = pytest.importorskip("torch")
    for a, b in itertools.product(DTYPES, DTYPES):
        if function == "sub" and mg.bool in (a, b):
            continue
        for shape_a, shape_b in (((2,), (2,)), ((2,), ()), ((), (2,)), ((), ())):
            ours = getattr(mg, function)(mg.ones(shape_a, dtype=a), mg.ones(shape_b, dtype=b))
            t, u = (torch.ones(s, dtype=getattr(torch, str(d))) for s, d in ((shape_a, a), (shape_b, b)))
            theirs = getattr(torch, function)(t, u)
            assert str(theirs.dtype) == f"torch.{ours.dtype}", f"{function} of {a}{shape_a} and {b}{shape_b}"


def test_the_default_dtype():
    assert mg.get_default_dtype() == mg.float32 == mg.tensor(1.0).dtype == mg.zeros(1).dtype
    try:
        mg.set_default_dtype(mg.float64)
        made = mg.tensor([1.0]), mg.ones(1), mg.randn(1), mg.tensor([1]) / 2, mg.arange(0.5), mg.eye(2)
        assert all(t.dtype == mg.float64 for t in made)
        assert mg.tensor([1]).dtype == mg.int64
    finally:
        mg.set_default_dtype(mg.float32)
    for wrong in (mg.int32, mg.float16, np.complex64):
        with pytest.raises(TypeError, match="float32 or float64"):
            mg.set_default_dtype(wrong)


def test_dtypes_of_new_tensors():
    assert mg.tensor(1).dtype == mg.int64 and mg.tensor(True).dtype == mg.bool
    assert mg.tensor([]).dtype == mg.float32 and mg.tensor([[1, 2.5]]).dtype == mg.float32
    assert mg.tensor(np.ones(1)).dtype == mg.float64 and mg.tensor(np.float64(1)).dtype == mg.float64
    assert mg.full((1,), 2).dtype == mg.int64 and mg.full((1,), 2.0).dtype == mg.float32
    assert mg.full((1,), True).dtype == mg.bool
    assert mg.arange(3).dtype == mg.int64 and mg.arange(0, 1, 0.5).dtype == mg.float32
    assert mg.randint(5, (2,)).dtype == mg.randperm(3).dtype == mg.int64


def test_gradients_come_back_in_each_inputs_dtype():
    x = mg.ones(2, requires_grad=True)
    y = mg.ones(2, dtype=mg.float64, requires_grad=True)
    (x * y).sum().backward()
    assert x.grad.dtype == mg.float32 and y.grad.dtype == mg.float64


def test_conversions():
    x = mg.tensor([0.0, 1.7, -2.3])
    assert x.int().tolist() == [0, 1, -2] and x.bool().tolist() == [False, True, True]
    assert x.double().dtype == mg.float64 and x.half().dtype == mg.float16 and x.long().dtype == mg.int64
    assert x.to(mg.float32) is x and x.to(x) is x and x.to("cpu") is x and x.float() is x
    assert x.to(mg.float32, copy=True) is not x and x.type_as(mg.tensor([1])).dtype == mg.int64


def test_in_place_keeps_the_dtype():
    x = mg.ones(2)
    x += mg.ones(2, dtype=mg.float64)
    assert x.dtype == mg.float32 and x.tolist() == [2.0, 2.0]
    counts = mg.tensor([1, 2])
    with pytest.raises(TypeError, match=r"float32.*int64"):
        counts /= 2
    assert counts.tolist() == [1, 2]
