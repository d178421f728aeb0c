"""The memory of devices, by PyTorch's names: what arrays hold, what is kept for the next ones, and limits.

On a card CuPy's pool takes memory from CUDA in blocks and keeps them when arrays go. On the CPU minigrad's
own allocator does the same for the arrays that its ops make (:mod:`minigrad.kernels.cpu.memory`): the system
gives memory page by page, which takes longer than to fill it. So less is *allocated* (held by arrays) than
is *reserved* (held by the pool), and other programs can have only what is not reserved.

The functions that PyTorch has too take its default, the current card; ``device="cpu"`` asks for the CPU.
There a freed block goes back to the system when nobody has asked for it in half a minute; when such blocks
are more than a quarter of the machine's memory; when new memory is needed, and all that is reserved would
exceed by a quarter what arrays have ever held at one time; and by :func:`empty_cache`. Arrays that the user
makes with NumPy are none of the allocator's business, and are not counted.

``MINIGRAD_NO_CPU_MEMORY_CACHING=1`` turns the CPU's cache off, for valgrind and the like.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import index
from typing import Any

from minigrad.devices import Device, cpu, find_card
from minigrad.kernels import cuda
from minigrad.kernels.cpu import memory as cpu_memory

__all__ = [
    "empty_cache",
    "get_memory_limit",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_limit",
    "memory_reserved",
    "memory_stats",
    "on_empty_cache",
    "reset_peak_memory_stats",
    "set_memory_limit",
]


def _is_cpu(device: str | int | Device | None) -> bool:
    return device is cpu or device == "cpu"


@contextmanager
def _pool(device: str | int | Device | None) -> Iterator[Any]:
    """CuPy's memory pool of a card."""
    card = find_card(device)
    with card.active():
        yield card.xp.get_default_memory_pool()


def memory_allocated(device: str | int | Device | None = None) -> int:
    """The bytes that arrays hold on a device, by default the current card."""
    if _is_cpu(device):
        return cpu_memory.statistics()["allocated"]
    with _pool(device) as pool:
        return pool.used_bytes()


def memory_reserved(device: str | int | Device | None = None) -> int:
    """The bytes that are held on a device: those of arrays, and those kept for the next ones."""
    if _is_cpu(device):
        return cpu_memory.statistics()["reserved"]
    with _pool(device) as pool:
        return pool.total_bytes()


def mem_get_info(device: str | int | Device | None = None) -> tuple[int, int]:
    """(the bytes that are free on a device, the bytes that it has), for all programs together."""
    if _is_cpu(device):
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    card = find_card(device)
    with card.active():
        return card.xp.cuda.runtime.memGetInfo()


def memory_stats(device: str | Device = "cpu") -> dict[str, int]:
    """What the CPU's allocator has counted, by the names of ``torch.cuda.memory_stats``.

    ``allocated_bytes`` are those of arrays, ``reserved_bytes`` those of all blocks. ``allocation`` counts the
    requests, ``num_device_alloc`` and ``num_device_free`` those that went through to the system,
    ``num_alloc_retries`` how often the cache was emptied for a request, ``num_ooms`` the requests refused.
    """
    if not _is_cpu(device):
        raise ValueError(f"memory_stats: only the CPU's allocator counts, got device {str(device)!r}")
    found = cpu_memory.statistics()
    return {
        "allocated_bytes.all.current": found["allocated"],
        "allocated_bytes.all.peak": found["most_allocated"],
        "reserved_bytes.all.current": found["reserved"],
        "reserved_bytes.all.peak": found["most_reserved"],
        "allocation.all.allocated": found["allocations"],
        "num_device_alloc": found["taken"],
        "num_device_free": found["returned"],
        "num_alloc_retries": found["retries"],
        "num_ooms": found["failures"],
    }


# ---- what is kept -----------------------------------------------------------------------------------------

_caches: list[Callable[[], object]] = []


def on_empty_cache(release: Callable[[], object]) -> Callable[[], object]:
    """Let :func:`empty_cache` call ``release()`` too: for what else keeps memory to be quick."""
    _caches.append(release)
    return release


