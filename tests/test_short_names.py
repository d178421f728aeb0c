"""Names that PyTorch has beside others: small functions, writes in place, typed tensors, random states."""

import inspect
import math

import numpy as np
import pytest

import minigrad as mg

VALUES = np.random.default_rng(4).uniform(0.3, 0.9, (2, 3)).astype(np.float32)


def gradient_of(x, loss):
    x = x.detach().requires_grad_()
    loss(x).backward()
    return x.grad


def accumulated(lib, x, inputs):
    """What backward() adds to the gradients of a leaf and of a tensor in the middle, without another leaf."""
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    middle = a * b
    a.grad = lib.ones_like(a)
    for inner in (a, middle):
        (middle * middle).sum().backward(retain_graph=True, inputs=inputs(inner))
    assert b.grad is None
    return a.grad + (0 if middle.grad is None else middle.grad)


FUNCTIONS = {
    "clamp_min": lambda lib, x: lib.clamp_min(x, 0.5),
    "clamp_max": lambda lib, x: lib.clamp_max(x, 0.5),
    "clone": lambda lib, x: lib.clone(x),
    "detach": lambda lib, x: lib.detach(x),
    "numel": lambda lib, x: lib.tensor(lib.numel(x)),
    "t": lambda lib, x: lib.t(x),
    "t of a vector": lambda lib, x: lib.t(x[0]),
    "dist": lambda lib, x: lib.dist(x, x[:1] * 2, 3),
    "var_mean": lambda lib, x: lib.stack(lib.var_mean(x, 1, correction=0)),
    "std_mean": lambda lib, x: lib.stack(lib.std_mean(x, dim=0)),
    "flipud": lambda lib, x: lib.flipud(x),
    "fliplr": lambda lib, x: lib.fliplr(x),
    "broadcast_tensors": lambda lib, x: sum(lib.broadcast_tensors(x, x[:, :1], x[0])),
    "atleast_1d": lambda lib, x: lib.atleast_1d(x[0, 0]),
    "atleast_2d": lambda lib, x: lib.atleast_2d(x[0]),
    "atleast_3d": lambda lib, x: lib.atleast_3d(x[0]) + lib.atleast_3d(x[0, 0]),
    "atleast_3d of a matrix": lambda lib, x: lib.atleast_3d(x),
    "isin": lambda lib, x: lib.isin(x, x[0]).float() + lib.isin(x, x[1], invert=True).float(),
    "concatenate": lambda lib, x: lib.concatenate([x, x]),
    "reshape_as": lambda lib, x: x.reshape_as(x.T),
    "comparisons": lambda lib, x: x.greater(0.5).float() + 2 * lib.less_equal(x, 0.6).float(),
    "stride": lambda lib, x: lib.tensor([*x.T.stride(), x.stride(0), x.element_size()]),
    "narrow types": lambda lib, x: (x * 9).byte().float() + (x * 9).short().float() + (x * 9).char().float(),
    "typed": lambda lib, x: x.type(lib.DoubleTensor).float() + lib.FloatTensor([1, 2, 3]),
    "mask": lambda lib, x: lib.nn.Transformer.generate_square_subsequent_mask(3).exp() @ x.T,
    "inference_mode": lambda lib, x: lib.inference_mode()(lambda: x * 2)(),
    "axis": lambda lib, x: x.sum(axis=1) + lib.mean(x, axis=-1) + x.std(axis=1) + x.max(axis=1).values,
    "keepdims": lambda lib, x: x / x.sum(axis=1, keepdims=True) + lib.argmax(x, axis=0, keepdims=True),
    "axis of joined": lambda lib, x: lib.cat([lib.stack([x, x], axis=0), x.unsqueeze(axis=0)], axis=0),
    "axis of sums": lambda lib, x: lib.cumsum(x, axis=1) + x.softmax(axis=0) + lib.sort(x, axis=1).values,
    "dtype of sums": lambda lib, x: (x.sum(dtype=lib.float64) + x.cumsum(1, dtype=lib.float64)).float(),
    "softmax": lambda lib, x: lib.log_softmax(x, 0, dtype=lib.float64).float(),
    "cat of nothing": lambda lib, x: lib.cat([lib.tensor([]), x, lib.empty(0), x]),
    "flip": lambda lib, x: x.flip(dims=(0, 1)) - x.flip(0),
    "unfold": lambda lib, x: x.unfold(1, 2, 1) * x.unfold(-1, 2, 1) + x.T.unfold(0, 2, 2)[0, 0],
    "unfolded gradient": lambda lib, x: gradient_of(x, lambda x: (x.unfold(1, 2, 1) ** 2).sum()),
    "memory": lambda lib, x: lib.tensor([x.nbytes, x.itemsize, x.data_ptr() == x.view(-1).data_ptr()]),
    "alpha": lambda lib, x: lib.add(x, x, alpha=2) - lib.sub(x, 1, alpha=3),
    "rounded quotients": lambda lib, x: (
        lib.div(x - 1, 0.3, rounding_mode="floor") + lib.div(x - 1, 0.3, rounding_mode="trunc")
    ),
    "quotients of integers": lambda lib, x: lib.stack(
        [lib.div(lib.tensor([-7, 7]), 2, rounding_mode=mode) for mode in ("floor", "trunc")]
    ),
    "decimals": lambda lib, x: lib.round(x, decimals=2) + x.round(decimals=1) + x.round(),
    "angles": lambda lib, x: lib.deg2rad(x) + lib.rad2deg(x),
    "heaviside": lambda lib, x: lib.heaviside(lib.tensor([-1.0, 0.0, 2.0]), lib.tensor(0.5)),
    "mode": lambda lib, x: lib.mode(lib.tensor([[3, 1, 3, 1], [2, 0, 5, 2]]), 1).values,
    "mode along the first": lambda lib, x: lib.tensor([[3, 1], [3, 0], [1, 0]]).mode(0, keepdim=True)[0],
    "unique_consecutive": lambda lib, x: lib.cat(
        lib.unique_consecutive(lib.tensor([1, 1, 2, 1, 1]), return_inverse=True, return_counts=True)
    ),
    "index_put_": lambda lib, x: x.clone().index_put_(
        (lib.tensor([0, 1]), lib.tensor([2, 2])), lib.tensor(5.0)
    ),
    "index_put_ added": lambda lib, x: x.clone().index_put_(
        (lib.tensor([0, 0]),), lib.tensor([1.0, 2.0, 3.0]), accumulate=True
    ),
    "triangles": lambda lib, x: x.clone().tril_() - 2 * x.clone().triu_(1),
    "asarray": lambda lib, x: lib.asarray([1.5, 2.0]).true_divide(2) + x.argwhere().shape[0] + x.get_device(),
    "size": lambda lib, x: lib.zeros(size=(2, 3)) + lib.ones(size=[3]) + lib.empty(size=(2, 1)).fill_(4),
    "spmm": lambda lib, x: lib.spmm(x, x.T),
    "in place": lambda lib, x: lib.nn.functional.relu_(lib.nn.functional.leaky_relu_(x - 0.6, 0.1) + 0.01),
    "addmm_": lambda lib, x: lib.ones(2, 2).addmm_(x, x.T, beta=2, alpha=-1).addmm_(x, x.T),
    "scatter_reduce_": lambda lib, x: x.clone().scatter_reduce_(1, (x * 3).long(), x, reduce="amax"),
    "diagonal": lambda lib, x: x.clone().fill_diagonal_(7) + x.new_zeros(3, 3).fill_diagonal_(2)[:2],
    "written diagonal": lambda lib, x: lib.diagonal((y := x.clone())[:, :2]).add_(3) + y[:, :2],
    "argwhere": lambda lib, x: lib.argwhere(x > 0.5),
    "like": lambda lib, x: lib.zeros_like(x, memory_format=lib.preserve_format) + lib.randint_like(x, 7, 8),
    "shifts": lambda lib, x: (lib.arange(6).reshape(2, 3) << 2) + (lib.tensor([9, -9, 1]) >> 1) + x,
    "shifted numbers": lambda lib, x: (1 << lib.arange(3)) + (9 >> lib.arange(3)),
    "new axis": lambda lib, x: x[:, lib.newaxis, 1] + x[..., lib.newaxis].shape[-1],
    "extremes so far": lambda lib, x: lib.cat(
        [*lib.cummax(lib.tensor([2.0, 1.0, 2.0, math.nan, 3.0]), 0), *x.cummin(-1)[1]]
    ),
    "old linear algebra": lambda lib, x: (
        (a := lib.eye(3) * 2 + x[:1]).inverse() + a.det() + a.logdet() + a.pinverse() + a.matrix_power(2)
    ),
    "svd": lambda lib, x: (x.svd()[0] * x.svd()[1]) @ x.svd()[2].T + lib.svd(x).S.sum(),
    "masked_scatter_": lambda lib, x: x.clone().masked_scatter_(x > 0.5, lib.arange(6.0)),
    "outside of the sigmoid": lambda lib, x: gradient_of(
        lib.tensor([-0.5, 0.3, 1.5]), lambda x: lib.logit(x).sum()
    ),
    "infinite extreme": lambda lib, x: lib.scatter_reduce(
        (x[0] * math.inf).requires_grad_(), 0, lib.tensor([0]), lib.ones(1), "amax"
    ).detach(),
    "logit of 16 bits": lambda lib, x: lib.tensor(1.0 if lib.logit(x.half()).dtype is lib.float16 else 0.0),
    "bicubic of 16 bits": lambda lib, x: lib.nn.functional.interpolate(
        lib.ones(1, 1, 2, 3, dtype=lib.bfloat16), scale_factor=2, mode="bicubic"
    ).float(),
    "median of equals": lambda lib, x: gradient_of(
        lib.tensor([[3.0, 1.0], [1.0, 1.0], [0.0, 5.0]]), lambda x: (x**2).median() * 6
    ),
    "median of NaN": lambda lib, x: lib.tensor([1.0, math.nan]).requires_grad_().median().detach(),
    "inputs": lambda lib, x: accumulated(lib, x, lambda a: [a]) + accumulated(lib, x, lambda a: a),
    "inputs twice": lambda lib, x: (
        accumulated(lib, x, lambda a: [a, a]) + accumulated(lib, x, lambda a: a.retain_grad() or a)
    ),
    "no part": lambda lib, x: lib.autograd.grad(
        (a := x.clone().requires_grad_()).sum(), [a, x.clone().requires_grad_()], materialize_grads=True
    )[1],
    "force": lambda lib, x: lib.from_numpy(x.clone().requires_grad_().numpy(force=True)),
    "type": lambda lib, x: x.type(x.long().type()) * 1.0,
}
RESHAPED = {
    "unsqueeze_": lambda x: x.unsqueeze_(-1),
    "squeeze_": lambda x: x.unsqueeze_(0).squeeze_(),
    "squeeze_ dim": lambda x: x.unsqueeze_(0).squeeze_(0).squeeze_(1),
    "t_": lambda x: x.t_(),
    "transpose_": lambda x: x.unsqueeze_(0).transpose_(1, 2),
}
WRITES = [
    *("abs_", "neg_", "sign_", "exp_", "log_", "log1p_", "sqrt_", "rsqrt_", "square_", "sin_", "cos_"),
    *("reciprocal_", "floor_", "ceil_", "round_", "sigmoid_", "tanh_", "relu_"),
]
WRITES_WITH_ARGUMENTS = {
    "remainder_": lambda x: x.remainder_(0.25),
    "lerp_": lambda x: x.lerp_(x.detach() * 3, 0.25),
    "addcmul_": lambda x: x.addcmul_(x.detach() + 1, x.detach() + 2, value=0.5),
    "addcdiv_": lambda x: x.addcdiv_(x.detach() + 1, x.detach() + 2, value=0.5),
    "clip_": lambda x: x.clip_(0.4, 0.6),
    "clamp_min_": lambda x: x.clamp_min_(0.4),
    "clamp_max_": lambda x: x.clamp_max_(0.6),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_pytorch_s(name):
    torch = pytest.importorskip("torch")
    ours, theirs = (FUNCTIONS[name](lib, lib.tensor(VALUES)) for lib in (mg, torch))
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", [*WRITES, *WRITES_WITH_ARGUMENTS])
def test_writes_in_place_and_their_gradients_are_pytorch_s(name):
    torch = pytest.importorskip("torch")
    write = WRITES_WITH_ARGUMENTS.get(name, lambda x: getattr(x, name)())
    found = []
    for lib in (mg, torch):
        leaf = lib.tensor(VALUES, requires_grad=True)
        x = leaf * 1
        assert write(x) is x
        (x * x).sum().backward()
        found.append((x.detach().numpy(), leaf.grad.numpy()))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_new_methods_say_what_they_do():
    for name in WRITES:
        assert inspect.getdoc(getattr(mg.Tensor, name)).startswith("self = ")


def test_random_fills():
    mg.manual_seed(0)
    x = mg.empty(20_000).exponential_(2.0).numpy()
    assert (x >= 0).all() and x.mean() == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match="lambd must be above 0, got 0"):
        mg.empty(1).exponential_(0)
    whole = mg.empty(1000).random_(2, 5).numpy()
    assert set(whole) == {2, 3, 4} and set(mg.empty(1000).random_(2).tolist()) == {0, 1}
    assert mg.full((1000,), 0.25).bernoulli().mean().item() == pytest.approx(0.25, abs=0.1)


