"""What a call of an op must give: its reference, computed in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from minigrad.dtypes import is_floating
from minigrad.op import Op
from minigrad.testing.arrays import as_laid_out
from minigrad.testing.cases import Case, draw, put_special

STEP, DRAWS = 1e-6, 8


class Oracle:
    """The inputs of one call as NumPy arrays, and what the reference finds for them.

    Attributes:
        values: the inputs; arrays, numbers or None.
        special: whether NaN, infinities and huge numbers may be among them.
        expected: the outputs in float64.
        length: how many terms are summed for one element of them.
    """

    def __init__(self, op: Op, one: Case, values: Sequence, rng: np.random.Generator, special: bool = False):
        self.op = op
        self.attrs = op._complete(one.attrs)
        self.values = list(values)
        self.special = special
        self._rng = rng
        self._wide = [v.astype(np.float64) if _is_floating(v) else v for v in values]
        self.expected = self.reference(self._wide)
        arrays = [v for v in values if isinstance(v, np.ndarray)]
        terms = 1 if op._shape_rule is None else sum(v.size for v in arrays)
        self.length: int = terms if one.length is None else one.length

    def reference(self, values: Sequence, **attrs: Any) -> tuple[np.ndarray, ...]:
        """The reference's outputs for other inputs, or with some attributes changed."""
        copies = [v.copy() if isinstance(v, np.ndarray) else v for v in values]
        with np.errstate(all="ignore"):
            return tuple(
                np.asarray(y) for y in as_tuple(self.op.reference(np, *copies, **self.attrs | attrs))
            )

    @cached_property
    def in_own_dtype(self) -> tuple[np.ndarray, ...]:
        """What the reference finds in the inputs' own dtype, where huge numbers may overflow earlier."""
        return self.reference(self.values)

    @cached_property
    def magnitudes(self) -> list[np.ndarray]:
        """For each output, how large the terms are that make it up: by how much it changes, relative to the
        change, when all inputs are changed at random by a few millionths."""
        sums = [np.zeros(y.shape) for y in self.expected]
        for _ in range(DRAWS):
            moved = [
                v * (1 + STEP * self._rng.standard_normal(v.shape)) if _is_floating(v) else v
                for v in self._wide
            ]
            with np.errstate(all="ignore"):
                for total, y, z in zip(sums, self.expected, self.reference(moved), strict=True):
                    if is_floating(y.dtype):
                        total += np.nan_to_num((z - y) / STEP, nan=0.0, posinf=0.0, neginf=0.0) ** 2
        return [np.sqrt(total / DRAWS) for total in sums]


class Trial:
    """One case in one dtype and layout, with several sets of inputs of the same shapes.

    They are drawn from the seed and the numbers of case, dtype and layout alone, so that a failure comes
    again when less is checked. With ``like``, a trial of the case in another layout, the first are those of
    that one: what the reference finds for them is known then.
    """

    def __init__(
        self,
        op: Op,
        one: Case,
        dtype: np.dtype,
        layout: str,
        seed: tuple[int, ...],
        like: Trial | None = None,
    ):
        self.op, self.case, self.dtype, self.layout = op, one, dtype, layout
        self._seed, self._like = seed, like

    def _draw(self, number: int, alter: Callable | None = None) -> Oracle:
        rng = np.random.default_rng((*self._seed, number))
        values = [draw(value, self.dtype, rng) for value in self.case.inputs]
        if alter is not None:
            values = alter(values, rng)
        values = [as_laid_out(v, self.layout) if isinstance(v, np.ndarray) else v for v in values]
        return Oracle(self.op, self.case, values, rng, special=alter is not None)

    @cached_property
    def first(self) -> Oracle:
        return self._draw(0) if self._like is None else self._like.first

    @cached_property
    def second(self) -> Oracle:
        """Other inputs."""
        return self._draw(1)

    @cached_property
    def special(self) -> Oracle:
        """Other inputs, with NaN, infinities, zeros and huge numbers where the case allows them."""
        number = sum(self._seed)
        return self._draw(1, lambda values, rng: put_special(self.op, self.case, values, number, rng))


def as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _is_floating(value: Any) -> bool:
    return isinstance(value, np.ndarray) and is_floating(value.dtype)
