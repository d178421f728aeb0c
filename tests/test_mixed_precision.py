"""autocast: which op runs in which dtype, what is kept, what the gradients are; and the scale of a loss."""

import math
import threading

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.mixed_precision import mode
from minigrad.nn import functional as F
from minigrad.recording import Recording, recorder

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes")
        return mg.bfloat16
    return mg.float16


def numbers(tensor):
    return tensor.detach().cpu().double().numpy()


# ---- which op runs in which dtype -------------------------------------------------------------------------

SQUARE, IMAGES, WEIGHT = (4, 4), (2, 3, 5, 5), (4, 3, 3, 3)
FIRST = lambda result: result[0] if isinstance(result, tuple) else result  # noqa: E731

LOWER = {
    "@": (lambda a, b: a @ b, (SQUARE, SQUARE)),
    "vector": (lambda a, b: a @ b, ((4,), SQUARE)),
    "mm": (mg.mm, (SQUARE, SQUARE)),
    "bmm": (mg.bmm, ((2, 3, 4), (2, 4, 3))),
    "linear": (F.linear, ((3, 4), (2, 4), (2,))),
    "linear of rows": (F.linear, ((4,), (2, 4), (2,))),
    "conv2d": (F.conv2d, (IMAGES, WEIGHT, (4,))),
    "conv_transpose2d": (F.conv_transpose2d, (IMAGES, (3, 4, 3, 3), (4,))),
    "attention": (F.scaled_dot_product_attention, ((2, 3, 4),) * 3),
}
WIDER = {
    "exp": (mg.exp, (SQUARE,)),
    "log": (mg.log, (SQUARE,)),
    "pow": (lambda x: x**2, (SQUARE,)),
    "rpow": (lambda x: 2.0**x, (SQUARE,)),
    "cosh": (mg.cosh, (SQUARE,)),
    "sum": (lambda x: x.sum(), (SQUARE,)),
    "prod": (lambda x: x.prod(), (SQUARE,)),
    "cumsum": (lambda x: x.cumsum(0), (SQUARE,)),
    "norm": (lambda x: x.norm(), (SQUARE,)),
    "norm 3": (lambda x: x.norm(3), (SQUARE,)),
    "logsumexp": (lambda x: x.logsumexp(1), (SQUARE,)),
    "softmax": (lambda x: x.softmax(1), (SQUARE,)),
    "log_softmax": (lambda x: x.log_softmax(1), (SQUARE,)),
    "softplus": (F.softplus, (SQUARE,)),
    "normalize": (F.normalize, (SQUARE,)),
    "layer_norm": (lambda x: F.layer_norm(x, (4,)), (SQUARE,)),
    "group_norm": (lambda x: F.group_norm(x, 1), (IMAGES,)),
    "mse_loss": (F.mse_loss, (SQUARE, SQUARE)),
    "l1_loss": (F.l1_loss, (SQUARE, SQUARE)),
    "logits": (F.binary_cross_entropy_with_logits, (SQUARE, SQUARE)),
    "cross_entropy": (lambda x: F.cross_entropy(x, mg.tensor([0, 1, 2, 3], device=x.device)), (SQUARE,)),
    "nll_loss": (lambda x: F.nll_loss(x, mg.tensor([0, 1, 2, 3], device=x.device)), (SQUARE,)),
}
UNCHANGED = {
    "add": (lambda x: x + x, (SQUARE,)),
    "scale": (lambda x: x * 2.0, (SQUARE,)),
    "relu": (F.relu, (SQUARE,)),
    "tanh": (mg.tanh, (SQUARE,)),
    "gelu": (F.gelu, (SQUARE,)),
    "mean": (lambda x: x.mean(), (SQUARE,)),
    "amax": (lambda x: x.amax(), (SQUARE,)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), (IMAGES,)),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), (IMAGES,)),
    "dropout": (F.dropout, (SQUARE,)),
    "reshape": (lambda x: x.reshape(-1), (SQUARE,)),
    "concat": (lambda x: mg.concat([x, x]), (SQUARE,)),
}


