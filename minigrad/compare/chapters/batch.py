"""The batch size: the same network, given one sample at a time or a thousand.

A larger batch gives each kernel more to do, and the cost of calling it is shared by more samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minigrad import capture
from minigrad.autograd import no_grad
from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.networks import check_outputs, mnist_cnn, normal_images, training_step
from minigrad.compare.numbers import seconds, share, significant
from minigrad.compare.rows import BatchPoint
from minigrad.compare.rungs import RungError
from minigrad.compare.session import Session
from minigrad.compare.timing import Call, told
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
QUICK_BATCHES = (1, 8, 64, 256)
FORWARD, STEP, CAPTURED = "forward", "training step", "captured training step"


@dataclass
class _Trial:
    """A network in one mode, at one batch size."""

    mode: str
    batch: int
    device: Device
    threads: int | None
    call: Call | None = None
    failure: str | None = None
    error: float | None = None

    def row(self) -> BatchPoint:
        timing: dict[str, Any] = {"failure": self.failure}
        if self.call and not self.failure:
            timing = self.call.timing()
        found = timing.get("seconds")
        return BatchPoint(
            device=str(self.device),
            threads=self.threads,
            network=NETWORK,
            mode=self.mode,
            batch=self.batch,
            samples_per_second=self.batch / found if found else None,
            error=self.error,
            **timing,
        )


def measure(session: Session, chapter: Chapter) -> None:
    """Check each batch size against float64, then time all of them in turns."""
    stop = session.deadline()
    trials: list[_Trial] = []
    try:
        for device, threads in session.timed_devices(chapter):
            modes = (FORWARD, STEP, CAPTURED) if device.type == "cuda" else (FORWARD, STEP)
            for mode in modes:
                _prepare_all(session, mode, device, threads, trials)
        session.take_turns("batch", [t.call for t in trials if t.call and not t.failure], stop)
    finally:
        done = [trial for trial in trials if trial.failure or (trial.call and trial.call.samples)]
        chapter.tables["points"] = [trial.row() for trial in done]


def _prepare_all(
    session: Session, mode: str, device: Device, threads: int | None, trials: list[_Trial]
) -> None:
    before: _Trial | None = None
    for batch in QUICK_BATCHES if session.quick else BATCHES:
        estimate = before.call.estimate * batch / before.batch if before and before.call else 0.0
        if estimate > session.effort.longest:
            break
        session.progress(f"batch: checking a {mode} with {batch} on {device}")
        trial = _Trial(mode, batch, device, threads)
        trials.append(trial)
        try:
            _prepare(session, trial)
        except RungError as reason:
            trial.failure = str(reason)
        except Exception as reason:
            trial.failure = told("failed", reason)
        if trial.failure:
            break
        before = trial


def _prepare(session: Session, trial: _Trial) -> None:
    images, labels = normal_images(session.rng, trial.batch)
    model = mnist_cnn().to(trial.device)
    trial.error = check_outputs(mnist_cnn, model, images, trial.device)
    x, target = from_numpy(images).to(trial.device), from_numpy(labels).to(trial.device)
    if trial.mode == FORWARD:

        def run() -> Any:
            with no_grad():
                return model(x)

    else:
        run = training_step(model, x, target)
        if trial.mode == CAPTURED:
            run = capture(run, device=trial.device)
    trial.call = Call(run, trial.device, trial.threads)
    trial.call.prepare()


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
        return [f"{mode} on {device}: larger batches bring nothing here; {_rate(small)}."]
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
