"""The guard of a card: work inside of it runs on that card, and fails with minigrad's errors.

CuPy's own errors say that an address was illegal, but not which kernel to look at, nor that the process is
lost; and that memory ran out, but not what holds it.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import KernelLaunchError, OutOfMemoryError

last_launched: dict[int, str] = {}
"""The kernel launched last on each card, by the card's number."""

MEMORY_ALLOCATION = 2

# Errors after which CUDA refuses all work of the process: in them, cudaError_t and CUresult have one number.
CONTEXT_LOST = frozenset(
    {
        214,  # an uncorrectable ECC error
        220,  # an uncorrectable NVLink error
        700,  # an illegal address
        702,  # a launch that timed out
        709,  # the context is destroyed
        710,  # a device-side assert
        714,  # an error in the call stack, or a stack overflow
        715,  # an illegal instruction
        716,  # a misaligned address
        717,  # an operation on a wrong address space
        718,  # a program counter outside of its space
        719,  # any other exception of a kernel
    }
)


class Guard:
    """A context in which the card ``index`` is CuPy's current one and errors are minigrad's.

    It may be entered again inside of itself, and by several threads.

    Args:
        cupy: the module.
        index: the card's number.
        several: whether there are other cards; a single one is current at all times.
    """

    __slots__ = ("_device", "index")

    def __init__(self, cupy: Any, index: int, several: bool):
        self.index = index
        self._device = cupy.cuda.Device(index) if several else None

    def __enter__(self) -> None:
        if self._device is not None:
            self._device.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._device is not None:
            self._device.__exit__(kind, error, traceback)
        if error is not None:
            explained = explain(error, self.index)
            if explained is not None:
                raise explained from error


def explain(error: BaseException, index: int | None = None, launching: str = "") -> Exception | None:
    """What minigrad raises in place of CuPy's ``error``.

    Args:
        error: what was raised.
        index: the number of the card, by default the current one's.
        launching: the kernel whose launch raised it.

    Returns:
        None if the error is not CuPy's, or has nothing to do with a lost context or with memory.
    """
    if type(error).__module__.partition(".")[0] not in ("cupy", "cupy_backends"):
        return None
    import cupy

    status = getattr(error, "status", None)
    lost = status in CONTEXT_LOST
    out_of_memory = isinstance(error, MemoryError) or status == MEMORY_ALLOCATION
    if not lost and not out_of_memory:
        return None
    if index is None:
        index = cupy.cuda.runtime.getDevice()
    return _context_lost(error, index, launching) if lost else _out_of_memory(cupy, error, index)


def _context_lost(error: BaseException, index: int, launching: str) -> KernelLaunchError:
    before = last_launched.get(index)
    if launching and os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        suspect = f"It is {launching}, for CUDA_LAUNCH_BLOCKING=1 makes each launch wait for its kernel"
    elif before:
        suspect = (
            f"The kernel launched last there is {before}; that one, or one before it, failed: such errors "
            "are seen late"
        )
    else:
        suspect = "minigrad has launched no kernel there: it was one of CuPy's or of another library"
    return KernelLaunchError(
        f"a kernel failed on cuda:{index}: {error}. {suspect}. The CUDA context of this process is lost, and "
        "with it all that was on the card: restart the process. To find the line, run the same on device "
        "'sim' inside `with minigrad.kernels.sim.checks():`, or set CUDA_LAUNCH_BLOCKING=1, so that the "
        "launch itself fails, or run under compute-sanitizer"
    )


def _out_of_memory(cupy: Any, error: BaseException, index: int) -> OutOfMemoryError:
    size = getattr(error, "_size", None)
    wanted = "" if size is None else f": {in_words(size)} wanted"
    with cupy.cuda.Device(index):
        pool = cupy.get_default_memory_pool()
        used, reserved = pool.used_bytes(), pool.total_bytes()
        free, total = cupy.cuda.runtime.memGetInfo()
        limit = pool.get_limit()
    limited = f" (CuPy's pool is limited to {in_words(limit)})" if limit else ""
    return OutOfMemoryError(
        f"out of memory on cuda:{index}{wanted}; {in_words(used)} in use by arrays of this process, "
        f"{in_words(reserved - used)} cached for its next ones, {in_words(free)} free of the card's "
        f"{in_words(total)}{limited}. Take smaller batches, compute under no_grad() where no gradient is "
        "needed, and drop tensors that hold a graph (keep loss.item(), not loss). minigrad.cuda."
        "empty_cache() returns what is cached"
    )


def in_words(size: int) -> str:
    """A number of bytes for a reader: ``"1.50 GiB"``."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"
