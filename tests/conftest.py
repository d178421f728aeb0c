"""Fixtures of all tests: the device, seeds, the data directory, the repository's root."""

import gc
import os
import sys
from pathlib import Path

# Read when NumPy and the kernels are imported. Threads that wait leave the cores to other processes, instead
# of spinning for what these keep from beginning; and the oracles' products are too small to be shared.
os.environ.update(OMP_WAIT_POLICY="passive", OPENBLAS_NUM_THREADS="1")

import hypothesis
import numpy as np
import pytest

import minigrad as mg
import minigrad.testing
from minigrad.dispatch import _tables
from minigrad.kernels.cuda.guard import CONTEXT_LOST
from minigrad.op import _ops

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parent.parent

_data = ROOT.parent / "shared" / "data"
if _data.is_dir():
    os.environ.setdefault("MINIGRAD_DATA", str(_data))

# The same examples in every run, and no deadline: a loaded machine must not fail a test.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the source tree."""
    return ROOT


@pytest.fixture(params=["cpu", "sim", "cuda"])
def device(request) -> mg.Device:
    """Each device in turn; one that this machine lacks is a skip that says what is missing."""
    try:
        return mg.device(request.param)
    except mg.errors.DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _seed() -> None:
    mg.manual_seed(0)


def _restore_ops():
    """Until the end: ops and kernels that were defined since the start are forgotten."""
    ops, kernels = set(_ops), {name: list(table.kernels) for name, table in _tables.items()}
    yield
    for name in set(_ops) - ops:
        del _ops[name]
    for name in set(_tables) - set(kernels):
        del _tables[name]
    for name, before in kernels.items():
        if _tables[name].kernels != before:
            _tables[name].kernels = before
            _tables[name].select({})


forget_ops = pytest.fixture(_restore_ops)  # those of a test go when it ends
_forget_ops_of_a_module = pytest.fixture(_restore_ops, scope="module", autouse=True)


@pytest.fixture
def swish(forget_ops):
    """An op of the user's, with a gradient and no kernel."""

    @mg.op
    def swish(xp, x, *, beta=1.0):
        return x / (1 + xp.exp(-beta * x))

    @swish.grad
    def _(g, y, x, *, beta):
        s = mg.sigmoid(x * beta)
        return g * (s + x * beta * s * (1.0 - s))

    return swish


def pytest_collection_modifyitems(items):
    """What builds packages, or runs a benchmark, for minutes comes first: under pytest-xdist in one worker,
    which builds them once, and no other one waits for it at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_gpu_benchmark.py", "test_packaging.py"))


def pytest_collection_finish():
    """Have the collector of garbage pass over what stays to the end: the tests are millions of objects."""
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    """End a worker of pytest-xdist whose CUDA context is lost: in the one that takes its place tests pass."""
    if report.when == "teardown" and "PYTEST_XDIST_WORKER" in os.environ and "cupy" in sys.modules:
        runtime = sys.modules["cupy"].cuda.runtime
        try:
            runtime.deviceSynchronize()
        except runtime.CUDARuntimeError as error:
            if error.status in CONTEXT_LOST:
                os._exit(1)


_SUMMARY = pytest.StashKey[dict[str, list[str]]]()


@pytest.fixture
def summary(request):
    """``summary(title, line)``: a line that is printed under ``title`` when all tests have run."""
    titles = request.config.stash.setdefault(_SUMMARY, {})
    return lambda title, line: titles.setdefault(title, []).append(line)


def pytest_terminal_summary(terminalreporter, config):
    for title, lines in config.stash.get(_SUMMARY, {}).items():
        terminalreporter.section(title)
        terminalreporter.write_line("\n".join(sorted(lines)))


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that gives every test the same numbers."""
    return np.random.default_rng(0)


@pytest.fixture
def check_gradients(rng):
    """``check_gradients(function, *inputs)``: its gradient and second gradient by finite differences.

    An input is an array (made a float64 tensor that requires a gradient) or a shape, filled with normal
    random numbers; tensors and anything else are passed on.
    """

    def check(function, *inputs, second=True):
        tensors = []
        for x in inputs:
            x = rng.standard_normal(x) if isinstance(x, tuple) else x
            tensors.append(mg.tensor(x, mg.float64, requires_grad=True) if isinstance(x, np.ndarray) else x)
        assert mg.testing.gradcheck(function, tensors, seed=0)
        if second:
            assert mg.testing.gradgradcheck(function, tensors, seed=0)

    return check
