"""The Python side of checked launches: where the arrays lie, and the source lines in messages.

In a checked launch the kernel works on copies of its arrays that lie far apart, so that an index beyond the
end of one does not reach into another; what it wrote is copied back when it has ended well.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import KernelLaunchError
from ..source import Parameter
from .build import HEADERS
from .memory import Operation, current_operation, owner_of, written_bytes

GUARD_BYTES = 1 << 20  # between two arrays; pages that are never touched cost nothing
ALIGNMENT = 256  # of an allocation on a card


# Why an array must not be written, after its description.
CONST = "is const: write to an output, or declare the parameter without const"
INPUT = "is an input of {}: write to an output"


class Array(ctypes.Structure):
    """``Array`` of regions.h."""

    _fields_ = [
        ("begin", ctypes.c_size_t),
        ("bytes", ctypes.c_size_t),
        ("element", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("read_only", ctypes.c_char_p),
        ("written", ctypes.c_void_p),
    ]


class Checks(ctypes.Structure):
    """``Checks`` of regions.h."""

    _fields_ = [
        ("arrays", ctypes.POINTER(Array)),
        ("count", ctypes.c_size_t),
        ("argument_bytes", ctypes.c_size_t),
    ]


class GuardedArrays:
    """Copies of a launch's arrays, far apart. Arrays that share memory share their copy too.

    Attributes:
        values: the launch's values, with the arrays replaced by their copies.
    """

    def __init__(self, values: Sequence[Any], parameters: Sequence[Parameter]):
        self._parameters = parameters
        self._pointers = [i for i, parameter in enumerate(parameters) if parameter.is_pointer]
        self._originals = list(values)
        self.values = list(values)
        arrays = {i: values[i] for i in self._pointers if values[i] is not None and values[i].size}
        spans = _merge(sorted(_bounds(array) for array in arrays.values()))
        total = sum(end - begin + GUARD_BYTES + ALIGNMENT for begin, end in spans) + GUARD_BYTES
        self._memory = np.empty(total, np.uint8)
        offset = GUARD_BYTES
        self._moved: list[tuple[int, int, int]] = []  # (begin, end, how far) of what was copied
        for begin, end in spans:
            inside = {i: a for i, a in arrays.items() if begin <= a.ctypes.data < end}
            # As far from a multiple of 256 as it is in its own allocation.
            owner = owner_of(next(iter(inside.values())))
            offset += (begin - owner.ctypes.data - self._memory.ctypes.data - offset) % ALIGNMENT
            for i, array in inside.items():
                at = offset + array.ctypes.data - begin
                copy = np.ndarray(array.shape, array.dtype, self._memory.data, at, array.strides)
                copy[...] = array
                self.values[i] = copy
            self._moved.append((begin, end, self._memory.ctypes.data + offset - begin))
            offset += end - begin + GUARD_BYTES
        for i, parameter in enumerate(parameters):
            if parameter.type == "TensorMap":
                self.values[i] = self._map_of_copy(values[i], parameter)

    def _map_of_copy(self, tensor_map: Any, parameter: Parameter) -> Any:
        """The TensorMap of an array's copy."""
        moved = tensor_map.copy()
        words = moved["words"][0]
        for begin, end, distance in self._moved:
            if begin <= words[0] < end:
                words[0] = int(words[0]) + distance
                return moved
        raise KernelLaunchError(
            f"`{parameter}` describes memory of no array of the launch: pass the array too, so that it stays "
            "alive"
        )

    def describe(self, argument_bytes: int) -> Checks:
        """What the runtime is to know of the arrays."""
        arrays = (Array * len(self._pointers))()
        operation = current_operation.get()
        for described, i in zip(arrays, self._pointers, strict=True):
            parameter, array, original = self._parameters[i], self.values[i], self._originals[i]
            description = f"`{parameter}`"
            described.element = 1
            if parameter.is_const:
                described.read_only = CONST.encode()
            if array is not None:
                shape = "x".join(map(str, array.shape)) or "scalar"
                description = f"`{parameter}` ({shape} {array.dtype})"
                begin, end = _bounds(array)
                described.begin, described.bytes, described.element = begin, end - begin, array.itemsize
                written = written_bytes(original)
                if written is not None:
                    first = _bounds(original)[0] - owner_of(original).ctypes.data
                    described.written = written.ctypes.data + first
                if operation and not parameter.is_const and _is_input(original, operation):
                    described.read_only = INPUT.format(operation.name).encode()
            described.name, described.description = parameter.name.encode(), description.encode()
        return Checks(arrays, len(arrays), argument_bytes)

    def copy_back(self) -> None:
        """Bring what the kernel wrote to the arrays that it was meant for."""
        for i in self._pointers:
            if not self._parameters[i].is_const:
                self._originals[i][...] = self.values[i]


def _bounds(array: np.ndarray) -> tuple[int, int]:
    """The addresses of an array's first byte and of the byte after its last, with any strides."""
    begin = end = array.ctypes.data
    if not array.size:
        return begin, begin
    for size, stride in zip(array.shape, array.strides, strict=True):
        begin += min(0, (size - 1) * stride)
        end += max(0, (size - 1) * stride)
    return begin, end + array.itemsize


def _merge(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted spans, with those that overlap made one."""
    merged: list[tuple[int, int]] = []
    for begin, end in spans:
        if merged and begin < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _is_input(array: np.ndarray, operation: Operation) -> bool:
    return any(np.may_share_memory(array, other) for other in operation.inputs)


def with_source_lines(message: str, library: Path) -> str:
    """``message`` with each ``<pc 1234>`` replaced by the line of the source, as ``"reduce.cu:31"``, and each
    ``<order 1234 5678 warp reads>`` by advice on how to order what these two lines do."""

    def line(pc: str) -> str:
        return source_line(int(pc, 16), library)

    message = re.sub(r"<pc (\w+)>", lambda found: line(found[1]), message)
    return re.sub(
        r"<order (\w+) (\w+) (\w+) (\w+)>",
        lambda found: _advice(line(found[1]) == line(found[2]), found[3] == "warp", found[4] == "reads"),
        message,
    )


def _advice(same_line: bool, same_warp: bool, one_reads: bool) -> str:
    if same_line:
        advice = "use an atomic operation, or give each thread an element of its own"
        if not one_reads:
            return advice
        advice += "; in a loop, where one pass reads what another writes, put a __syncthreads() between them"
    else:
        advice = "a __syncthreads() between these two lines orders them"
    return advice + (" (or, within a warp, a __syncwarp())" if same_warp else "")


@cache
def source_line(pc: int, library: Path) -> str:
    """The line of the source (``"reduce.cu:31"``) whose call returns to ``pc``, an offset in ``library``."""
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    if tool is None:
        return "a line that addr2line would tell: install binutils"
    # A return address belongs to the next instruction: one less is in the call.
    command = [tool, "-i", "-e", str(library), hex(pc - 1)]
    frames = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    # The innermost inlined function comes first; those of the simulator's headers do not count. They are told
    # by name: a cached library may have been compiled by another installation, in another folder.
    headers = {header.name for header in HEADERS.glob("*.h")} | {"async_copy.cuh", "hopper.cuh"}
    for frame in frames:
        path, _, line = frame.partition(" ")[0].rpartition(":")
        if Path(path).name not in headers and line.isdecimal():
            return f"{Path(path).name}:{line}"
    return "an unknown line"