def test_normal_takes_tensors_and_numbers():
    mg.manual_seed(0)
    means, deviations = mg.arange(3.0), mg.tensor([0.1, 0.2, 0.3])
    drawn = mg.stack([mg.normal(means, deviations) for _ in range(2000)]).numpy()
    np.testing.assert_allclose(drawn.mean(0), [0, 1, 2], atol=0.05)
    np.testing.assert_allclose(drawn.std(0), [0.1, 0.2, 0.3], rtol=0.1)
    assert mg.normal(5.0, 0.0, (2, 3)).tolist() == [[5.0] * 3] * 2
    assert mg.normal(0.0, 1.0, (2,), dtype=mg.float64, requires_grad=True).requires_grad
    assert mg.normal(mg.zeros(2, 1), mg.ones(3)).shape == (2, 3)
    with pytest.raises(TypeError, match="needs a size"):
        mg.normal(0.0, 1.0)
    with pytest.raises(TypeError, match="those of the tensor"):
        mg.normal(means, 1.0, (3,))


def test_typed_tensors():
    assert mg.LongTensor([1, 2]).dtype == mg.int64 and mg.FloatTensor(2, 3).shape == (2, 3)
    assert mg.ByteTensor().shape == (0,)
    assert isinstance(mg.ones(2), mg.FloatTensor) and not isinstance(mg.ones(2), mg.LongTensor)
    assert mg.BoolTensor([0, 2]).tolist() == [False, True]


