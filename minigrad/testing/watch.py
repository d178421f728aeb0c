"""One kernel under observation: its output is surrounded by guard values, and its calls are noted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrad import autograd
from minigrad.devices import Device
from minigrad.dispatch import REFERENCE, Kernel, kernel_table, use_kernel
from minigrad.kernels.channels_last import is_channels_last, nchw, nhwc
from minigrad.op import Op
from minigrad.tensor import Tensor
from minigrad.testing.arrays import GUARD, guarded
from minigrad.testing.oracle import as_tuple

SHORTCUTS = {"small": "small", "direct call": "direct"}
"""The names under which an op's functions that stand in for its kernels are checked, and the attributes that
they are. No kernel has such a name, as one may be called "direct"."""


class Written(NamedTuple):
    """An output that a kernel has written, and all the memory that it lies in."""

    memory: Any
    before: bytes


class Watch:
    """Calls of ``op`` in which ``kernel`` alone may run.

    Attributes:
        calls: how often it ran.
        delegations: in how many of the calls that were looked into it called the op's reference.
        looked_into: how many those were.
    """

    def __init__(self, op: Op, device: Device, kernel: Kernel):
        self.op, self.device, self.kernel = op, device, kernel
        self.calls = self.delegations = self.looked_into = 0
        self._written: list[Written] = []

    def call(self, tensors: Sequence, attrs: dict, garbage: int, look: bool = False) -> tuple | None:
        """The outputs of a call, computed into memory full of ``garbage``; None if the kernel refused.

        With ``look`` it is noted whether the kernel calls the reference.
        """
        before = self.calls
        soil(self.device, tensors, garbage)
        with autograd.no_grad(), np.errstate(all="ignore"), self._alone(garbage, look):
            outputs = as_tuple(self._apply(tensors, attrs))
        return outputs if self.calls > before else None

    def _apply(self, tensors: Sequence, attrs: dict) -> Any:
        """All outputs, those that only the gradient sees too; what an op writes in place as an output."""
        if self.op.in_place is None and self.op.returns is None:
            return self.op(*tensors, **attrs)
        return self.op.apply(tuple(tensors), self.op._complete(attrs))

    def check_earlier_outputs(self) -> None:
        """Raise an AssertionError if an output has changed since its call returned; then forget all."""
        for written in self._written:
            if self._bytes(written.memory) != written.before:
                raise AssertionError(
                    "an output changed after the kernel had returned: it keeps a reference to its output, "
                    "and writes to it in a later call, or from a thread that it leaves behind"
                )
        self._written.clear()

    @contextlib.contextmanager
    def _alone(self, garbage: int, look: bool) -> Iterator[None]:
        """Make the kernel the op's only one, writing into guarded garbage."""
        if self.kernel.name == REFERENCE:
            self.calls += 1
            with use_kernel(self.op.name, REFERENCE, self.device.type):
                yield
            return
        if self.kernel.name in SHORTCUTS:
            with self._shortcut(self.kernel.name):
                yield
            return

        def run(out: Any, *inputs: Any, **attrs: Any) -> None:
            self.calls += 1
            self._run(out, inputs, attrs, garbage, look)

        table = kernel_table(self.op.name)
        kernels, selected = table.kernels, table.selected
        table.kernels = [self.kernel._replace(run=run)]
        table.select({self.device.type: self.kernel.name})
        try:
            yield
        finally:
            table.kernels = kernels
            table.select(selected)

    @contextlib.contextmanager
    def _shortcut(self, name: str) -> Iterator[None]:
        """Note the calls of the op's shortcut ``name``, and leave out the other one."""
        functions = {shortcut: getattr(self.op, shortcut) for shortcut in SHORTCUTS.values()}

        def watched(*arrays: Any, **attrs: Any) -> Any:
            result = functions[SHORTCUTS[name]](*arrays, **attrs)
            self.calls += result is not None
            return result

        for shortcut in functions:
            setattr(self.op, shortcut, watched if shortcut == SHORTCUTS[name] else None)
        try:
            yield
        finally:
            for shortcut, function in functions.items():
                setattr(self.op, shortcut, function)

    def _run(self, out: Any, inputs: Sequence, attrs: dict, garbage: int, look: bool) -> None:
        outs = out if isinstance(out, tuple) else (out,)
        memories, copies = zip(*(_guarded_like(self.device.xp, o, garbage) for o in outs), strict=True)
        target = copies if isinstance(out, tuple) else copies[0]
        if look:
            self.looked_into += 1
            self.delegations += _calls_reference(self.op, self.kernel, target, inputs, attrs)
        else:
            self.kernel.run(target, *inputs, **attrs)
        for k, (o, memory, copy) in enumerate(zip(outs, memories, copies, strict=True)):
            o[...] = copy
            before, after = memory[:GUARD] != garbage, memory[GUARD + o.nbytes :] != garbage
            if bool(before.any()) or bool(after.any()):
                to_numpy = self.device.to_numpy
                raise AssertionError(_beyond(k, o, to_numpy(before), to_numpy(after)))
            self._written.append(Written(memory, self._bytes(memory)))

    def _bytes(self, memory: Any) -> bytes:
        return self.device.to_numpy(memory).tobytes()


def _guarded_like(xp: Any, out: Any, garbage: int) -> tuple:
    """As :func:`guarded`, but channels last if ``out`` lies so."""
    if not is_channels_last(out):
        return guarded(xp, out.shape, out.dtype, garbage)
    memory, copy = guarded(xp, nhwc(out).shape, out.dtype, garbage)
    return memory, nchw(copy)


def _beyond(k: int, out: Any, before: np.ndarray, after: np.ndarray) -> str:
    """What to say of an output beside which bytes were written: how far from it."""
    text = f"the kernel wrote outside of output {k} (shape {out.shape}, {out.dtype})"
    if after.any():
        first = int(np.argmax(after)) // out.itemsize
        return f"{text}: {_elements(first)} past its end; an index that is not checked against the size?"
    last = int(np.argmax(before[::-1])) // out.itemsize
    return f"{text}: {_elements(last)} before its start; a negative index?"


def _elements(distance: int) -> str:
    return "right" if distance == 0 else f"{distance} elements"


def _calls_reference(op: Op, kernel: Kernel, out: Any, inputs: Sequence, attrs: dict) -> bool:
    """Run the kernel; whether the op's reference was called meanwhile, by whatever name."""
    code = getattr(op.reference, "__code__", None)
    if code is None or sys.getprofile() is not None:  # somebody else is looking
        kernel.run(out, *inputs, **attrs)
        return False
    seen = []

    def look(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is code:
            seen.append(True)

    sys.setprofile(look)
    try:
        kernel.run(out, *inputs, **attrs)
    finally:
        sys.setprofile(None)
    return bool(seen)


def soil(device: Device, tensors: Sequence, garbage: int) -> None:
    """Free memory full of garbage, of the sizes that scratch arrays are likely to have.

    A kernel that takes its scratch memory for zeros then finds something else there; most often, for which
    memory it will be given is not known.
    """
    sizes = {t._array.nbytes for t in tensors if isinstance(t, Tensor)}
    with device.active():
        soiled = [device.xp.full(n, garbage, np.uint8) for n in sizes for _ in range(2)]
    del soiled
