"""``SummaryWriter``: scalars for TensorBoard, which need not be installed to write them."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minigrad.event_file import EventFile

__all__ = ["SummaryWriter"]


class SummaryWriter:
    """Writes numbers as the training goes: ``tensorboard --logdir runs`` draws them.

    Args:
        log_dir: the folder, by default ``runs/`` and a name of the time and the machine.
        comment: behind that name.
        options: accepted and ignored.

    The other methods of PyTorch's, ``add_histogram`` and so on, warn and write nothing.
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, comment: str = "", **options: Any):
        name = time.strftime("%b%d_%H-%M-%S_") + socket.gethostname() + comment
        self.log_dir = os.fspath(Path("runs", name) if log_dir is None else log_dir)
        self._files = {"": EventFile(self.log_dir)}

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None, **options: Any) -> None:
        """Write a number, or a tensor of one element."""
        self._files[""].write(int(global_step or 0), {tag: float(scalar_value)})

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Any],
        global_step: int | None = None,
        **options: Any,
    ) -> None:
        """Write numbers that are drawn in one picture; each has a folder of its own."""
        for tag, value in tag_scalar_dict.items():
            folder = f"{main_tag.replace('/', '_')}_{tag}"
            if folder not in self._files:
                self._files[folder] = EventFile(Path(self.log_dir, folder))
            self._files[folder].write(int(global_step or 0), {main_tag: float(value)})

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("add_"):
            raise AttributeError(f"SummaryWriter has no attribute {name!r}")
        return lambda *args, **options: warnings.warn(
            f"SummaryWriter.{name} writes nothing here: only numbers are written", stacklevel=2
        )

    def get_logdir(self) -> str:
        """The folder."""
        return self.log_dir

    def flush(self) -> None:
        """Does nothing: everything has been written already."""

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> SummaryWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
