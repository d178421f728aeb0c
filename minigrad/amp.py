"""Training in mixed precision, under PyTorch's names: :class:`autocast` and the scale of a loss.

In float16 a small gradient becomes 0: everything below 3e-8 does. The loss, and so every gradient, is
therefore multiplied by a large number, the scale, and the gradients are divided by it before the optimizer
sees them. A scale too large makes gradients infinite: then the step is left out and the scale lowered.
bfloat16 has the range of float32 and needs none of this. ::

    scaler = mg.amp.GradScaler()
    for x, target in batches:
        optimizer.zero_grad()
        with mg.autocast("cuda", mg.float16):
            loss = criterion(model(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minigrad.autograd import mark_written, wrap
from minigrad.devices import Device
from minigrad.dtypes import is_half
from minigrad.kernels import cuda
from minigrad.mixed_precision import autocast
from minigrad.optim.optimizer import Optimizer, Update
from minigrad.recording import recording_on, refuse_in_capture
from minigrad.tensor import Tensor

__all__ = ["GradScaler", "autocast"]

READY, UNSCALED, STEPPED = "ready", "unscaled", "stepped"


class _Record:
    """What is known of an optimizer since the last update: its stage, and a flag of each device (int32)."""

    def __init__(self) -> None:
        self.stage = READY
        self.found: dict[Device, Any] = {}

    def found_inf(self) -> bool:
        """Whether a gradient was infinite or NaN. On a card this waits for the flag."""
        return any(bool(device.to_numpy(flag)[0]) for device, flag in self.found.items())


class GradScaler:
    """Scales a loss so that small gradients survive in float16; PyTorch's ``torch.amp.GradScaler``.

    Args:
        device: accepted and ignored: gradients may be on any device.
        init_scale: the scale at first.
        growth_factor: what it is multiplied by after ``growth_interval`` steps without infinite gradients.
        backoff_factor: what it is multiplied by after a step with infinite gradients, which is left out.
        growth_interval: see ``growth_factor``.
        enabled: False makes :meth:`scale` and :meth:`unscale_` do nothing, and :meth:`step` a plain step.

    Raises:
        ValueError: a growth factor not above 1, or a backoff factor not below.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ):
        self._device = device
        self._enabled = bool(enabled)
        self._scale = float(init_scale)
        self._growth_tracker = 0  # steps without infinite gradients since the scale last changed
        self.set_growth_factor(growth_factor)
        self.set_backoff_factor(backoff_factor)
        self.set_growth_interval(growth_interval)
        self._records: dict[int, _Record] = {}  # by the optimizer's id
        self._scale_tensors: dict[Device, Tensor] = {}

    def scale(self, outputs: Any) -> Any:
        """A loss, or several in lists or tuples, times the scale (itself, if not enabled)."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._scale_tensor(outputs.device)
        if isinstance(outputs, Iterable) and not isinstance(outputs, str):
            scaled = [self.scale(output) for output in outputs]
            return tuple(scaled) if isinstance(outputs, tuple) else scaled
        raise TypeError(f"GradScaler.scale: expected a tensor, or several, got {type(outputs).__name__}")

    def _scale_tensor(self, device: Device) -> Tensor:
        """The scale as a 0-d float32 tensor: with a number, a float16 loss would overflow.

        There is one for a device, written in place: a captured step reads in each replay what it is then.
        """
        if device not in self._scale_tensors:
            if (recording := recording_on(device)) is not None:
                recording.refuse(
                    "the first GradScaler.scale() on its device", "let more steps run before: warmup="
                )
            with device.active():
                array = device.empty((), np.float32)
                array.fill(self._scale)
            self._scale_tensors[device] = wrap(array, device)
        return self._scale_tensors[device]

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of the optimizer's parameters by the scale, in place.

        Needed only to look at them, or to limit them, before :meth:`step`, which otherwise does it.

        Raises:
            RuntimeError: it has been done since the last :meth:`update`, or the step has.
            ValueError: a gradient is float16: parameters are float32, and autocast converts them.
        """
        if not self._enabled:
            return
        _refuse_in_capture("unscale_")
        record = self._record(optimizer)
        if record.stage == UNSCALED:
            raise RuntimeError("unscale_() has already been called on this optimizer since the last update()")
        if record.stage == STEPPED:
            raise RuntimeError("unscale_() is being called after step()")
        self._unscale(optimizer, record)
        record.stage = UNSCALED

    def _unscale(self, optimizer: Optimizer, record: _Record) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if any(grad.dtype == np.float16 for grad in grads):
            raise ValueError(
                "unscale_: a gradient is float16, where the division itself may lose the number; keep "
                "the parameters float32 (no model.half()) and compute under autocast"
            )
        record.found = {}
        for grad in grads:
            if grad.device not in record.found:
                with grad.device.active():
                    record.found[grad.device] = grad.device.xp.zeros(1, np.int32)
            unscale([grad], each={}, inverse=1.0 / self._scale, found=record.found[grad.device])

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """``optimizer.step(*args, **kwargs)``, unless a gradient is infinite or NaN; returns its result.

        The gradients are unscaled first, if they are not yet.

        Raises:
            RuntimeError: the step has been made since the last :meth:`update`, or there is a ``closure``,
                which could not be scaled.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        _refuse_in_capture("step")
        if "closure" in kwargs:
            raise RuntimeError("GradScaler.step: a closure cannot be used where the scaler is enabled")
        record = self._record(optimizer)
        if record.stage == STEPPED:
            raise RuntimeError("step() has already been called since the last update()")
        if record.stage == READY:
            self._unscale(optimizer, record)
        if not record.found:
            raise RuntimeError("GradScaler.step: no parameter of the optimizer has a gradient")
        result = None if record.found_inf() else optimizer.step(*args, **kwargs)
        record.stage = STEPPED
        return result

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Lower the scale if a gradient was infinite, raise it after enough steps without; or set it.

        Raises:
            RuntimeError: no gradients have been looked at since the last update.
        """
        if not self._enabled:
            return
        _refuse_in_capture("update")
        if new_scale is not None:
            self._set_scale(float(new_scale))
        else:
            records = [record for record in self._records.values() if record.found]
            if not records:
                raise RuntimeError("update: no gradients were unscaled since the last update()")
            self._adapt(any(record.found_inf() for record in records))
        self._records.clear()

    def _adapt(self, found_inf: bool) -> None:
        if found_inf:
            self._set_scale(self._scale * self._backoff_factor)
            self._growth_tracker = 0
            return
        self._growth_tracker += 1
        if self._growth_tracker >= self._growth_interval:
            grown = self._scale * self._growth_factor
            if grown <= float(np.finfo(np.float32).max):
                self._set_scale(grown)
            self._growth_tracker = 0

    def _record(self, optimizer: Optimizer) -> _Record:
        return self._records.setdefault(id(optimizer), _Record())

    def _set_scale(self, scale: float) -> None:
        self._scale = scale
        for device, tensor in self._scale_tensors.items():
            with device.active():
                tensor._array.fill(scale)
            mark_written(tensor)

    # ---- what it is set to -----------------------------------------------------------------------------

    def is_enabled(self) -> bool:
        """Whether it does anything."""
        return self._enabled

    def get_scale(self) -> float:
        """The scale; 1 if not enabled."""
        return self._scale if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        """What the scale is multiplied by when it grows."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Set the growth factor, above 1."""
        if not new_factor > 1.0:
            raise ValueError(f"GradScaler: the growth factor must be above 1, got {new_factor}")
        self._growth_factor = float(new_factor)

    def get_backoff_factor(self) -> float:
        """What the scale is multiplied by when a gradient was infinite."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set the backoff factor, below 1."""
        if not 0.0 < new_factor < 1.0:
            raise ValueError(f"GradScaler: the backoff factor must be in (0, 1), got {new_factor}")
        self._backoff_factor = float(new_factor)

    def get_growth_interval(self) -> int:
        """After how many steps without infinite gradients the scale grows."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Set after how many steps without infinite gradients the scale grows."""
        if new_interval < 1:
            raise ValueError(f"GradScaler: the growth interval must be at least 1, got {new_interval}")
        self._growth_interval = int(new_interval)

    def state_dict(self) -> dict[str, Any]:
        """What a training continues from; empty if not enabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave; RuntimeError if it is of a scaler not enabled."""
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError("GradScaler: the state is empty; it was saved by a scaler that is not enabled")
        self._set_scale(float(state_dict["scale"]))
        self.set_growth_factor(state_dict["growth_factor"])
        self.set_backoff_factor(state_dict["backoff_factor"])
        self.set_growth_interval(state_dict["growth_interval"])
        self._growth_tracker = int(state_dict["_growth_tracker"])


def _refuse_in_capture(method: str) -> None:
    refuse_in_capture(
        f"GradScaler.{method}(), which looks at gradients to decide whether there is a step",
        "put scale() and backward() into the step, and unscale_(), step() and update() after it",
    )


# ---- unscaling --------------------------------------------------------------------------------------------


def _unscale(xp: Any, grad: Any, *, inverse: float, found: Any) -> None:
    """``grad`` times ``inverse``, in place; ``found`` (one int32) becomes 1 if it is not finite."""
    found |= ~xp.isfinite(grad).all()
    wide = grad.astype(np.float32) if is_half(grad.dtype) else grad
    grad[...] = wide * inverse


unscale = Update(_unscale, "unscale")


@unscale.kernel("cuda", "sim", name="fused")
def _(grad, *, inverse, found):
    """One pass over memory."""
    cuda.unscale.unscale(grad, inverse, found)