def apply(function, shapes, dtype, device, rng):
    return function(*(mg.tensor(rng.uniform(0.1, 1.0, s), dtype=dtype, device=device) for s in shapes))


@pytest.mark.parametrize("name", LOWER)
def test_products_run_in_16_bits(device, half, rng, name):
    with mg.autocast(device.type, half):
        for dtype in (mg.float32, half):
            assert apply(*LOWER[name], dtype, device, rng).dtype == half
        assert apply(*LOWER[name], mg.float64, device, rng).dtype == mg.float64  # as it is
    assert apply(*LOWER[name], mg.float32, device, rng).dtype == mg.float32


@pytest.mark.parametrize("name", WIDER)
def test_what_needs_range_or_digits_runs_in_float32(device, half, rng, name):
    with mg.autocast(device.type, half):
        assert apply(*WIDER[name], half, device, rng).dtype == mg.float32
        assert apply(*WIDER[name], mg.float64, device, rng).dtype == mg.float64
    assert apply(*WIDER[name], half, device, rng).dtype == half


@pytest.mark.parametrize("name", UNCHANGED)
def test_others_run_in_the_dtype_of_their_inputs(device, half, rng, name):
    with mg.autocast(device.type, half):
        for dtype in (mg.float32, half):
            assert apply(*UNCHANGED[name], dtype, device, rng).dtype == dtype


def test_inputs_of_two_dtypes(device, half):
    narrow, wide = mg.ones(4, 4, dtype=half, device=device), mg.ones(4, 4, device=device)
    with mg.autocast(device.type, half):
        assert (narrow @ wide).dtype == F.linear(narrow, wide).dtype == half
        assert (narrow + wide).dtype == mg.concat([narrow, wide]).dtype == mg.float32
        assert F.mse_loss(narrow, wide).dtype == mg.float32
    with pytest.raises(TypeError, match="different dtypes"):
        narrow @ wide


def test_lstm_and_batch_norm_with_float32_parameters(device, half, rng):
    lstm, norm = nn.LSTM(4, 3).to(device), nn.BatchNorm2d(3).to(device)
    x, images = (mg.tensor(rng.standard_normal(s), mg.float32, device) for s in ((5, 2, 4), IMAGES))
    with mg.autocast(device.type, half):
        y, (h, c) = lstm(x)
        z = norm(images.to(half))
    assert y.dtype == h.dtype == c.dtype == z.dtype == half
    assert norm.running_mean.dtype == norm.running_var.dtype == mg.float32
    (y.sum() + z.sum()).backward()
    assert all(p.grad.dtype == mg.float32 for p in (*lstm.parameters(), *norm.parameters()))


def test_binary_cross_entropy_of_probabilities_is_refused(half):
    x = mg.full((3,), 0.5)
    with mg.autocast("cpu", half):
        with pytest.raises(RuntimeError, match="with_logits"):
            F.binary_cross_entropy(x, x)
        with mg.autocast("cpu", enabled=False):
            F.binary_cross_entropy(x, x)


# ---- the context ------------------------------------------------------------------------------------------


def product():
    return (mg.ones(2, 2) @ mg.ones(2, 2)).dtype


def test_contexts_nest_and_end(half):
    assert not mg.is_autocast_enabled("cpu")
    with mg.autocast("cpu", half):
        assert mg.is_autocast_enabled("cpu") and not mg.is_autocast_enabled("cuda")
        assert mg.get_autocast_dtype("cpu") == product() == half
        with mg.autocast("cpu", enabled=False):
            assert product() == mg.float32 and not mg.is_autocast_enabled("cpu")
            with mg.autocast("cpu", mg.float16):
                assert product() == mg.float16
            assert product() == mg.float32
        with mg.autocast("sim", mg.float16):
            assert product() == half
        assert product() == half
    with pytest.raises(KeyError), mg.autocast("cpu", half):
        raise KeyError
    assert product() == mg.float32 and mode.autocast is None


