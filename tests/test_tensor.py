"""The tensor itself, and how tensors are made: values, printing, conversions, PyTorch's names."""

import numpy as np
import pytest

import minigrad as mg


def test_creation(device):
    def values(t):
        assert t.device is device
        return t.tolist()

    assert values(mg.tensor([[1.0, 2.0]], device=device)) == [[1.0, 2.0]]
    assert values(mg.zeros(2, 1, device=device)) == values(mg.zeros((2, 1), device=device)) == [[0.0], [0.0]]
    assert values(mg.ones([2], device=device)) == [1.0, 1.0] and mg.empty(3, device=device).shape == (3,)
    assert values(mg.full((2,), 7, device=device)) == [7, 7]
    assert values(mg.arange(2, 8, 3, device=device)) == [2, 5] and values(mg.arange(3, device=device)) == [
        0,
        1,
        2,
    ]
    assert values(mg.linspace(0, 1, 3, device=device)) == [0.0, 0.5, 1.0]
    assert values(mg.eye(2, 3, device=device)) == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    like = mg.ones(2, dtype=mg.float64, device=device)
    for made in (
        mg.zeros_like(like),
        mg.ones_like(like),
        mg.full_like(like, 3),
        mg.rand_like(like),
        mg.randn_like(like),
    ):
        assert (made.shape, made.dtype, made.device) == ((2,), mg.float64, device)


def test_tensor_copies_and_from_numpy_shares():
    array = np.ones(2, np.float32)
    copied, shared = mg.tensor(array), mg.from_numpy(array)
    array[0] = 5.0
    assert copied.tolist() == [1.0, 1.0] and shared.tolist() == [5.0, 1.0]
    shared += 1.0
    assert array.tolist() == [6.0, 2.0] and np.shares_memory(np.asarray(shared), array)
    assert mg.as_tensor(shared) is shared and np.shares_memory(mg.as_tensor(array).numpy(), array)
    with pytest.raises(TypeError, match="NumPy array, got list"):
        mg.from_numpy([1.0])


def test_a_tensor_of_a_tensor_is_a_copy_outside_the_graph():
    x = mg.ones(2, requires_grad=True)
    y = mg.tensor(x * 2.0)
    assert not y.requires_grad and y.tolist() == [2.0, 2.0]
    assert mg.Tensor([1, 2]).dtype == mg.float32
    assert mg.Tensor(2, 3).shape == (2, 3) and mg.Tensor(4).shape == (4,) and mg.Tensor().shape == (0,)
    assert mg.Tensor(2.5).item() == 2.5


def test_random_numbers_have_their_distribution():
    mg.manual_seed(0)
    n = 200_000
    u, z, k = mg.rand(n).numpy(), mg.randn(n).numpy(), mg.randint(3, 7, (n,)).numpy()
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    assert abs(z.mean()) < 0.015 and abs(z.var() - 1) < 0.02 and abs((z**3).mean()) < 0.05
    assert set(np.unique(k)) == {3, 4, 5, 6}
    assert sorted(mg.randperm(100).tolist()) == list(range(100))
    mg.rand(3, generator=mg.Generator(1))


def test_a_generator_has_a_state_of_its_own():
    first, second = mg.Generator(3), mg.Generator(3)
    state = first.get_state()
    a = mg.randn(4, generator=first).tolist()
    assert a == mg.randn(4, generator=second).tolist() != mg.randn(4, generator=first).tolist()
    first.set_state(state)
    assert a == mg.randn(4, generator=first).tolist()
    assert a == mg.randn(4, generator=mg.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (mg.tensor([1.0, 2.5]), "tensor([1.0000, 2.5000])"),
        (mg.tensor([1, 2]), "tensor([1, 2])"),
        (mg.tensor(True), "tensor(True)"),
        (mg.tensor([1.0], mg.float64), "tensor([1.], dtype=float64)"),
        (mg.tensor([1.0], requires_grad=True), "tensor([1.], requires_grad=True)"),
        (mg.tensor([1.0], requires_grad=True) * 2.0, "tensor([2.], grad_fn=<mul>)"),
        (mg.ones(1, device="sim"), "tensor([1.], device='sim')"),
        (mg.zeros(0), "tensor([])"),
    ],
)
def test_repr(x, text):
    assert repr(x) == text


def test_numbers_out_of_a_tensor():
    x = mg.tensor([[2.5]])
    assert x.item() == float(x) == 2.5 and int(x) == 2 and bool(x) and [10, 20, 30][mg.tensor(2)] == 30
    assert x.tolist() == [[2.5]] and np.array(x).dtype == np.float32
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    assert x.size() == x.shape == (1, 1) and x.size(0) == 1 and x.dim() == x.ndim == 2 and x.numel() == 1


def test_properties():
    x = mg.ones(2, 3, requires_grad=True)
    y = x * 2.0
    assert x.is_leaf and not y.is_leaf and y.grad_fn == "mul" and x.grad_fn is None
    assert x.is_floating_point() and not mg.tensor([1]).is_floating_point()
    assert x.is_contiguous() and not x.T.is_contiguous()
    assert len({x, y, x}) == 2, "tensors are hashed by identity"


