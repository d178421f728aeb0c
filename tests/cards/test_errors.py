"""What goes wrong on a card, or for want of one, is told in full."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import minigrad as mg
from minigrad.errors import DeviceError, KernelLaunchError, OutOfMemoryError
from minigrad.kernels.cuda import guard
from minigrad.utils.data import DataLoader, TensorDataset

ILLEGAL_ADDRESS = (700, "cudaErrorIllegalAddress: an illegal memory access was encountered")

USES = {
    "synchronize": lambda x: mg.cuda.synchronize(1),
    "to_numpy": lambda x: x.numpy(),
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0]),
    "from_numpy": lambda x: mg.ones(3).to("cuda:1"),
    "creation": lambda x: mg.zeros(3, device="cuda:1"),
    "op": lambda x: mg.concat([x, x]),
}


@pytest.mark.parametrize("use", USES)
def test_a_lost_context_is_explained_wherever_it_shows(cupy, use):
    x = mg.tensor([1.0, 2.0], device="cuda:1")
    guard.last_launched[1] = "matmul_tiled<float>"
    cupy.error = cupy.cuda.runtime.CUDARuntimeError(*ILLEGAL_ADDRESS)
    with pytest.raises(KernelLaunchError) as caught:
        USES[use](x)
    message = str(caught.value)
    for part in (
        "a kernel failed on cuda:1: cudaErrorIllegalAddress: an illegal memory access",
        "The kernel launched last there is matmul_tiled<float>; that one, or one before it, failed",
        "restart the process",
        "sim.checks()",
        "CUDA_LAUNCH_BLOCKING=1",
        "compute-sanitizer",
    ):
        assert part in message
    assert caught.value.__cause__ is cupy.error and mg.cuda.current_device() == 0


@pytest.mark.parametrize(("status", "ends"), [(700, True), (2, False), (None, False)])
def test_a_worker_of_the_tests_ends_with_its_context(cupy, monkeypatch, pytestconfig, status, ends):
    runtime, ended = cupy.cuda.runtime, []
    runtime.deviceSynchronize = lambda: cupy.happened("synchronize")
    cupy.error = None if status is None else runtime.CUDARuntimeError(status, "an error")
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setattr("os._exit", ended.append)
    hooks = pytestconfig.pluginmanager.get_plugin(str(Path(__file__).parents[1] / "conftest.py"))
    hooks.pytest_runtest_logreport(SimpleNamespace(when="teardown"))
    assert bool(ended) is ends


def test_a_lost_context_without_a_kernel_of_ours(cupy):
    cupy.error = cupy.cuda.runtime.CUDARuntimeError(719, "cudaErrorLaunchFailure: unspecified launch failure")
    with pytest.raises(
        KernelLaunchError, match="minigrad has launched no kernel there: it was one of CuPy's"
    ):
        mg.cuda.synchronize()


def test_other_errors_stay_as_they_are(cupy):
    for error in (
        cupy.cuda.runtime.CUDARuntimeError(1, "cudaErrorInvalidValue"),
        ValueError("a bug"),
        MemoryError("the host's"),
    ):
        cupy.error = error
        with pytest.raises(type(error)) as caught:
            mg.cuda.synchronize()
        assert caught.value is error


@pytest.mark.parametrize("use", USES)
def test_out_of_memory_tells_the_sizes(cupy, use):
    x = mg.tensor([1.0, 2.0], device="cuda:1")
    cupy.error = cupy.cuda.memory.OutOfMemoryError(3 * 2**29)
    with pytest.raises(OutOfMemoryError) as caught:
        USES[use](x)
    assert (
        "out of memory on cuda:1: 1.50 GiB wanted; 1.00 MiB in use by arrays of this process, 1.00 MiB "
        "cached for its next ones, 2.00 GiB free of the card's 80.00 GiB. Take smaller batches"
    ) in str(caught.value)
    assert isinstance(caught.value, RuntimeError) and isinstance(caught.value, MemoryError)
    assert mg.errors.OutOfMemoryError is mg.cuda.OutOfMemoryError is OutOfMemoryError


def test_out_of_memory_in_a_pool_with_a_limit(cupy):
    cupy.pool.limit = 2**31
    cupy.error = cupy.cuda.runtime.CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of memory")
    with pytest.raises(
        OutOfMemoryError, match=r"on cuda:0; 3.00 GiB in use .* \(CuPy's pool is limited to 2.00 GiB\)"
    ):
        mg.zeros(5, device="cuda")


def test_out_of_memory_between_the_nodes_of_a_graph(cupy):
    """In the walk back, bare arrays are added without an op around them."""
    x = mg.tensor([1.0, 2.0], device="cuda:1", requires_grad=True)
    y = (x * 2.0).sum()

    def fail(gradient):
        raise cupy.cuda.memory.OutOfMemoryError(100)

    x.register_hook(fail)
    with pytest.raises(OutOfMemoryError, match="on cuda:1: 100 bytes wanted"):
        y.backward()
    assert mg.cuda.current_device() == 0 and mg.is_grad_enabled()


@pytest.mark.parametrize(
    "use",
    [
        lambda: mg.device("cuda"),
        lambda: mg.device("cuda:1"),
        lambda: mg.ones(1).cuda(),
        lambda: mg.ones(1).to("cuda"),
        lambda: mg.zeros(1, device="cuda"),
        lambda: mg.nn.Linear(1, 1).cuda(),
        lambda: mg.ones(1).pin_memory(),
        mg.cuda.current_device,
        lambda: mg.cuda.set_device(0),
        lambda: mg.cuda.device(0),
        mg.cuda.get_device_name,
        mg.cuda.get_device_properties,
        mg.cuda.memory_allocated,
        mg.cuda.memory_reserved,
        mg.cuda.max_memory_allocated,
        mg.cuda.reset_peak_memory_stats,
        mg.cuda.mem_get_info,
        mg.cuda.synchronize,
        mg.cuda.Stream,
        mg.cuda.current_stream,
        lambda: mg.cuda.Event().record(),
    ],
)
@pytest.mark.parametrize("missing", ["CuPy", "a driver"])
def test_without_a_card_everything_says_what_is_missing(cupy, monkeypatch, use, missing):
    if missing == "CuPy":
        monkeypatch.setitem(sys.modules, "cupy", None)
        sentence = r'need CuPy, which is not installed; install it with pip install "minigrad\[cuda13\]"'
    else:
        runtime = cupy.cuda.runtime
        runtime.getDeviceCount = lambda: cupy.happened("getDeviceCount")
        cupy.error = runtime.CUDARuntimeError(35, "cudaErrorInsufficientDriver: the driver is too old")
        sentence = "CuPy is installed, but CUDA cannot be used: cudaErrorInsufficientDriver"
    with pytest.raises(DeviceError, match=sentence):
        use()
    assert not mg.cuda.is_available() and mg.cuda.device_count() == 0
    mg.cuda.empty_cache()
    assert not mg.ones(1).is_pinned()
    loader = DataLoader(TensorDataset(mg.ones(4, 2)), 2, pin_memory=True)
    assert [x.tolist() for (x,) in loader] == [[[1.0, 1.0]] * 2] * 2
