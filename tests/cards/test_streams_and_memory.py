"""What ``minigrad.cuda`` tells of a card, its memory and streams, and copies from pinned memory."""

from collections import namedtuple

import numpy as np
import pytest

import minigrad as mg
from minigrad.errors import DeviceError, KernelLaunchError, OutOfMemoryError
from minigrad.utils.data import DataLoader, TensorDataset


def test_the_stand_in_offers_only_what_cupy_offers(stand_in):
    real = pytest.importorskip("cupy")
    fake = stand_in.cuda
    offered = [(fake, "cuda"), (fake.runtime, "cuda.runtime")]
    offered += [(kind, f"cuda.{kind.__name__}") for kind in (fake.Device, fake.Stream, fake.Event)]
    for namespace, name in offered:
        found = real
        for part in name.split("."):
            found = getattr(found, part)
        names = [n for n in vars(namespace) if not n.startswith("__") and n not in ("made_on", "recorded_on")]
        assert [n for n in names if not hasattr(found, n)] == [], name
    pool = real.get_default_memory_pool()
    methods = [n for n in dir(stand_in.pool) if not n.startswith("_") and n not in ("used", "total", "limit")]
    assert len(methods) == 4 and all(hasattr(pool, n) for n in methods)
    assert isinstance(real.cuda.memory.OutOfMemoryError(7, 0), MemoryError)
    assert real.cuda.memory.OutOfMemoryError(7, 0)._size == 7
    assert issubclass(real.cuda.driver.CUDADriverError, RuntimeError)


def test_what_a_card_is(cupy):
    assert mg.cuda.is_available() and mg.cuda.device_count() == 2
    assert mg.cuda.get_device_name() == "Stand-in 0" and mg.cuda.get_device_name(1) == "Stand-in 1"
    properties = mg.cuda.get_device_properties("cuda:1")
    assert (properties.total_memory, properties.multi_processor_count) == (80 * 2**30, 132)
    assert (properties.major, properties.minor) == mg.cuda.get_device_capability(1) == (9, 1)


def test_memory(cupy):
    assert (mg.cuda.memory_allocated(), mg.cuda.memory_reserved()) == (3 * 2**30, 5 * 2**30)
    assert (mg.cuda.memory_allocated(1), mg.cuda.memory_reserved("cuda:1")) == (2**20, 2**21)
    assert mg.cuda.mem_get_info(1) == (2 * 2**30, 80 * 2**30)
    mg.cuda.empty_cache()
    assert cupy.events == [("free", 0), ("free", 1), ("free", 0)]  # both pools, and that of pinned memory


def test_the_peak_of_memory(cupy):
    assert mg.cuda.max_memory_allocated() == mg.cuda.memory_reserved()
    cupy.pool.used = [1000, 0]
    mg.cuda.reset_peak_memory_stats()
    mg.cuda.reset_peak_memory_stats()
    (hook,) = cupy.cuda.memory_hook.get_memory_hooks().values()

    def allocate(size, number=0):
        cupy.pool.used[number] += size
        hook.malloc_postprocess(device_id=number, size=size, mem_size=size, mem_ptr=1, pmem_id=1)

    def free(size):
        cupy.pool.used[0] -= size
        hook.free_postprocess(device_id=0, mem_size=size, mem_ptr=1, pmem_id=1)

    assert mg.cuda.max_memory_allocated() == 1000
    allocate(500)
    free(1200)
    allocate(600)
    allocate(7, number=1)
    hook.malloc_postprocess(device_id=0, size=1, mem_size=10**9, mem_ptr=0, pmem_id=0)  # one that failed
    assert mg.cuda.max_memory_allocated() == 1500
    cupy.pool.used[0] -= 900  # given back by another thread, so the count is too high
    allocate(800)
    assert mg.cuda.max_memory_allocated() == 1500
    mg.cuda.reset_peak_memory_stats()
    assert mg.cuda.max_memory_allocated() == cupy.pool.used[0] == 800


