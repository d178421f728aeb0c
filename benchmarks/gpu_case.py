"""A row of ``gpu_vs_torch.py``: its inputs, our call, PyTorch's call, and its floor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.dispatch import KernelTable, Spec, kernel_table

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
    """The kernels that ran: by the op, the names and dtypes, as in ``["tiled float32"]``."""

    kernels: dict[str, list[str]] = field(default_factory=dict)

    def ran(self, kernel: Any, outs: Any) -> None:
        """``kernel`` wrote ``outs``, an array or a list of them."""
        out = outs[0] if isinstance(outs, (tuple, list)) else outs
        names, name = self.kernels.setdefault(kernel.op, []), f"{kernel.name} {out.dtype}"
        if name not in names:
            names.append(name)

    def failure(self, case: Case) -> str | None:
        """Why this is not what ``case`` names; None if it is."""
        ran = self.kernels.get(case.ops[0], []) if case.rung else []
        if not case.rung or any(name.partition(" ")[0] == case.rung for name in ran):
            return None
        return f"{case.ops[0]} ran {', '.join(ran) or 'without a kernel'}, not {case.rung}"


@contextlib.contextmanager
def noted() -> Iterator[Noted]:
    """A context in which is noted which kernels run; what runs without one is not."""
    notes, tables = (
        Noted(),
        {table: table.kernels for table in map(kernel_table, {kernel.op for kernel in mg.list_kernels()})},
    )

    def noting(kernel: Any) -> Any:
        def run(outs: Any, *arguments: Any, **attributes: Any) -> Any:
            notes.ran(kernel, outs)
            return kernel.run(outs, *arguments, **attributes)

        return kernel._replace(run=run)

    try:
        for table, kernels in tables.items():
            _replace(table, [noting(kernel) for kernel in kernels])
        yield notes
    finally:
        for table, kernels in tables.items():
            _replace(table, kernels)


def _replace(table: KernelTable, kernels: list) -> None:
    table.kernels = kernels
    table.select(table.selected)  # and forget what was chosen among the others


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