def test_filling_in_place():
    x = mg.zeros(3)
    assert x.fill_(2.0) is x and x.tolist() == [2.0] * 3 and x.zero_().tolist() == [0.0] * 3
    x.copy_(mg.tensor([1, 2, 3]))
    assert x.tolist() == [1.0, 2.0, 3.0] and x.copy_(mg.ones(1, dtype=mg.float64)).tolist() == [1.0] * 3
    big = mg.zeros(10_000)
    assert abs(big.normal_(3.0, 2.0).mean().item() - 3) < 0.15 and abs(big.numpy().std() - 2) < 0.1
    big.uniform_(-1.0, 1.0)
    assert -1 <= big.min().item() < -0.9 and 0.9 < big.max().item() < 1
    x += 1
    x -= 0.5
    x *= 4
    x /= 3
    x **= 2
    assert x.tolist() == [4.0] * 3


def test_data_replaces_the_array():
    x = mg.ones(2, requires_grad=True)
    x.data = mg.zeros(3)
    assert x.shape == (3,) and x.requires_grad and not x.data.requires_grad
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        (x * 2.0).data = mg.ones(2)


def test_methods_are_the_functions():
    x = mg.tensor([[1.0, 4.0], [9.0, 16.0]])
    for name in (
        "abs",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "sum",
        "mean",
        "relu",
        "tanh",
        "argmax",
        "prod",
        "norm",
        "square",
    ):
        assert getattr(x, name)().tolist() == getattr(mg, name)(x).tolist()
    assert x.add(x).tolist() == (x + x).tolist() and x.pow(2).tolist() == (x**2).tolist()
    assert x.masked_fill(x > 4.0, 0.0).tolist() == [[1.0, 4.0], [0.0, 0.0]]
    assert x.max(x.T).tolist() == [[1.0, 9.0], [9.0, 16.0]] and x.clone().tolist() == x.tolist()
    assert (+x) is x and abs(-x).tolist() == x.tolist() and (x // 3).tolist() == [[0.0, 1.0], [3.0, 5.0]]
    assert (20 // x).tolist() == [[20.0, 5.0], [2.0, 1.0]] and (x % 5).tolist() == [[1.0, 4.0], [4.0, 1.0]]


def test_a_format_applies_to_the_number_of_a_0d_tensor():
    assert f"{mg.tensor(1.23456):.2f}" == "1.23" and f"{mg.tensor(3)}" == "3"
    assert f"{mg.tensor([1.5])}" == "tensor([1.5000])"
    with pytest.raises(TypeError, match="unsupported format string"):
        f"{mg.ones(2):.2f}"


def test_names_of_everyday_scripts():
    x = mg.tensor([1.0, mg.inf, mg.nan])
    assert mg.is_tensor(x) and not mg.is_tensor([1.0])
    assert x.isinf().tolist() == [False, True, False] and x.isfinite().tolist() == [True, False, False]
    assert mg.empty_like(x).shape == x.shape and mg.pi == np.pi
    assert x.to("cpu", non_blocking=True) is x
    assert mg.ones(2).add(mg.ones(2), alpha=3).tolist() == [4.0, 4.0]
    assert mg.ones(2).sub(2, alpha=3).tolist() == [-5.0, -5.0]
    assert mg.cuda.device_count() == sum(d.type == "cuda" for d in mg.available_devices())
    assert mg.cuda.is_available() == (mg.cuda.device_count() > 0)
    mg.cuda.synchronize("cpu")


def test_new_tensors_take_after_another(device):
    x = mg.ones(2, dtype=mg.float64, device=device)
    for made in (x.new_zeros(3), x.new_ones((3,)), x.new_tensor([1, 2, 3])):
        assert (made.shape, made.dtype, made.device) == ((3,), mg.float64, device)
    assert x.new_zeros(1, dtype=mg.int64).dtype == mg.int64 and x.type(mg.float32).dtype == mg.float32
    assert x.is_cuda == (device.type == "cuda") and x.nelement() == 2


def test_numbers_may_be_numpy_s_or_tensors():
    for three in (3, np.int64(3), mg.tensor(3)):
        assert mg.full((2,), three).dtype == mg.arange(three).dtype == mg.int64
        assert mg.full((2,), three).tolist() == [3, 3] and mg.arange(1, three).tolist() == [1, 2]
    assert mg.full((1,), np.float64(0.5)).dtype == mg.float32


def test_positional_arguments_of_to():
    assert mg.ones(2).to(mg.float64, True).dtype == mg.float64
    assert mg.nn.Linear(1, 1).to("sim", mg.float64, False).weight.device.type == "sim"
    with pytest.raises(mg.errors.DeviceError, match="'cuda:99'"):
        mg.ones(2).to(99)


def test_types_have_pytorch_s_names():
    assert mg.ones(1, dtype=np.uint16).type() == "torch.UInt16Tensor"
    assert mg.ones(1).type(mg.LongTensor).type() == "torch.LongTensor"
