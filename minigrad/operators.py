"""The arithmetic operators of a tensor, each a call of an op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minigrad.graph import Variable
from minigrad.ops import elementwise, matmul

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["Operators"]


_NO_ATTRIBUTES: dict[str, Any] = {}


class Operators(Variable):
    """What ``+``, ``@``, ``<`` and the like do."""

    def __add__(self, other: Any) -> Tensor:
        return elementwise.add.apply((self, other), _NO_ATTRIBUTES)

    def __radd__(self, other: Any) -> Tensor:
        return elementwise.add.apply((other, self), _NO_ATTRIBUTES)

    def __sub__(self, other: Any) -> Tensor:
        return elementwise.sub.apply((self, other), _NO_ATTRIBUTES)

    def __rsub__(self, other: Any) -> Tensor:
        return elementwise.sub.apply((other, self), _NO_ATTRIBUTES)

    def __mul__(self, other: Any) -> Tensor:
        return elementwise.mul.apply((self, other), _NO_ATTRIBUTES)

    def __rmul__(self, other: Any) -> Tensor:
        return elementwise.mul.apply((other, self), _NO_ATTRIBUTES)

    def __truediv__(self, other: Any) -> Tensor:
        return elementwise.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return elementwise.div(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return elementwise.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return elementwise.floor_divide(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return elementwise.remainder(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return elementwise.remainder(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return elementwise.pow(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return elementwise.pow(other, self)

    def __matmul__(self: Any, other: Tensor) -> Tensor:
        return matmul.matmul(self, other)

    def __rmatmul__(self: Any, other: Any) -> Tensor:
        from minigrad.creation import as_tensor

        return matmul.matmul(as_tensor(other, device=self.device), self)

    def __neg__(self) -> Tensor:
        return elementwise.neg.apply((self,), _NO_ATTRIBUTES)

    def __pos__(self: Any) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return elementwise.abs(self)

    def __invert__(self) -> Tensor:
        return elementwise.bitwise_not(self)

    def __and__(self, other: Any) -> Tensor:
        return elementwise.bitwise_and(self, other)

    def __rand__(self, other: Any) -> Tensor:
        return elementwise.bitwise_and(other, self)

    def __or__(self, other: Any) -> Tensor:
        return elementwise.bitwise_or(self, other)

    def __ror__(self, other: Any) -> Tensor:
        return elementwise.bitwise_or(other, self)

    def __xor__(self, other: Any) -> Tensor:
        return elementwise.bitwise_xor(self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return elementwise.bitwise_xor(other, self)

    def __lshift__(self, other: Any) -> Tensor:
        return elementwise.bitwise_left_shift(self, other)

    def __rlshift__(self, other: Any) -> Tensor:
        return elementwise.bitwise_left_shift(other, self)

    def __rshift__(self, other: Any) -> Tensor:
        return elementwise.bitwise_right_shift(self, other)

    def __rrshift__(self, other: Any) -> Tensor:
        return elementwise.bitwise_right_shift(other, self)

    def __eq__(self, other: Any) -> Any:
        return NotImplemented if other is None or isinstance(other, str) else elementwise.eq(self, other)

    def __ne__(self, other: Any) -> Any:
        return NotImplemented if other is None or isinstance(other, str) else elementwise.ne(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return elementwise.lt(self, other)

    def __le__(self, other: Any) -> Tensor:
        return elementwise.le(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return elementwise.gt(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return elementwise.ge(self, other)

    mul, div, pow, neg, matmul = __mul__, __truediv__, __pow__, __neg__, __matmul__
    eq, ne, lt, le, gt, ge = __eq__, __ne__, __lt__, __le__, __gt__, __ge__