def test_random_states():
    mg.manual_seed(11)
    mg.rand(3)
    state = mg.get_rng_state()
    first = mg.rand(3), mg.randperm(5)
    mg.set_rng_state(state)
    again = mg.rand(3), mg.randperm(5)
    assert all(mg.equal(a, b) for a, b in zip(first, again, strict=True))
    assert mg.initial_seed() == 11
    mg.cuda.manual_seed_all(12)
    assert mg.initial_seed() == 12


def test_inference_mode_and_detach_in_place():
    x = mg.ones(2, requires_grad=True)
    with mg.inference_mode():
        assert not (x * 2).requires_grad
    with mg.inference_mode(False):
        assert (x * 2).requires_grad
    y = x * 2
    assert y.detach_() is y and y.is_leaf and not y.requires_grad


@pytest.mark.parametrize("name", RESHAPED)
def test_a_tensor_takes_another_shape_in_place(name):
    torch = pytest.importorskip("torch")
    found = []
    for lib in (mg, torch):
        leaf = lib.tensor(VALUES, requires_grad=True)
        y = leaf * 2
        assert RESHAPED[name](y) is y and not y.is_leaf
        (y * lib.arange(y.numel()).reshape(y.shape)).sum().backward()
        found.append((tuple(y.shape), y.detach().numpy(), leaf.grad.numpy()))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(RuntimeError, match="leaf that requires a gradient"):
        RESHAPED[name](mg.tensor(VALUES, requires_grad=True))