def test_as_a_decorator_and_in_other_threads(half):
    context = mg.autocast("cpu", half)
    decorated = context(product)
    assert decorated() == decorated() == half
    seen = []
    with context:
        with context:
            assert product() == half
        assert product() == half
        thread = threading.Thread(target=lambda: seen.append(product()))
        thread.start()
        thread.join()
    assert seen == [mg.float32] and product() == mg.float32


def test_defaults_and_errors():
    assert (
        mg.autocast("cuda").dtype == mg.autocast("sim").dtype == mg.get_autocast_dtype("cuda") == mg.float16
    )
    assert mg.amp.autocast is mg.autocast
    with pytest.raises(ValueError, match="device_type"):
        mg.autocast("tpu")
    for wrong in (mg.float32, mg.float64, mg.int16):
        with pytest.raises(TypeError, match="bfloat16 or float16"):
            mg.autocast("cpu", wrong)


def test_limits(half):
    """What nan_to_num puts for an infinity is a number in this dtype, its largest."""
    limits = mg.finfo(half)
    x = mg.tensor([math.inf, -math.inf, math.nan]).to(half)
    assert mg.nan_to_num(x).float().tolist() == [float(limits.max), float(limits.min), 0.0]


def test_the_default_on_the_processor_is_bfloat16():
    pytest.importorskip("ml_dtypes")
    assert mg.autocast("cpu").dtype == mg.get_autocast_dtype("cpu") == mg.bfloat16


def test_integers_are_left_alone(half):
    with mg.autocast("cpu", half):
        assert mg.tensor([1, 2]).sum().dtype == mg.int64
        assert F.embedding(mg.tensor([0, 1]), mg.ones(3, 2)).dtype == mg.float32


# ---- parameters that are converted once -------------------------------------------------------------------


def conversions(function, tensor, monkeypatch):
    """How often ``function`` converts ``tensor``."""
    cast, count = mg.get_op("cast"), []
    original = cast.reference
    monkeypatch.setattr(cast, "reference", lambda xp, x, **k: count.append(x) or original(xp, x, **k))
    function()
    return sum(x is tensor._array for x in count)


@pytest.mark.parametrize(("cache", "expected"), [(None, 1), (True, 1), (False, 3)])
def test_a_parameter_is_converted_once(half, monkeypatch, cache, expected):
    x, weight = mg.ones(2, 2), mg.ones(2, 2, requires_grad=True)

    def run():
        with mg.autocast("cpu", half, cache_enabled=cache):
            for _ in range(3):
                F.linear(x, weight)
            assert (mode.autocast.cache is None) == (cache is False)

    assert conversions(run, weight, monkeypatch) == expected
    assert conversions(run, x, monkeypatch) == 3  # which is no parameter


def test_inner_contexts_share_what_is_kept(half, monkeypatch):
    x, weight = mg.ones(2, 2, dtype=half), mg.ones(2, 2, requires_grad=True)

    def run():
        with mg.autocast("cpu", half):
            F.linear(x, weight)
            with mg.autocast("cpu", half):
                F.linear(x, weight)
        with mg.autocast("cpu", half):
            F.linear(x, weight)

    assert conversions(run, weight, monkeypatch) == 2


def test_a_parameter_that_is_written_to_is_converted_again(half):
    weight = mg.ones(2, 2, requires_grad=True)
    with mg.autocast("cpu", half):
        assert F.linear(mg.ones(1, 2), weight).tolist() == [[2.0, 2.0]]
        with mg.no_grad():
            weight *= 3.0
        assert F.linear(mg.ones(1, 2), weight).tolist() == [[6.0, 6.0]]
        weight.data = mg.zeros(2, 2)
        assert F.linear(mg.ones(1, 2), weight).tolist() == [[0.0, 0.0]]


