"""The rows of the chapters' tables: flat records of plain values, as a data frame would take them.

Every row tells its ``device`` and, in ``recorded``, whether it was measured on this machine (None) or comes
from a recorded run: then it is the run's label, such as ``"NVIDIA H200, 2026-11-26"``. The rows of the
ladder are :class:`minigrad.compare.Record`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BatchPoint",
    "Counters",
    "Fact",
    "LayerTime",
    "PrecisionPoint",
    "Roof",
    "RooflinePoint",
    "Row",
    "SizePoint",
    "StepTime",
    "TimedRow",
    "TrainingPoint",
]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What all rows have.

    Attributes:
        device: ``"cpu"``, ``"cuda:0"``, ``"sim"``.
        recorded: None if measured on this machine, otherwise the label of the recorded run.
    """

    device: str
    recorded: str | None = None


@dataclass(frozen=True, kw_only=True)
class TimedRow(Row):
    """A row of a call that was timed.

    Attributes:
        threads: the CPU threads it used; None on a card.
        seconds, seconds_min, seconds_max: the median, smallest and largest time of a call, or None.
        spread: half the distance between the quartiles, as a share of the median; None if not recorded.
        calls: how many times were measured.
        failure: why it was not measured, or None.
    """

    threads: int | None = None
    seconds: float | None = None
    seconds_min: float | None = None
    seconds_max: float | None = None
    spread: float | None = None
    calls: int = 0
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fact(Row):
    """One quantity of a device, as ``what``, ``value`` and ``unit``: ``"cores"``, 2, ``""``.

    Attributes:
        what: the quantity's name.
        value: a number, or text.
        unit: ``"B"``, ``"B/s"``, ``"FLOP/s"``, ``"bit"``, ``"s"``, or ``""`` for counts and names.
        threads: how many CPU threads it was measured with, if that matters.
    """

    what: str
    value: float | str
    unit: str = ""
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Roof(Row):
    """The two limits of a device: what no kernel can exceed.

    Attributes:
        threads: CPU threads; None on a card.
        compute: peak of float32 arithmetic, FLOP/s.
        memory: peak of memory traffic, B/s.
    """

    threads: int | None
    compute: float
    memory: float

    @property
    def ridge(self) -> float:
        """The intensity, in operations for each byte, from which on arithmetic is the limit."""
        return self.compute / self.memory


@dataclass(frozen=True, kw_only=True)
class RooflinePoint(Row):
    """A rung on the roofline.

    Attributes:
        threads: CPU threads; None on a card.
        ladder, rung, kind, size: as in its :class:`~minigrad.compare.Record`.
        intensity: operations for each byte that has to pass between memory and the device.
        rate: what it reached, FLOP/s.
        roof: what its intensity allows, FLOP/s: the smaller of compute and intensity x memory.
        bound: which of the two that is, ``"compute"`` or ``"memory"``.
        roof_share: rate / roof. More than 1 if the kernel saves operations (Winograd's algorithm), or its
            data stay in the caches.
    """

    threads: int | None
    ladder: str
    rung: str
    kind: str
    size: str
    intensity: float
    rate: float
    roof: float
    bound: str
    roof_share: float