def test_switches_of_other_libraries_may_be_set():
    mg.backends.cudnn.benchmark = True
    assert not mg.backends.cudnn.is_available() and not mg.backends.mps.is_available()
    mg.use_deterministic_algorithms(True)
    assert not mg.backends.cuda.matmul.allow_tf32
    mg.backends.cuda.matmul.allow_tf32 = True
    try:
        assert mg.get_float32_matmul_precision() == "high"
    finally:
        mg.backends.cuda.matmul.allow_tf32 = False
    assert mg.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("reduce", ["sum", "prod", "mean", "amax", "amin"])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_scatter_reduce(reduce, include_self, dtype, rng):
    torch = pytest.importorskip("torch")
    x, src = rng.integers(-9, 9, (4, 5)).astype(dtype), rng.integers(-9, 9, (6, 3)).astype(dtype)
    index, found = rng.integers(0, 4, (6, 3)), []
    if dtype == "float64" and not include_self:  # PyTorch counts what it leaves out among equals
        x += 0.5
    for lib in (mg, torch):
        tensors = [lib.tensor(v, requires_grad=dtype == "float64") for v in (x, src)]
        out = lib.scatter_reduce(
            tensors[0], 0, lib.tensor(index), tensors[1], reduce, include_self=include_self
        )
        found.append([out.detach().numpy()])
        if dtype == "float64":
            (out * out).sum().backward()
            found[-1] += [tensor.grad.numpy() for tensor in tensors]
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="reduce must be"):
        mg.scatter_reduce(mg.ones(2), 0, mg.tensor([0]), mg.ones(1), "median")


