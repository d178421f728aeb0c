"""Optimizers and schedules, against their formulas written out in float64 NumPy."""

import copy
import math
import pickle

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn as nn
from minigrad import optim
from minigrad.optim import lr_scheduler


def gradients(steps, shape=(7, 5), seed=0):
    return np.random.default_rng(seed).standard_normal((steps, *shape))


def start(shape=(7, 5), dtype=np.float64):
    return nn.Parameter(mg.tensor(np.random.default_rng(9).standard_normal(shape), dtype=dtype))


def trajectory(optimizer, parameter, grads):
    """The parameter's values after each step."""
    values = []
    for grad in grads:
        parameter.grad = mg.tensor(grad, dtype=parameter.dtype)
        optimizer.step()
        values.append(parameter.detach().numpy().copy())
    return np.array(values)


def sgd(p, grads, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
    values, velocity = [], None
    for g in grads:
        g = (-g if maximize else g) + weight_decay * p
        if momentum:
            velocity = g if velocity is None else momentum * velocity + (1 - dampening) * g
            g = g + momentum * velocity if nesterov else velocity
        p = p - lr * g
        values.append(p)
    return np.array(values)


def adam(p, grads, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, maximize=False, decoupled=False):
    values, m, v = [], 0, 0
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        values.append(p)
    return np.array(values)


def lion(p, grads, lr, betas=(0.9, 0.99), weight_decay=0):
    values, m = [], 0
    for g in grads:
        p = p * (1 - lr * weight_decay) - lr * np.sign(betas[0] * m + (1 - betas[0]) * g)
        m = betas[1] * m + (1 - betas[1]) * g
        values.append(p)
    return np.array(values)


CASES = [
    (optim.SGD, sgd, {"lr": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.2}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2}),
    (optim.SGD, sgd, {"lr": 0.1, "maximize": True}),
    (optim.Adam, adam, {"lr": 0.01}),
    (optim.Adam, adam, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3}),
    (optim.Adam, adam, {"lr": 0.01, "maximize": True}),
    (optim.AdamW, lambda *a, **o: adam(*a, **o, decoupled=True), {"lr": 0.01, "weight_decay": 0.3}),
    (optim.Lion, lion, {"lr": 0.01, "betas": (0.5, 0.8), "weight_decay": 0.3}),
]
EVERY_OPTIMIZER = [
    optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Lion, optim.Muon,
    optim.Adamax, optim.NAdam, optim.RAdam,
]  # fmt: skip


@pytest.mark.parametrize(("made", "definition", "options"), CASES)
@pytest.mark.parametrize("kernel", ["fused", "reference"])
@pytest.mark.parametrize("shape", [(7, 5), (1000, 90), (), (0, 3)])
def test_steps_follow_the_formula(made, definition, options, kernel, shape):
    parameter = start(shape)
    grads = gradients(6, shape)
    expected = definition(parameter.detach().numpy().copy(), grads, **options)
    with mg.use_kernel("sgd_step", kernel), mg.use_kernel("adam_step", kernel):
        found = trajectory(made([parameter], **options), parameter, grads)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("made", "definition", "options"), CASES)
def test_float32_stays_close(made, definition, options):
    parameter = start(dtype=np.float32)
    grads = gradients(6).astype(np.float32)
    expected = definition(parameter.detach().numpy().astype(np.float64), grads.astype(np.float64), **options)
    found = trajectory(made([parameter], **options), parameter, grads)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("made", EVERY_OPTIMIZER)
def test_layout_and_device_do_not_matter(made):
    grads = gradients(3)
    expected = trajectory(made([p := start()], lr=0.1), p, grads)
    turned = nn.Parameter(mg.tensor(start().detach().numpy().T.copy()).T)
    assert not turned.is_contiguous()
    np.testing.assert_allclose(trajectory(made([turned], lr=0.1), turned, grads), expected, rtol=1e-12)
    moved = start().detach().to("sim") if "sim" in map(str, mg.available_devices()) else start().detach()
    optimizer = made([parameter := nn.Parameter(moved)], lr=0.1)
    for grad in grads:
        parameter.grad = mg.tensor(grad, device=parameter.device)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().cpu().numpy(), expected[-1], rtol=1e-12)


