"""Optimizers and schedules beside PyTorch's: the same steps, the same rates, and states that fit both."""

import copy

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, optim
from minigrad.optim import lr_scheduler

torch = pytest.importorskip("torch")

OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.2, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.3, "betas": (0.5, 0.9), "eps": 1e-3}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.3, "maximize": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.3}),
    ("RMSprop", {}),
    ("RMSprop", {"centered": True, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9, "alpha": 0.9, "eps": 1e-4}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.5, "weight_decay": 0.1, "maximize": True}),
    ("Adamax", {"lr": 0.1}),
    ("Adamax", {"betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("NAdam", {"lr": 0.1}),
    (
        "NAdam",
        {"betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.1, "momentum_decay": 0.2, "maximize": True},
    ),
    ("NAdam", {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.1}),  # five steps do not reach the division
    ("RAdam", {"betas": (0.5, 0.6), "weight_decay": 0.1, "maximize": True}),
    (
        "RAdam",
        {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
]


class Both:
    """One parameter, and an optimizer for it, here and in PyTorch."""

    def __init__(self, name, options, shape, dtype=np.float64):
        value = np.random.default_rng(9).standard_normal(shape).astype(dtype)
        self.ours, self.theirs = nn.Parameter(mg.tensor(value)), torch.nn.Parameter(torch.tensor(value))
        self.mine = getattr(optim, name)([self.ours], **options)
        self.reference = getattr(torch.optim, name)([self.theirs], **options)

    def step(self, grad):
        self.ours.grad, self.theirs.grad = mg.tensor(grad), torch.tensor(grad)
        self.mine.step()
        self.reference.step()

    def values(self):
        return self.ours.detach().numpy(), self.theirs.detach().numpy()


@pytest.fixture
def scalars_in_float64():
    """PyTorch keeps the product of NAdam's momenta in its default dtype, whatever that of the parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("scalars_in_float64")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(5, 7), (), (0, 3), (40000,)])
def test_steps(name, options, dtype, shape, rng):
    both = Both(name, options, shape, dtype)
    # Each step rounds a few times: what a parameter is made of is at most about 4 here.
    tolerance = 5 * 20 * np.finfo(dtype).eps
    for _ in range(5):
        both.step(rng.standard_normal(shape).astype(dtype))
    np.testing.assert_allclose(*both.values(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_muon_but_for_the_rounding_of_bfloat16(adjust, shape, rng):
    both = Both("Muon", {"lr": 0.1, "adjust_lr_fn": adjust}, shape, np.float32)
    for _ in range(3):
        both.step(rng.standard_normal(shape).astype(np.float32))
    ours, theirs = both.values()
    # PyTorch's iteration has 8 bits: about 1 % of directions whose norm is about the root of the rank.
    np.testing.assert_allclose(ours, theirs, atol=3 * 0.1 * 0.05 * 2)


@pytest.mark.usefixtures("scalars_in_float64")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_pytorchs_state_is_understood(name, options, rng):
    both = Both(name, options, (5, 7))
    for _ in range(3):
        both.step(rng.standard_normal((5, 7)))
    resumed = nn.Parameter(mg.tensor(both.theirs.detach().numpy().copy()))
    optimizer = getattr(optim, name)([resumed])
    optimizer.load_state_dict(as_minigrad(both.reference.state_dict()))
    grad = rng.standard_normal((5, 7))
    both.step(grad)
    resumed.grad = mg.tensor(grad)
    optimizer.step()
    np.testing.assert_allclose(resumed.detach().numpy(), both.values()[1], rtol=1e-13, atol=1e-14)
    ours, theirs = optimizer.state_dict()["state"], both.reference.state_dict()["state"]
    assert {key for key, value in theirs.get(0, {}).items() if value is not None} == set(ours.get(0, {}))


def as_minigrad(value):
    if isinstance(value, torch.Tensor):
        return mg.tensor(value.numpy().copy())
    if isinstance(value, dict):
        return {key: as_minigrad(part) for key, part in value.items()}
    return [as_minigrad(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", sorted({name for name, _ in OPTIMIZERS} | {"Muon"}))
def test_names_order_and_defaults_of_arguments(name):
    import inspect

    ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (optim, torch.optim))
    positional = [p.name for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]
    for parameter in ours.values():
        assert parameter.default == theirs[parameter.name].default, parameter


# ---- schedules --------------------------------------------------------------------------------------------

HALVES = [0.5, 0.1, 1.0]


def swa_utils_of(schedules):
    return (mg if schedules is lr_scheduler else torch).optim.swa_utils


SCHEDULES = {
    "StepLR": lambda m, o: m.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda m, o: m.MultiStepLR(o, [2, 5, 5], 0.5),
    "ConstantLR": lambda m, o: m.ConstantLR(o, 0.25, 4),
    "LinearLR": lambda m, o: m.LinearLR(o, 0.1, 0.8, 6),
    "ExponentialLR": lambda m, o: m.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda m, o: m.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda m, o: m.CosineAnnealingLR(o, 5, 0.01),
    "CosineAnnealingWarmRestarts": lambda m, o: m.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    "LambdaLR": lambda m, o: m.LambdaLR(o, [lambda e: 0.9**e, lambda e: 1 / (e + 1)]),
    "MultiplicativeLR": lambda m, o: m.MultiplicativeLR(o, lambda e: HALVES[e % 3]),
    "OneCycleLR": lambda m, o: m.OneCycleLR(o, [1.0, 2.0], total_steps=13),
    "OneCycleLR, linear": lambda m, o: m.OneCycleLR(
        o, 1.0, epochs=2, steps_per_epoch=10, anneal_strategy="linear", three_phase=True, pct_start=0.4
    ),
    "CyclicLR": lambda m, o: m.CyclicLR(o, [0.1, 0.2], 1.0, 2, 3),
    "CyclicLR, halved": lambda m, o: m.CyclicLR(o, 0.1, [1.0, 2.0], 2, mode="triangular2"),
    "CyclicLR, shrinking": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 3, mode="exp_range", gamma=0.9),
    "CyclicLR, scaled": lambda m, o: m.CyclicLR(
        o, 0.1, 1.0, 3, scale_fn=lambda x: 1 / (x + 1), scale_mode="iterations"
    ),
    "SWALR": lambda m, o: swa_utils_of(m).SWALR(o, 0.05, anneal_epochs=4),
    "SWALR, behind another": lambda m, o: m.ChainedScheduler(
        [m.ExponentialLR(o, 0.9), swa_utils_of(m).SWALR(o, [0.05, 0.1], 5, anneal_strategy="linear")]
    ),
    "ChainedScheduler": lambda m, o: m.ChainedScheduler(
        [m.LinearLR(o, 0.1, total_iters=4), m.CosineAnnealingLR(o, 6, 0.01), m.StepLR(o, 3, 0.5)]
    ),
    "SequentialLR": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.1, total_iters=3), m.CosineAnnealingLR(o, 6), m.ExponentialLR(o, 0.5)], [3, 9]
    ),
}


def two_groups(package, lr=0.5):
    parameters = [package.nn.Parameter(package.zeros(2)) for _ in range(2)]
    groups = [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.2}]
    return package.optim.SGD(groups, lr=lr, momentum=0.9)


def made(make):
    return [
        (optimizer := two_groups(package), make(package.optim.lr_scheduler, optimizer))
        for package in (mg, torch)
    ]


def options(optimizer):
    return [(group["lr"], group["momentum"]) for group in optimizer.param_groups]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates(name):
    (ours, mine), (theirs, reference) = made(SCHEDULES[name])
    for _ in range(13):
        np.testing.assert_allclose(options(ours), options(theirs), rtol=1e-12, atol=1e-15)
        assert mine.get_last_lr() == [group["lr"] for group in ours.param_groups]
        mine.step()
        reference.step()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_schedules_of_one_optimizer_compose():
    def make(m, optimizer):
        return m.ExponentialLR(optimizer, 0.9), m.MultiStepLR(optimizer, [2, 4], 0.1), m.StepLR(optimizer, 3)

    (ours, mine), (theirs, reference) = made(make)
    for _ in range(8):
        np.testing.assert_allclose(options(ours), options(theirs), rtol=1e-12)
        for schedule in (*mine, *reference):
            schedule.step()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_parts_of_an_epoch():
    (ours, mine), (theirs, reference) = made(lambda m, o: m.CosineAnnealingWarmRestarts(o, 2, 2))
    for step in range(20):
        mine.step(step / 3)
        reference.step(step / 3)
        np.testing.assert_allclose(options(ours), options(theirs), rtol=1e-12)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_plateaus(mode, threshold_mode, rng):
    arguments = {"patience": 2, "cooldown": 1, "min_lr": [0.01, 0.1], "threshold": 0.1}
    (ours, mine), (theirs, reference) = made(
        lambda m, o: m.ReduceLROnPlateau(o, mode, threshold_mode=threshold_mode, **arguments)
    )
    for metric in rng.standard_normal(40).tolist():
        mine.step(mg.tensor(metric, mg.float64))
        reference.step(metric)
        np.testing.assert_allclose(options(ours), options(theirs), rtol=1e-12)
    assert mine.num_bad_epochs == reference.num_bad_epochs
    assert ours.param_groups[0]["lr"] < 0.5


@pytest.mark.parametrize("name", [*SCHEDULES, "ReduceLROnPlateau"])
def test_a_schedule_resumes(name):
    make = SCHEDULES.get(name, lambda m, o: m.ReduceLROnPlateau(o, patience=1))
    steps = [()] * 7 if name in SCHEDULES else [(1.0,)] * 7
    optimizer = two_groups(mg)
    schedule = make(lr_scheduler, optimizer)
    for step in steps[:4]:
        schedule.step(*step)
    saved = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    again = two_groups(mg)
    resumed = make(lr_scheduler, again)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for step in steps[4:]:
        assert options(again) == options(optimizer)
        schedule.step(*step)
        resumed.step(*step)
    assert options(again) == options(optimizer)


# ---- averages of parameters, and Adam for embeddings ------------------------------------------------------


@pytest.mark.parametrize("average", ["mean", "ema", "ema of all", "with buffers"])
def test_averaged_models(average, rng):
    values = rng.standard_normal((4, 8, 3)).astype(np.float32)
    found = []
    for lib in (mg, torch):
        utils = lib.optim.swa_utils
        model = lib.nn.Sequential(lib.nn.Linear(3, 2), lib.nn.BatchNorm1d(2))
        with lib.no_grad():
            model[0].weight.copy_(lib.tensor(values[0, :2]))
            model[0].bias.copy_(lib.tensor(values[0, 2, :2]))
        options = {
            "mean": {},
            "ema": {"avg_fn": utils.get_ema_avg_fn(0.9)},
            "ema of all": {"multi_avg_fn": utils.get_ema_multi_avg_fn(0.9)},
            "with buffers": {"avg_fn": utils.get_ema_avg_fn(0.9), "use_buffers": average == "with buffers"},
        }[average]
        averaged = utils.AveragedModel(model, **options)
        optimizer = lib.optim.SGD(model.parameters(), lr=0.1)
        for batch in values:
            optimizer.zero_grad()
            model(lib.tensor(batch)).sigmoid().sum().backward()
            optimizer.step()
            averaged.update_parameters(model)
        found.append([v.detach().numpy() for k, v in averaged.state_dict().items() if "tracked" not in k])
        utils.update_bn([(lib.tensor(batch), None) for batch in values], averaged)
        found[-1] += [buffer.numpy() for buffer in averaged.buffers()]
        assert averaged.training and averaged.module[1].momentum == 0.1
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_batch_that_fails_leaves_batch_norm_as_it_was():
    norm = mg.nn.BatchNorm1d(2).eval()
    with pytest.raises(ValueError, match="batch_norm"):
        mg.optim.swa_utils.update_bn([mg.ones(3, 2), mg.ones(3, 5)], norm)
    assert norm.momentum == 0.1 and not norm.training


@pytest.mark.parametrize("maximize", [False, True])
def test_adam_for_embeddings(maximize, rng):
    start = rng.standard_normal((6, 3))
    weights = []
    for lib in (mg, torch):
        table = lib.nn.Embedding.from_pretrained(lib.tensor(start), freeze=False, sparse=True)
        optimizer = lib.optim.SparseAdam(
            list(table.parameters()), lr=0.1, betas=(0.5, 0.8), maximize=maximize
        )
        for rows in ([0, 2, 2], [1, 2, 5], [0, 0, 5]):
            optimizer.zero_grad()
            (table(lib.tensor(rows)) ** 2).sum().backward()
            optimizer.step()
        weights.append(table.weight.detach().numpy())
    np.testing.assert_allclose(*weights, rtol=1e-12)
    assert (weights[0][3:5] == start[3:5]).all()