@dataclass(frozen=True, kw_only=True)
class SizePoint(TimedRow):
    """An op at one size.

    Attributes:
        op: ``"matmul"`` (n x n times n x n) or ``"add"`` (two vectors of n).
        n: the side of the matrices, or the number of elements.
        size: the sizes as text.
        operations, bytes: floating-point operations and compulsory memory traffic of a call.
        unit: ``"GFLOP/s"`` or ``"GB/s"``, what ``rate`` counts; ``rate`` is in units of one, not of 10^9.
        rate: operations or bytes per second.
        error: the largest error, relative to the largest value of the float64 result.
        transfer_seconds: on a card, to copy the inputs there and the result back; not in ``seconds``. None
            where it was not measured.
    """

    op: str
    n: int
    size: str
    operations: int
    bytes: int
    unit: str
    rate: float | None = None
    error: float | None = None
    transfer_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class BatchPoint(TimedRow):
    """A network at one batch size.

    Attributes:
        network: its name.
        mode: ``"forward"``, ``"training step"``, or ``"captured training step"``, one launch of a graph.
        batch: samples at a time.
        samples_per_second: batch / seconds.
        error: the largest error of the outputs, relative to the largest value in float64.
    """

    network: str
    mode: str
    batch: int
    samples_per_second: float | None = None
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingPoint(Row):
    """The state of a training run after some steps.

    Attributes:
        dataset: ``"MNIST"`` or ``"Digits"``.
        threads: CPU threads; None on a card.
        step: how many steps were made.
        samples: how many images were seen.
        seconds: the time of these steps; without that of the tests in between.
        train_loss: the mean loss since the row before; None before the first step.
        test_loss, test_accuracy: on test images, which the network has not learned from.
        test_samples: how many these are.
    """

    dataset: str
    threads: int | None
    step: int
    samples: int
    seconds: float
    train_loss: float | None
    test_loss: float
    test_accuracy: float
    test_samples: int


@dataclass(frozen=True, kw_only=True)
class LayerTime(Row):
    """A layer of a network, timed alone, at its place's input.

    Attributes:
        network, batch: what it belongs to, and how many samples came at a time.
        threads: CPU threads; None on a card.
        position: its place, from 0.
        layer: as it is written, ``"Conv2d(1, 32, ...)"``; ``"loss"`` and ``"optimizer"`` stand at the end.
        output: the shape that leaves it.
        forward, backward: seconds of each; backward None where there is none.
        share: of the sum of all layers' times.
    """

    network: str
    batch: int
    threads: int | None
    position: int
    layer: str
    output: str
    forward: float
    backward: float | None
    share: float


@dataclass(frozen=True, kw_only=True)
class StepTime(TimedRow):
    """A training step of a network.

    Attributes:
        network, batch, mode: as in :class:`BatchPoint`.
        samples_per_second: batch / seconds.
    """

    network: str
    batch: int
    mode: str
    samples_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class PrecisionPoint(TimedRow):
    """An op in one number format.

    Attributes:
        op: ``"matmul"`` or ``"conv2d"``.
        size: the sizes as text.
        format: ``"float64"``, ``"float32"``, ``"tf32"``, ``"bfloat16"``, ``"float16"``.
        kernel: the kernel that ran, where it is known.
        operations: floating-point operations of a call.
        rate: operations per second.
        error: of the result: the norm of its difference to the exact one of the inputs as they were given, in
            float32 for TF32, over the norm of that.
    """

    op: str
    size: str
    format: str
    kernel: str = ""
    operations: int
    rate: float | None = None
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Counters(Row):
    """What a launch of a CUDA kernel asks of a card, counted on the simulator.

    Attributes:
        op, rung, size, kernel: what was launched.
        blocks, block_threads: the launch.
        asked_bytes: of all 32-byte sectors of global memory that the warps' requests touch.
        used_share: how much of these sectors the requests need; 1 if all are coalesced.
        distinct_bytes: of the different sectors, what a perfect cache would leave.
        requests: how often a warp asked for global memory.
        sectors_per_request: 4 if 32 lanes read 32 floats side by side, up to 32 if they lie apart.
        shared_wavefronts: of shared memory.
        bank_conflicts: those beyond what was needed.
        barriers: of each block.
        divergent_share: how often a warp's lanes met along different paths, of all the times they met.
        operations: floating-point operations; None where the machine code cannot be read.
        intensity: operations for each byte asked; None where unknown.
    """

    op: str
    rung: str
    size: str
    kernel: str
    blocks: int
    block_threads: int
    asked_bytes: int
    used_share: float
    distinct_bytes: int
    requests: int
    sectors_per_request: float
    shared_wavefronts: int
    bank_conflicts: int
    barriers: float
    divergent_share: float
    operations: int | None
    intensity: float | None
