"""Captured steps: the same bits as plain ones, on every device; on a card they are recorded and replayed."""

import numpy as np
import pytest

import minigrad as mg
from minigrad.captured import _split
from minigrad.errors import CaptureError, DeviceError

nn = mg.nn


def network(device, dtype):
    """A small network of everything, the same each time."""
    mg.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(3 * 9, 5),
    ).to(device, dtype)


def trainer(device, make_optimizer, dtype=mg.float32):
    """(the step of a new network, its optimizer, the network)."""
    model = network(device, dtype)
    optimizer, criterion = make_optimizer(model.parameters()), nn.CrossEntropyLoss()

    def step(images, labels):
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step, optimizer, model


def batches(count, dtype=np.float32):
    """Batches of two sizes, in the host's memory."""
    rng = np.random.default_rng(3)
    for i in range(count):
        n = 3 if i % 3 == 2 else 4
        yield rng.standard_normal((n, 1, 6, 6)).astype(dtype), rng.integers(0, 5, n)


OPTIMIZERS = {
    "Adam": lambda params: mg.optim.Adam(params, lr=0.01),
    "momentum": lambda params: mg.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "amsgrad": lambda params: mg.optim.AdamW(params, lr=0.01, amsgrad=True),
    "RMSprop": lambda params: mg.optim.RMSprop(params, lr=0.01, momentum=0.5),
    "Adagrad": lambda params: mg.optim.Adagrad(params, lr=0.01, lr_decay=0.1),
    "Lion": lambda params: mg.optim.Lion(params, lr=0.01, weight_decay=0.1),
    "Adamax": lambda params: mg.optim.Adamax(params, lr=0.01),
    "NAdam": lambda params: mg.optim.NAdam(params, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": lambda params: mg.optim.RAdam(params, lr=0.01, betas=(0.5, 0.8)),
}


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        ("Adam", np.float32),
        ("momentum", np.float64),
        ("amsgrad", np.float32),
        ("RMSprop", np.float32),
        ("Adagrad", np.float32),
        ("Lion", np.float32),
        ("Adamax", np.float32),
        ("NAdam", np.float32),
        ("RAdam", np.float32),
    ],
)
def test_bits_are_those_of_plain_steps(device, optimizer, dtype):
    """With a schedule, dropout, running averages, two batch sizes, and inputs from host and device."""
    results = []
    for captured in (False, True):
        step, made, model = trainer(device, OPTIMIZERS[optimizer], np.dtype(dtype))
        schedule = mg.optim.lr_scheduler.ExponentialLR(made, 0.9)
        if captured:
            step = mg.capture(step, device=device, warmup=1)
        losses = []
        for i, (images, labels) in enumerate(batches(6, dtype)):
            on_device = mg.tensor(images, device=device), mg.tensor(labels, device=device)
            losses.append(step(*((images, labels) if captured and i % 2 else on_device)).item())
            schedule.step()
        state = [value.numpy() for value in model.state_dict().values()]
        results.append((losses, state, mg.random.default_generator.get_state()["offset"]))
    (losses, state, offset), (captured_losses, captured_state, captured_offset) = results
    assert losses == captured_losses and len(set(losses)) == 6
    assert offset == captured_offset
    assert all(np.array_equal(a, b) for a, b in zip(state, captured_state, strict=True))
    assert step.graphs == (2 if device.is_card else 0)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_recorded(device, layer):
    """Truncated backpropagation through time, with gradients that are clipped."""
    results = []
    for captured in (False, True):
        mg.manual_seed(1)
        model = nn.ModuleList([nn.Embedding(7, 4), layer(4, 6), nn.Linear(6, 7)]).to(device)
        optimizer = mg.optim.Adam(model.parameters(), lr=0.01)

        def step(x, target, state, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            hidden, state = model[1](model[0](x), state if layer is nn.LSTM else state[0])
            loss = nn.functional.cross_entropy(model[2](hidden).flatten(0, 1), target.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            return loss, state if layer is nn.LSTM else [state, state]

        step = mg.capture(step, device=device, warmup=1) if captured else step
        rng, state, losses = np.random.default_rng(0), [mg.zeros(1, 3, 6, device=device)] * 2, []
        for _ in range(4):
            x, target = (mg.tensor(rng.integers(0, 7, (5, 3)), device=device) for _ in range(2))
            loss, state = step(x, target, state)
            losses.append(loss.item())
            state = [part.detach().clone() for part in state]
        results.append((losses, [value.numpy() for value in model.state_dict().values()]))
    (losses, parameters), (captured_losses, captured_parameters) = results
    assert losses == captured_losses
    assert all(np.array_equal(a, b) for a, b in zip(parameters, captured_parameters, strict=True))


def test_the_outputs_belong_to_the_graph(device):
    @mg.capture(warmup=1)
    def double(pair, *, scale):
        return {"twice": pair["x"] * scale, "rest": (pair["x"] + 1.0, scale, [None])}

    for i in range(4):
        x = mg.full((2, 3), float(i), device=device)
        found = double({"x": x}, scale=2.0)
        assert found["twice"].tolist() == [[2.0 * i] * 3] * 2 and found["twice"].device is device
        assert found["rest"][0].tolist() == [[i + 1.0] * 3] * 2 and found["rest"][1:] == (2.0, [None])
    before, kept = double({"x": x}, scale=2.0)["twice"], found["twice"].clone()
    after = double({"x": x + 1.0}, scale=2.0)["twice"]
    assert after.tolist() == [[8.0] * 3] * 2 and kept.tolist() == [[6.0] * 3] * 2
    if device.is_card:
        assert after is before
    assert double({"x": x}, scale=3.0)["twice"].tolist() == [[9.0] * 3] * 2  # another kind of call
    assert not found["twice"].requires_grad


@pytest.mark.filterwarnings("ignore:capture. step is recorded again")
def test_states_that_are_loaded_are_trained_on(device):
    """The optimizer's state and a parameter's array are others then: the step is recorded again."""
    results = []
    for captured in (False, True):
        step, optimizer, model = trainer(device, OPTIMIZERS["Adam"])
        if captured:
            step = mg.capture(step, warmup=1)
        images, labels = (mg.tensor(a, device=device) for a in next(batches(1)))
        losses = [step(images, labels).item() for _ in range(3)]
        optimizer.load_state_dict(optimizer.state_dict())
        losses += [step(images, labels).item() for _ in range(3)]
        model[-1].weight.data = model[-1].weight.detach() * 0.5
        losses += [step(images, labels).item() for _ in range(3)]
        optimizer.param_groups[0]["weight_decay"] = 0.1
        losses += [step(images, labels).item() for _ in range(3)]
        results.append(losses)
    assert results[0] == results[1] and len(set(results[0])) == 12


LOOKS = {
    "item": lambda x: x * 2.0 if x.sum().item() > 0 else x,
    "bool": lambda x: x * 2.0 if x.sum() > 0 else x,
    "numpy": lambda x: x + float(x.numpy().sum()),
    "tolist": lambda x: (x.tolist(), x)[1],
    "print": lambda x: (repr(x), x)[1],
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_step_cannot_look_at_values(device, look):
    step, x = mg.capture(LOOKS[look], warmup=1), mg.ones(3, device=device)
    for _ in range(3):
        with pytest.raises(CaptureError, match=r"the step has a look at values \(item\(\), tolist\(\), "):
            step(x)
    assert x.sum().item() == 3.0  # outside it can be looked at


def scheduled(x, kind):
    optimizer = mg.optim.SGD([mg.ones(2, device=x.device).requires_grad_()], lr=0.1, momentum=0.9)
    return {
        "StepLR": lambda: mg.optim.lr_scheduler.StepLR(optimizer, 1),
        "OneCycleLR": lambda: mg.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10),
        "ReduceLROnPlateau": lambda: mg.optim.lr_scheduler.ReduceLROnPlateau(optimizer).step(1.0),
    }[kind]()


def scaled_step(x, method):
    w = mg.ones(3, device=x.device).requires_grad_()
    scaler, optimizer = mg.amp.GradScaler(), mg.optim.SGD([w])
    (w * x).sum().backward()
    getattr(scaler, method)(*[optimizer] * (method != "update"))


MASK = np.array([True, False, True])

REFUSED = {
    r"randint\(\), which draws on the CPU": lambda x, mask: mg.randint(0, 3, (3,), device=x.device),
    r"randperm\(\), which draws on the CPU": lambda x, mask: mg.randperm(3, device=x.device),
    r"multinomial\(\), which draws on the CPU": lambda x, mask: mg.multinomial(x, 1),
    "a copy from the CPU": lambda x, mask: mg.tensor([1.0, 2.0], device=x.device),
    r"x\[mask\], whose shape depends on values": lambda x, mask: x[mask],
    r"x\[mask\], ": lambda x, mask: (x * 2.0).reshape(1, 3)[0, mask],
    r"masked_select\(\), whose shape": lambda x, mask: x.masked_select(mask),
    r"nonzero\(\), whose shape": lambda x, mask: x.nonzero(),
    r"unique\(\), whose shape": lambda x, mask: mg.unique(x),
    r"bincount\(\), whose shape": lambda x, mask: mg.bincount(mask.to(mg.int64)),
    r"StepLR\.step\(\), which sets the optimizer's learning rate .* outside": lambda x, mask: scheduled(
        x, "StepLR"
    ),
    r"OneCycleLR\.step\(\)": lambda x, mask: scheduled(x, "OneCycleLR"),
    r"ReduceLROnPlateau\.step\(\)": lambda x, mask: scheduled(x, "ReduceLROnPlateau"),
    r"GradScaler\.step\(\), .* put scale\(\) and backward\(\) into the step": lambda x, mask: scaled_step(
        x, "step"
    ),
    r"GradScaler\.unscale_\(\)": lambda x, mask: scaled_step(x, "unscale_"),
    r"GradScaler\.update\(\)": lambda x, mask: scaled_step(x, "update"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_replay_could_do_is_refused_on_every_device(device, what):
    """In the first call, which runs plainly, and without a card, too."""
    step, x, mask = mg.capture(REFUSED[what]), mg.ones(3, device=device), mg.tensor(MASK, device=device)
    with pytest.raises(CaptureError, match="the step has " + what):
        step(x, mask)


def test_a_step_cannot_copy_between_cpu_and_simulator():
    x = mg.ones(3, device="sim")
    with pytest.raises(CaptureError, match="a look at values"):
        mg.capture(lambda x: x.to("cpu"))(x)
    with pytest.raises(CaptureError, match="a copy from the CPU"):
        mg.capture(lambda x: x + mg.ones(3).to("sim"))(x)


def test_a_scaled_loss(device):
    """scale() and backward() in the step, step() and update() outside; infinite gradients lower the scale."""
    results = []
    for captured in (False, True):
        mg.manual_seed(1)
        model = nn.Linear(3, 2).to(device)
        optimizer = mg.optim.SGD(model.parameters(), lr=0.1)
        scaler = mg.amp.GradScaler(init_scale=2.0**9, growth_interval=2)

        def step(x, model=model, optimizer=optimizer, scaler=scaler):
            optimizer.zero_grad()
            loss = (model(x) ** 2.0).mean()
            scaler.scale(loss).backward()
            return loss

        step = mg.capture(step, device=device, warmup=1) if captured else step
        found = []
        for i in range(8):
            x = mg.full((4, 3), 1e30 if i == 4 else 0.1 + i / 8, device=device)
            found.append((step(x).item(), scaler.get_scale(), model.weight.grad.tolist()))
            scaler.step(optimizer)
            scaler.update()
        results.append((found, model.weight.tolist()))
    assert repr(results[0]) == repr(results[1]) and len({scale for _, scale, _ in results[0][0]}) == 3


def test_random_numbers_differ_from_call_to_call(device):
    def noisy(x):
        return x + mg.randn(3, device=device) * mg.rand(3, device=device)

    x, step = mg.zeros(3, device=device), mg.capture(noisy, warmup=1)
    mg.manual_seed(5)
    plain = [noisy(x).tolist() for _ in range(5)]
    mg.manual_seed(5)
    assert [step(x).tolist() for _ in range(5)] == plain
    assert len({tuple(row) for row in plain}) == 5


def test_gradients_stay_in_grad(device):
    w = mg.ones(3, device=device).requires_grad_()

    @mg.capture(warmup=1)
    def step(x):
        w.grad = None
        (w * x).sum().backward()

    for i in range(4):
        assert step(mg.full((3,), float(i), device=device)) is None
        assert w.grad.tolist() == [i] * 3


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_accumulate_over_calls(device, set_to_none):
    """Forward and backward are captured; optimizer.step() and zero_grad() come after every third call."""
    results = []
    for captured in (False, True):
        model = network(device, mg.float32)
        optimizer, criterion = mg.optim.Adam(model.parameters(), lr=0.01), nn.CrossEntropyLoss()

        def step(images, labels, model=model, criterion=criterion):
            loss = criterion(model(images), labels)
            loss.backward()
            return loss

        step = mg.capture(step, device=device, warmup=1) if captured else step
        losses = []
        for i, (images, labels) in enumerate(batches(15)):
            loss = step(mg.tensor(images[:3], device=device), mg.tensor(labels[:3], device=device))
            losses.append((loss.item(), model[-1].weight.grad.tolist()))
            if i % 3 == 2:
                optimizer.step()
                optimizer.zero_grad(set_to_none)
        results.append((losses, [value.tolist() for value in model.state_dict().values()]))
    assert results[0] == results[1]
    assert step.graphs == ((2 if set_to_none else 1) if device.is_card else 0)


@pytest.mark.parametrize("optimizer", ["Adam", "momentum", "amsgrad"])
def test_momentum_follows_a_schedule(device, optimizer):
    """Without a new graph; a parameter is frozen on the way."""
    results = []
    for captured in (False, True):
        step, made, model = trainer(device, OPTIMIZERS[optimizer])
        schedule = mg.optim.lr_scheduler.OneCycleLR(made, 0.1, total_steps=12)
        step = mg.capture(step, device=device, warmup=1) if captured else step
        images, labels = (mg.tensor(a, device=device) for a in next(batches(1)))
        losses = []
        for i in range(12):
            model[0].weight.requires_grad_(i < 6)
            losses.append(step(images, labels).item())
            schedule.step()
        results.append((losses, [value.tolist() for value in model.state_dict().values()]))
    assert results[0] == results[1] and len(set(results[0][0])) == 12
    assert step.graphs == (1 if device.is_card else 0)


def test_a_replay_is_a_write_to_the_parameters(device):
    step, _, model = trainer(device, OPTIMIZERS["momentum"])
    step = mg.capture(step, warmup=1)
    images, labels = (mg.tensor(a, device=device) for a in next(batches(1)))
    for _ in range(3):
        step(images, labels)
    loss = (model[-1].weight ** 2.0).sum()
    step(images, labels)
    with pytest.raises(RuntimeError, match="was changed in place after the op"):
        loss.backward()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="warmup must be an integer of at least 1, got 0"):
        mg.capture(lambda x: x, warmup=0)
    with pytest.raises(
        DeviceError, match="no tensor among its arguments that tells its device: give device="
    ):
        mg.capture(lambda: None)()
    with pytest.raises(CaptureError, match="an argument requires a gradient"):
        mg.capture(lambda x: x)(mg.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match="unhashable type: 'set'"):
        mg.capture(lambda x, names: x)(mg.ones(2), {"a"})
    assert mg.capture(lambda: mg.ones(2), device="cpu")().tolist() == [1.0, 1.0]


def test_a_number_is_the_same_argument_where_it_has_the_same_bits():
    step = mg.capture(lambda x, scale: x * scale, device="cpu")
    assert step(mg.ones(1), mg.nan).isnan().all()
    kinds = [_split(number, []) for number in (float("nan"), -float("nan"), 0.0, -0.0, 0, False)]
    assert len({*kinds}) == 5 and kinds[0] == kinds[1]


def test_a_captured_step_looks_like_its_function():
    @mg.capture
    def double(x):
        """Twice as much."""
        return x * 2.0

    assert double.__doc__ == "Twice as much." and repr(double) == "<captured step double, 0 graphs>"
    outer = mg.capture(lambda x: double(x) + 1.0)  # inside of another one it is a plain function
    assert [outer(mg.ones(2)).tolist() for _ in range(3)] == [[3.0, 3.0]] * 3


def test_buffers_are_filled_in_place(device):
    """Several writes to one tensor in a captured step are no sign of another tensor in its memory."""
    w = mg.ones(3, device=device, requires_grad=True)

    def step(x):
        out = mg.zeros(2, 3, device=device)
        out[0] = 1.0
        out[1] = w * x
        return (out * out).sum()

    captured = mg.capture(step, warmup=1)
    x = mg.full((3,), 2.0, device=device)
    assert [captured(x).item() for _ in range(3)] == [15.0] * 3