def test_what_is_converted_without_a_graph_does_not_stand_for_one_with(half):
    weight = mg.ones(2, 2, requires_grad=True)
    with mg.autocast("cpu", half):
        with mg.no_grad():
            F.linear(mg.ones(1, 2), weight)
        F.linear(mg.ones(1, 2), weight).sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_captured_step_converts_parameters_itself(half, monkeypatch):
    x, weight = mg.ones(2, 2), mg.ones(2, 2, requires_grad=True)

    def run():
        with mg.autocast("cpu", half):
            F.linear(x, weight)
            recorder.current = Recording(x.device)
            try:
                F.linear(x, weight)
                F.linear(x, weight)
            finally:
                recorder.current = None

    assert conversions(run, weight, monkeypatch) == 2


def test_two_losses_share_a_parameter(device, half):
    weight = mg.ones(2, 2, device=device, requires_grad=True)
    x = mg.ones(1, 2, device=device)
    with mg.autocast(device.type, half):
        first, second = F.linear(x, weight).sum(), (F.linear(x, weight) * 2.0).sum()
    first.backward()
    second.backward()
    assert weight.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]


# ---- gradients and training -------------------------------------------------------------------------------


def network(device):
    mg.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 16),
        nn.LayerNorm(16),
        nn.GELU(),
        nn.Linear(16, 3),
    ).to(device)


