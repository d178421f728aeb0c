"""example_op: an operation for minigrad, with kernels of its own."""

from .ops import example_op

__all__ = ["example_op"]
