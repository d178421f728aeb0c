"""Runs kernels on a card through CuPy: the counterpart of ``minigrad.kernels.sim.backend``.

NVRTC compiles each instance of a kernel when it is first launched, and CuPy keeps what it made on disk
(``$CUPY_CACHE_DIR``, by default ``~/.cupy/kernel_cache``; before 14.2 it did not keep all instances of
templates). CuPy adds ``-ftz=true``: on a card, float32 numbers below 1.2e-38 count as zero.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from ..errors import KernelCompileError, KernelLaunchError
from ..packing import HEADER_BYTES, Packing
from ..source import CUDA_DIRECTORY, CudaSource, Signature
from . import cupy
from .guard import explain, last_launched

# CuPy adds the folder of cuda_fp16.h: that of the toolkit, or of the wheel nvidia-cuda-runtime.
OPTIONS = ("-std=c++17", f"-I{CUDA_DIRECTORY}")

# What a block gets of shared memory without asking; more must be asked for, kernel by kernel.
DEFAULT_SHARED_BYTES = 48 * 1024

MAX_ARGUMENT_BYTES = 32764  # of a launch from compute capability 7.0 on

# Lets a kernel be launched in clusters of more than 8 blocks, which not every card that has clusters can do:
# CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED of cuda.h.
LARGE_CLUSTERS_ALLOWED = 14

# CU_LAUNCH_PARAM_BUFFER_POINTER and CU_LAUNCH_PARAM_BUFFER_SIZE of cuda.h.
LAUNCH_PARAM_BUFFER_POINTER, LAUNCH_PARAM_BUFFER_SIZE = 1, 2


class CudaBackend:
    """Compiles kernels for the card that their arrays live on, and launches them in its current stream."""

    packs = True

    def load(self, source: CudaSource, signature: Signature, instance: str):
        """A launcher of ``instance``, as :class:`minigrad.kernels.launch.Backend` describes it.

        It hands the arguments to the driver as one block of memory: CuPy's own way, an object for each of
        them, takes longer than the launch itself.
        """
        cp = cupy()
        cuda, launch_kernel, current_stream = cp.cuda, cp.cuda.driver.launchKernel, cp.cuda.get_current_stream
        several = cuda.runtime.getDeviceCount() > 1
        options = (*OPTIONS, f"-arch={source.architecture}") if source.architecture else OPTIONS
        module = cp.RawModule(code=source.text, options=options, name_expressions=[instance])
        kernels: dict[int, Any] = {}  # by card: each has a module of its own
        functions: dict[int, tuple[int, int]] = {}  # by card: the driver's, and the shared memory it may take

        def prepare(card: int, shared_bytes: int) -> tuple[int, int]:
            """Compile for a card, or let the kernel take more shared memory there."""
            kernel = kernels.get(card)
            if kernel is None:
                kernel = kernels[card] = _compiled(cp, module, instance, card)
                if signature.cluster:
                    cuda.driver.funcSetAttribute(kernel.kernel.ptr, LARGE_CLUSTERS_ALLOWED, 1)
            unasked = DEFAULT_SHARED_BYTES - kernel.shared_size_bytes  # what its own variables leave
            most = max(unasked, shared_bytes)
            if most > unasked:
                kernel.max_dynamic_shared_size_bytes = most
            functions[card] = kernel.kernel.ptr, most
            return functions[card]

        def launch(
            card: int, grid: tuple, block: tuple, packing: Packing, values: list, shared_bytes: int
        ) -> None:
            if several and cuda.runtime.getDevice() != card:
                with cuda.Device(card):
                    return launch(card, grid, block, packing, values, shared_bytes)
            try:
                function, most = functions.get(card) or prepare(card, shared_bytes)
                if shared_bytes > most:
                    function, _ = prepare(card, shared_bytes)
                memory = _of_thread.memory
                if card not in memory.cards:
                    cuda.runtime.memGetInfo()  # makes the card's context that of this thread
                    memory.cards.add(card)
                struct = packing.struct
                struct.pack_into(memory.bytes, 0, struct.size - HEADER_BYTES, *values)
                stream = current_stream().ptr
                if packing.places:
                    each = memory.addresses(packing.places)
                    launch_kernel(function, *grid, *block, shared_bytes, stream, each, 0)
                else:
                    launch_kernel(function, *grid, *block, shared_bytes, stream, 0, memory.address)
            except (cuda.driver.CUDADriverError, cuda.runtime.CUDARuntimeError) as error:
                explained = explain(error, card, launching=instance)
                if explained is None:
                    where = f"{instance}, grid {grid}, block {block}, shared_bytes {shared_bytes}"
                    limits = cuda.Device(card).attributes
                    why = [str(error), *_exceeded(limits, kernels[card], grid, block, shared_bytes)]
                    explained = KernelLaunchError(f"{where}: {'; '.join(why)}")
                raise explained from error
            last_launched[card] = instance

        return launch


backend = CudaBackend()


class _Memory:
    """The memory in which a thread hands over the arguments of a launch.

    Attributes:
        bytes: their size, and they themselves.
        address: that of the list which tells the driver where both are.
        cards: the cards whose context the thread has.
    """

    __slots__ = ("_addresses", "_at", "_list", "address", "bytes", "cards")

    def __init__(self) -> None:
        self.bytes = bytearray(HEADER_BYTES + MAX_ARGUMENT_BYTES)
        self._at = (ctypes.c_char * len(self.bytes)).from_buffer(self.bytes)
        size = ctypes.addressof(self._at)
        self._list = (ctypes.c_void_p * 5)(
            *(LAUNCH_PARAM_BUFFER_POINTER, size + HEADER_BYTES, LAUNCH_PARAM_BUFFER_SIZE, size, None)
        )
        self.address = ctypes.addressof(self._list)
        self.cards: set[int] = set()
        self._addresses: dict[tuple[int, ...], Any] = {}

    def addresses(self, places: tuple[int, ...]) -> int:
        """The address of a list of addresses: of the arguments that stand at ``places``."""
        found = self._addresses.get(places)
        if found is None:
            first = ctypes.addressof(self._at) + HEADER_BYTES
            found = (ctypes.c_void_p * len(places))(*(first + place for place in places))
            self._addresses[places] = found
        return ctypes.addressof(found)


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.memory = _Memory()


_of_thread = _OfThread()


def _compiled(cp: Any, module: Any, instance: str, index: int) -> Any:
    """The kernel ``instance``, compiled for the current device (or loaded from CuPy's cache)."""
    try:
        return module.get_function(instance)
    except cp.cuda.compiler.CompileException as error:
        raise KernelCompileError(
            f"{instance} does not compile for the card:\n{str(error).strip()}"
        ) from error
    except (cp.cuda.driver.CUDADriverError, cp.cuda.runtime.CUDARuntimeError) as error:
        explained = explain(error, index)
        raise explained or KernelLaunchError(f"{instance} cannot be loaded: {error}") from error


def _exceeded(limits: dict, kernel: Any, grid: tuple, block: tuple, shared_bytes: int) -> list[str]:
    """The limits of a card, and of the kernel as it was compiled for it, that a launch exceeds."""
    threads = block[0] * block[1] * block[2]
    checks = [
        ("threads in a block", threads, limits["MaxThreadsPerBlock"], "this card"),
        ("threads in a block", threads, kernel.max_threads_per_block, "this kernel"),
        ("registers in a block", threads * kernel.num_regs, limits["MaxRegistersPerBlock"], "this card"),
        (
            "bytes of shared memory",
            shared_bytes + kernel.shared_size_bytes,
            limits["MaxSharedMemoryPerBlockOptin"],
            "this card",
        ),
        *(
            (f"{what} along {axis.lower()}", size, limits[f"Max{name}Dim{axis}"], "this card")
            for what, name, sizes in (("threads", "Block", block), ("blocks", "Grid", grid))
            for axis, size in zip("XYZ", sizes, strict=True)
        ),
    ]
    return [
        f"{value} {what} exceed the {limit} of {whose}"
        for what, value, limit, whose in checks
        if value > limit
    ]
