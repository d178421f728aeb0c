"""The CPU's allocator: its arrays, what it keeps and gives back, its counts and limit, threads, forks."""

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import minigrad as mg
from minigrad import memory
from minigrad.devices import cpu
from minigrad.kernels.cpu import memory as allocator

MB = 1 << 20
handler_name = np._core.multiarray.get_handler_name

pytestmark = pytest.mark.skipif(
    os.environ.get("MINIGRAD_NO_CPU_MEMORY_CACHING", "0") != "0", reason="the cache is switched off"
)


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()  # what errors of former tests hold must not come back in the middle of this one
    memory.empty_cache()
    yield
    allocator.set_idle_time(30)
    memory.set_memory_limit(None)


def address(array):
    return array.ctypes.data


def reserved():
    return memory.memory_reserved("cpu")


def allocated():
    return memory.memory_allocated("cpu")


# ---- arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (7, 11), (1000, 1000), [2, 3], 4])
@pytest.mark.parametrize("dtype", ["f4", np.float64, np.dtype("i8"), "?"])
def test_an_array_is_as_numpys(shape, dtype):
    ours, theirs = allocator.empty(shape, dtype), np.empty(shape, dtype)
    assert (ours.shape, ours.dtype, ours.strides) == (theirs.shape, theirs.dtype, theirs.strides)
    assert str(ours.flags) == str(theirs.flags) and ours.base is None
    if ours.size:
        assert address(ours) % 64 == 0 and handler_name(ours) == "minigrad"


@pytest.mark.parametrize("size", [128 << 10, 1_000_003, 2 * MB, 5 * MB])
def test_large_arrays_begin_in_the_middle_of_a_page(size):
    array = allocator.empty((size,), np.uint8)
    array[...] = 1  # all of it is there
    assert address(array) % 4096 == 2048 + 64


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (2**40, 2**40), (1,) * 65])
def test_a_shape_that_cannot_be_is_numpys_error(shape):
    with pytest.raises(ValueError) as theirs:
        np.empty(shape, np.float32)
    with pytest.raises(ValueError, match=str(theirs.value).partition("(")[0].partition(";")[0]):
        allocator.empty(shape, np.float32)


def test_arrays_do_not_overlap():
    rng = np.random.default_rng()
    arrays = {}
    for i in range(3000):
        if len(arrays) > 40:
            key = list(arrays)[rng.integers(len(arrays))]
            assert (arrays.pop(key) == key % 251).all()
        size = int(2 ** rng.uniform(0, 20))
        arrays[i] = allocator.empty((size,), np.uint8)
        arrays[i].fill(i % 251)
    for key, array in arrays.items():
        assert (array == key % 251).all()


def test_an_array_can_be_resized_and_outlive_its_context():
    with cpu.active():
        x = np.arange(100_000.0)
    x.resize((300_000,), refcheck=False)
    np.testing.assert_array_equal(x[:100_000], np.arange(100_000.0))
    assert not x[100_000:].any()
    x.resize((10,), refcheck=False)
    np.testing.assert_array_equal(x, np.arange(10.0))


def test_zeros_are_zeros_also_in_memory_that_was_used():
    for dtype, n in (("f4", MB), ("f8", 100)):
        with cpu.active():
            x = np.full(n, 7, dtype)
            where = address(x)
            del x
            x = np.zeros(n, dtype)
        assert address(x) == where and not x.any()


# ---- whose arrays ---------------------------------------------------------------------------------------


def test_the_users_own_arrays_are_left_alone():
    before = handler_name()
    x = mg.randn(100_000, requires_grad=True)
    y = mg.exp(x) + x
    assert handler_name(y.detach().numpy()) == "minigrad"
    y.sum().backward()
    assert handler_name(x.grad.numpy()) == "minigrad"
    assert handler_name() == before and handler_name(np.empty(MB)) == before
    found = []
    with cpu.active(), cpu.active():
        assert handler_name() == "minigrad"
        thread = threading.Thread(target=lambda: found.append(handler_name(np.empty(MB))))
        thread.start()
        thread.join()
    assert found == [before] and handler_name() == before