def test_modules_are_found_where_pytorch_has_them():
    import minigrad.backends.cudnn as cudnn
    from minigrad.cuda.amp import GradScaler, autocast
    from minigrad.distributions.categorical import Categorical
    from minigrad.distributions.normal import Normal
    from minigrad.nn.modules import Linear
    from minigrad.nn.modules.module import Module
    from minigrad.optim.lr_scheduler import LRScheduler, _LRScheduler
    from minigrad.utils.data.dataloader import DataLoader
    from minigrad.utils.data.dataset import Dataset
    from minigrad.utils.data.sampler import SubsetRandomSampler

    assert (Linear, Module) == (mg.nn.Linear, mg.nn.Module) and mg.utils.data.get_worker_info() is None
    assert (Categorical, Normal) == (mg.distributions.Categorical, mg.distributions.Normal)
    assert cudnn is mg.backends.cudnn and _LRScheduler is LRScheduler
    assert (DataLoader, Dataset) == (mg.data.DataLoader, mg.data.Dataset)
    assert SubsetRandomSampler is mg.utils.data.SubsetRandomSampler
    with autocast():
        assert (mg.ones(2, 2) @ mg.ones(2, 2)).dtype == mg.float32  # on the CPU, which is not a card
    assert GradScaler().is_enabled() == mg.cuda.is_available() and mg.cuda.amp.GradScaler is GradScaler


def test_how_tensors_print():
    x, many = mg.tensor([1.23456, 1e-5, 1000.0]), mg.arange(12)
    before = repr(x), repr(many)
    try:
        mg.set_printoptions(precision=2, sci_mode=False, threshold=5, edgeitems=1)
        assert repr(x) == "tensor([   1.23,    0.00, 1000.00])" and repr(many) == "tensor([ 0, ..., 11])"
        mg.set_printoptions(profile="full", sci_mode=True, linewidth=20)
        assert repr(x) == "tensor([1.2346e+00,\n        1.0000e-05,\n        1.0000e+03])"
        with pytest.raises(ValueError, match="profile is one of"):
            mg.set_printoptions(profile="long")
    finally:
        mg.set_printoptions(profile="default")
    assert (repr(x), repr(many)) == before


