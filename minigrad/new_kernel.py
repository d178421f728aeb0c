"""``minigrad new-kernel``: writes an op of the user's own, with kernels, tests and a benchmark, ready to run.

The templates are real files, in ``templates/file`` and ``templates/package``. The op in them is called
``example_op``; this name is replaced, in what they hold and in what they are called. Nothing else is.
"""

from __future__ import annotations

import builtins
import importlib.util
import io
import keyword
import os
import re
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path

from minigrad.op import get_op

__all__ = ["EXAMPLE", "NewKernelError", "new_kernel"]

EXAMPLE = "example_op"
TEMPLATES = Path(__file__).parent / "templates"
LONGEST_NAME = 30


class NewKernelError(Exception):
    """The kernel cannot be written; the message says why, and nothing was written."""


def new_kernel(name: str, *, package: bool = False, directory: str | Path = ".") -> list[Path]:
    """Write the files of a new op called ``name``.

    Args:
        name: the op's name, a Python identifier that nothing else has.
        package: write a folder ``name`` that pip can install, instead of two files.
        directory: the folder to write into; it is made if it is missing.

    Returns:
        The files that were written.

    Raises:
        NewKernelError: the name cannot be used, a file or a folder that is not empty is in the way, or the
            folder cannot be written to. All of it is written, or nothing.
    """
    template = TEMPLATES / ("package" if package else "file")
    check_name(name, template)
    directory = Path(directory)
    entries = sorted({Path(_renamed(path.relative_to(template), name)).parts[0] for path in _files(template)})
    for entry in entries:
        _check_free(directory / entry)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=f".{name}-") as scratch:
            written = list(_render(template, Path(scratch), name))
            for entry in entries:  # whole files and folders move to where they belong
                os.rename(Path(scratch, entry), directory / entry)
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError | NotADirectoryError) else None
        raise NewKernelError(
            f"cannot write to the folder {str(directory)!r}: {reason or error.strerror or error}"
        ) from None
    return [directory / path for path in written]


def check_name(name: str, template: Path) -> None:
    """NewKernelError if ``name`` cannot name an op, its file and its functions."""
    if not name.isidentifier() or not name.isascii():
        raise NewKernelError(
            f"an op's name is a Python identifier: letters, digits and underscores, not starting with a "
            f"digit; got {name!r}{_suggestion(name)}"
        )
    if len(name) > LONGEST_NAME:
        raise NewKernelError(f"an op's name has at most {LONGEST_NAME} letters; {name!r} has {len(name)}")
    if keyword.iskeyword(name):
        raise NewKernelError(f"{name!r} is a keyword of Python; choose another name")
    if _is_op(name):
        raise NewKernelError(
            f"minigrad has an op {name!r} already; choose another name, or give that op a kernel of your "
            f'own: @mg.get_op("{name}").kernel("cpu")'
        )
    if hasattr(builtins, name) or name in _names_used(template):
        raise NewKernelError(f"{name!r} means something else in the new file; choose another name")
    if name.startswith("test"):
        raise NewKernelError(f"pytest would take {name!r} for a test; choose another name")
    if _is_module(name):
        raise NewKernelError(
            f"there is a module {name!r} already, which the new one would hide; choose another name"
        )


def _suggestion(name: str) -> str:
    guess = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return f"; {guess!r} would do" if guess.isidentifier() and not keyword.iskeyword(guess) else ""


def _is_op(name: str) -> bool:
    try:
        get_op(name)
    except ValueError:
        return False
    return True


def _is_module(name: str) -> bool:
    if name in sys.stdlib_module_names or name in sys.modules:
        return True
    return importlib.util.find_spec(name) is not None


def _names_used(template: Path) -> set[str]:
    """All names in the template's Python files but the op's own."""
    names = set()
    for path in _files(template):
        if path.suffix == ".py":
            tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
            names |= {token.string for token in tokens if token.type == tokenize.NAME}
    return names - {EXAMPLE}


def _check_free(path: Path) -> None:
    """NewKernelError if there is something at ``path`` already; an empty folder is nothing."""
    if path.is_dir() and not path.is_symlink():
        try:
            occupied = any(path.iterdir())
        except OSError as error:
            raise NewKernelError(f"cannot look into the folder {str(path)!r}: {error.strerror}") from None
        if occupied:
            raise NewKernelError(f"the folder {str(path)!r} is not empty; nothing was written")
    elif os.path.lexists(path):
        raise NewKernelError(f"{str(path)!r} exists already; nothing was written")


def _render(template: Path, target: Path, name: str) -> Iterator[Path]:
    """Write the template's files below ``target``; their paths, relative to it."""
    for source in _files(template):
        path = Path(_renamed(source.relative_to(template), name))
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(
            source.read_text(encoding="utf-8").replace(EXAMPLE, name), encoding="utf-8"
        )
        yield path


def _renamed(path: Path, name: str) -> str:
    return str(path).replace(EXAMPLE, name)


def _files(template: Path) -> list[Path]:
    """The files of a template, without what Python leaves beside them."""
    return sorted(p for p in template.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
