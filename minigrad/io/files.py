"""Atomic writing: a file is written as a whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["write_atomically"]


ABANDONED_AFTER = 60.0  # seconds without a change


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Make ``path`` hold what ``write(file)`` writes, or, if that fails, what it held before.

    The content goes to a temporary file in the same folder, reaches the disk, and then takes the place of
    ``path`` in one step: whoever reads ``path`` meanwhile, or after a crash, finds the old content or the new
    one. A symbolic link stays a link; its target is replaced. A temporary file that a killed process has left
    is removed by the next one that writes ``path``.

    Raises:
        OSError: the folder does not exist or cannot be written to, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    if target.exists() and not target.is_file():
        raise OSError(f"cannot write {target}: it is a device, a pipe or a socket, not a file to be replaced")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: there is no folder {target.parent}")
    _remove_abandoned(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until this process closes it, or ends: see _remove_abandoned
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.add_note(f"while writing {target}, which is as it was before")
        raise
    _sync_folder(target.parent)


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of ``target`` that no process holds any more."""
    for temporary in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with contextlib.suppress(OSError), open(temporary, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_AFTER:
                temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Have the folder's entries reach the disk, too, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
