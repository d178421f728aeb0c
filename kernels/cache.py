"""The directory in which compiled kernels are kept, and files that appear there whole or not at all.

A file's name holds a hash of all that went into it, so nothing there is ever out of date, and to delete the
directory costs no more than to compile again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import KernelCompileError


def cache_directory(part: str) -> Path:
    """Where ``part`` (``"sim"``, ``"cython"``) is kept: in ``$MINIGRAD_CACHE``, or else in ``minigrad`` under
    ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    root = os.environ.get("MINIGRAD_CACHE")
    if root:
        return Path(root).expanduser() / part
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "minigrad" / part


@contextmanager
def new_file(target: Path, who: str) -> Iterator[str]:
    """The path of a new file, which becomes ``target`` at the end of the ``with`` block unless an exception
    ends it: processes that make the same file at the same time do not disturb each other.

    Raises:
        KernelCompileError: the directory cannot be written to; the message begins with ``who``.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=target.stem + "-", suffix=".tmp", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise KernelCompileError(
            f"{who} cannot write to its cache {target.parent} ({error.strerror}): "
            "set MINIGRAD_CACHE to a directory that it can write to"
        ) from error
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
