"""Training in several Python threads at once, and in forked children."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.nn import functional as F

STEPS = 8


class Net(nn.Module):
    """A small net of everything that keeps something: convolution, normalisation, pooling, dropout's seed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8 * 6 * 6, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.linear(x.reshape(x.shape[0], -1))


def make(seed):
    """A net, its optimizer and its data."""
    mg.manual_seed(seed)
    net = Net()
    return net, mg.optim.Adam(net.parameters(), lr=0.01), mg.randn(16, 1, 12, 12), mg.randint(0, 5, (16,))


def train(net, optimizer, x, target):
    """The losses of some steps, and the parameters' bits after them."""
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach().numpy().tobytes() for p in net.parameters()]


def in_threads(functions):
    """What each function returns, all of them called at once."""
    results, start = [None] * len(functions), threading.Barrier(len(functions))

    def call(i):
        start.wait()
        results[i] = functions[i]()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("count", [1, 2, 3])
def test_two_nets_in_two_threads_train_as_one_after_the_other(count):
    with mg.num_threads(count):
        expected = [train(*make(seed)) for seed in (1, 2)]
        assert expected[0][0][-1] < expected[0][0][0] and expected[0] != expected[1]
        made = [make(seed) for seed in (1, 2)]
        found = in_threads([lambda m=m: train(*m) for m in made])
    assert found == expected


def test_the_graph_mode_belongs_to_a_thread():
    x = mg.ones(3, requires_grad=True)

    def without():
        with mg.no_grad():
            time.sleep(0.02)
            return (x * 2.0).requires_grad

    def recorded():
        time.sleep(0.01)
        return (x * 2.0).requires_grad

    assert in_threads([without, recorded]) == [False, True]


def test_one_graph_walked_by_one_thread_while_others_build_theirs():
    x = mg.tensor(np.linspace(-1.0, 1.0, 50), requires_grad=True)

    def gradient():
        y = x
        for _ in range(300):
            y = y * 0.99 + x * 0.01
        (g,) = mg.autograd.grad(y.sum(), x)
        return g.numpy().tobytes()

    assert set(in_threads([gradient] * 4)) == {gradient()}


def test_selecting_kernels_while_ops_run():
    """The selection is the process's: an op runs either kernel, and both are right."""
    a, b = mg.randn(40, 30), mg.randn(30, 20)
    expected = a.numpy().astype(np.float64) @ b.numpy()

    def select():
        for _ in range(200):
            for name in ("naive", "reference", "tiled"):
                with mg.use_kernel("matmul", name):
                    pass

    def multiply():
        return max(np.abs((a @ b).numpy() - expected).max() for _ in range(500))

    errors = in_threads([select, multiply, multiply])[1:]
    assert max(errors) < 30 * 16 * np.finfo(np.float32).eps
    assert mg.get_kernel("matmul") != "naive"


# ---- forks ------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of threads


def child(connection, seed):
    signal.alarm(60)  # a child that hangs must not outlive the test
    connection.send((mg.get_num_threads(), train(*make(seed))))
    connection.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_forked_child_trains_as_its_parent(count):
    with mg.num_threads(count):
        train(*make(3))  # the pool of threads, caches and workspaces are there when the fork happens
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(theirs, 3))
        process.start()
        theirs.close()
        threads, found = ours.recv()
        process.join(60)
    assert process.exitcode == 0 and threads == 1
    with mg.num_threads(1):
        assert found == train(*make(3))


def test_a_fork_while_another_thread_trains():
    with mg.num_threads(1):
        expected = train(*make(4))
        stop, made = threading.Event(), make(5)
        busy = threading.Thread(target=lambda: [train(*made) for _ in iter(stop.is_set, True)])
        busy.start()
        try:
            for _ in range(3):
                pid = os.fork()
                if pid == 0:
                    signal.alarm(60)
                    os._exit(0 if train(*make(4)) == expected else 1)
                assert os.waitpid(pid, 0)[1] == 0
        finally:
            stop.set()
            busy.join()