@pytest.mark.parametrize(
    "values",
    [
        [0.5, 0.25],
        [1.0, 2.0, -3.0],
        [1e-5, 1.0],
        [1e10, 1.0],
        [1.0, 2000.0],
        [0.0, 1e-4],
        [0.0, 9e-5],
        [math.nan, math.inf, 1.5],
        [math.nan, 2.0, 100.0],
        3.14159265,
        5.0,
        [],
        [[], []],
        [[1.0, -22.5], [0.125, 3.0]],
    ],
)
def test_tensors_print_as_in_pytorch(values):
    torch = pytest.importorskip("torch")
    assert repr(mg.tensor(values)) == repr(torch.tensor(values))


def test_the_format_is_that_of_the_elements_shown():
    x = mg.ones(300)
    x[150] = 0.5
    assert repr(x) == "tensor([1., 1., 1., ..., 1., 1., 1.])"


def test_the_default_device():
    assert mg.get_default_device() is mg.device("cpu")
    try:
        mg.set_default_device("sim")
        made = [mg.zeros(2), mg.tensor([1.0]), mg.arange(3), mg.randn(2), mg.nn.Linear(2, 3).weight]
        assert {t.device for t in made} == {mg.device("sim")} and mg.from_numpy(VALUES).device.type == "cpu"
        assert mg.tensor(mg.from_numpy(VALUES)).device.type == mg.ones(2, device="cpu").device.type == "cpu"
    finally:
        mg.set_default_device(None)
    with mg.device("sim") as sim:
        with mg.device("cpu"):
            assert mg.zeros(2).device.type == "cpu"
        with pytest.raises(ZeroDivisionError), sim:
            1 / 0  # noqa: B018
        assert mg.zeros(2).device is sim
    assert mg.zeros(2).device.type == "cpu"


def test_the_accelerator_is_a_card_or_nothing():
    assert mg.accelerator.is_available() == mg.cuda.is_available()
    found = mg.accelerator.current_accelerator()
    assert found is (mg.device("cuda") if mg.cuda.is_available() else None)


def test_functions_of_numpy():
    x = mg.tensor(VALUES)
    for function in (np.sqrt, np.exp, np.abs, np.isnan):
        assert isinstance(function(x), mg.Tensor)
        np.testing.assert_array_equal(function(x).numpy(), function(VALUES))
    assert np.maximum(x, 0.5).equal(x.clamp(min=0.5)) and np.maximum(0.5, x).equal(x.clamp(min=0.5))
    assert [part.tolist() for part in np.modf(mg.tensor([1.5, -2.25]))] == [[0.5, -0.25], [1.0, -2.0]]
    for function in (np.mean, np.sum, np.max, np.min, np.prod):
        assert isinstance(function(x), mg.Tensor)
        np.testing.assert_allclose(function(x).numpy(), function(VALUES), rtol=1e-6)
    assert np.mean(x, axis=1).shape == np.sum(x, axis=1).shape == (2,)
    total = np.zeros((2, 3))
    total += x
    total[:] *= x
    assert isinstance(total, np.ndarray)
    np.testing.assert_allclose(total, VALUES.astype(np.float64) ** 2)
    leaf = mg.tensor(VALUES, requires_grad=True)
    (VALUES * leaf + np.float64(2) * leaf - np.add(VALUES, leaf)).sum().backward()
    np.testing.assert_allclose(leaf.grad.numpy(), VALUES + 1, rtol=1e-6)
    assert np.less(VALUES, x + 1).all() and np.greater(2, x).all() and not np.not_equal(VALUES, x).any()
    with pytest.raises(RuntimeError, match="detach"):
        np.sqrt(leaf)


