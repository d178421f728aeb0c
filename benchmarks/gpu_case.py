"""A row of ``gpu_vs_torch.py``: its inputs, our call, PyTorch's call, and its floor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.dispatch import REFERENCE, KernelTable, Spec
from minigrad.dtypes import is_half

FLOAT = 4  # bytes

Shape = tuple[int, ...]


@dataclass
class Case:
    """One row.

    Attributes:
        name, size: what the table shows.
        shapes: of the inputs, all normal random float32.
        ours: minigrad's call, on its tensors.
        theirs: PyTorch's, on (torch, its tensors).
        operations: floating-point operations, a multiply-add being two.
        bytes: the fewest that must be moved.
        ops: the ops inside that have kernels of ours.
        rung: the kernel to select for the first of ``ops``; None for the one that users get.
        random: whether PyTorch draws numbers of its own, so that its result cannot be compared.
        format: what the numbers are rounded to, in both libraries: ``"float32"``, ``"float16"``,
            ``"bfloat16"``, ``"tf32"``, which is float32 whose factors are rounded, or ``"autocast"``: float32
            that the call itself rounds to bfloat16.
        steps: how often, one after the other, what a result is made of is rounded to that: errors add up.
        torch_steps: the same of PyTorch's, where it rounds more often.
    """

    name: str
    size: str
    shapes: tuple[Shape, ...]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    operations: float
    bytes: float
    ops: tuple[str, ...] = ()
    rung: str | None = None
    random: bool = False
    format: str = "float32"
    steps: int = 1
    torch_steps: int = 1


@contextlib.contextmanager
def references(device: str) -> Iterator[None]:
    """A context in which every op on ``device`` runs its reference: array programs, no kernels of ours."""
    with contextlib.ExitStack() as stack:
        for op in {kernel.op for kernel in mg.list_kernels(device=device)}:
            stack.enter_context(mg.use_kernel(op, "reference", device))
        yield


@dataclass
class Noted:
    """The kernels that ran.

    Attributes:
        kernels: by the op, the names and dtypes, as in ``["tiled float32"]``.
        refused: what ran in the place of a kernel that was selected, but refused the inputs.
    """

    kernels: dict[str, list[str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def choice(self, table: KernelTable, device: str, dtype: np.dtype, kernel: Any) -> None:
        """``kernel``, or None for the reference, is what ``table`` chose."""
        selected, name = table.selected.get(device), REFERENCE if kernel is None else kernel.name
        in_float32 = kernel is None and is_half(dtype) and not mg.get_op(table.op).moves  # chosen next
        names = self.kernels.setdefault(table.op, [])
        if not in_float32 and f"{name} {dtype}" not in names:
            names.append(f"{name} {dtype}")
        if selected not in (None, name):
            self.refused.append(f"{table.op} in {dtype} ran {name}, not {selected}")

    def failure(self, case: Case) -> str | None:
        """Why this is not what ``case`` names; None if it is."""
        if case.rung and case.ops[0] not in self.kernels:
            return f"{case.ops[0]} did not run, and so not {case.rung}"
        return self.refused[0] if self.refused else None


@contextlib.contextmanager
def noted() -> Iterator[Noted]:
    """A context in which is noted which kernels ops choose."""
    notes, choose = Noted(), KernelTable.choose

    def choose_and_note(table: KernelTable, device: str, dtype: np.dtype, *call: Any) -> Any:
        kernel = choose(table, device, dtype, *call)
        notes.choice(table, device, dtype, kernel)
        return kernel

    KernelTable.choose = choose_and_note  # type: ignore[method-assign]
    try:
        yield notes
    finally:
        KernelTable.choose = choose  # type: ignore[method-assign]


def torch_device(device: str) -> str:
    """Where PyTorch computes: beside the simulator, on the CPU."""
    return "cpu" if device == "sim" else device


def ours(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors: call(mg, *tensors)


def with_channels_last(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` of a library on copies of its tensors with channels last, each of which is made once."""
    copies: dict[int, tuple[Any, Any]] = {}  # by the tensor, which is kept

    def copied(library: Any, *tensors: Any) -> Any:
        for tensor in tensors:
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor, tensor.contiguous(memory_format=library.channels_last)
        return call(library, *(copies[id(tensor)][1] for tensor in tensors))

    return copied


def input_gradient(function: Callable[[Any], Any], x: Any, g: Any) -> Any:
    """The gradient of ``function`` at ``x`` for the output's gradient ``g``; the same in both libraries.

    A loss of one element needs no ``g``: None.
    """
    x = x.detach().requires_grad_()
    function(x).backward(g)
    return x.grad


def rungs_that_take(op: Any, shapes: tuple[Shape, ...], attributes: dict, device: str) -> list[str]:
    """The kernels of ``op`` whose condition lets them compute inputs of these shapes."""
    specs = [Spec(shape, np.dtype(np.float32)) for shape in shapes]
    inputs = specs + [None] * (len(op.inputs) - len(specs))
    kernels = mg.list_kernels(op.name, device)
    return [kernel.name for kernel in kernels if kernel.when is None or kernel.when(*inputs, **attributes)]