def batch(device):
    """Images whose class is where they are brightest."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 12)
    images = rng.standard_normal((12, 1, 6, 6)) * 0.3
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 2] += 1.5
    return mg.tensor(images, mg.float32, device), mg.tensor(labels, device=device)


def gradients(device, half, inside=False):
    model, (images, labels) = network(device), batch(device)
    with mg.autocast(device.type, half, enabled=half is not None):
        loss = F.cross_entropy(model(images), labels)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert loss.dtype == mg.float32
    return {name: p.grad for name, p in model.named_parameters()}


def test_gradients_are_float32_and_near_those_without(device, half):
    found, expected = gradients(device, half), gradients(device, None)
    for name, grad in found.items():
        assert grad.dtype == mg.float32
        exact = numbers(expected[name])
        # Half a dozen roundings on the way there and back, each relative to what is summed.
        error = np.linalg.norm(numbers(grad) - exact)
        assert error <= 16 * UNIT[half.name] * max(np.linalg.norm(exact), 1e-2), name
    assert any((numbers(grad) != numbers(expected[name])).any() for name, grad in found.items())


def test_the_walk_back_is_the_same_inside_of_the_context(half):
    device = mg.device("cpu")
    outside, inside = gradients(device, half), gradients(device, half, inside=True)
    for name, grad in outside.items():
        np.testing.assert_array_equal(numbers(grad), numbers(inside[name]))


def train(device, half, steps=8, scaler=None):
    model, (images, labels) = network(device), batch(device)
    optimizer = mg.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with mg.autocast(device.type, half, enabled=half is not None):
            loss = F.cross_entropy(model(images), labels)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        losses.append(loss.item())
    assert all(p.dtype == mg.float32 for p in model.parameters())
    return losses


def test_a_network_trains_as_in_float32(device, half):
    scaler = mg.amp.GradScaler() if half == mg.float16 else None
    expected, found = train(device, None), train(device, half, scaler=scaler)
    assert expected[-1] < 0.3 * expected[0]
    np.testing.assert_allclose(found, expected, atol=8 * UNIT[half.name] * expected[0])


# ---- the scale of a loss ----------------------------------------------------------------------------------


class Setting:
    """A parameter [1, 1] with a gradient that is set by hand, SGD with lr 1, and a scaler with scale 8."""

    def __init__(self, device="cpu", **options):
        self.param = mg.ones(2, device=device, requires_grad=True)
        self.optimizer = mg.optim.SGD([self.param], lr=1.0)
        self.scaler = mg.amp.GradScaler(**{"init_scale": 8.0, "growth_interval": 2, **options})

    def set(self, *grad):
        self.param.grad = mg.tensor(grad, mg.float32, self.param.device)

    def step(self, *grad):
        self.set(*grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.param.tolist(), self.scaler.get_scale()


def test_a_loss_is_scaled_and_gradients_are_unscaled(device):
    s = Setting(device)
    loss = (s.param * 3.0).sum()
    scaled = s.scaler.scale(loss)
    assert scaled.item() == 48.0 and scaled.device is loss.device
    scaled.backward()
    assert s.param.grad.tolist() == [24.0, 24.0]
    s.scaler.unscale_(s.optimizer)
    assert s.param.grad.tolist() == [3.0, 3.0]
    s.scaler.step(s.optimizer)  # which does not unscale again
    assert s.param.tolist() == [-2.0, -2.0]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_steps_with_infinite_gradients_are_left_out_and_the_scale_lowered(device, bad):
    s = Setting(device)
    assert s.step(8.0, bad) == ([1.0, 1.0], 4.0)
    assert s.step(4.0, 4.0) == ([0.0, 0.0], 4.0)
    assert s.step(4.0, 4.0) == ([-1.0, -1.0], 8.0)  # the second in a row without
    assert s.step(8.0, 0.0) == ([-2.0, -1.0], 8.0)
    assert s.step(bad, 0.0) == ([-2.0, -1.0], 4.0)
    assert s.step(0.0, 0.0) == ([-2.0, -1.0], 4.0)  # the count of steps began anew


def test_a_float16_loss_is_scaled_in_float32():
    scaler = mg.amp.GradScaler()
    scaled = scaler.scale(mg.tensor(100.0, mg.float16))
    assert scaled.dtype == mg.float32 and scaled.item() == 100.0 * 2**16


def test_several_losses_and_what_is_none():
    scaler = mg.amp.GradScaler(init_scale=2.0)
    first, (second, third) = scaler.scale((mg.ones(()), [mg.ones(()), mg.ones(())]))
    assert first.item() == second.item() == third.item() == 2.0
    with pytest.raises(TypeError, match="tensor"):
        scaler.scale(1.0)


def test_one_optimizer_of_two_is_left_out():
    s = Setting()
    other = mg.ones(2, requires_grad=True)
    other_optimizer = mg.optim.SGD([other], lr=1.0)
    s.set(np.inf, 0.0)
    other.grad = mg.full((2,), 8.0)
    s.scaler.step(s.optimizer)
    s.scaler.step(other_optimizer)
    s.scaler.update()
    assert s.param.tolist() == [1.0, 1.0] and other.tolist() == [0.0, 0.0] and s.scaler.get_scale() == 4.0


def test_gradients_may_be_limited_between():
    s = Setting()
    s.set(24.0, 32.0)
    s.scaler.unscale_(s.optimizer)
    assert abs(nn.utils.clip_grad_norm_([s.param], 1.0).item() - 5.0) < 1e-6
    s.scaler.step(s.optimizer)
    np.testing.assert_allclose(s.param.tolist(), [0.4, 0.2], rtol=1e-5)


def test_calls_in_the_wrong_order_are_refused():
    s = Setting()
    with pytest.raises(RuntimeError, match="update"):
        s.scaler.update()
    with pytest.raises(RuntimeError, match="gradient"):
        s.scaler.step(s.optimizer)
    s.set(8.0, 8.0)
    s.scaler.unscale_(s.optimizer)
    with pytest.raises(RuntimeError, match="already"):
        s.scaler.unscale_(s.optimizer)
    s.scaler.step(s.optimizer)
    with pytest.raises(RuntimeError, match="already"):
        s.scaler.step(s.optimizer)
    with pytest.raises(RuntimeError, match="after step"):
        s.scaler.unscale_(s.optimizer)
    s.scaler.update()
    s.scaler.unscale_(s.optimizer)
    with pytest.raises(RuntimeError, match="closure"):
        s.scaler.step(s.optimizer, closure=lambda: None)


def test_float16_gradients_are_refused():
    param = mg.ones(2, dtype=mg.float16, requires_grad=True)
    param.grad = mg.ones(2, dtype=mg.float16)
    with pytest.raises(ValueError, match="float16"):
        mg.amp.GradScaler().unscale_(mg.optim.SGD([param], lr=1.0))


def test_setting_the_scale_and_the_factors():
    s = Setting(growth_factor=3.0, backoff_factor=0.25, growth_interval=1)
    assert s.step(0.0, 0.0)[1] == 24.0
    assert s.step(np.inf, 0.0)[1] == 6.0
    s.scaler.update(16.0)
    assert s.scaler.get_scale() == 16.0
    s.scaler.set_growth_factor(2.0)
    s.scaler.set_growth_interval(5)
    s.scaler.set_backoff_factor(0.5)
    assert s.step(np.nan, 0.0)[1] == 8.0
    assert s.scaler.get_growth_factor() == 2.0 and s.scaler.get_growth_interval() == 5
    assert s.scaler.get_backoff_factor() == 0.5
    for wrong in ({"growth_factor": 1.0}, {"backoff_factor": 1.0}, {"growth_interval": 0}):
        with pytest.raises(ValueError, match="must be"):
            mg.amp.GradScaler(**wrong)


def test_the_scale_stays_finite():
    s = Setting(init_scale=2.0**127, growth_interval=1)
    assert s.step(0.0, 0.0)[1] == 2.0**127


def test_the_state_is_saved_and_loaded():
    s = Setting()
    s.step(8.0, 8.0)
    state = s.scaler.state_dict()
    assert state == {
        "scale": 8.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2,
        "_growth_tracker": 1,
    }
    again = Setting(init_scale=1.0)
    again.scaler.load_state_dict(state)
    assert again.step(8.0, 8.0) == ([0.0, 0.0], 16.0)
    with pytest.raises(RuntimeError, match="empty"):
        again.scaler.load_state_dict({})


def test_not_enabled_it_does_nothing():
    s = Setting(enabled=False)
    loss = s.param.sum()
    assert s.scaler.scale(loss) is loss and not s.scaler.is_enabled() and s.scaler.get_scale() == 1.0
    assert s.step(np.inf, 1.0)[0] == [-np.inf, 0.0]
    s.scaler.unscale_(s.optimizer)
    assert s.scaler.state_dict() == {}
    s.scaler.load_state_dict({})


def test_the_optimizers_result_is_returned():
    s = Setting()

    class Telling(mg.optim.SGD):
        def step(self, closure=None):
            return "stepped"

    optimizer = Telling([s.param], lr=1.0)
    s.set(1.0, 1.0)
    assert s.scaler.step(optimizer) == "stepped"
    s.scaler.update()
    s.set(np.inf, 1.0)
    assert s.scaler.step(optimizer) is None


def test_the_scale_goes_as_in_pytorch(rng):
    torch = pytest.importorskip("torch")
    options = {"init_scale": 64.0, "growth_factor": 3.0, "backoff_factor": 0.25, "growth_interval": 3}
    theirs = torch.amp.GradScaler("cpu", **options)
    theirs.scale(torch.ones(()))  # which makes its own tensor of the scale
    param = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=1.0)
    ours = Setting(**options)
    for _ in range(40):
        grad = rng.standard_normal(2).astype(np.float32)
        grad[0] = rng.choice([grad[0], np.inf, np.nan], p=[0.8, 0.1, 0.1])
        param.grad = torch.tensor(grad)
        theirs.step(optimizer)
        theirs.update()
        found, scale = ours.step(*grad)
        assert scale == theirs.get_scale()
        np.testing.assert_allclose(found, param.tolist(), rtol=1e-6)
    assert ours.scaler.state_dict() == theirs.state_dict()
