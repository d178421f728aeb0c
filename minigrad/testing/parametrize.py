"""check_op as pytest sees it: one test for each device, kernel and case."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from minigrad.devices import KINDS, available_devices
from minigrad.dispatch import kernel_table
from minigrad.op import Op
from minigrad.testing.cases import Case, as_cases, derived_cases
from minigrad.testing.check import Session, check_op, rungs
from minigrad.testing.report import Report

__all__ = ["Check", "parametrize"]

GRADIENTS = "gradients"


class Check(NamedTuple):
    """One part of check_op: call it.

    Attributes:
        op: the op.
        device: the device's name.
        kernel: the kernel's name, or ``"gradients"`` for those of the op on this device.
        cases: the cases to check; several only to see that one of them makes the kernel run.
        options: the other arguments of check_op.
    """

    op: Op
    device: str
    kernel: str
    cases: tuple[Case, ...]
    options: dict[str, Any]

    def __call__(self) -> Report:
        """Check it; a kernel that does not take the case is a skipped test."""
        import pytest

        options = {"derive": False, **self.options, "devices": [self.device]}
        if self.kernel == GRADIENTS:
            session = Session(self.op, self.cases, options["devices"], None, None, options.get("seed"), False)
            session.check_gradients(options.get("elements", 24))
            return session.report
        if len(self.cases) > 1:
            return check_op(self.op, self.cases, kernels=[self.kernel], gradients=False, **options)
        session = Session(
            self.op,
            self.cases,
            options["devices"],
            options.get("dtypes"),
            [self.kernel],
            options.get("seed"),
            False,
        )
        session.check_kernels(all_run=False)
        if not any(row.calls for row in session.report.kernels):
            pytest.skip(f"kernel {self.kernel!r} does not take {self.op.name}{self.cases[0]}, or it is empty")
        return session.finish()


def parametrize(op: Op, cases: Iterable | None = None, **options: Any) -> Callable:
    """Decorator of a pytest function that is given ``check``: a test for each device, kernel and case. ::

        @mg.testing.parametrize(swish, [case((3, 5)), case((0,)), case((7,), beta=2.0)])
        def test_swish(check):
            check()

    Beside these, each kernel has a test that some case makes it run, and each device has one of the
    gradients. Devices that this machine lacks are tests that are skipped. The kernels are those that are
    registered when the decorator runs.

    Args:
        op, cases: as for :func:`check_op`.
        options: ``dtypes``, ``elements``, ``seed`` as for :func:`check_op`.
    """
    import pytest

    given = as_cases(op, cases)
    every = [*given, *derived_cases(op, given)]
    present = available_devices()
    found = []
    for device in present:
        for kernel in dict.fromkeys(kernel.name for kernel in rungs(op, device)):
            found += [
                pytest.param(Check(op, str(device), kernel, (one,), options), id=f"{device}-{kernel}-{one}")
                for one in every
                if not (one.derived == "large" and device.type == "sim")
            ]
            check = Check(op, str(device), kernel, tuple(given), options)
            found.append(pytest.param(check, id=f"{device}-{kernel}-runs"))
        if op.differentiable:
            check = Check(op, str(device), GRADIENTS, tuple(given), options)
            found.append(pytest.param(check, id=f"{device}-{GRADIENTS}"))
    for kind in KINDS:
        absent = all(device.type != kind for device in present)
        if absent and any(kind in kernel.devices for kernel in kernel_table(op.name).kernels):
            skip = pytest.mark.skip(reason=f"device {kind!r} cannot be used on this machine")
            found.append(pytest.param(None, marks=skip, id=kind))
    return pytest.mark.parametrize("check", found)
