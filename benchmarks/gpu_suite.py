"""The rows that processor and card have in common, ``suite_cases.py``, measured on the card."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import suite_networks as networks
from gpu_bench import Bench, around, finish, relative_error
from gpu_case import noted
from suite_case import Case, Data
from suite_cases import cases

import minigrad as mg
from minigrad.dtypes import BFLOAT16

TOLERANCES = {"float32": 1e-3, "autocast": 2e-2}  # between the libraries, whose sums run in different orders
STATEFUL = ("training step", "optimizer", "LSTM", "overhead", "random")  # groups that are built once


class DeviceData(Data):
    """Random inputs that the device itself draws: the same numbers for both libraries."""

    def __init__(self, bench: Bench, lib: Any, seed: int):
        device = str(bench.device) if lib is mg or bench.on_card else "cpu"
        super().__init__(lib, seed, bench.xp, device)
        self.bench = bench

    def tensor(self, array: Any) -> Any:
        self.bytes += array.nbytes
        ours = self.lib is mg
        return mg.tensor(array, device=self.bench.device) if ours else self.bench.to_torch(array)


def suite_row(bench: Bench, case: Case, captured: bool) -> dict[str, Any]:
    """Compare the results of both libraries, time both, and set them against the floor.

    The floor counts what PyTorch's own counter of operations sees (products, convolutions, attention), and
    the bytes of the inputs and the results. A step that is ``captured`` is so on our side alone.
    """
    result = {"name": row_name(case, captured), "size": "", "operations": 0.0, "format": case.format}
    data = DeviceData(bench, mg, 0)
    ours = [case.build(mg, data)]
    if captured:
        ours = [mg.capture(ours[0], device=bench.device, warmup=1)]
    sets = 1
    if case.group not in STATEFUL:
        sets = int(min(16, max(1, -(-2 * bench.cache_bytes // max(1, data.bytes)))))
    with noted() as notes:
        found = as_list(ours[0]())
    result["kernels"] = notes.kernels
    result["bytes"] = data.bytes + sum(bench.array(r).nbytes for r in found if r is not None)
    ours += [case.build(mg, DeviceData(bench, mg, seed)) for seed in range(1, sets)]
    runs = {"minigrad": around(lambda run: run(), [[run] for run in ours])}
    result["error"] = 0.0
    if bench.torch:
        theirs = [case.build(bench.torch, DeviceData(bench, bench.torch, seed)) for seed in range(sets)]
        result["operations"], other = counted(bench, theirs[0])
        if not case.random:
            pairs = zip(found, as_list(other), strict=True)
            errors = (
                relative_error(bench.xp, bench.array(a), bench.array(b)) for a, b in pairs if a is not None
            )
            result["error"] = max(errors, default=0.0)
        del other
        runs["torch"] = around(lambda run: run(), [[run] for run in theirs])
    del found
    if not result["error"] < TOLERANCES[case.format]:
        result["failure"] = f"the two libraries differ by {result['error']:.1e}"
        return result
    return finish(bench, result, runs)


def as_list(result: Any) -> list[Any]:
    """The results of a call that gives one, or several."""
    return list(result) if isinstance(result, (list, tuple)) else [result]


def counted(bench: Bench, run: Callable[[], Any]) -> tuple[float, Any]:
    """The operations of a call of PyTorch, and what it gave."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        result = run()
    return float(counter.get_total_flops()), result


def row_name(case: Case, captured: bool) -> str:
    """As the table shows it: the group, and the row in it."""
    return f"{'captured ' * captured}{case.group}: {case.name}"


def rounded_steps(quick: bool) -> Iterator[Case]:
    """Training steps on tensor cores, in C order and channels last, in both libraries."""
    size = {"depth": 1, "width": 8, "shape": (2, 3, 8, 8)} if quick else {}
    for memory_format in ("contiguous_format", "channels_last") if BFLOAT16 else ():
        build = functools.partial(networks.resnet20, memory_format=memory_format, **size)
        name = f"ResNet-20, bfloat16, {memory_format}"
        yield Case("training step", name, build, format="autocast")


def rows(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, function that measures) of each row; training steps plain and captured."""
    for case in (*cases(bench.quick), *rounded_steps(bench.quick)):
        for captured in (False, True) if case.group == "training step" else (False,):
            yield row_name(case, captured), functools.partial(suite_row, bench, case, captured)
