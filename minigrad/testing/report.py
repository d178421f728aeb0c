"""The report of check_op: what was checked, how exact it is, and what was not covered."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["KernelReport", "Report"]


@dataclass
class KernelReport:
    """What was checked of one kernel on one device.

    Attributes:
        device, kernel: their names.
        dtypes: of the inputs it was given.
        layouts: of the inputs.
        cases: how many cases it took.
        calls: how often it ran.
        error: the largest error, as a share of what rounding explains; up to 1 is right.
        delegations: in how many of the calls looked into it called the op's reference.
    """

    device: str
    kernel: str
    dtypes: dict[str, None] = field(default_factory=dict)
    layouts: dict[str, None] = field(default_factory=dict)
    cases: set[int] = field(default_factory=set)
    calls: int = 0
    error: float = 0.0
    delegations: int = 0
    looked_into: int = 0


@dataclass
class Report:
    """What :func:`check_op` has checked; ``print`` it.

    Attributes:
        op: the op's name.
        seed: of all random numbers.
        kernels: a :class:`KernelReport` for each kernel on each device.
        gradients: sentences on which gradients were checked, or why not.
        notes: sentences on what was not covered.
    """

    op: str
    seed: int
    kernels: list[KernelReport] = field(default_factory=list)
    gradients: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("device", "kernel", "dtypes", "layouts", "cases", "calls", "largest error")]
        rows += [
            (
                row.device,
                row.kernel,
                " ".join(row.dtypes),
                str(len(row.layouts)),
                str(len(row.cases)),
                str(row.calls),
                f"{100 * row.error:.2g} % of what is allowed" if row.calls else "",
            )
            for row in self.kernels
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"check_op: {self.op} is right (seed={self.seed})"]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [f"  {sentence}" for sentence in self.gradients]
        if self.notes:
            lines += ["  not covered:", *(f"    {note}" for note in self.notes)]
        return "\n".join(lines)