def test_the_same_threads_give_the_same_bits():
    grads = gradients(3, (300, 400))
    with mg.num_threads(2):
        runs = [trajectory(optim.Adam([p := start((300, 400), np.float32)]), p, grads) for _ in range(2)]
    assert (runs[0] == runs[1]).all()


def test_one_step_of_sgd_with_numbers_one_can_check():
    parameter = nn.Parameter(mg.tensor([1.0, 2.0]))
    optimizer = optim.SGD([parameter], lr=0.5)
    (parameter**2).sum().backward()
    optimizer.step()
    assert parameter.tolist() == [0.0, 0.0]


def test_the_first_step_of_adam_is_lr_whatever_the_gradient():
    parameter = nn.Parameter(mg.zeros(3))
    optimizer = optim.Adam([parameter], lr=0.25)
    parameter.grad = mg.tensor([1e-3, -1.0, 1e6])
    optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), [-0.25, 0.25, -0.25], rtol=1e-4)


def test_a_step_is_noticed_by_the_graph():
    parameter = nn.Parameter(mg.ones(3))
    loss = (parameter**2).sum()
    parameter.grad = mg.ones(3)
    optim.SGD([parameter], lr=0.1).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_parameters_without_a_gradient_stay():
    used, idle = start(), start()
    optimizer = optim.Adam([used, idle])
    before = idle.tolist()
    used.grad = mg.ones_like(used)
    optimizer.step()
    assert idle.tolist() == before and idle not in optimizer.state


