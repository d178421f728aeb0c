"""check_op: every kernel of an op on every device, for every dtype and memory layout, and its gradients."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from minigrad.devices import KINDS, Device, available_devices
from minigrad.devices import device as find_device
from minigrad.dispatch import REFERENCE, Kernel, kernel_table, parse_dtypes, use_kernel
from minigrad.dtypes import is_floating, is_half
from minigrad.op import Op
from minigrad.tensor import Tensor
from minigrad.testing.arrays import LAYOUTS, tensor_in_layout
from minigrad.testing.calls import check_trial, sees
from minigrad.testing.cases import (
    WORDS,
    Case,
    as_cases,
    derived_cases,
    draw,
    kinds_of,
    unvaried_attributes,
)
from minigrad.testing.gradients import gradcheck, gradgradcheck
from minigrad.testing.oracle import Trial
from minigrad.testing.report import KernelReport, Report
from minigrad.testing.watch import SHORTCUTS, Watch

OTHER_LAYOUTS = LAYOUTS[1:]  # than contiguous

SIMULATED = 1 << 14
"""The most elements of an array of a derived case on the simulator, which takes a thread for each."""


def check_op(
    op: Op,
    cases: Iterable | None = None,
    *,
    devices: Iterable | None = None,
    dtypes: str | Sequence | None = None,
    kernels: Iterable[str] | None = None,
    gradients: bool = True,
    elements: int = 24,
    seed: int | None = None,
    derive: bool = True,
    verbose: bool = False,
) -> Report:
    """Check an op: all kernels against the reference, the gradient, the second gradient.

    Each kernel, on each device, dtype and layout, must equal the op's reference in float64 to within
    :func:`tolerance` (times its own amplification, for one that loses digits); write all of its output and
    nothing beside it; give the same bits again; leave its inputs alone, and its earlier outputs; compute for
    itself; and run at least once. Three calls follow each other in the same memory: with some inputs, with
    others (NaN, infinities, zeros, huge and tiny numbers among them), and with the first again. Before each
    the output is filled with other garbage, and so is what lies around the inputs, so that a read outside of
    an input, an element left out and an old result show.

    What cannot be seen: on ``cpu`` and ``cuda`` a kernel that changes an input and restores it (``sim``
    refuses any write to one); a reference that is wrong itself (test it against an independent definition);
    a race that two runs happen to win (``sim.stress`` looks for those); the sign of a zero. The bits of a
    reference on a card are CuPy's affair.

    Args:
        op: the op.
        cases: calls, each made by :func:`case` (or a plain tuple of inputs). An op of any number of equal
            shapes (no shape rule) needs none.
        devices: by default all that this machine has.
        dtypes: of the floating inputs; by default float32 and float64, and for each kernel the 16-bit floats
            that it is registered for.
        kernels: names of the kernels to check; by default ``"reference"`` and all that there are.
        gradients: whether to check gradients too, with the first and the last of these kernels.
        elements: how many elements of each input finite differences are taken for; then all move at once.
        seed: of all random numbers; by default fresh, and told by the message. With it, the same numbers
            come again, also where less is checked.
        derive: whether to add cases of the kinds that are missing: other sizes, where the op has no shape
            rule (empty, one element, odd, more than a block of threads, more than one CPU thread), and
            other values of attributes.
        verbose: whether to print the report.

    Returns:
        A report, to print: what was checked, how exact it is, what was not covered.

    Raises:
        AssertionError: something is wrong; the message says on which device, kernel, dtype, layout and case,
            shows the worst element and, where it can be recognised, the likely cause. An exception that a
            kernel raises passes, with a note that says the same.
        ValueError: there is no case, or no kernel of a name in ``kernels``.
    """
    session = Session(op, cases, devices, dtypes, kernels, seed, derive)
    session.check_kernels()
    if gradients:
        session.check_gradients(elements)
    else:
        session.report.gradients.append("gradients: not checked, as gradients=False")
    report = session.finish()
    if verbose:
        print(report)
    return report


class Session:
    """One run of check_op."""

    def __init__(
        self,
        op: Op,
        cases: Iterable | None,
        devices: Iterable | None,
        dtypes: str | Sequence | None,
        kernels: Iterable[str] | None,
        seed: int | None,
        derive: bool,
    ):
        self.op = op
        self.given = as_cases(op, cases)
        self.cases = [*self.given, *(derived_cases(op, self.given) if derive else ())]
        self.devices = available_devices() if devices is None else [find_device(d) for d in devices]
        self.dtypes = None if dtypes is None else parse_dtypes(dtypes)
        self.names = None if kernels is None else set(kernels)
        self.seed = secrets.randbits(32) if seed is None else seed
        self.report = Report(op.name, self.seed)
        self.skipped: list[str] = []
        self.kinds: set[str] = set()
        self._rows = {
            (device, kernel): KernelReport(str(device), kernel.name)
            for device in self.devices
            for kernel in rungs(op, device, self.names)
        }
        self._check_names()
        self.report.kernels = list(self._rows.values())

    def _check_names(self) -> None:
        having = {kernel.name for device in self.devices for kernel in rungs(self.op, device)}
        for name in self.names or ():
            if name not in having:
                there = ", ".join(sorted(having))
                raise ValueError(f"check_op: op {self.op.name!r} has no kernel {name!r}; it has: {there}")

    # ---- kernels ---------------------------------------------------------------------------------------

    def check_kernels(self, all_run: bool = True) -> None:
        """Check every kernel; with ``all_run``, each must have run."""
        watches = {key: Watch(self.op, *key) for key in self._rows}
        for number, one in enumerate(self.cases):
            for trial, closely in self._trials(number, one):
                self._check_shape_rule(trial)
                for (device, kernel), watch in watches.items():
                    if self._applies(device, kernel, trial):
                        with _context(self.op, device, kernel.name, trial, self.seed):
                            self._check(number, trial, watch, closely)
        for (device, kernel), watch in watches.items():
            row = self._rows[device, kernel]
            where = f"check_op: {self.op.name} on {device}: "
            if all_run and not row.calls and kernel.name not in SHORTCUTS:
                raise AssertionError(
                    f"{where}no case made kernel {kernel.name!r} run (on what is not empty); add one that "
                    "meets its condition and dtypes"
                )
            if watch.looked_into and watch.delegations == watch.looked_into:
                raise AssertionError(
                    f"{where}kernel {kernel.name!r} computes nothing of its own: whenever it ran it called "
                    "the op's reference. Remove it, and the reference runs; or let when= say what it computes"
                )
            row.delegations, row.looked_into = watch.delegations, watch.looked_into

    def _check_shape_rule(self, trial: Trial) -> None:
        """Raise if a kernel's output has another shape than the reference's, for want of a shape rule."""
        if self.op._shape_rule is not None or not kernel_table(self.op.name).kernels:
            return
        given = np.broadcast_shapes(*(v.shape for v in trial.first.values if isinstance(v, np.ndarray)))
        returned = trial.first.expected[0].shape
        if returned != given:
            raise AssertionError(
                f"check_op: {self.op.name}{trial.case}: without a shape rule, a kernel's output has the "
                f"shape {given}, which the inputs broadcast to; the reference returned {returned}: define "
                f"@{self.op.name}.shape"
            )

    def _trials(self, number: int, one: Case) -> Iterator[tuple[Trial, bool]]:
        """The case in every dtype and layout, and whether to look at it most closely in this one."""
        dtypes = self.dtypes or (np.dtype(np.float32), np.dtype(np.float64), *self._halves())
        for d, dtype in enumerate(dtypes):
            contiguous: Trial | None = None
            # Where there are many cases, that is in two layouts, in each dtype in another one.
            two = ("contiguous", _layout_of(number + d))
            few = len(self.given) < len(OTHER_LAYOUTS)
            for k, layout in enumerate(two if one.derived else LAYOUTS):  # of derived ones the sizes matter
                like = None if layout == "stride 0" else contiguous  # there only one row is seen
                trial = Trial(self.op, one, dtype, layout, (self.seed, number, d, k), like)
                contiguous = contiguous or trial
                try:
                    arrays = [v for v in trial.first.values if isinstance(v, np.ndarray)]
                except Exception as error:
                    if not one.derived:
                        raise
                    self.skipped.append(f"{one.derived}: the reference refuses {one} ({error})")
                    return
                if layout == "channels last" and all(a.ndim != 4 for a in arrays):
                    continue
                self.kinds |= kinds_of([a.shape for a in arrays])
                yield trial, few or layout in two
            if not any(is_floating(a.dtype) for a in arrays):
                return  # they are the same for every dtype

    def _halves(self) -> list[np.dtype]:
        """The 16-bit floats that some kernel is registered for."""
        found = [t for _, kernel in self._rows for t in kernel.dtypes if is_half(t)]
        return list(dict.fromkeys(found))

    def _applies(self, device: Device, kernel: Kernel, trial: Trial) -> bool:
        if is_half(trial.dtype) and self.dtypes is None and trial.dtype not in kernel.dtypes:
            return False
        if not trial.case.derived or device.type != "sim":
            return True
        arrays = [v for v in trial.first.values if isinstance(v, np.ndarray)]
        return all(v.size < SIMULATED for v in (*arrays, *trial.first.expected))

    def _check(self, number: int, trial: Trial, watch: Watch, closely: bool) -> None:
        """Check the calls of one trial, and note in the report that they were right."""
        row = self._rows[watch.device, watch.kernel]
        # Else contiguous copies, which are made in other cases too; and what is simulated takes a thousand
        # times as long.
        if not closely and (watch.device.type == "sim" or not sees(watch.kernel, trial.layout)):
            return
        calls, error = check_trial(trial, watch, once=not closely)
        if calls and any(e.size for e in trial.first.expected):
            row.calls += calls
            row.error = max(row.error, error)
            row.dtypes[str(trial.dtype)] = row.layouts[trial.layout] = None
            row.cases.add(number)

    # ---- gradients -------------------------------------------------------------------------------------

    def check_gradients(self, elements: int) -> None:
        if not self.op.differentiable:
            self.report.gradients.append("gradients: none, the op is not differentiable")
            return
        for device in self.devices:
            own = (k.name for on, k in self._rows if on == device and k.name not in SHORTCUTS)
            names = list(dict.fromkeys(own))
            for name in dict.fromkeys((*names[:1], *names[-1:])):
                checked = sum(self._check_gradient(device, name, k, elements) for k in range(len(self.given)))
                words = (
                    f"checked in {checked} cases"
                    if checked
                    else "not checked: no case has float inputs for it"
                )
                self.report.gradients.append(
                    f"gradient and second gradient on {device}, kernel {name!r}, float64: {words}"
                )

    def _check_gradient(self, device: Device, name: str, number: int, elements: int) -> bool:
        one = self.given[number]
        if not one.gradient:
            return False
        rng = np.random.default_rng((self.seed, number))
        trial = Trial(self.op, one, np.dtype(np.float64), "contiguous", (self.seed, number))
        values = [draw(value, np.dtype(np.float64), rng) for value in one.inputs]
        tensors = [
            tensor_in_layout(v, device, "contiguous") if isinstance(v, np.ndarray) else v for v in values
        ]
        tracked = [
            t
            for i, t in enumerate(tensors)
            if isinstance(t, Tensor)
            and t.dtype == np.float64
            and self.op.input_name(i) not in self.op.non_differentiable
        ]
        for t in tracked:
            t.requires_grad_()
        if not tracked:
            return False

        def call(*arguments: Any) -> Any:
            if self.op.in_place is not None:  # which no input of a gradient check may be
                at = self.op.inputs.index(self.op.in_place)
                arguments = (*arguments[:at], arguments[at].clone(), *arguments[at + 1 :])
            return self.op(*arguments, **one.attrs)

        seed = int(rng.integers(2**32))
        with _context(self.op, device, name, trial, self.seed), use_kernel(self.op.name, name, device.type):
            gradcheck(call, tensors, elements=elements, seed=seed)
            gradgradcheck(call, tensors, elements=elements, seed=seed)
        return True

    # ---- the report ------------------------------------------------------------------------------------

    def finish(self) -> Report:
        """The report, with what was not covered."""
        notes = self.report.notes
        for name in self.op.non_differentiable:
            self.report.gradients.append(f"input {name!r} has no gradient: it is declared non-differentiable")
        if self.op.in_place is not None:
            self.report.gradients.append(f"input {self.op.in_place!r} is written in place, by the call alone")
        for kind, words in WORDS.items():
            if kind not in self.kinds:
                notes.append(f"sizes: no case has {words}")
        for name in unvaried_attributes(self.op, self.cases):
            notes.append(f"attribute {name!r}: it has one value in all cases; a kernel may ignore it")
        if not any(isinstance(i, tuple) for one in self.given if one.special for i in one.inputs):
            notes.append("special values (NaN, infinity, zero, huge): no case gives an input by its shape")
        notes += self.skipped
        notes += self._dtypes_without_kernel()
        notes += self._absent_devices()
        for row in self.report.kernels:
            if row.delegations:
                notes.append(
                    f"kernel {row.kernel!r} on {row.device} called the op's reference itself in "
                    f"{row.delegations} of {row.looked_into} calls: there no kernel was checked"
                )
        return self.report

    def _dtypes_without_kernel(self) -> Iterator[str]:
        for (device, kernel), row in self._rows.items():
            missing = [str(t) for t in kernel.dtypes if str(t) not in row.dtypes and is_floating(t)]
            if missing and kernel.name != REFERENCE:
                yield f"dtypes: kernel {kernel.name!r} on {device} did not run on {' '.join(missing)}"
            for dtype in ("float32", "float64"):
                own = [k for d, k in self._rows if d == device and k.name != REFERENCE]
                if kernel.name == REFERENCE and own and not any(dtype in map(str, k.dtypes) for k in own):
                    yield f"dtypes: no kernel on {device} takes {dtype}; the reference runs"

    def _absent_devices(self) -> Iterator[str]:
        present = {device.type for device in self.devices}
        for kind in KINDS:
            names = [k.name for k in kernel_table(self.op.name).kernels if kind in k.devices]
            if kind not in present and names:
                yield f"device {kind}: not checked, with its kernels {', '.join(dict.fromkeys(names))}"


def _layout_of(number: int) -> str:
    """The layout beside contiguous whose turn it is in a case, so that every fifth case gets another, too."""
    count = len(OTHER_LAYOUTS)
    return OTHER_LAYOUTS[(number + number // count) % count]


def rungs(op: Op, device: Device, names: Iterable[str] | None = None) -> list[Kernel]:
    """The ways in which the op is computed on a device: its reference, its kernels, its functions that stand
    in for kernels."""
    own = [k for k in kernel_table(op.name).kernels if device.type in k.devices]
    own.insert(0, Kernel(op.name, REFERENCE, (device.type,), (), op.reference, "strided", None, ""))
    if device.type == "cpu":
        own[1:1] = [
            own[0]._replace(name=name) for name, at in SHORTCUTS.items() if getattr(op, at) is not None
        ]
    return own if names is None else [k for k in own if k.name in set(names)]


@contextlib.contextmanager
def _context(op: Op, device: Device, kernel: str, trial: Trial, seed: int) -> Iterator[None]:
    """Tell where it was that a check failed."""
    one = trial.case
    where = (
        f"check_op: {op.name}{one} on {device}, kernel {kernel!r}, {trial.dtype}, {trial.layout} inputs "
        f"(seed={seed})"
    )
    if one.derived:
        where += f"\nThis case was derived from those given ({one.derived}); derive=False leaves it out."
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{where}\n{error}") from None
    except Exception as error:
        error.add_note(where)
        raise
