"""A table of a model's layers: the shape of each output, and the number of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from minigrad.autograd import no_grad
from minigrad.creation import zeros
from minigrad.nn.module import Module
from minigrad.tensor import Tensor

__all__ = ["ModelSummary", "evaluating", "summary"]


@dataclass(frozen=True)
class ModelSummary:
    """What :func:`summary` found; prints as a table.

    Attributes:
        rows: (path, kind, shape of the output, own parameters) of each layer, in the order in which they ran.
        total: the number of parameters, each counted once.
        trainable: that of those that require a gradient.
        bytes: the memory of all parameters.
    """

    rows: Sequence[tuple[str, str, str, int]]
    total: int
    trainable: int
    bytes: int

    def __str__(self) -> str:
        head = ("layer", "kind", "output", "parameters")
        cells = [head, *[(path, kind, shape, f"{count:,}") for path, kind, shape, count in self.rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(4)]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=False))
            + f"  {row[3]:>{widths[3]}}"
            for row in cells
        ]
        rule = "-" * len(lines[0])
        size = f"{self.bytes / 1e6:.2f} MB" if self.bytes >= 1e5 else f"{self.bytes / 1e3:.2f} kB"
        tail = f"{self.total:,} parameters, {self.trainable:,} of them trained, {size}"
        return "\n".join([lines[0], rule, *lines[1:], rule, tail])


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """A context in which ``model`` is in evaluation mode and computes no gradients; then it is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def summary(model: Module, *inputs: Any) -> ModelSummary:
    """Run ``model`` once, in evaluation mode and without gradients, and tell what each layer gives.

    Args:
        model: left as it was.
        inputs: its arguments: tensors, or shapes without the batch, of which two are made, all zero:
            ``print(summary(model, (1, 28, 28)))``.
    """
    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    arguments = [x if isinstance(x, Tensor) else zeros(2, *x, device=device) for x in inputs]
    rows: list[tuple[str, str, str, int]] = []
    counted: set[int] = set()
    handles = []
    for path, module in model.named_modules():
        if next(module.children(), None) is None:

            def note(module: Module, args: Any, output: Any, path: str = path) -> None:
                own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
                counted.update(id(p) for p in own)
                count = sum(p.numel() for p in own)
                rows.append((path or "(model)", type(module).__name__, _shape(output), count))

            handles.append(module.register_forward_hook(note))
    try:
        with evaluating(model):
            model(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    parameters = list(model.parameters())
    return ModelSummary(
        rows,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() * p.dtype.itemsize for p in parameters),
    )


def _shape(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, (list, tuple)):
        return ", ".join(_shape(part) for part in output)
    return type(output).__name__
