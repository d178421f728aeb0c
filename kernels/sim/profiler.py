"""What a kernel asks of a card, counted on the simulator: memory, bank conflicts, divergence, arithmetic.

Inside :func:`profile` every launch is counted, and can be printed as a table::

    with sim.profile() as launches:
        matmul.tiled(out, a, b)
    print(launches[0])

Counts are exact for the simulated order, and say nothing of time. Caches are not simulated: *asked* are the
bytes of all 32-byte sectors that the warps' requests touch, *distinct* those of the different sectors among
them. What passes between memory and a card lies between the two.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .checked import source_line

SECTOR = 32  # bytes

REPORT = ctypes.CFUNCTYPE(None, ctypes.c_char_p, *[ctypes.c_uint64] * 6)
"""``Report`` of profiler.h."""


@dataclass
class Accesses:
    """Loads, stores or atomic updates of global or of shared memory.

    Attributes:
        requests: how often a warp came to them, or had the copy engine move a box.
        accesses: by how many lanes in all; a box is one.
        bytes: of all lanes.
        cost: sectors of 32 bytes in global memory, wavefronts in shared memory.
        least: the fewest that the same bytes could cost.
    """

    requests: int = 0
    accesses: int = 0
    bytes: int = 0
    cost: int = 0
    least: int = 0

    def __add__(self, other: Accesses) -> Accesses:
        return Accesses(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def efficiency(self) -> float:
        """What the bytes need of what they cost; 1 if nothing is wasted."""
        return self.least / self.cost if self.cost else 1.0


@dataclass
class LaunchProfile:
    """The counts of one launch.

    Attributes:
        kernel, grid, block: what was launched.
        lines: for each (line of the source, ``"global load"``) and so on, its accesses.
        distinct_loaded, distinct_stored: bytes of the different sectors of global memory.
        operations: floating-point additions, multiplications, divisions and the like, of all threads; None if
            the machine code cannot be read here.
        functions: calls of ``expf`` and others, of all threads.
        barriers: how often a block's threads met at one, of all blocks.
        meetings, divergent: how often a warp's lanes came together (at a collective, a barrier or the end),
            and how often along different paths.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    lines: dict[tuple[str, str], Accesses] = field(default_factory=dict)
    distinct_loaded: int = 0
    distinct_stored: int = 0
    operations: int | None = None
    functions: Counter = field(default_factory=Counter)
    barriers: int = 0
    meetings: int = 0
    divergent: int = 0

    def total(self, what: str) -> Accesses:
        """All accesses of a kind: ``"global load"``, ``"shared store"``, ``"global atomic"``, ..."""
        return sum((a for (_, kind), a in self.lines.items() if kind == what), Accesses())

    @property
    def asked_bytes(self) -> int:
        """The bytes of all sectors of global memory that were asked for."""
        return SECTOR * sum(a.cost for (_, kind), a in self.lines.items() if kind.startswith("global"))

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts of shared memory beyond those that were needed."""
        return sum(a.cost - a.least for (_, kind), a in self.lines.items() if kind.startswith("shared"))

    @property
    def intensity(self) -> float | None:
        """Floating-point operations for each byte asked for; None where either is unknown or none."""
        return self.operations / self.asked_bytes if self.operations and self.asked_bytes else None

    def __str__(self) -> str:
        threads = self.block[0] * self.block[1] * self.block[2]
        blocks = self.grid[0] * self.grid[1] * self.grid[2]
        lines = [f"{self.kernel}: {blocks} blocks of {threads} threads"]
        distinct = {"global load": self.distinct_loaded, "global store": self.distinct_stored}
        for what in ("global load", "global store", "global atomic"):
            total = self.total(what)
            if total.requests:
                asked, used = format_bytes(SECTOR * total.cost), total.efficiency
                lines.append(f"  {what + 's':15} {asked:>9} asked, {used:4.0%} used")
                if what in distinct:
                    lines[-1] += f", {format_bytes(distinct[what])} distinct"
        for what in ("shared load", "shared store", "shared atomic"):
            total = self.total(what)
            if total.requests:
                ways = total.cost / total.least
                lines.append(
                    f"  {what + 's':15} {_number(total.cost):>9} wavefronts, {ways:.2f} for each needed"
                )
        lines.append(f"  {'barriers':15} {self.barriers / blocks:9.4g} for each block")
        lines.append(
            f"  {'divergence':15} {_share(self.divergent, self.meetings):>9} of the times that warps met"
        )
        if self.operations is not None:
            per_byte = f", {self.intensity:.2f} for each byte asked" if self.intensity else ""
            lines.append(f"  {'arithmetic':15} {_number(self.operations):>9} operations{per_byte}")
        if self.functions:
            calls = ", ".join(f"{_number(count)} {name}" for name, count in self.functions.most_common())
            lines.append(f"  {'functions':15} {calls}")
        return "\n".join([*lines, "", *self._table()])

    def _table(self) -> list[str]:
        """A line for each line of the source that uses memory: what it costs a warp there."""
        rows = [
            f"  {'line':20} {'what':13} {'requests':>9} {'bytes/lane':>10} {'cost/request':>12} {'least':>6}"
        ]
        for (line, what), a in sorted(self.lines.items(), key=lambda item: -item[1].cost):
            unit = "sectors" if what.startswith("global") else "wavefronts"
            rows.append(
                f"  {line:20} {what:13} {_number(a.requests):>9} {a.bytes / a.accesses:10.4g} "
                f"{a.cost / a.requests:12.4g} {a.least / a.requests:6.4g}  {unit}"
            )
        return rows


@contextmanager
def profile() -> Iterator[list[LaunchProfile]]:
    """Inside the ``with`` block launches are counted, not checked; gives the list that they are added to."""
    global _launches
    before, _launches = _launches, []
    try:
        yield _launches
    finally:
        _launches = before


_launches: list[LaunchProfile] | None = None


def get_launches() -> list[LaunchProfile] | None:
    """The list of the innermost :func:`profile`; None outside of any."""
    return _launches


class Recorder:
    """Collects what the runtime reports of one launch.

    Attributes:
        callback: what the runtime calls.
    """

    def __init__(self) -> None:
        self._reports: list[tuple[str, int, Accesses]] = []
        self.callback = REPORT(self._add)

    def _add(self, what: bytes, pc: int, *counts: int) -> None:
        self._reports.append((what.decode(), pc, Accesses(*counts)))

    def result(self, kernel: str, grid: tuple, block: tuple, library: Path) -> LaunchProfile:
        """The counts of a launch that has ended."""
        found = LaunchProfile(kernel, grid, block)
        entered: dict[int, int] = {}
        of_tensor_cores = 0
        for what, pc, counts in self._reports:
            if what == "block":
                entered[pc] = counts.requests
            elif what == "tensor cores":
                of_tensor_cores = counts.requests
            elif what == "barrier":
                found.barriers = counts.requests
            elif what == "meeting":
                found.meetings, found.divergent = counts.requests, counts.accesses
            elif what == "distinct loaded":
                found.distinct_loaded = SECTOR * counts.requests
            elif what == "distinct stored":
                found.distinct_stored = SECTOR * counts.requests
            else:
                key = source_line(pc, library), what
                found.lines[key] = found.lines.get(key, Accesses()) + counts
        arithmetic = _arithmetic(library)
        if arithmetic is not None:
            found.operations = of_tensor_cores
            for pc, times in entered.items():
                operations, calls = arithmetic.get(pc, (0, Counter()))
                found.operations += times * operations
                for name, count in calls.items():
                    found.functions[name] += times * count
        return found


# ---- arithmetic, counted in the machine code ---------------------------------------------------------------

_TRACE = "__sanitizer_cov_trace_pc"

# Scalar (and packed) floating-point arithmetic of x86-64 and of arm64, with how many operations it is.
_X86 = re.compile(r"^v?(?:add|sub|mul|div|max|min|sqrt)([sp])([sd])$")
_ARM = re.compile(r"^f(?:add|sub|mul|div|sqrt|max|min|maxnm|minnm|(n?m(?:add|sub)))$")
_FUNCTION = re.compile(r"<(\w+)@plt>")
_NOT_MATHS = re.compile(r"^(?:__tsan|__ubsan|__sanitizer|sim_|mem|_)")


@cache
def _arithmetic(library: Path) -> dict[int, tuple[int, Counter]] | None:
    """For each basic block of a profiled library, by the address that it reports: operations and calls."""
    tool = shutil.which("objdump") or shutil.which("llvm-objdump")
    if tool is None:
        return None
    command = [tool, "-d", "--no-show-raw-insn", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True).stdout
    found: dict[int, tuple[int, Counter]] = {}
    block: int | None = None  # where the current one reports; None behind a jump
    traced = False
    for line in listing.splitlines():
        address, separator, instruction = line.partition(":\t")
        if not separator:
            block, traced = None, False
            continue
        if traced:
            block, traced = int(address, 16), False
            found[block] = (0, Counter())
        name, _, operands = instruction.strip().partition(" ")
        if _TRACE in operands:
            block, traced = None, True
        elif block is not None:
            operations, calls = found[block]
            called = _FUNCTION.search(operands) if name.startswith(("call", "bl")) else None
            if called and not _NOT_MATHS.match(called[1]):
                calls[called[1]] += 1
            found[block] = (operations + _operations(name), calls)
            if name.startswith(("jmp", "ret")) or name in ("b", "br"):
                block = None
    return found


def _operations(instruction: str) -> int:
    x86, arm = _X86.match(instruction), _ARM.match(instruction)
    if x86:
        return 1 if x86[1] == "s" else 4 if x86[2] == "s" else 2
    if arm:
        return 2 if arm[1] else 1
    return 0


def format_bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.4g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"


def _number(number: float) -> str:
    for unit in ("", " k", " M"):
        if number < 1000:
            return f"{number:.4g}{unit}"
        number /= 1000
    return f"{number:.4g} G"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"
