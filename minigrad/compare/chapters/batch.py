"""The batch size: the same network, given one sample at a time or a thousand.

A larger batch gives each kernel more to do, and the cost of calling it is shared by more samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from minigrad import capture
from minigrad.autograd import no_grad
from minigrad.compare.attempt import Attempt, finished, time_in_turns
from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.networks import check_outputs, mnist_cnn, normal_images, training_step
from minigrad.compare.numbers import seconds, share, significant
from minigrad.compare.rows import BatchPoint
from minigrad.compare.session import Session
from minigrad.compare.timing import Call
from minigrad.creation import from_numpy
from minigrad.devices import Device

NAME = "batch"
TITLE = "The batch size"
QUESTION = "Why are samples given to a network in batches?"
TABLES = {"points": BatchPoint}
COLUMNS = {
    "points": [
        ("network", lambda row: row.network),
        ("mode", lambda row: row.mode),
        ("batch", lambda row: str(row.batch)),
        ("device", lambda row: row.device),
        ("time", lambda row: row.failure or seconds(row.seconds)),
        ("spread", lambda row: f"+-{share(row.spread)}" if row.spread is not None else ""),
        ("samples/s", lambda row: significant(row.samples_per_second) if row.samples_per_second else ""),
    ]
}
SHORT = ("points",)

NETWORK = "MNIST CNN"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
QUICK_BATCHES = (1, 8, 64, 128)
FORWARD, STEP, CAPTURED = "forward", "training step", "captured training step"


@dataclass
class BatchAttempt(Attempt):
    """A network in one mode, at one batch size."""

    mode: str = field(kw_only=True)
    batch: int = field(kw_only=True)

    def prepare(self, rng: np.random.Generator) -> None:
        images, labels = normal_images(rng, self.batch)
        model = mnist_cnn().to(self.device)
        self.error = check_outputs(mnist_cnn, model, images, self.device)
        x, target = from_numpy(images).to(self.device), from_numpy(labels).to(self.device)
        run = training_step(model, x, target)
        if self.mode == FORWARD:
            run = no_grad()(lambda: model(x))
        elif self.mode == CAPTURED:
            run = capture(run, device=self.device, warmup=1)
            for _ in range(2):  # plainly, then to record it: from here on it is replayed
                run()
        self.call = Call(run, self.device, self.threads)
        self.call.prepare()

    def row(self) -> BatchPoint:
        return BatchPoint(
            network=NETWORK,
            mode=self.mode,
            batch=self.batch,
            samples_per_second=self.batch / self.seconds if self.seconds else None,
            **self.measured,
        )


def measure(session: Session, chapter: Chapter) -> None:
    """Check each batch size against float64, then time all of them in turns."""
    stop = session.deadline()
    attempts: list[BatchAttempt] = []
    try:
        for device, threads in session.timed_devices(chapter):
            for mode in (FORWARD, STEP, CAPTURED) if device.type == "cuda" else (FORWARD, STEP):
                _prepare_all(session, mode, device, threads, attempts)
        time_in_turns(session, "batch", attempts, stop)
    finally:
        chapter.tables["points"] = [attempt.row() for attempt in finished(attempts)]


def _prepare_all(
    session: Session, mode: str, device: Device, threads: int | None, attempts: list[BatchAttempt]
) -> None:
    """Prepare the batches from the smallest on, until a call would take too long."""
    before: BatchAttempt | None = None
    for batch in QUICK_BATCHES if session.quick else BATCHES:
        estimate = before.call.estimate * batch / before.batch if before and before.call else 0.0
        if estimate > session.effort.longest:
            break
        session.progress(f"batch: checking a {mode} with {batch} on {device}")
        before = BatchAttempt(device, threads, mode=mode, batch=batch)
        attempts.append(before)
        if not before.try_to(partial(before.prepare, session.rng)):
            break


# ---- what it says -----------------------------------------------------------------------------------------


def findings(comparison: Comparison, chapter: Chapter) -> list[str]:
    found = []
    for device in dict.fromkeys(row.device for row in chapter.rows):
        for mode in dict.fromkeys(row.mode for row in chapter.rows):
            rows = [r for r in chapter.rows if (r.device, r.mode) == (device, mode) and r.samples_per_second]
            found += _of_batches(device, mode, rows)
    return found + _beside_the_card(comparison, chapter)


def _of_batches(device: str, mode: str, rows: list[Any]) -> list[str]:
    if len(rows) < 2:
        return []
    small, best = min(rows, key=lambda r: r.batch), max(rows, key=lambda r: r.samples_per_second)
    if best is small:
        return [f"{mode} on {device}: larger batches gain nothing here; {_rate(small)}."]
    factor = best.samples_per_second / small.samples_per_second
    return [
        f"{mode} on {device}: {_rate(small)}; the most is {_rate(best)}, {significant(factor)} times as many."
    ]


def _beside_the_card(comparison: Comparison, chapter: Chapter) -> list[str]:
    """The card beside the processor, at the largest batch that both were measured at."""
    found = []
    cpu = {(r.mode, r.batch): r for r in chapter.rows if r.device == "cpu" and r.seconds}
    own = [r for r in chapter.rows if r.device.startswith("cuda") and r.seconds]
    for mode in (FORWARD, STEP):
        card = {
            r.batch: r
            for r in own or chapter.recorded_rows
            if r.seconds and r.network == NETWORK and r.mode == mode
        }
        shared = [batch for batch in sorted(card) if (mode, batch) in cpu]
        if shared:
            a, b = cpu[mode, shared[-1]], card[shared[-1]]
            found.append(
                f"{mode} with batches of {b.batch}: {seconds(b.seconds)} on {comparison.called(b)}, "
                f"{seconds(a.seconds)} on this processor, {significant(a.seconds / b.seconds)} times as long."
            )
    return found


def _rate(row: Any) -> str:
    return f"{significant(row.samples_per_second)} samples/s with batches of {row.batch}"
