"""Recorded steps, without a card: what is copied, counted, watched, refused. The stand-in replays nothing."""

import contextlib
import warnings

import numpy as np
import pytest

import minigrad as mg
from minigrad import captured, optim
from minigrad.data import transforms as T
from minigrad.errors import CaptureError

X, Y = np.arange(20, dtype=np.float32).reshape(4, 5), np.array([0, 1, 2, 1])


def trainer(make_optimizer=mg.optim.Adam):
    """(a step on the card, its optimizer, its model)."""
    model = mg.nn.Sequential(mg.nn.Linear(5, 8), mg.nn.Dropout(0.3), mg.nn.Linear(8, 3)).to("cuda")
    optimizer, criterion = make_optimizer(model.parameters(), lr=1e-2), mg.nn.CrossEntropyLoss()

    def step(x, y):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step, optimizer, model


def of_the_graph(cupy):
    """What has happened since the last call, but for what has to do with none of the graphs."""
    names = [event[0] for event in cupy.events]
    cupy.events.clear()
    return [
        name for name in names if name in ("begin capture", "end capture", "launch graph", "set", "copyto")
    ]


def test_the_calls_of_a_step(cupy):
    step, optimizer, model = trainer()
    step = mg.capture(step, device="cuda")
    state = optimizer.state
    before = mg.random.default_generator.get_state()["offset"]
    for count in (1, 2):
        step(X, Y)
        assert step.graphs == 0 and state[model[0].weight]["step"] == count and of_the_graph(cupy) == []
    recorded = step(X, Y)
    assert of_the_graph(cupy) == ["set", "set", "begin capture", "end capture", "launch graph"]
    assert recorded.device.is_card and not recorded.requires_grad
    assert step(mg.tensor(X).to("cuda"), Y) is recorded
    assert of_the_graph(cupy) == ["copyto", "set", "launch graph"]
    assert step.graphs == 1 and state[model[0].weight]["step"] == 4
    assert mg.random.default_generator.get_state()["offset"] == before + 4
    step(X[:2], Y[:2])
    assert step.graphs == 1  # another shape has steps of warm-up of its own
    step.reset()
    assert step.graphs == 0


def live_numbers(step):
    """What stands where the graph's kernels read the numbers that change."""
    (graph,) = step._graphs.values()
    return graph.recording.numbers._words.view(np.ndarray)


def test_numbers_are_those_of_the_step_to_come(cupy):
    mg.manual_seed(11)
    step, optimizer, _ = trainer()
    step = mg.capture(step, device="cuda", warmup=1)
    offsets = []
    for i in range(1, 5):
        optimizer.param_groups[0]["lr"] = 0.1 / i
        offsets.append(mg.random.default_generator.get_state()["offset"])
        step(X, Y)
        if i > 1:
            seed, offset = live_numbers(step)[:2]
            assert (seed, offset) == (11, offsets[-1])
            factors = live_numbers(step)[2:6].view(np.float64)
            assert tuple(factors) == (1, 0.1 / i / (1 - 0.9**i), np.sqrt(1 - 0.999**i), 1 - 0.9)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda p, lr: optim.Adam(p, lr, amsgrad=True),
            [0.2 / (1 - 0.9**3), np.sqrt(1 - 0.999**3), 1 - 0.9],
        ),
        (lambda p, lr: optim.RMSprop(p, lr, momentum=0.9, centered=True), [0.2]),
        (lambda p, lr: optim.Adagrad(p, lr, lr_decay=0.5), [0.2 / (1 + 2 * 0.5)]),
        (optim.Adadelta, [0.2]),
        (lambda p, lr: optim.Lion(p, lr, weight_decay=0.5), [0.2, 1 - 0.2 * 0.5]),
        (lambda p, lr: optim.Muon(p, lr, momentum=0.5), [0.2 * np.sqrt(8 / 5), 1 - 0.2 * 0.1]),
    ],
)
def test_rates_and_counts_of_every_optimizer_are_live(cupy, make, expected):
    model = mg.nn.Linear(5, 8, bias=False).to("cuda")
    optimizer = make(model.parameters(), lr=0.1)

    def plain(x):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    step = mg.capture(plain, device="cuda", warmup=1)
    for _ in range(2):
        step(X)
    optimizer.param_groups[0]["lr"] = 0.2
    step(X)
    assert step.graphs == 1
    assert live_numbers(step)[: len(expected)].view(np.float64).tolist() == expected


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (optim.Adam, lambda options, lr: 1 - options["betas"][0]),
        (lambda p, lr: optim.AdamW(p, lr, amsgrad=True), lambda options, lr: 1 - options["betas"][0]),
        (lambda p, lr: optim.SGD(p, lr, momentum=0.9), lambda options, lr: options["momentum"]),
    ],
)
@pytest.mark.parametrize("schedule", ["OneCycleLR", "CyclicLR"])
def test_a_schedule_of_momentum_is_no_reason_to_record_again(cupy, make, first, schedule):
    """The first beta and the momentum are live, as the rate is."""
    step, optimizer, _ = trainer(make)
    step = mg.capture(step, device="cuda", warmup=1)
    schedules = mg.optim.lr_scheduler
    schedule = (
        schedules.OneCycleLR(optimizer, 0.1, total_steps=12)
        if schedule == "OneCycleLR"
        else schedules.CyclicLR(optimizer, 0.01, 0.1, step_size_up=4)
    )
    found = set()
    for i in range(12):
        options = dict(optimizer.param_groups[0])
        step(X, Y)
        if i:
            found.add(first(options, options["lr"]))
            assert first(options, options["lr"]) in live_numbers(step)[2:].view(np.float64)
        schedule.step()
    names = of_the_graph(cupy)
    assert len(found) > 4 and names.count("begin capture") == 1 and names.count("launch graph") == 11