def test_a_closure_is_run_with_gradients():
    parameter = nn.Parameter(mg.tensor([3.0]))
    optimizer = optim.SGD([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    with mg.no_grad():
        assert optimizer.step(closure).item() == 9.0
    assert parameter.item() == pytest.approx(2.4)


def test_zero_grad():
    parameter = start()
    optimizer = optim.SGD([parameter])
    parameter.grad = mg.ones_like(parameter)
    optimizer.zero_grad(set_to_none=False)
    assert (parameter.grad.numpy() == 0).all()
    optimizer.zero_grad()
    assert parameter.grad is None


def test_groups_have_options_of_their_own():
    fast, slow = nn.Parameter(mg.zeros(1)), nn.Parameter(mg.zeros(1))
    optimizer = optim.SGD([{"params": [fast], "lr": 1.0}, {"params": slow}], lr=0.1)
    late = nn.Parameter(mg.zeros(1))
    optimizer.add_param_group({"params": late, "lr": 0.5})
    for parameter in (fast, slow, late):
        parameter.grad = mg.ones(1)
    optimizer.step()
    assert [fast.item(), late.item()] == [-1.0, -0.5] and slow.item() == pytest.approx(-0.1)
    assert repr(optimizer).startswith("SGD (\nParameter Group 0\n    dampening: 0.0\n    lr: 1.0\n")


@pytest.mark.parametrize("made", EVERY_OPTIMIZER)
def test_bad_parameters_are_refused(made):
    parameter = start()
    for params, error, text in (
        ([], ValueError, "empty"),
        (parameter, TypeError, "a list of tensors"),
        ([parameter * 2], ValueError, "parameter 0 .* is not a leaf: the op 'mul'"),
        ([parameter, parameter], ValueError, "parameter 1 .* comes twice"),
        ([{"params": [parameter]}, {"params": [parameter]}], ValueError, "comes twice"),
        ([np.ones(3)], TypeError, "ndarray"),
        ([{"params": {parameter}}], TypeError, "order"),
        ([{"lr": 1.0}], TypeError, '"params"'),
    ):
        with pytest.raises(error, match=text):
            made(params, lr=0.1)


@pytest.mark.parametrize(
    ("made", "options", "text"),
    [
        (optim.SGD, {"lr": -0.1}, "SGD: lr .* got -0.1"),
        (optim.SGD, {"lr": math.nan}, "lr .* got nan"),
        (optim.SGD, {"lr": "fast"}, "lr .* got 'fast'"),
        (optim.SGD, {"momentum": -1}, "momentum"),
        (optim.SGD, {"weight_decay": math.inf}, "weight_decay"),
        (optim.SGD, {"nesterov": True}, "nesterov needs momentum"),
        (optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "no dampening"),
        (optim.Adam, {"lr": -1.0}, "Adam: lr"),
        (optim.Adam, {"betas": (1.0, 0.999)}, r"betas\[0\] .* got 1.0"),
        (optim.Adam, {"betas": (0.9, math.nan)}, r"betas\[1\]"),
        (optim.Adam, {"betas": 0.9}, "pair"),
        (optim.Adam, {"eps": -1e-8}, "eps"),
        (optim.AdamW, {"weight_decay": -0.1}, "AdamW: weight_decay"),
        (optim.RMSprop, {"alpha": 1.0}, "RMSprop: alpha"),
        (optim.RMSprop, {"momentum": -1.0}, "RMSprop: momentum"),
        (optim.Adagrad, {"lr_decay": -1.0}, "Adagrad: lr_decay"),
        (optim.Adamax, {"betas": (0.9, 1.0)}, r"Adamax: betas\[1\]"),
        (optim.NAdam, {"momentum_decay": -1.0}, "NAdam: momentum_decay"),
        (optim.RAdam, {"eps": -1.0}, "RAdam: eps"),
        (optim.Adadelta, {"rho": 1.5}, "Adadelta: rho"),
        (optim.Lion, {"betas": (0.9, 1.0)}, r"Lion: betas\[1\]"),
        (optim.Muon, {"ns_steps": 1.5}, "Muon: ns_steps"),
        (optim.Muon, {"adjust_lr_fn": "other"}, "Muon: adjust_lr_fn .* got 'other'"),
    ],
)
def test_bad_options_are_refused(made, options, text):
    with pytest.raises(ValueError, match=text):
        made([start()], **options)
    optimizer = made([start()])
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": [start()], **options})
    assert len(optimizer.param_groups) == 1


def test_a_gradient_that_does_not_fit_is_told():
    parameter = start()
    optimizer = optim.Adam([parameter])
    parameter.grad = mg.ones(3)
    with pytest.raises(ValueError, match=r"\(3,\).*\(7, 5\)"):
        optimizer.step()
    parameter.grad = [1.0]
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        optimizer.step()


def test_a_step_changes_all_groups_or_none():
    first, second = start(), start()
    optimizer = optim.SGD([{"params": [first]}, {"params": [second]}], lr=0.1, momentum=0.9)
    first.grad, second.grad = mg.ones_like(first), mg.ones(3)
    with pytest.raises(ValueError, match="does not fit its parameter"):
        optimizer.step()
    assert first.equal(start()) and not optimizer.state_dict()["state"]


def test_read_only_parameters_are_refused():
    with pytest.raises(ValueError, match=r"parameter 1 \(shape \(3,\)\) lies in read-only memory"):
        optim.SGD([start(), mg.ones(1).expand(3).detach().requires_grad_()], lr=0.1)


def test_muon_steps_along_an_orthogonal_matrix():
    parameter = nn.Parameter(mg.zeros(6, 20))
    optimizer = optim.Muon([parameter], lr=0.5, momentum=0.0, weight_decay=0.0)
    parameter.grad = grad = mg.randn(6, 20)
    optimizer.step()
    step = -parameter.detach().numpy().astype(np.float64) / 0.5
    U, _, Vt = np.linalg.svd(grad.numpy().astype(np.float64), full_matrices=False)
    shares = np.diag(U.T @ step @ Vt.T)
    assert ((shares > 0.65) & (shares < 1.25)).all()  # what five iterations reach
    np.testing.assert_allclose(U @ np.diag(shares) @ Vt, step, atol=1e-4)
    with pytest.raises(ValueError, match=r"parameter 1 has shape \(7,\); only matrices"):
        optim.Muon([parameter, nn.Parameter(mg.zeros(7))])


def test_nan_gradients_flow():
    parameter = nn.Parameter(mg.ones(2))
    parameter.grad = mg.tensor([math.nan, 1.0])
    optim.SGD([parameter], lr=0.5).step()
    assert math.isnan(parameter.tolist()[0]) and parameter.tolist()[1] == 0.5


@pytest.mark.parametrize(
    "made",
    [
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: optim.Adam(p, amsgrad=True),
        lambda p: optim.RMSprop(p, momentum=0.9, centered=True),
        *EVERY_OPTIMIZER[1:],
    ],
)
@pytest.mark.parametrize("kept", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_training_resumes_where_it_was_saved(made, kept):
    grads = gradients(8)
    parameter = start()
    whole = trajectory(made([parameter]), parameter, grads)

    parameter = start()
    optimizer = made([parameter])
    trajectory(optimizer, parameter, grads[:3])
    saved = kept(optimizer.state_dict())
    trajectory(optimizer, parameter, grads[3:5])

    resumed = nn.Parameter(mg.tensor(whole[2]))
    optimizer = made([resumed])
    optimizer.load_state_dict(saved)
    np.testing.assert_array_equal(trajectory(optimizer, resumed, grads[3:]), whole[3:])


def test_a_loaded_state_is_a_copy_in_the_parameters_dtype():
    parameter, narrow = start(), start(dtype=np.float32)
    optimizer, other = optim.Adam([parameter]), optim.Adam([narrow], lr=0.5)
    trajectory(optimizer, parameter, gradients(2))
    other.load_state_dict(optimizer.state_dict())
    state = other.state[narrow]
    assert state["exp_avg"].dtype == np.float32 and state["step"] == 2
    assert other.param_groups[0]["lr"] == 1e-3 and other.param_groups[0]["params"][0] is narrow
    trajectory(other, narrow, gradients(1))
    assert optimizer.state[parameter]["step"] == 2


def test_a_state_that_does_not_fit_changes_nothing():
    optimizer = optim.Adam([start(), start()], lr=0.5)
    with pytest.raises(ValueError, match=r"sizes \[1\], the optimizer has \[2\]"):
        optimizer.load_state_dict(optim.Adam([start()]).state_dict())
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        optimizer.load_state_dict(state)
    state["param_groups"][0]["lr"] = 0.1
    averages = {"step": 3, "exp_avg": mg.zeros(7, 5), "exp_avg_sq": mg.zeros(5, 7)}
    for bad, text in (
        ({7: averages}, "number 7"),
        ({0: {"momentum_buffer": mg.zeros(7, 5)}}, "parameter 0 lacks 'exp_avg', 'exp_avg_sq'"),
        ({0: None}, "parameter 0 must be a dict, got NoneType"),
        ({0: {**averages, "step": math.nan}}, "parameter 0 has 'step' nan, which must be a finite number"),
        ({1: averages}, r"parameter 1 has 'exp_avg_sq' of shape \(5, 7\), the parameter has \(7, 5\)"),
    ):
        with pytest.raises(ValueError, match=text):
            optimizer.load_state_dict({**state, "state": bad})
    for bad in ({"state": {}}, [state], None):
        with pytest.raises(ValueError, match='a state is a dict with "state" and "param_groups"'):
            optimizer.load_state_dict(bad)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_an_optimizer_of_ones_own():
    class SignDescent(optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def update(self, param, grad, state, group):
            with mg.no_grad():
                param.sub_(mg.tensor(np.sign(grad)) * group["lr"])

    parameter = nn.Parameter(mg.tensor([1.0, -1.0]))
    parameter.grad = mg.tensor([5.0, -3.0])
    SignDescent([parameter], lr=0.5).step()
    assert parameter.tolist() == [0.5, -0.5]
    with pytest.raises(NotImplementedError, match="Optimizer"):
        base = optim.Optimizer([parameter], {})
        base.step()


# ---- schedules --------------------------------------------------------------------------------------------


def rates(make, epochs, lr=1.0):
    optimizer = optim.SGD([start()], lr=lr)
    schedule = make(optimizer)
    found = []
    for _ in range(epochs):
        found.append(schedule.get_last_lr()[0])
        assert optimizer.param_groups[0]["lr"] == found[-1]
        schedule.step()
    return found


def test_schedules():
    assert rates(lambda o: lr_scheduler.StepLR(o, 2, 0.5), 5) == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 1], 0.5), 5) == [1.0, 0.5, 0.5, 0.25, 0.25]
    assert rates(lambda o: lr_scheduler.ExponentialLR(o, 0.5), 3) == [1.0, 0.5, 0.25]
    assert rates(lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (epoch + 1)), 3, 6.0) == [6.0, 3.0, 2.0]
    cosine = rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 4, eta_min=0.2), 5)
    np.testing.assert_allclose(cosine, [0.2 + 0.4 * (1 + math.cos(math.pi * t / 4)) for t in range(5)])