def test_an_error_leaves_the_users_arrays_alone():
    before = handler_name()
    with pytest.raises(ValueError):
        mg.ones(300, 300) + mg.ones(7, 300)
    x = mg.ones(300, 300, requires_grad=True)

    def hook(gradient):
        raise KeyError("from a hook")

    x.register_hook(hook)
    with pytest.raises(KeyError):
        (x * 2.0).sum().backward()
    assert handler_name() == before


# ---- what is kept, and what goes back -------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1000, 100_000, 3 * MB])
def test_a_freed_block_is_used_again(size):
    x = allocator.empty((size,), np.uint8)
    where, held = address(x), reserved()
    del x
    assert reserved() == held
    x = allocator.empty((size - size // 200,), np.uint8)
    assert address(x) == where and reserved() == held


def test_a_block_wastes_at_most_an_eighth_and_a_line():
    rng = np.random.default_rng()
    for _ in range(300):
        size = int(2 ** rng.uniform(0, 24))
        before = reserved()
        x = allocator.empty((size,), np.uint8)
        assert size <= reserved() - before <= max(size * 1.125, size + 63)
        del x
        memory.empty_cache()


def test_empty_cache():
    emptied = []
    memory.on_empty_cache(lambda: emptied.append(True))
    held = allocator.empty((MB,), np.uint8)
    before = reserved()
    del held
    assert reserved() == before
    memory.empty_cache()
    memory._caches.pop()
    assert reserved() <= before - MB and emptied == [True]


def test_blocks_that_nobody_asks_for_go_back():
    allocator.set_idle_time(-1)  # whatever has been freed is too old already when the next block is
    old, new = allocator.empty((5 * MB,), np.uint8), allocator.empty((3 * MB,), np.uint8)
    before = reserved()
    del old
    del new
    assert reserved() <= before - 5 * MB


def test_blocks_that_fit_no_request_go_back_when_new_memory_is_needed():
    largest = allocated() + 30 * MB
    for size in range(1, 30):  # each needs a class of its own
        allocator.empty((size * MB,), np.uint8)
    assert reserved() <= 1.25 * max(largest, memory.max_memory_allocated("cpu")) + 64 * MB + 4 * MB


# ---- counts and the limit -------------------------------------------------------------------------------


def test_counts():
    memory.reset_peak_memory_stats("cpu")
    before, stats = allocated(), memory.memory_stats()
    assert memory.max_memory_allocated("cpu") == before
    x = mg.empty(1000, 1000)
    assert allocated() == before + 4_000_000
    del x
    zeros = mg.zeros(500, 1000, device="cpu")
    assert allocated() == before + zeros.numpy().nbytes == before + 2_000_000
    assert memory.max_memory_allocated(cpu) == before + 4_000_000
    assert memory.max_memory_reserved() >= reserved() >= allocated()
    memory.reset_peak_memory_stats(cpu)
    assert memory.max_memory_allocated("cpu") == allocated()
    now = memory.memory_stats()
    assert now["allocated_bytes.all.current"] == allocated()
    assert now["allocation.all.allocated"] >= stats["allocation.all.allocated"] + 2
    free, total = memory.mem_get_info("cpu")
    assert 0 < free < total


def test_the_limit():
    x = allocator.empty((20 * MB,), np.uint8)
    kept = allocator.empty((10 * MB,), np.uint8)
    before = memory.memory_stats()
    del kept
    with memory.memory_limit(allocated() + 16 * MB):
        assert memory.get_memory_limit() == allocated() + 16 * MB
        y = allocator.empty((14 * MB,), np.uint8)  # fits, once what is kept has gone back
        for make in (lambda: allocator.empty((14, MB), np.uint8), lambda: mg.ones(3 * MB) + 1.0):
            with pytest.raises(mg.errors.OutOfMemoryError, match=r"\(14, 1048576\)|\(3145728,\)") as caught:
                make()
            assert str(memory.get_memory_limit()) in str(caught.value)
            assert str(allocated()) in str(caught.value)
        after = memory.memory_stats()
        assert after["num_alloc_retries"] > before["num_alloc_retries"]
        assert after["num_ooms"] == before["num_ooms"] + 2
        del y
        assert allocator.empty((14, MB), np.uint8).shape == (14, MB)
    assert memory.get_memory_limit() is None
    allocator.empty((50 * MB,), np.uint8)
    assert x.size == 20 * MB


def test_numpys_memory_error_in_an_op_has_sizes():
    @mg.op
    def computed_by_numpy(xp, x):  # no kernel will ever be written for it
        return xp.sinh(x)

    x = mg.ones(MB)
    with memory.memory_limit(reserved() + MB), pytest.raises(mg.errors.OutOfMemoryError, match=r"4.* MiB"):
        computed_by_numpy(x)
    with memory.memory_limit(0), pytest.raises(mg.errors.OutOfMemoryError):
        x.to(mg.float64)


@pytest.mark.parametrize("bad, error", [(-1, ValueError), (1.5, TypeError), ("1G", TypeError)])
def test_a_bad_limit(bad, error):
    with pytest.raises(error):
        memory.set_memory_limit(bad)
    assert memory.get_memory_limit() is None


def test_an_array_larger_than_any_memory():
    with pytest.raises(mg.errors.OutOfMemoryError, match=str(2**50)):
        mg.empty(2**48)
    assert mg.ones(3).sum().item() == 3


# ---- threads and forks ----------------------------------------------------------------------------------


def test_threads_get_blocks_of_their_own():
    before, wrong = allocated(), []

    def work(number):
        rng = np.random.default_rng(number)
        for i in range(400):
            x = allocator.empty((int(2 ** rng.uniform(0, 19)),), np.uint8)
            x.fill(number * 16 + i % 16)
            y = mg.from_numpy(x) * 1
            if not (y.numpy() == number * 16 + i % 16).all():
                wrong.append((number, i))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and allocated() == before


FORK = """
import os, signal, threading
import numpy as np
import minigrad as mg
from minigrad.kernels.cpu.memory import empty

stop = threading.Event()

def churn():  # so that forks meet the allocator at work
    while not stop.is_set():
        for size in (10, 1 << 18, 1 << 22):
            empty((size,), np.uint8)

threads = [threading.Thread(target=churn, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
kept = mg.randn(1000, 1000)
copy = kept.numpy().copy()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a deadlock must not outlive the test
        y = kept * 2.0
        assert (y.numpy() == 2 * copy).all()
        kept.zero_()
        del y, kept
        mg.memory.empty_cache()
        empty((1 << 22,), np.uint8).fill(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (kept.numpy() == copy).all()
stop.set()
for thread in threads:
    thread.join()
print("children were well")
"""


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_can_allocate():
    assert "children were well" in run(FORK)


def test_without_the_cache_every_block_goes_back_at_once():
    code = """
import numpy as np, minigrad as mg
from minigrad.kernels.cpu.memory import empty
before = mg.memory.memory_reserved("cpu")
x = mg.ones(1000, 1000, requires_grad=True)
(x * x).sum().backward()
assert mg.memory.memory_allocated("cpu") == before + 8_000_000 == mg.memory.memory_reserved("cpu")
del x
for size in (1, 1000, 1 << 22):
    empty((size,), np.uint8)
print(mg.memory.memory_reserved("cpu") - before)
"""
    assert run(code, MINIGRAD_NO_CPU_MEMORY_CACHING="1").strip() == "0"


def test_a_small_block_that_was_freed_first_is_not_taken_for_an_idle_one():
    small, mapped = allocator.empty(2048, np.float32), allocator.empty(MB, np.float32)
    place, taken = address(small), allocator.statistics()["taken"]
    del small
    del mapped  # at this, what is idle goes back
    again = allocator.empty(2048, np.float32)
    assert address(again) == place and allocator.statistics()["taken"] == taken
