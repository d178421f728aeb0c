"""The linear map with ReLU in its epilogue: bits, gradients and kernels of the two ops."""

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F
from minigrad.kernels.launch import CudaKernel
from minigrad.testing import gradcheck, gradgradcheck

SHAPES = [
    ((5, 7), (4, 7)),
    ((3, 2, 33), (40, 33)),
    ((0, 3), (2, 3)),
    ((2, 0), (3, 0)),
    ((130, 150), (7, 150)),
]


def relu_of_linear(*args):
    return F.relu(F.linear(*args))


def tensors(device, x, weight, dtype=mg.float32):
    mg.manual_seed(1)
    inputs = [mg.randn(*shape, device=device).to(dtype) for shape in (x, weight, weight[:1])]
    return [one.requires_grad_() for one in inputs]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_bits_and_gradients_are_those_of_the_two_ops(device, shapes, has_bias):
    inputs = tensors(device, *shapes)[: 3 if has_bias else 2]
    results = []
    for function in (F.linear_relu, relu_of_linear):
        y = function(*inputs)
        results.append((y, *mg.autograd.grad(y.square().sum(), inputs)))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.detach().cpu().numpy(), other.detach().cpu().numpy())


def test_gradients_of_both_orders():
    inputs = tensors("cpu", (3, 4), (5, 4), mg.float64)
    assert gradcheck(F.linear_relu, inputs) and gradgradcheck(F.linear_relu, inputs)


def test_one_op_on_the_processor():
    assert F.linear_relu(*tensors("cpu", (3, 4), (5, 4))).grad_fn == "linear_relu"


@pytest.mark.parametrize("name, kernel", [("linear", "tiled"), ("matmul", "naive"), ("relu", "reference")])
def test_a_kernel_that_is_selected_for_a_part_runs(name, kernel):
    inputs = tensors("cpu", (9, 33), (17, 33))
    with mg.use_kernel(name, kernel):
        found, expected = F.linear_relu(*inputs), relu_of_linear(*inputs)
    assert found.grad_fn == "relu"
    np.testing.assert_array_equal(found.detach().numpy(), expected.detach().numpy())


def test_autocast_rounds_as_in_the_two_ops():
    inputs = tensors("cpu", (9, 33), (17, 33))
    with mg.autocast("cpu", mg.float16):
        found, expected = F.linear_relu(*inputs), relu_of_linear(*inputs)
    assert found.dtype == mg.float16
    np.testing.assert_array_equal(found.detach().numpy(), expected.detach().numpy())


def test_a_vector_and_a_weight_of_one_dimension():
    x, weight = mg.tensor([1.0, -2.0]), mg.tensor([[1.0, 1.0], [2.0, 0.5]])
    assert F.linear_relu(x, weight).tolist() == [0.0, 1.0]
    assert F.linear_relu(x, weight[0]).item() == 0.0


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="weight expects 4 input features"):
        F.linear_relu(mg.ones(2, 3), mg.ones(5, 4))
    with pytest.raises(ValueError, match=r"bias must have shape \(5,\)"):
        F.linear_relu(mg.ones(2, 4), mg.ones(5, 4), mg.ones(4))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_a_card_the_product_adds_the_bias(device, dtype, monkeypatch):
    """In one launch; where the rung cannot, in one more."""
    if device.type == "cpu":
        pytest.skip("CUDA kernels run on cards, and on the simulator")
    x, weight, _ = (t.detach() for t in tensors(device, (2, 20, 24), (32, 24), getattr(mg, dtype)))
    bias = mg.randn(32, device=device).to(x.dtype)
    launched, launch = [], CudaKernel.launch
    monkeypatch.setattr(
        CudaKernel, "launch", lambda self, *args: (launched.append(self.name), launch(self, *args))
    )
    found = F.linear(x, weight, bias)
    assert launched == ["matmul_warp_tile" if dtype == "float32" else "matmul_tensor_core"]
    for gap in (1, 2):
        columns = mg.zeros(32, gap, device=device, dtype=bias.dtype) + bias.unsqueeze(1)
        np.testing.assert_array_equal(
            F.linear(x, weight, columns[:, 0]).float().cpu().numpy(), found.float().cpu().numpy()
        )
    wide = [tensor.cpu().double() for tensor in (x, weight, bias)]
    error = (found.cpu().double() - (wide[0] @ wide[1].T + wide[2])).abs().max().item()
    assert error <= 2 * {"float32": 2**-18, "float16": 2**-8, "bfloat16": 2**-5}[dtype]
    if dtype == "float32":
        del launched[:]
        with mg.use_kernel("matmul", "tiled"):
            tiled = F.linear(x, weight, bias)
        assert launched == ["matmul_tiled", "add_strided"]
        np.testing.assert_allclose(tiled.cpu().numpy(), found.cpu().numpy(), atol=1e-5)
