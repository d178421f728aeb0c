"""The memory of a card, by PyTorch's names: what arrays hold, what CuPy's pool keeps for the next ones.

CuPy takes memory from CUDA in blocks and keeps them when arrays go. So less is *allocated* (held by arrays)
than is *reserved* (held by the pool), and other programs can have only what is not reserved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minigrad.devices import Device, find_card
from minigrad.kernels import cuda

__all__ = [
    "empty_cache",
    "max_memory_allocated",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
]


@contextmanager
def _pool(device: str | int | Device | None) -> Iterator[Any]:
    """CuPy's memory pool of a card."""
    card = find_card(device)
    with card.active():
        yield card.xp.get_default_memory_pool()


def memory_allocated(device: str | int | Device | None = None) -> int:
    """The bytes that arrays hold on a card, by default the current one."""
    with _pool(device) as pool:
        return pool.used_bytes()


def memory_reserved(device: str | int | Device | None = None) -> int:
    """The bytes that CuPy's pool holds on a card: those of arrays, and those kept for the next ones."""
    with _pool(device) as pool:
        return pool.total_bytes()


def mem_get_info(device: str | int | Device | None = None) -> tuple[int, int]:
    """(the bytes that are free on a card, the bytes that it has), for all programs together."""
    card = find_card(device)
    with card.active():
        return card.xp.cuda.runtime.memGetInfo()


def empty_cache() -> None:
    """Return to CUDA what the pools keep on all cards, and pinned memory that is not in use.

    Without a card there is nothing to return.
    """
    if not cuda.is_available():
        return
    cupy = cuda.cupy()
    for index in range(cupy.cuda.runtime.getDeviceCount()):
        with _pool(index) as pool:
            pool.free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


# ---- the peak ---------------------------------------------------------------------------------------------

_peaks: dict[int, int] = {}
"""The most bytes that arrays held on each card since the last :func:`reset_peak_memory_stats`."""

_held: dict[int, int] = {}
"""The bytes that arrays hold, as counted since then: to ask the pool takes a walk over all of its blocks."""

_HOOK = "minigrad's peak of memory"


def max_memory_allocated(device: str | int | Device | None = None) -> int:
    """The most bytes that arrays held on a card at one time since :func:`reset_peak_memory_stats`.

    CuPy's pool keeps no peak, and to follow every allocation takes time. So it is followed from the first
    call of :func:`reset_peak_memory_stats` on, in the thread of that call. Before that, the answer is
    :func:`memory_reserved`: the peak was not above it, unless :func:`empty_cache` has been called.
    """
    card = find_card(device)
    peak = _peaks.get(card.index)
    return memory_reserved(card) if peak is None else max(peak, memory_allocated(card))


def reset_peak_memory_stats(device: str | int | Device | None = None) -> None:
    """Let :func:`max_memory_allocated` start again from what is held now."""
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