def test_functions_of_numpy_with_options():
    x, out = mg.tensor(VALUES), np.zeros((2, 3), np.float32)
    assert np.add(VALUES, x, dtype=np.float64).dtype == np.float64
    assert np.add(VALUES, x, out=out, where=VALUES > 0.5) is out
    np.testing.assert_array_equal(out, np.where(VALUES > 0.5, 2 * VALUES, 0))
    assert np.add.at(out, [0, 0], x[0]) is None
    np.testing.assert_allclose(out[0], np.where(VALUES[0] > 0.5, 4, 2) * VALUES[0], rtol=1e-6)
    with pytest.raises(TypeError, match="out must be an array, got a Tensor"):
        np.add(VALUES, VALUES, out=x)
    assert x.equal(mg.tensor(VALUES))


def test_gradcheck_in_autograd():
    x = mg.tensor(VALUES, mg.float64, requires_grad=True)
    wrong = mg.op(lambda xp, x: x * x, name="wrong_square")
    wrong.grad(x=lambda g, y, x: g * x)
    assert mg.autograd.gradcheck(lambda x: x**3, x) and mg.autograd.gradgradcheck(lambda x: x**3, (x,))
    assert not mg.autograd.gradcheck(wrong, (x,), raise_exception=False)
    with pytest.raises(AssertionError):
        mg.autograd.gradcheck(wrong, (x,))


def test_anomaly_mode_for_a_while():
    x = mg.tensor(-1.0, requires_grad=True)
    with mg.autograd.set_detect_anomaly(True), pytest.raises(RuntimeError, match="made a NaN"):
        mg.log(x)
    assert mg.log(x).isnan()


def test_what_pytorch_once_needed():
    x = mg.ones(2)
    variable = mg.autograd.Variable(x, requires_grad=True)
    (variable * 3).sum().backward()
    assert variable.grad.tolist() == [3, 3] and not x.requires_grad
    assert isinstance(x, mg.autograd.Variable) and not isinstance(1.0, mg.autograd.Variable)
    assert x.type() == "torch.FloatTensor" and x.type(x.type()) is x
    for shape, dim in (((3,), 0), ((3, 2), 1), ((2, 3, 2), 0), ((2, 3, 2, 2), 1)):
        y = mg.rand(shape)
        assert mg.equal(mg.nn.Softmax()(y), y.softmax(dim))
    model = mg.nn.DataParallel(mg.nn.Linear(2, 1))
    assert list(model.state_dict()) == ["module.weight", "module.bias"] and model(x).shape == (1,)
    assert mg.compile(model) is model and mg.compile(dynamic=True)(len) is len
    assert mg.nn.init._calculate_fan_in_and_fan_out(mg.ones(2, 3, 4)) == (12, 8)
    mg.set_default_tensor_type("torch.DoubleTensor")
    try:
        assert mg.zeros(1).dtype == mg.float64
    finally:
        mg.set_default_tensor_type(mg.FloatTensor)
    with pytest.raises(TypeError, match="unexpected keyword argument 'axes'"):
        x.sum(axes=1)
    with pytest.raises(TypeError, match="dim must be an integer"):
        x.cumsum()
    with pytest.raises(AttributeError, match="no attribute 'fft': tensors hold real numbers"):
        mg.fft  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Conv3d': layers are for signals and images"):
        mg.nn.Conv3d  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'StrangeTensor'"):
        mg.cuda.StrangeTensor  # noqa: B018


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_transformer_computes_what_pytorch_s_computes(batch_first):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    src, tgt = rng.standard_normal((4, 3, 8)), rng.standard_normal((4, 3, 8))
    outputs, weights = [], None
    for lib in (mg, torch):
        model = lib.nn.Transformer(8, 2, 2, 1, 16, 0.0, "gelu", batch_first=batch_first, dtype=lib.float64)
        weights = weights or {k: v.detach().numpy() for k, v in model.state_dict().items()}
        model.load_state_dict({k: lib.from_numpy(v) for k, v in weights.items()})
        mask = model.generate_square_subsequent_mask(3 if batch_first else 4, dtype=lib.float64)
        outputs.append(model(lib.from_numpy(src), lib.from_numpy(tgt), tgt_mask=mask).detach().numpy())
    np.testing.assert_allclose(*outputs, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="8 features"):
        mg.nn.Transformer(8, 2, 1, 1, 16)(mg.zeros(1, 1, 7), mg.zeros(1, 1, 8))