def test_schedules_of_several_groups():
    optimizer = optim.SGD([{"params": [start()]}, {"params": [start()], "lr": 10.0}], lr=1.0)
    lr_scheduler.LambdaLR(optimizer, [lambda epoch: 0.5, lambda epoch: 0.1])
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    with pytest.raises(ValueError, match="1 functions for 2"):
        lr_scheduler.LambdaLR(optimizer, [lambda epoch: 0.5])


def test_a_schedule_resumes():
    optimizer = optim.SGD([start()], lr=1.0)
    schedule = lr_scheduler.StepLR(optimizer, 2, 0.5)
    for _ in range(3):
        schedule.step()
    other = optim.SGD([start()], lr=1.0)
    resumed = lr_scheduler.StepLR(other, 7, 0.9)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    resumed.step()
    assert resumed.last_epoch == 4 and resumed.get_last_lr() == [0.25]
    with pytest.raises(ValueError, match=r"unknown keys \['T_max'\] and lacks \['step_size'"):
        resumed.load_state_dict({"T_max": 3})


def test_schedules_refuse_bad_input():
    optimizer = optim.SGD([start()])
    with pytest.raises(ValueError, match="step_size"):
        lr_scheduler.StepLR(optimizer, 0)
    with pytest.raises(ValueError, match="T_max"):
        lr_scheduler.CosineAnnealingLR(optimizer, 0)
    with pytest.raises(TypeError, match="Optimizer"):
        lr_scheduler.StepLR([start()], 3)
    with pytest.raises(KeyError, match="initial_lr"):
        lr_scheduler.StepLR(optimizer, 3, last_epoch=5)
    step = lr_scheduler.StepLR(optimizer, 3)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
    other = lr_scheduler.StepLR(optim.SGD([start()]), 3)
    for make, error, text in (
        (lambda: lr_scheduler.LinearLR(optimizer, 0.0), ValueError, "start_factor must be above 0"),
        (lambda: lr_scheduler.ConstantLR(optimizer, 2.0), ValueError, r"factor must be in \[0, 1\], got 2"),
        (lambda: lr_scheduler.OneCycleLR(optimizer, 1.0), ValueError, "give total_steps"),
        (lambda: lr_scheduler.OneCycleLR(optimizer, [1.0, 2.0], 5), ValueError, "2 rates max_lr for 1"),
        (lambda: lr_scheduler.OneCycleLR(optim.Adagrad([start()]), 1.0, 5), ValueError, "has no momentum"),
        (lambda: lr_scheduler.ReduceLROnPlateau(optimizer, "low"), ValueError, "got 'low'"),
        (lambda: lr_scheduler.SequentialLR(optimizer, [step, step], []), ValueError, "one milestone less"),
        (lambda: lr_scheduler.SequentialLR(optimizer, [step, other], [3]), ValueError, "another optimizer"),
        (lambda: lr_scheduler.ChainedScheduler([step, plateau]), TypeError, "ReduceLROnPlateau, which"),
    ):
        with pytest.raises(error, match=text):
            make()


def test_a_cycle_ends():
    schedule = lr_scheduler.OneCycleLR(optim.SGD([start()], momentum=0.9), 1.0, total_steps=3)
    for _ in range(3):
        schedule.step()
    with pytest.raises(ValueError, match="step 4 of a schedule of 3"):
        schedule.step()


def test_an_average_of_a_model_on_another_device():
    model = nn.Linear(2, 2).to("sim")
    averaged = optim.swa_utils.AveragedModel(model)
    for value in (1.0, 4.0, 7.0):
        with mg.no_grad():
            model.weight.fill_(value)
        averaged.update_parameters(model)
    assert (averaged.module.weight == 4.0).all() and averaged.module.weight.device.type == "sim"
