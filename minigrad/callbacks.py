"""Callbacks of a training: checkpoints, early stopping, learning-rate schedules, logs."""

from __future__ import annotations

import copy
import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigrad.event_file import EventFile
from minigrad.io import save_checkpoint
from minigrad.io.files import write_atomically
from minigrad.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

if TYPE_CHECKING:
    from minigrad.train import Trainer

__all__ = ["CSVLog", "Callback", "Checkpoint", "EarlyStopping", "Schedule", "TensorBoardLog"]


class Callback:
    """The base class; a subclass defines what it wants to be told.

    One with ``state_dict()`` and ``load_state_dict()`` is part of the checkpoints.
    """

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Before each epoch."""

    def on_batch_end(self, trainer: Trainer) -> None:
        """After each step of the optimizer."""

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """After each epoch, with its means."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, after an error, too."""


class _Best(Callback):
    """Keeps the best value of ``monitor`` so far."""

    def __init__(self, monitor: str | None, mode: str):
        if mode not in ("min", "max"):
            raise ValueError(f'{type(self).__name__}: mode is "min" or "max", got {mode!r}')
        self.monitor, self.mode = monitor, mode
        self.best = math.inf if mode == "min" else -math.inf

    def _improves(self, values: Mapping[str, float], min_delta: float = 0.0) -> bool:
        """Whether the value is better than the best, which it then is."""
        if self.monitor is None or self.monitor not in values:
            raise ValueError(
                f"{type(self).__name__}: there is no value {self.monitor!r}, only {sorted(values)}"
            )
        value = values[self.monitor]
        better = value < self.best - min_delta if self.mode == "min" else value > self.best + min_delta
        if better:
            self.best = value
        return better

    def state_dict(self) -> dict[str, Any]:
        """The best value."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        self.__dict__.update(state_dict)


class Checkpoint(_Best):
    """Writes all of the training to ``path`` after each epoch, for ``fit(resume=path)``.

    Args:
        path: the file, replaced as a whole each time.
        monitor: write only when this value is better than ever before, say ``"val_loss"``.
        mode: ``"min"`` if less is better, else ``"max"``.
    """

    def __init__(self, path: str | os.PathLike[str], monitor: str | None = None, mode: str = "min"):
        super().__init__(monitor, mode)
        self.path = Path(path)

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Write the file."""
        if self.monitor is None or self._improves(values):
            save_checkpoint(self.path, **trainer.parts(), epoch=trainer.epoch, history=list(trainer.history))


class EarlyStopping(_Best):
    """Ends the training when ``monitor`` has not improved for more than ``patience`` epochs.

    Args:
        monitor: the value's name.
        patience: epochs without improvement that are waited for.
        mode: ``"min"`` if less is better, else ``"max"``.
        min_delta: by how much a value has to be better.
        restore_best: go back to the weights of the best epoch at the end.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 0,
        mode: str = "min",
        min_delta: float = 0.0,
        restore_best: bool = False,
    ):
        super().__init__(monitor, mode)
        self.patience, self.min_delta, self.restore_best = patience, min_delta, restore_best
        self.waited = 0
        self.weights: Any = None

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Look at the value."""
        if self._improves(values, self.min_delta):
            self.waited = 0
            self.weights = copy.deepcopy(trainer.model.state_dict()) if self.restore_best else None
            return
        self.waited += 1
        trainer.stop = trainer.stop or self.waited > self.patience

    def on_fit_end(self, trainer: Trainer) -> None:
        """Bring back the best weights."""
        if self.weights is not None:
            trainer.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The best value, its weights, and how long it has not improved."""
        return {"best": self.best, "waited": self.waited, "weights": self.weights}


class Schedule(Callback):
    """Moves a schedule of :mod:`minigrad.optim.lr_scheduler` on.

    Args:
        scheduler: the schedule; ReduceLROnPlateau is given ``monitor``.
        every: ``"epoch"`` or ``"batch"``.
        monitor: the value that ReduceLROnPlateau looks at.
    """

    def __init__(self, scheduler: LRScheduler, every: str = "epoch", monitor: str = "val_loss"):
        if every not in ("epoch", "batch"):
            raise ValueError(f'Schedule: every is "epoch" or "batch", got {every!r}')
        self.scheduler, self.every, self.monitor = scheduler, every, monitor
        self.state_dict = scheduler.state_dict
        self.load_state_dict = scheduler.load_state_dict

    def on_batch_end(self, trainer: Trainer) -> None:
        """Step, if it steps by batches."""
        if self.every == "batch":
            self.scheduler.step()

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Step, if it steps by epochs."""
        if self.every == "batch":
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(values[self.monitor])
        else:
            self.scheduler.step()


class CSVLog(Callback):
    """Writes the values of each epoch as a line of the CSV file ``path``, which is always up to date."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Write all epochs so far, so that a training that is resumed has all of them, too."""
        names = list(dict.fromkeys(name for epoch in trainer.history for name in epoch))
        text = io.StringIO()
        writer = csv.DictWriter(text, ["epoch", *names])
        writer.writeheader()
        writer.writerows({"epoch": i, **epoch} for i, epoch in enumerate(trainer.history, 1))
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))


class TensorBoardLog(Callback):
    """Writes the values of each epoch, and the rate, for TensorBoard: ``tensorboard --logdir folder``."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self._file: EventFile | None = None

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Open the file."""
        self._file = EventFile(self.folder)

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Write a number for each value."""
        assert self._file is not None
        rate = {"lr": trainer.optimizer.param_groups[0]["lr"]} if trainer.optimizer else {}
        self._file.write(trainer.epoch + 1, {**values, **rate})

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
