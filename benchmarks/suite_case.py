"""What a row of the suite is (``suite_cases.py`` has the rows): its inputs, and the call to be timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[], Any]
FORWARD, BOTH = "forward", "forward + backward"


class Data:
    """Random inputs as tensors of ``lib``: the same numbers for the same seed, in both libraries.

    On the processor they are drawn by NumPy; a device draws its own: ``gpu_suite.py``.
    """

    def __init__(self, lib: Any, seed: int = 0, xp: Any = np, device: str = "cpu"):
        self.lib, self.device = lib, device
        self.rng = xp.random.default_rng(seed)
        self.bytes = 0  # of all that was drawn

    def tensor(self, array: Any) -> Any:
        """``array``, without a copy, as a tensor of the library."""
        self.bytes += array.nbytes
        return self.lib.from_numpy(array)

    def normal(self, *shape: int, grad: bool = False) -> Any:
        """Standard normal float32 numbers; with ``grad``, a leaf that requires a gradient."""
        tensor = self.tensor(self.rng.standard_normal(shape, dtype=np.float32))
        return tensor.requires_grad_() if grad else tensor

    def positive(self, *shape: int, grad: bool = False) -> Any:
        """Numbers from 0.5 to 1.5."""
        tensor = self.tensor(self.rng.random(shape, dtype=np.float32) + np.float32(0.5))
        return tensor.requires_grad_() if grad else tensor

    def integers(self, high: int, *shape: int) -> Any:
        """Whole numbers from 0 to ``high`` - 1, as int64."""
        return self.tensor(self.rng.integers(0, high, shape))

    def fill(self, module: Any) -> Any:
        """``module`` with random weights, of the size that keeps activations near 1, and biases of 0."""
        module = module.to(self.device)
        state = module.state_dict()
        for name, value in state.items():
            if "weight" in name and len(value.shape) > 1:
                state[name] = self.normal(*value.shape) / math.prod(value.shape[1:]) ** 0.5
            elif "bias" in name:
                state[name] = self.lib.zeros(*value.shape, device=self.device)
        module.load_state_dict(state)
        return module


@dataclass
class Case:
    """One row.

    Attributes:
        group, name: what the table shows.
        build: ``build(lib, data)`` makes the inputs and returns the call to be timed, whose result (a tensor
            or a list of them) is compared between the libraries.
        random: the libraries draw different numbers, so that their results cannot be compared.
        format: what the products are computed in: float32, or autocast's 16 bits.
    """

    group: str
    name: str
    build: Callable[[Any, Data], Run]
    random: bool = False
    format: str = "float32"


def passes(group: str, name: str, make: Callable[[Any, Data], tuple], **options: Any) -> Iterator[Case]:
    """The row of a function's forward pass, and the one of both passes.

    ``make(lib, data)`` gives the function and the leaves that it differentiates.
    """

    def forward(lib: Any, data: Data) -> Run:
        function, _ = make(lib, data)

        def run() -> Any:
            with lib.no_grad():
                return function()

        return run

    def both(lib: Any, data: Data) -> Run:
        function, leaves = make(lib, data)
        with lib.no_grad():
            shape = tuple(function().shape)
        grad = data.normal(*shape) if shape else None

        def run() -> list:
            for leaf in leaves:
                leaf.grad = None
            y = function()
            y.backward(grad)
            return [y, *(leaf.grad for leaf in leaves)]

        return run

    yield Case(group, f"{name}, {FORWARD}", forward, **options)
    yield Case(group, f"{name}, {BOTH}", both, **options)
