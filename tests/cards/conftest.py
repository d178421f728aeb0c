"""A stand-in for CuPy with two cards, so that what several cards need is tested where there is none.

It keeps each array on one card, fails where an array is computed with while the other card is current, notes
copies and waits, and runs kernels on the simulator.
"""

import math
import sys
import threading
from collections import OrderedDict
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import minigrad as mg
from minigrad import devices, memory
from minigrad.kernels import cuda, sim
from minigrad.kernels.cuda import guard
from minigrad.ops.special import _log_gamma


class Card(threading.local):
    """The current card of a thread, and its stream."""

    number = 0

    def __init__(self):
        self.streams = {0: [Stream.null], 1: [Stream.null]}


class Device:
    def __init__(self, index=None):
        self.id = card.number if index is None else index
        self.attributes = {}

    def __enter__(self):
        before.append(card.number)
        card.number = self.id

    def __exit__(self, *exc):
        card.number = before.pop()

    def __eq__(self, other):
        # The launch code takes the stand-in's arrays for NumPy's, so what it allocates itself is on "cpu".
        return other == "cpu" if isinstance(other, str) else self.id == other.id

    def use(self):
        card.number = self.id

    def synchronize(self):
        happened("synchronize", self.id)


class Stream:
    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr = 0 if null else id(self)
        self.device_id = -1 if null else card.number
        self.done = True

    def __enter__(self):
        assert self.device_id in (-1, card.number)
        card.streams[card.number].append(self)

    def __exit__(self, *exc):
        assert card.streams[card.number].pop() is self

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        happened("wait", card.number, event.recorded_on)

    def synchronize(self):
        happened("synchronize stream", card.number)

    def begin_capture(self):
        assert self.ptr and card.streams[card.number][-1] is self
        happened("begin capture", card.number)

    def end_capture(self):
        happened("end capture", card.number)
        return Graph()


class Graph:
    """A recorded step. The stand-in has computed everything at once: what a launch does, no test can see."""

    def launch(self):
        happened("launch graph", card.number)


class Event:
    recorded_on = None

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.made_on, self.timing, self.done = card.number, not disable_timing, True

    def record(self, stream=None):
        assert self.made_on == card.number and stream.device_id in (-1, card.number)
        self.recorded_on = card.number

    def synchronize(self):
        happened("synchronize event", card.number)


Stream.null = Stream(null=True)
card, before = Card(), []


class Array(np.ndarray):
    """An array on one card."""

    card = 0

    def __array_finalize__(self, parent):
        self.card = parent.card if isinstance(parent, Array) else card.number

    @property
    def device(self):
        return Device(self.card)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if out is not None:
            options["out"] = plain(out)
        result = getattr(ufunc, method)(*plain(inputs), **options)
        return out[0] if out is not None else on_card(result)

    def __array_function__(self, function, types, args, options):
        return on_card(function(*plain(args), **plain(options)))

    def __setitem__(self, index, value):
        plain(self)[plain(index)] = plain(value)

    def __getitem__(self, index):
        found = np.ndarray.__getitem__(self, plain(index))
        return on_card(found) if isinstance(found, np.generic) else found

    def set(self, array, stream):
        assert self.flags.c_contiguous
        happened("set", card.number)
        plain(self)[...] = array

    def copy(self, order="C"):  # from any card, to the current one
        return on_card(np.array(self.view(np.ndarray), order=order))

    def astype(self, *args, **options):
        return on_card(plain(self).astype(*args, **options))


def plain(value):
    """``value`` as NumPy's, after a check that it lives on the current card."""
    if isinstance(value, Array):
        assert value.card == card.number, f"an array of card {value.card} is used on card {card.number}"
        return value.view(np.ndarray)
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain, value))
    return {key: plain(v) for key, v in value.items()} if isinstance(value, dict) else value


def on_card(value):
    if isinstance(value, (tuple, list)):
        return type(value)(map(on_card, value))
    return np.asarray(value).view(Array) if isinstance(value, (np.ndarray, np.generic)) else value


class OutOfMemoryError(MemoryError):
    __module__ = "cupy.cuda.memory"

    def __init__(self, size):
        self._size = size
        super().__init__(f"Out of memory allocating {size} bytes")


class CUDARuntimeError(RuntimeError):
    __module__ = "cupy_backends.cuda.api.runtime"

    def __init__(self, status, name):
        self.status = status
        super().__init__(name)


class MemoryHook:
    def __enter__(self):
        hooks[self.name] = self


hooks = OrderedDict()


class MemoryPool:
    """The pool of a graph; the stand-in's arrays come from NumPy all the same."""

    def malloc(self, size):
        raise NotImplementedError


