"""Several cards: every tensor is made, computed with and differentiated on the card that it lives on."""

import copy
import threading

import numpy as np
import pytest

import minigrad as mg
from minigrad.errors import DeviceError


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_tensors_are_made_where_they_are_asked_for(cupy, card_of, current, device, rng):
    mg.cuda.set_device(current)
    array = rng.standard_normal((3, 4)).astype(np.float32)
    like = mg.tensor(array, device=device)
    made = [
        like,
        mg.tensor([[1.0, 2.0]], device=device),
        mg.as_tensor(array, device=device),
        mg.zeros(2, 3, device=device),
        mg.full((2,), 3, device=device),
        mg.empty(2, device=device),
        mg.arange(5, device=device),
        mg.linspace(0, 1, 3, device=device),
        mg.eye(3, device=device),
        mg.rand(3, device=device),
        mg.randint(0, 9, (3,), device=device),
        mg.randperm(4, device=device),
        mg.ones_like(like),
        mg.randn_like(like),
        like.new_zeros(2),
        mg.tensor(like),
        copy.deepcopy(like),
        mg.tril(like),
        mg.nn.functional.one_hot(mg.tensor([0, 2], device=device)),
    ]
    assert [card_of(x) for x in made] == [int(device[-1])] * len(made)
    np.testing.assert_array_equal(like.numpy(), array)
    np.testing.assert_array_equal(copy.deepcopy(like).numpy(), array)
    assert mg.cuda.current_device() == current


@pytest.mark.parametrize("current", [0, 1])
def test_a_network_learns_on_a_card_that_is_not_current(cupy, card_of, current, rng):
    x, target = rng.standard_normal((6, 4)).astype(np.float32), rng.integers(0, 3, 6)
    trained = []
    for device in ("cpu", "cuda:0", "cuda:1"):
        mg.cuda.set_device(current)
        mg.manual_seed(3)
        nn = mg.nn
        layers = [
            nn.Linear(4, 5, bias=False),  # a bias has no gradient here, and Adam would follow its rounding
            nn.BatchNorm1d(5),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(5, 3),
            nn.LayerNorm(3),
        ]
        net = nn.Sequential(*layers).to(device)
        optimizers = [
            mg.optim.Adam(net.parameters(), lr=0.1),
            mg.optim.SGD(net.parameters(), 0.1, momentum=0.9),
        ]
        for optimizer in optimizers:
            for _ in range(2):
                optimizer.zero_grad(set_to_none=False)
                hidden = net(mg.tensor(x, device=device))
                loss = (
                    mg.nn.functional.cross_entropy(hidden, mg.tensor(target, device=device))
                    + (hidden**2).mean()
                )
                loss.backward()
                loss2 = net(mg.tensor(x, device=device)).sum() * 0.01
                loss2.backward()  # adds to the gradients there are
                mg.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
        assert mg.cuda.current_device() == current
        if device != "cpu":
            parameters = list(net.parameters())
            state = [v for o in optimizers for s in o.state.values() for v in s.values()]
            arrays = [s._array if isinstance(s, mg.Tensor) else s for s in state]
            cards = {a.card for a in arrays if hasattr(a, "card")}
            assert cards == {card_of(p) for p in parameters} == {card_of(p.grad) for p in parameters}
            assert cards == {int(device[-1])}
        trained.append([p.detach().cpu().numpy() for p in net.parameters()])
    for other in trained[1:]:
        for expected, found in zip(trained[0], other, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_graph_over_two_cards_and_the_cpu(cupy):
    x = mg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    first = x.to("cuda:1") * 2.0
    second = (first * first).to("cuda:0")
    third = (second + second * 3.0).to("cuda:1") * first
    loss = third.sum().cpu() + x.sum()
    (g,) = mg.autograd.grad(loss, x, retain_graph=True)
    loss.backward()
    expected = 1 + 3 * 32 * np.array([1.0, 4.0, 9.0])  # x + 4 (2x)^3 = x + 32 x^3
    for found in (g, x.grad):
        assert found.device.type == "cpu"
        np.testing.assert_allclose(found.numpy(), expected)
    assert mg.cuda.current_device() == 0


def test_a_leaf_on_another_card_gathers_its_gradient_there(cupy, card_of):
    x = mg.tensor([1.0, 2.0], device="cuda:1", requires_grad=True)
    for _ in range(2):
        (x * x + x * 3.0 + x[0]).sum().backward()
    assert card_of(x.grad) == 1
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.array([2.0 + 3 + 2, 4.0 + 3]))
    y = mg.ones(2, device="cuda:1")
    y += 1.0
    y[0] = 5.0
    assert y.tolist() == [5.0, 2.0] and card_of(y) == 1
    with mg.no_grad():
        y.mul_(y)
    assert y.tolist() == [25.0, 4.0] and mg.cuda.current_device() == 0


def test_a_copy_between_cards_waits_for_both_streams(cupy, card_of):
    x = mg.arange(6.0, device="cuda:1").reshape(2, 3)
    cupy.events.clear()
    moved = x.T.to("cuda:0")
    waits = [event for event in cupy.events if event[0] in ("wait", "asnumpy")]
    assert waits == [("wait", 0, 1), ("wait", 1, 0)], "the copy waits for the source, the source for the copy"
    assert card_of(moved) == 0 and moved.tolist() == x.T.tolist()
    assert card_of(mg.tensor(3.0, device="cuda:1").to("cuda:0")) == 0
    assert mg.zeros(0, 2, device="cuda:1").to("cuda:0").shape == (0, 2)


def test_images_stay_channels_last_from_device_to_device(cupy, card_of):
    images = mg.arange(24.0).reshape(1, 2, 3, 4)
    moved = images.contiguous(memory_format=mg.channels_last)
    for device in ("cuda:0", "cuda:1", "cpu"):
        moved = moved.to(device)
        assert moved.is_contiguous(memory_format=mg.channels_last) and str(moved.device) == device
    assert np.array_equal(moved.numpy(), images.numpy())


def test_cuda_is_the_current_card(cupy, card_of):
    assert mg.device("cuda") is mg.device("cuda:0") is mg.device("cuda", 0)
    with mg.cuda.device(1):
        assert mg.cuda.current_device() == 1
        assert mg.device("cuda") is mg.device("cuda:1")
        assert card_of(mg.ones(2).cuda()) == card_of(mg.ones(2, device="cuda")) == 1
        assert card_of(mg.ones(2).cuda(0)) == card_of(mg.ones(2).cuda("cuda:0")) == 0
        with mg.cuda.device("cuda:0"), mg.cuda.device(None):
            assert mg.cuda.current_device() == 0
        assert mg.cuda.current_device() == 1
        assert card_of(next(mg.nn.Linear(2, 2).cuda().parameters())) == 1
    assert mg.cuda.current_device() == 0
    mg.cuda.set_device("cuda:1")
    assert mg.device("cuda").index == 1
    found = []
    thread = threading.Thread(target=lambda: found.append(mg.cuda.current_device()))
    thread.start()
    thread.join()
    assert found == [0], "each thread has a current card of its own"
    with pytest.raises(DeviceError, match="no device 'cuda:2': this machine has 2"):
        mg.cuda.set_device(2)
    with pytest.raises(DeviceError, match="expected a CUDA device, got 'cpu'"):
        mg.ones(1).cuda("cpu")
    with pytest.raises(DeviceError, match="x on cuda:0, y on cuda:1"):
        mg.ones(1, device="cuda:0") + mg.ones(1, device="cuda:1")