def test_streams_and_events(cupy, card_of):
    default = mg.cuda.current_stream()
    assert default == mg.cuda.default_stream() and default.query()
    side = mg.cuda.Stream(1)
    assert side != default and side.device is mg.device("cuda:1") and "cuda:1" in repr(side)
    with mg.cuda.stream(side):
        assert mg.cuda.current_device() == 1 and mg.cuda.current_stream() == side
        assert card_of(mg.ones(2, device="cuda") + 1.0) == 1
        mg.cuda.set_device(0)
    assert mg.cuda.current_device() == 0 and mg.cuda.current_stream(1) == mg.cuda.default_stream(1)
    with mg.cuda.stream(None):
        assert mg.cuda.current_stream() == default

    start, end = mg.cuda.Event(enable_timing=True), mg.cuda.Event(enable_timing=True)
    assert start.query()
    with pytest.raises(ValueError, match="this event has not been recorded"):
        start.elapsed_time(end)
    start.record(side)
    end.record(side)
    assert start.elapsed_time(end) == 1.5 and end.query()
    with pytest.raises(ValueError, match="end_event was made without enable_timing"):
        start.elapsed_time(mg.cuda.Event())
    cupy.events.clear()
    default.wait_stream(side)
    side.synchronize()
    end.synchronize()
    mg.cuda.synchronize(1)
    mg.cuda.synchronize("cpu")
    assert cupy.events == [
        ("wait", 0, 1),
        ("synchronize stream", 1),
        ("synchronize event", 1),
        ("synchronize", 1),
    ]


# ---- pinned memory ----------------------------------------------------------------------------------------


def test_copies_from_pinned_memory_wait_unless_told_not_to(cupy):
    pageable = mg.arange(6.0).reshape(2, 3)
    pinned = pageable.T.pin_memory()
    assert pinned.is_pinned() and not pageable.is_pinned() and pinned.pin_memory() is pinned
    assert pinned.is_contiguous() and pinned.tolist() == pageable.T.tolist()

    def copies(make):
        cupy.events.clear()
        tensor = make()
        assert tensor.is_cuda and tensor.numel() == 6
        return [event for event in cupy.events if event[0] == "asarray"]

    assert copies(lambda: pinned.to("cuda", non_blocking=True)) == [("asarray", 0, "")]
    assert copies(lambda: pinned.cuda(1, non_blocking=True)) == [("asarray", 1, "")]
    assert copies(lambda: pinned.cuda()) == [("asarray", 0, "blocking")]
    # CuPy reads pageable memory before it returns.
    assert copies(lambda: pageable.to("cuda", non_blocking=True)) == [("asarray", 0, "")]
    assert copies(lambda: pageable.cuda()) == [("asarray", 0, "")]
    layer = mg.nn.Linear(2, 3)
    assert layer.to("cuda", non_blocking=True).weight.is_cuda
    with pytest.raises(DeviceError, match="only tensors on cpu can be pinned, this one is on cuda:0"):
        pinned.cuda().pin_memory()
    cupy.error = cupy.cuda.runtime.CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of memory")
    with pytest.raises(OutOfMemoryError, match=r"no 24 bytes of page-locked memory left \(cudaE"):
        pageable.pin_memory()
    cupy.error = cupy.cuda.runtime.CUDARuntimeError(700, "cudaErrorIllegalAddress: an illegal access")
    with pytest.raises(KernelLaunchError, match="a kernel failed on cuda:0: cudaErrorIllegalAddress"):
        pageable.pin_memory()
    cupy.error = None
    assert not mg.zeros(0, 3).is_pinned() and mg.zeros(0, 3).pin_memory().shape == (0, 3)


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_pins_its_batches(cupy, num_workers, rng):
    data = rng.standard_normal((10, 3)).astype(np.float32)
    samples = TensorDataset(mg.tensor(data), mg.arange(10))
    loaded = list(DataLoader(samples, 4, pin_memory=True, num_workers=num_workers))
    assert all(part.is_pinned() for batch in loaded for part in batch)
    np.testing.assert_array_equal(np.concatenate([x.numpy() for x, _ in loaded]), data)
    assert not any(part.is_pinned() for batch in DataLoader(samples, 4) for part in batch)
    nested = [{"pair": Pair(row, "name"), "list": [row, 1]} for row in data]
    batch = next(iter(DataLoader(nested, 4, pin_memory=True, num_workers=num_workers)))
    assert isinstance(batch["pair"], Pair) and batch["pair"].y == ["name"] * 4
    assert batch["pair"].x.is_pinned() and batch["list"][0].is_pinned() and batch["list"][1].is_pinned()