class Pool:
    def __init__(self):
        self.used, self.total, self.limit = [3 * 2**30, 2**20], [5 * 2**30, 2**21], 0

    def used_bytes(self):
        return self.used[card.number]

    def total_bytes(self):
        return self.total[card.number]

    def get_limit(self):
        return self.limit

    def free_all_blocks(self):
        happened("free", card.number)


NOT_IN_CUPY = {"initial", "where"}
"""What NumPy's reductions take and CuPy's do not."""


class CuPy(ModuleType):
    """The module cupy with two cards. ``events`` holds what happened; ``error`` is raised by what happens."""

    ndarray = Array

    def __init__(self):
        super().__init__("cupy")
        self.events, self.error, self.happened, self.pinned = [], None, happened, set()
        self.pool = Pool()
        self.get_default_memory_pool = self.get_default_pinned_memory_pool = lambda: self.pool
        runtime = SimpleNamespace(
            getDeviceCount=lambda: 2,
            getDevice=lambda: card.number,
            getDeviceProperties=lambda index: {
                "name": b"Stand-in %d" % index,
                "totalGlobalMem": 80 * 2**30,
                "major": 9,
                "minor": index,
                "multiProcessorCount": 132,
            },
            memGetInfo=lambda: (2**30 * (card.number + 1), 80 * 2**30),
            pointerGetAttributes=lambda address: SimpleNamespace(type=int(address in self.pinned)),
            memoryTypeHost=1,
            CUDARuntimeError=CUDARuntimeError,
        )
        self.cuda = SimpleNamespace(
            runtime=runtime,
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=Device,
            Stream=Stream,
            Event=Event,
            MemoryHook=MemoryHook,
            memory_hook=SimpleNamespace(get_memory_hooks=lambda: hooks),
            get_current_stream=lambda index=-1: card.streams[card.number if index < 0 else index][-1],
            get_elapsed_time=lambda start, end: 1.5 if start.timing and end.timing else None,
            alloc_pinned_memory=self.alloc_pinned_memory,
            MemoryPool=MemoryPool,
            using_allocator=lambda allocator: nullcontext(),
        )

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, (type, np.ufunc)) or not callable(found):
            return found

        def function(*args, **options):
            assert not NOT_IN_CUPY & options.keys(), f"CuPy's {name} does not take {', '.join(options)}"
            happened(name)
            return on_card(found(*plain(args), **plain(options)))

        return function

    def alloc_pinned_memory(self, size):
        happened("alloc_pinned_memory")
        buffer = np.empty(size, np.uint8)
        self.pinned.add(buffer.ctypes.data)
        return buffer

    def asarray(self, array, dtype=None, blocking=False):
        happened("asarray", card.number, "blocking" if blocking else "")
        if isinstance(array, Array):
            return on_card(plain(array).astype(dtype or array.dtype, copy=False))
        return on_card(np.array(array, dtype))

    def asnumpy(self, array):
        happened("asnumpy", card.number)
        return np.array(array.view(np.ndarray))


def of_each_element(function):
    return lambda x: on_card(np.asarray(np.frompyfunc(function, 1, 1)(plain(x))).astype(x.dtype))


CUPYX = {
    "cupyx": {},
    "cupyx.scipy": {},
    "cupyx.scipy.special": {
        "erf": of_each_element(math.erf),
        "erfc": of_each_element(math.erfc),
        "gammaln": of_each_element(_log_gamma),
    },
}


def happened(*event):
    """Note what happens on a card, or raise the error that it is to end in."""
    cupy = sys.modules["cupy"]
    cupy.events.append(event)
    if cupy.error is not None:
        raise cupy.error


@pytest.fixture
def stand_in():
    """The stand-in, which has not taken CuPy's place."""
    return CuPy()


@pytest.fixture
def cupy(monkeypatch, stand_in):
    """Two cards, the first of them current; nothing of them is left behind."""
    if not sim.is_available():
        pytest.skip("the stand-in's kernels run on the simulator, which needs g++")
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    for name, functions in CUPYX.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**functions))
    monkeypatch.setattr(devices, "_devices", {"cpu": mg.device("cpu"), "sim": mg.device("sim")})
    monkeypatch.setattr(guard, "last_launched", {})
    cuda.why_unavailable.cache_clear()
    yield stand_in
    stand_in.error, card.number = None, 0
    for left in (hooks, memory._peaks, memory._held):
        left.clear()
    cuda.why_unavailable.cache_clear()


@pytest.fixture
def card_of():
    """``card_of(tensor)``: the card of a tensor's array, which must be that of its device."""

    def find(tensor):
        assert tensor._array.card == tensor.device.index
        return tensor._array.card

    return find
