"""A training loop for those who do not want to write one: fit, evaluate, predict. ::

    trainer = Trainer(model, optim.Adam(model.parameters()), nn.CrossEntropyLoss(), ["accuracy"])
    history = trainer.fit(train_set, epochs=5, validation=test_set, callbacks=[Checkpoint("run.ckpt")])
    history.plot("history.png")

It hides nothing that the plain loop needs: :meth:`Trainer.train_step` is that loop's body. What happens
besides, files, schedules, an early end, are callbacks (:mod:`minigrad.callbacks`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from minigrad.amp import GradScaler, autocast
from minigrad.autograd import no_grad
from minigrad.callbacks import (
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    Schedule,
    TensorBoardLog,
)
from minigrad.creation import as_tensor
from minigrad.data import DataLoader, TensorDataset
from minigrad.data.collate import move
from minigrad.devices import Device
from minigrad.devices import device as find_device
from minigrad.io import load_checkpoint
from minigrad.metrics import Accuracy, History, Mean, Metric, TopKAccuracy, make_metric
from minigrad.nn.module import Module
from minigrad.nn.utils import clip_grad_norm_
from minigrad.ops.join import concat
from minigrad.optim import Optimizer
from minigrad.summary import summary
from minigrad.tensor import Tensor

__all__ = [
    "Accuracy",
    "CSVLog",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "History",
    "Mean",
    "Metric",
    "Schedule",
    "TensorBoardLog",
    "TopKAccuracy",
    "Trainer",
    "summary",
]

BATCH_SIZE = 32  # of data that is not in a DataLoader


class Trainer:
    """Trains ``model``, and tells how well it does.

    Data are a :class:`DataLoader`, a data set, or a tuple of tensors or arrays (inputs, targets). A batch is
    a list: its last part is the targets, those before are the model's arguments.

    Args:
        model: moved to ``device``.
        optimizer: of the model's parameters; needed by :meth:`fit`.
        loss: ``loss(outputs, targets)``, the mean over the batch; needed by :meth:`fit`.
        metrics: a list of ``"accuracy"``, ``"top5"`` (any number), a :class:`Metric`, or a function
            ``f(outputs, targets)`` whose mean is taken; one alone needs no list.
        device: where to compute; by default where the model is.
        max_grad_norm: gradients are scaled so that their norm is at most this.
        dtype: ``mg.float16`` or ``mg.bfloat16`` for mixed precision (:class:`minigrad.autocast`).

    Attributes:
        history: the means of each epoch so far; a list of dicts.
        epoch: the number of the epoch that goes on, from 0.
        stop: set to True, by a callback say, to end after this epoch.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        metrics: str | Metric | Sequence[str | Metric | Callable[[Any, Any], Any]] = (),
        *,
        device: str | Device | None = None,
        max_grad_norm: float | None = None,
        dtype: Any = None,
    ):
        if device is None:
            parameter = next(model.parameters(), None)
            device = "cpu" if parameter is None else parameter.device
        self.device = find_device(device)
        self.model = model.to(self.device)
        self.optimizer, self.loss = optimizer, loss
        several = [metrics] if isinstance(metrics, (str, Metric)) else metrics
        self.metrics = [make_metric(metric) for metric in several]
        self.max_grad_norm = max_grad_norm
        self.dtype = dtype
        self.scaler = GradScaler(enabled=dtype == np.float16)
        self.history = History()
        self.epoch = 0
        self.stop = False
        self.callbacks: list[Callback] = []
        self._loader: Any = None

    # ---- what users call -------------------------------------------------------------------------------

    def fit(
        self,
        data: Any,
        epochs: int = 1,
        validation: Any = None,
        callbacks: Iterable[Callback] = (),
        *,
        progress: bool = True,
        resume: Any = None,
    ) -> History:
        """Train until ``epochs`` epochs are done, those before a ``resume`` included; returns the history.

        Args:
            data: what to learn from; shuffled, in batches of 32, if it is not a DataLoader.
            epochs: how many times all of it.
            validation: data to evaluate after each epoch; its values are called ``val_loss`` and so on.
            callbacks: told of each step and epoch, in this order, checkpoints last.
            progress: show a bar (with tqdm, on a terminal), and a line for each epoch.
            resume: the path of a :class:`Checkpoint` to go on from.

        Raises:
            ValueError: there is no optimizer or no loss, or ``epochs`` is no number of epochs.
        """
        if self.optimizer is None or self.loss is None:
            raise ValueError("Trainer.fit: training needs an optimizer and a loss")
        if not isinstance(epochs, int) or epochs < 0:
            raise ValueError(f"Trainer.fit: epochs must be an integer of at least 0, got {epochs!r}")
        self._loader, self.stop = _loader(data, shuffle=True), False
        # Checkpoints are the last to be told, so that what they save is the others' states after the epoch.
        self.callbacks = sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))
        if resume is not None:
            values = load_checkpoint(resume, **self.parts())
            self.epoch, self.history = values["epoch"] + 1, History(values["history"])
        self._tell("on_fit_begin")
        try:
            while self.epoch < epochs and not self.stop:
                start = time.perf_counter()
                self._tell("on_epoch_begin")
                values = self._train_epoch(f"epoch {self.epoch + 1}/{epochs}", progress)
                if validation is not None:
                    values |= {f"val_{name}": value for name, value in self.evaluate(validation).items()}
                self.history.append(values)
                if progress:
                    seconds = time.perf_counter() - start
                    print(f"epoch {self.epoch + 1}/{epochs}  {_format(values)}  {seconds:.1f} s", flush=True)
                self._tell("on_epoch_end", values)
                self.epoch += 1
        finally:
            self._tell("on_fit_end")
        return self.history

    @no_grad()
    def evaluate(self, data: Any) -> dict[str, float]:
        """The mean loss and the metrics on ``data``, in evaluation mode."""
        was_training = self.model.training
        self.model.eval()
        meters = self._start_metrics()
        for inputs, targets in self._batches(_loader(data)):
            with self._precision():
                outputs = self.model(*inputs)
                loss = None if self.loss is None else self.loss(outputs, targets)
            self._update_metrics(meters, outputs, targets, loss)
        self.model.train(was_training)
        return {metric.name: metric.compute() for metric in meters}

    @no_grad()
    def predict(self, data: Any) -> Tensor:
        """The model's outputs for all of ``data``, in evaluation mode, on the CPU.

        ``data`` may also be one tensor or array of inputs. Targets, where there are any, are left out.
        """
        was_training = self.model.training
        self.model.eval()
        outputs = []
        for batch in _loader((data,) if isinstance(data, (Tensor, np.ndarray)) else data):
            batch = batch if isinstance(batch, (list, tuple)) else [batch]
            inputs = batch[:-1] if len(batch) > 1 else batch
            with self._precision():
                outputs.append(self.model(*move(list(inputs), self.device)).cpu())
        self.model.train(was_training)
        return concat(outputs)

    # ---- the loop --------------------------------------------------------------------------------------

    def train_step(self, inputs: Sequence[Tensor], targets: Any) -> tuple[Any, Tensor]:
        """One step of the optimizer: (outputs, loss). Override it to train in another way."""
        assert self.optimizer is not None and self.loss is not None
        self.optimizer.zero_grad()
        with self._precision():
            outputs = self.model(*inputs)
            loss = self.loss(outputs, targets)
        self.scaler.scale(loss).backward()
        if self.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return outputs, loss

    def _train_epoch(self, title: str, progress: bool) -> dict[str, float]:
        self.model.train()
        meters = self._start_metrics()
        for inputs, targets in _with_bar(self._batches(self._loader), self._loader, title, progress):
            outputs, loss = self.train_step(inputs, targets)
            with no_grad():
                self._update_metrics(meters, outputs, targets, loss)
            self._tell("on_batch_end")
        return {metric.name: metric.compute() for metric in meters}

    def _batches(self, loader: Iterable[Any]) -> Iterator[tuple[list[Any], Any]]:
        """(the model's arguments, targets), on the device."""
        for batch in loader:
            if not isinstance(batch, (list, tuple)) or len(batch) < 2:
                raise ValueError(
                    f"Trainer: a batch is a list of inputs and targets, got {type(batch).__name__}"
                    + (f" of {len(batch)}" if isinstance(batch, (list, tuple)) else "")
                )
            *inputs, targets = move(list(batch), self.device)
            yield inputs, targets

    def _precision(self) -> AbstractContextManager:
        return nullcontext() if self.dtype is None else autocast(self.device.type, self.dtype)

    def _start_metrics(self) -> list[Metric]:
        meters = [*([] if self.loss is None else [Mean("loss")]), *self.metrics]
        for meter in meters:
            meter.reset()
        return meters

    def _update_metrics(self, meters: list[Metric], outputs: Any, targets: Any, loss: Tensor | None) -> None:
        if loss is not None:
            mean = meters[0]
            assert isinstance(mean, Mean)
            mean.add(loss.detach(), len(targets))
        for metric in self.metrics:
            metric.update(outputs, targets)

    # ---- callbacks -------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Any]:
        """What a checkpoint of the training consists of, but for the number of the epoch and the history."""
        named = {
            "model": self.model,
            "optimizer": self.optimizer,
            "loader": self._loader,
            "scaler": self.scaler,
        }
        named |= {f"callback{i}": callback for i, callback in enumerate(self.callbacks)}
        return {name: part for name, part in named.items() if hasattr(part, "state_dict")}

    def _tell(self, event: str, *arguments: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)


def _loader(data: Any, shuffle: bool = False) -> Any:
    """``data`` as something to iterate over in batches."""
    if isinstance(data, tuple):
        data = TensorDataset(*(as_tensor(part) for part in data))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DataLoader(data, BATCH_SIZE, shuffle=shuffle)
    return data


def _with_bar(batches: Iterator[Any], loader: Any, title: str, progress: bool) -> Iterable[Any]:
    """``batches``, with a bar that tells the time left, if tqdm is installed and someone is watching."""
    if not progress or not sys.stderr.isatty():
        return batches
    try:
        from tqdm import tqdm
    except ImportError:
        return batches
    try:
        total = len(loader)
    except TypeError:  # a stream
        total = None
    return tqdm(batches, desc=title, total=total, unit="batch", leave=False)


def _format(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
