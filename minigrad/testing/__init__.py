"""Checks for ops and kernels: gradients against finite differences, kernels against their reference.

:func:`gradcheck` and :func:`gradgradcheck` test the gradient of any function of tensors. :func:`check_op`
tests an op as a whole: every kernel, on every device of this machine, for every dtype and memory layout,
then its gradient and its second gradient::

    mg.testing.check_op(swish, [case((3, 5)), case((0,)), case((4, 4), beta=2.0)])

They raise an AssertionError that shows the worst element when a check fails.
"""

from minigrad.testing.arrays import LAYOUTS, assert_close, tolerance
from minigrad.testing.bench import OpTable, bench_op
from minigrad.testing.cases import Case, case
from minigrad.testing.check import check_op
from minigrad.testing.gradients import gradcheck, gradgradcheck
from minigrad.testing.parametrize import Check, parametrize
from minigrad.testing.report import KernelReport, Report

__all__ = [
    "LAYOUTS",
    "Case",
    "Check",
    "KernelReport",
    "OpTable",
    "Report",
    "assert_close",
    "bench_op",
    "case",
    "check_op",
    "gradcheck",
    "gradgradcheck",
    "parametrize",
    "tolerance",
]
