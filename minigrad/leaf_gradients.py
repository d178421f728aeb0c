"""What a captured step finds in the ``grad`` of leaves, and what it leaves there.

A step that adds to gradients is another one where there are none yet, and a graph writes to the memory alone
that it was recorded with. So a replay has to begin with what the recorded run began with, and it ends by
putting into ``grad`` what that run left, which Python's code is not there to do.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

__all__ = ["LeafGradients"]


class LeafGradients:
    """The gradients that one run of a step touches.

    Args:
        known: if a graph is made, leaves whose gradients other runs have touched. Of these it is known what
            ``grad`` was before: if the step finds something else there, it has put it there itself.
    """

    def __init__(self, known: Iterable[Any] | None):
        self._known = None if known is None else {id(leaf): (leaf, leaf.grad) for leaf in known}
        # For each leaf: itself, its gradient before the step, and whether the step makes use of that.
        self._touched: dict[int, tuple[weakref.ref, Any, bool]] = {}
        self._left: list[tuple[weakref.ref, Any]] = []
        self.used: dict[int, tuple[weakref.ref, Any]] = {}  # (leaf, gradient before) that a graph needs
        self.found_none: dict[int, bool] = {}  # by the leaf's id, what the step saw when it looked first

    def reads(self, leaves: Iterable[Any]) -> None:
        """The step is about to look at the gradients of these leaves, to add to them or to change them."""
        for leaf in leaves:
            self._touch(leaf, True)

    def replaces(self, leaves: Iterable[Any]) -> None:
        """The step is about to replace the gradients of these leaves, whatever they are."""
        for leaf in leaves:
            self._touch(leaf, False)

    def _touch(self, leaf: Any, uses: bool) -> None:
        if id(leaf) in self._touched:
            return
        if uses:
            self.found_none[id(leaf)] = leaf.grad is None
        if self._known is None:  # without a graph no gradient is kept
            self._touched[id(leaf)] = weakref.ref(leaf), None, False
            return
        before = self._known.get(id(leaf), (leaf, leaf.grad))[1]
        uses = uses and _array(leaf.grad) is _array(before)
        self._touched[id(leaf)] = weakref.ref(leaf), before, uses

    def finish(self) -> None:
        """A graph has been made: remember what it leaves, and forget what it does not need."""
        self._left = [(weakref.ref(leaf), leaf.grad) for leaf in self.touched]
        self.used = {key: (leaf, before) for key, (leaf, before, uses) in self._touched.items() if uses}
        self._touched = {key: (leaf, None, False) for key, (leaf, _, _) in self._touched.items()}
        self._known = None

    def undo(self) -> None:
        """No graph has been made, and nothing computed: put back what was there."""
        for reference, before, _ in self._touched.values():
            if (leaf := reference()) is not None:
                leaf.grad = before

    def leave(self) -> None:
        """Put into ``grad`` what the run left there."""
        for reference, grad in self._left:
            leaf = reference()
            if leaf is not None and leaf.grad is not grad:
                leaf.grad = grad

    @property
    def touched(self) -> list[Any]:
        """The leaves."""
        return [leaf for reference, _, _ in self._touched.values() if (leaf := reference()) is not None]

    def misfit(self) -> str | None:
        """Which gradient is not where it was before the recorded run, or None."""
        for reference, before in self.used.values():
            leaf = reference()
            if leaf is not None and _array(leaf.grad) is not _array(before):
                return f"the memory of the gradient of a tensor of shape {leaf.shape}"
        return None


def _array(grad: Any) -> Any:
    return None if grad is None else grad._array