def empty_cache() -> None:
    """Return to the system what is kept for new arrays: on the CPU, on all cards, and pinned memory."""
    for release in _caches:
        release()
    cpu_memory.empty_cache()
    if not cuda.is_available():
        return
    cupy = cuda.cupy()
    for number in range(cupy.cuda.runtime.getDeviceCount()):
        with _pool(number) as pool:
            pool.free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


# ---- the limit of the CPU ---------------------------------------------------------------------------------

_limit: int | None = None


def get_memory_limit() -> int | None:
    """The bytes that may be reserved on the CPU; None if the machine's memory is the only limit."""
    return _limit


def set_memory_limit(bytes: int | None) -> None:
    """Let the CPU's allocator reserve no more than ``bytes``; None for no limit.

    An array for which the limit leaves no room makes it give back what it keeps, and if that is not enough
    raise :class:`minigrad.errors.OutOfMemoryError`. What arrays hold already is not touched.
    """
    global _limit
    bytes = None if bytes is None else index(bytes)
    if bytes is not None and bytes < 0:
        raise ValueError(f"set_memory_limit: expected a number of bytes or None, got {bytes}")
    cpu_memory.set_limit(bytes)
    _limit = bytes


@contextmanager
def memory_limit(bytes: int | None) -> Iterator[None]:
    """A context with :func:`set_memory_limit`; the limit belongs to the process, not to the thread."""
    before = _limit
    set_memory_limit(bytes)
    try:
        yield
    finally:
        set_memory_limit(before)


# ---- the peak ---------------------------------------------------------------------------------------------

_peaks: dict[int, int] = {}
"""The most bytes that arrays held on each card since the last :func:`reset_peak_memory_stats`."""

_held: dict[int, int] = {}
"""The bytes that arrays hold, as counted since then: to ask the pool takes a walk over all of its blocks."""

_HOOK = "minigrad's peak of memory"


def max_memory_allocated(device: str | int | Device | None = None) -> int:
    """The most bytes that arrays held on a device at one time since :func:`reset_peak_memory_stats`.

    On a card CuPy's pool keeps no peak, and to follow every allocation takes time. So it is followed from
    the first call of :func:`reset_peak_memory_stats` on, in the thread of that call. Before that, the answer
    is :func:`memory_reserved`: the peak was not above it, unless :func:`empty_cache` has been called.
    """
    if _is_cpu(device):
        return cpu_memory.statistics()["most_allocated"]
    card = find_card(device)
    peak = _peaks.get(card.index)
    return memory_reserved(card) if peak is None else max(peak, memory_allocated(card))


def max_memory_reserved(device: str | int | Device | None = "cpu") -> int:
    """The most bytes that were reserved on the CPU at one time since :func:`reset_peak_memory_stats`."""
    if not _is_cpu(device):
        raise ValueError(f"max_memory_reserved: CuPy's pool keeps no such peak; got device {str(device)!r}")
    return cpu_memory.statistics()["most_reserved"]


def reset_peak_memory_stats(device: str | int | Device | None = None) -> None:
    """Let :func:`max_memory_allocated` start again from what is held now."""
    if _is_cpu(device):
        cpu_memory.reset_peaks()
        return
    card = find_card(device)
    if _HOOK not in card.xp.cuda.memory_hook.get_memory_hooks():
        _peak_hook(card.xp).__enter__()  # for good, in this thread
    _peaks[card.index] = _held[card.index] = memory_allocated(card)


def _peak_hook(cupy: Any) -> Any:
    """What CuPy is to call after each allocation, and each release, of the current thread."""

    class PeakHook(cupy.cuda.MemoryHook):
        name = _HOOK

        def malloc_postprocess(self, *, device_id: int, mem_size: int, mem_ptr: int, **_: Any) -> None:
            if device_id not in _peaks or not mem_ptr:
                return
            _held[device_id] += mem_size
            if _held[device_id] > _peaks[device_id]:  # unless other threads have given back some
                _held[device_id] = memory_allocated(device_id)
                _peaks[device_id] = max(_peaks[device_id], _held[device_id])

        def free_postprocess(self, *, device_id: int, mem_size: int, **_: Any) -> None:
            if device_id in _held:
                _held[device_id] -= mem_size

    return PeakHook()
