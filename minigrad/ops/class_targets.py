"""Checks of class labels, the targets of classification losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.autograd import wrap
from minigrad.devices import cpu as cpu_device
from minigrad.kernels import cpu, cuda


def checked_targets(name: str, x: Any, target: Any, class_dim: int, ignore_index: int) -> Any:
    """``target``, checked. A card does not wait for that: wrong classes count as ignored, and raise later."""
    if x.ndim == 0:
        raise ValueError(f"{name}: input needs a dimension for the classes, got a 0-d tensor")
    if target.dtype.kind not in "iu":
        raise TypeError(f"{name}: targets must be integers (class numbers), got {target.dtype}")
    expected = x.shape[:class_dim] + x.shape[class_dim + 1 :]
    if target.shape != expected:
        raise ValueError(
            f"{name}: for input of shape {x.shape} the target must have shape {expected}, got {target.shape}"
        )
    shape, labels = x.shape, target._array
    classes = shape[class_dim]

    def error(label: int) -> ValueError:
        return ValueError(
            f"{name}: target {label} is out of range: the input has {classes} classes (shape {shape}), "
            "numbered from 0"
        )

    if not isinstance(labels, np.ndarray):
        with target.device.active():
            place = cuda.index_check.place_for(error, target.device.index)
            right = target.device.empty(labels.shape, np.int64)
            given = target.device.xp.ascontiguousarray(labels)
            cuda.index_check.replace(place, right, given, classes, ignore_index)
        return wrap(right, target.device)
    quick = target.device is cpu_device and labels.dtype == np.int64 and labels.flags.c_contiguous
    if quick and cpu.loss.first_out_of_range(labels, classes, ignore_index) < 0:
        return target
    with target.device.active():
        wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
        if wrong.any():
            raise error(int(labels[wrong].ravel()[0]))
    return target