def test_the_scale_of_a_loss_is_one_place_in_memory(cupy):
    """Which each replay reads: the scale may change between two of them."""
    scaler = mg.amp.GradScaler(init_scale=8.0)
    step = mg.capture(lambda x: scaler.scale(x), device="cuda", warmup=1)
    for _ in range(2):
        assert step(mg.ones(())).item() == 8.0
    (graph,) = step._graphs.values()
    (scale,) = scaler._scale_tensors.values()
    scaler.update(4.0)
    assert scale.item() == 4.0 and scaler._scale_tensor(scale.device) is scale
    assert any(kept is scale._array for kept in graph.recording.kept.values())
    step(mg.ones(()))
    assert [*step._graphs.values()] == [graph]
    other = mg.amp.GradScaler()
    late = mg.capture(lambda x: other.scale(x) if is_recorded(cupy) else x, device="cuda", warmup=1)
    late(mg.ones(()))
    with pytest.raises(CaptureError, match=r"the first GradScaler\.scale\(\) on its device"):
        late(mg.ones(()))


def is_recorded(cupy):
    """Whether a graph is being made now."""
    names = [event[0] for event in cupy.events if event[0] in ("begin capture", "end capture")]
    return names[-1:] == ["begin capture"]


def test_sgd_has_one_live_number(cupy):
    step, optimizer, _ = trainer(mg.optim.SGD)
    step = mg.capture(step, device="cuda", warmup=1)
    for lr in (0.1, 0.2, 0.3):
        optimizer.param_groups[0]["lr"] = lr
        step(X, Y)
    assert live_numbers(step)[2:3].view(np.float64) == 0.3


def test_images_are_augmented_in_a_graph(cupy):
    """Random numbers are new at each replay; constants stay on the card."""
    transforms = [
        *(T.ToTensor(), T.Resize((9, 8)), T.RandomResizedCrop((6, 7)), T.RandomHorizontalFlip()),
        T.RandomCrop(6, padding=2, padding_mode="reflect"),
        *(T.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), 5, "bilinear"), T.ColorJitter(0.1, 0.1, 0.1, 0.1)),
        *(T.RandomErasing(), T.RandomErasing(value="random"), T.Normalize((0.5,), (0.2,))),
    ]
    step = mg.capture(T.Compose(transforms), device="cuda", warmup=1)
    images = mg.arange(4 * 3 * 6 * 7).to(np.uint8).reshape(4, 3, 6, 7).to("cuda")
    step(images)
    before = mg.random.default_generator.get_state()["offset"]
    step(images)
    drawn = mg.random.default_generator.get_state()["offset"] - before
    for _ in range(2):
        step(images)
    assert step.graphs == 1 and of_the_graph(cupy).count("launch graph") == 3
    assert drawn == 10 and mg.random.default_generator.get_state()["offset"] == before + 3 * drawn


CHANGES = {
    "an array of a parameter": lambda optimizer, model: setattr(
        model[0].weight, "data", model[0].weight.detach() * 1.0
    ),
    "an option": lambda optimizer, model: optimizer.param_groups[0].update(betas=(0.9, 0.99)),
    "a state": lambda optimizer, model: optimizer.load_state_dict(optimizer.state_dict()),
    "a group": lambda optimizer, model: optimizer.add_param_group(
        {"params": [mg.ones(2, device="cuda").requires_grad_()]}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_recorded_again(cupy, change):
    step, optimizer, model = trainer()
    step = mg.capture(step, device="cuda", warmup=1)
    for _ in range(3):
        step(X, Y)
    assert of_the_graph(cupy).count("begin capture") == 1
    CHANGES[change](optimizer, model)
    step(X, Y)
    assert "launch graph" not in of_the_graph(cupy)  # a plain step first
    step(X, Y)
    assert "begin capture" in of_the_graph(cupy)
    optimizer.param_groups[0]["lr"] = 0.5
    step(X, Y)
    assert "begin capture" not in of_the_graph(cupy)  # a rate is no change


def test_an_option_that_changes_at_each_step_is_named_in_a_warning(cupy):
    step, optimizer, _ = trainer()
    step = mg.capture(step, device="cuda", warmup=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(20):
            optimizer.param_groups[0]["eps"] = 1e-8 * (1 + i // 2)
            step(X, Y)
    (warning,) = caught
    assert "between its calls 'eps' of the optimizer Adam has changed" in str(warning.message)
    assert str(warning.message).startswith("capture: step is recorded again and again")
    assert warning.filename == __file__


def test_what_is_frozen_or_replaced_is_recorded_again(cupy):
    step, _, model = trainer(mg.optim.SGD)
    step = mg.capture(step, device="cuda", warmup=1)

    def is_recorded_anew():
        of_the_graph(cupy)
        step(X, Y)
        plain = "launch graph" not in of_the_graph(cupy)
        step(X, Y)
        return plain and "begin capture" in of_the_graph(cupy)

    assert is_recorded_anew()
    for required in (False, True):
        model[0].weight.requires_grad_(required)
        assert is_recorded_anew()
        assert not is_recorded_anew()
    model[0].weight, model[0].bias = (mg.nn.Parameter(p.detach() * 1.0) for p in model[0].parameters())
    step = mg.capture(lambda x, y: model(x), device="cuda", warmup=1)
    assert is_recorded_anew()
    model[0].bias = mg.nn.Parameter(mg.zeros(8, device="cuda"))
    assert is_recorded_anew()


def gradient_steps(warmup):
    """(a captured step of a leaf w whose gradient is x, w)."""
    w = mg.ones(3, device="cuda").requires_grad_()

    @mg.capture(device="cuda", warmup=warmup)
    def step(x):
        (w * x).sum().backward()

    return step, w


@pytest.mark.parametrize("warmup", [1, 2])
def test_gradients_that_accumulate(cupy, warmup):
    """A graph for where there is none yet and one for where there is; its memory goes back into ``grad``."""
    step, w = gradient_steps(warmup)
    kinds = []
    for i in range(15):
        of_the_graph(cupy)
        if i % 3 == 0:
            w.grad = None
        there = w.grad
        step(np.full(3, 1.0 + i, np.float32))
        names = of_the_graph(cupy)
        assert w.grad is not None and (there is None or w.grad._array is there._array)
        kinds.append(
            "record" if "begin capture" in names else "replay" if "launch graph" in names else "plain"
        )
    assert step.graphs == 2 and kinds.count("record") == 3 and kinds[-6:] == ["replay"] * 6
    w.grad = mg.ones(3, device="cuda")  # in memory that no graph knows
    step(np.ones(3, np.float32))
    assert of_the_graph(cupy) == []


def test_gradients_set_to_zero_outside_stay_where_they_are(cupy):
    step, w = gradient_steps(1)
    optimizer = mg.optim.SGD([w], lr=0.1)
    for i in range(5):
        step(np.ones(3, np.float32))
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        if i == 1:
            before = w.grad._array
    assert step.graphs == 1 and w.grad._array is before
    assert of_the_graph(cupy).count("begin capture") == 1


def test_gradients_that_the_step_forgets_itself(cupy):
    """What is done to them between two calls is no reason for another graph; they are back after a replay."""
    w = mg.ones(3, device="cuda").requires_grad_()

    @mg.capture(device="cuda", warmup=1)
    def step(x):
        w.grad = None
        (w * x).sum().backward()

    for i in range(5):
        step(np.ones(3, np.float32))
        assert w.grad is not None
        w.grad = None if i > 1 else w.grad
    assert of_the_graph(cupy).count("begin capture") == 1 + (step.graphs - 1) and step.graphs <= 2


def test_a_step_with_gradients_from_outside(cupy):
    """An optimizer's step reads the memory that it was recorded with; others are not passed over."""
    w = mg.ones(3, device="cuda").requires_grad_()
    optimizer = mg.optim.SGD([w], lr=1.0)
    step, launched = mg.capture(lambda: optimizer.step(), device="cuda", warmup=1), []
    for _ in range(3):
        w.grad = mg.ones(3, device="cuda")
        step()
        launched.append("launch graph" in of_the_graph(cupy))
    assert launched == [False, True, False]  # the recorded run; then there is another gradient


@pytest.mark.parametrize("make", [optim.Adam, optim.NAdam, lambda p, lr: optim.Adam(p, lr, amsgrad=True)])
def test_a_step_that_cannot_be_recorded_has_not_been(cupy, make):
    """Counts, random numbers and gradients are those of before: no kernel has run."""
    plain, optimizer, model = trainer(make)
    looks = []

    def step(x, y):
        loss = plain(x, y)
        return loss.item() if looks else loss

    step = mg.capture(step, device="cuda", warmup=1)
    step(X, Y)
    weight = model[0].weight
    generator = mg.random.default_generator
    before = dict(optimizer.state[weight]), weight.grad, generator.get_state()["offset"]
    looks.append(True)
    with pytest.raises(CaptureError, match="a look at values"):
        step(X, Y)
    assert (optimizer.state[weight], weight.grad, generator.get_state()["offset"]) == before


def test_a_graph_keeps_the_memory_that_it_reads(cupy):
    table = [mg.ones(3, device="cuda")]
    step = mg.capture(lambda x: x * table[0], device="cuda", warmup=1)
    step(mg.zeros(3))
    step(mg.zeros(3))
    (graph,) = step._graphs.values()
    assert any(kept is table[0]._array for kept in graph.recording.kept.values())


REFUSED = {
    "a copy from the CPU": lambda x: x + mg.ones(3).to("cuda"),
    "a look at values": lambda x: x.to("cpu"),
    "synchronize": lambda x: mg.cuda.synchronize(),
    r"the first step of a parameter of shape \(3,\)": lambda x: first_step(x),
}


def first_step(x):
    """A step of an optimizer that has made none yet."""
    w = mg.ones(3, device="cuda").requires_grad_()
    (w * x).sum().backward()
    mg.optim.Adam([w]).step()


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_replayed_is_refused(cupy, what):
    step, x = mg.capture(REFUSED[what], warmup=1), mg.ones(3, device="cuda")
    for _ in range(2):
        if "first step" in what and not step._runs:
            step(x)  # which is right in a plain step
        with pytest.raises(CaptureError, match=what):
            step(x)
    assert step.graphs == 0
    events = of_the_graph(cupy)
    assert events.count("begin capture") == events.count("end capture") > 0
    assert (x + 1.0).sum().item() == 6.0  # nothing is recorded any more


def test_an_op_that_cuda_does_not_record_is_named(cupy):
    error = cupy.cuda.runtime.CUDARuntimeError(900, "cudaErrorStreamCaptureUnsupported")

    def step(x):
        y = mg.exp(x)
        cupy.error = error if "begin capture" in [event[0] for event in cupy.events] else None
        try:
            return mg.concat([y, y])
        finally:
            cupy.error = None

    step, x = mg.capture(step, warmup=1), mg.ones(3, device="cuda")
    step(x)
    with pytest.raises(
        CaptureError, match="op 'concat', or what comes after it, cannot be recorded on cuda:0: cudaE"
    ):
        step(x)


def test_an_error_of_the_step_itself_stays_what_it_is(cupy):
    calls = []

    def step(x):
        calls.append(x)
        if len(calls) > 1:
            raise KeyError("mine")
        return x

    step, x = mg.capture(step, warmup=1), mg.ones(3, device="cuda")
    step(x)
    with pytest.raises(KeyError, match="mine"):
        step(x)


def test_of_many_shapes_the_last_ones_stay(cupy, monkeypatch):
    monkeypatch.setattr(captured, "MAX_GRAPHS", 2)
    step = mg.capture(lambda x: x + 1.0, warmup=1)
    for n in (1, 2, 3):
        for _ in range(2):
            step(mg.ones(n, device="cuda"))
    assert step.graphs == 2
    of_the_graph(cupy)
    step(mg.ones(2, device="cuda"))
    assert "begin capture" not in of_the_graph(cupy)
    step(mg.ones(1, device="cuda"))
    assert "begin capture" in of_the_graph(cupy)


def test_inputs_that_lie_channels_last_stay_so(cupy):
    """From host and card; images in C order have a graph of their own."""
    step = mg.capture(lambda x: x + 1.0, device="cuda", warmup=1)
    x = mg.tensor(np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4))
    for count, memory_format in enumerate((mg.channels_last, mg.contiguous_format), 1):
        images = x.contiguous(memory_format=memory_format)
        step(images)
        for given in (images, images.numpy(), images.to("cuda")):
            step(given)
            (own,) = [*step._graphs.values()][-1]._inputs
            assert step.graphs == count and own.is_contiguous(memory_format=memory_format)
            assert np.array_equal(own.cpu().numpy(), x.numpy())


def test_memory_of_the_host_stays_until_it_has_been_read(cupy):
    step = mg.capture(lambda x: x + 1.0, device="cuda", warmup=1)
    for i in range(5):
        step(np.full(3, float(i), np.float32))
        (graph,) = step._graphs.values() if step.graphs else [None]
        if graph is not None:
            assert [source[0] for _, source in graph._in_flight] == [float(i)]  # the others are done
            if i == 3:
                graph._in_flight[0][0].done = False
                step(np.full(3, 9.0, np.float32))
                assert [source[0] for _, source in graph._in_flight] == [3.0, 9.0]
                graph._in_flight[0][0].done = True


def test_the_second_card(cupy, card_of):
    step = mg.capture(lambda x: x * 2.0, device="cuda:1", warmup=1)
    for i in range(3):
        found = step(mg.full((2,), float(i), device=("cuda:1", "cuda:0", "cpu")[i]))
        assert card_of(found) == 1 and mg.cuda.current_device() == 0


def test_contexts_around_the_call_have_graphs_of_their_own(cupy):
    step, x = mg.capture(lambda x: x @ x, warmup=1), mg.ones(2, 2, device="cuda")
    for context in (mg.no_grad, mg.enable_grad, lambda: mg.autocast("cuda", mg.float16)):
        for _ in range(2):
            with context():
                found = step(x)
    assert step.graphs == 3 and found.dtype == mg.float16


def test_settings_for_kernels_have_graphs_of_their_own(cupy):
    step, x = mg.capture(lambda x: x @ x, warmup=1), mg.ones(2, 2, device="cuda")
    before = mg.get_float32_matmul_precision()
    for context in (
        contextlib.nullcontext,
        lambda: mg.use_kernel("matmul", "naive", "cuda"),
        lambda: mg.use_kernel("matmul", lambda out, a, b: None, "cuda"),
        lambda: mg.convolution_precision("highest"),
    ):
        with context():
            for _ in range(2):
                step(x)
    assert step.graphs == 4
    try:
        mg.set_float32_matmul_precision("high")
        for _ in range(2):
            step(x)
    finally:
        mg.set_float32_matmul_precision(before)
    assert step.graphs == 5
    of_the_graph(cupy)
    step(x)
    assert step.graphs == 5 and "begin capture" not in of_the_graph(cupy)


def test_a_capture_that_ends_in_an_error_is_explained(cupy):
    def step(x):
        if "begin capture" in [event[0] for event in cupy.events]:
            cupy.error = cupy.cuda.runtime.CUDARuntimeError(901, "cudaErrorStreamCaptureInvalidated")
        return x

    step, x = mg.capture(step, warmup=1), mg.ones(3, device="cuda")
    step(x)
    with pytest.raises(CaptureError, match="cannot be recorded on cuda:0: cudaErrorStreamCaptureInvalidated"):
        step(x)


def test_each_function_in_the_place_of_a_kernel_has_a_graph_of_its_own(cupy):
    """Though one takes the address of another that is gone."""
    step, x, ran = mg.capture(mg.nn.functional.relu, warmup=1), mg.ones(4, device="cuda"), []
    for number in range(3):

        def run(out, x, number=number):
            ran.append(number)

        with mg.use_kernel("relu", run, device="cuda"):
            for _ in range(4):
                step(x)
    assert set(ran) == {0, 1, 2}


def test_a_state_that_was_loaded_twice_is_noticed(cupy):
    step, optimizer, _ = trainer()
    captured_step = mg.capture(step, warmup=1)
    x, y = mg.tensor(X, device="cuda"), mg.tensor(Y, device="cuda")
    for _ in range(3):
        captured_step(x, y)
    assert of_the_graph(cupy).count("launch graph") == 2
    for _ in range(2):
        optimizer.load_state_dict(optimizer.state_dict())
    captured_step(x, y)
    assert not of_the_graph(cupy).count("launch graph"), "the graph has the state of before"
