"""Compiles C++ into shared libraries, kept in a cache that is addressed by content.

A library's file name holds a hash of all that went into it: code, headers, flags and the compiler's
version. It is written under another name first and then renamed, so that processes that build the same
library at the same time do not disturb each other, and one that is interrupted leaves nothing half-made.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from ..errors import KernelCompileError

HEADERS = Path(__file__).parent

# No -ffast-math and no -march: a kernel's arithmetic is what its source says, and the same on every host.
# Hidden visibility keeps apart the functions of kernels that have one name in several libraries.
FLAGS = (
    *("-std=c++20", "-O2", "-g1", "-fPIC", "-shared", "-pthread"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-fno-strict-aliasing", "-fwrapv", "-U_FORTIFY_SOURCE"),
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-unused"),
)

# A checked kernel calls a function before each load and store, and where an alignment or the index into an
# array of known size is wrong. These functions are the runtime's own (hooks.h); -nodefaultlibs keeps the
# sanitizers' libraries out, and what else a kernel needs comes with the runtime.
CHECK_FLAGS = ("-fsanitize=thread,alignment,bounds", "-gdwarf-4", "-g1", "-nodefaultlibs")


def compiler() -> str | None:
    """The C++ compiler in use: the command in ``$CXX``, or else g++ or clang++; None if there is none."""
    for command in (os.environ.get("CXX"), "g++", "clang++"):
        if command and shutil.which(shlex.split(command)[0]):
            return command
    return None


def cache_directory() -> Path:
    """Where the simulator's libraries are kept: ``sim`` in ``$MINIGRAD_CACHE``, or else in
    ``minigrad`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    root = os.environ.get("MINIGRAD_CACHE")
    if root:
        return Path(root).expanduser() / "sim"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "minigrad" / "sim"


def load_kernel(code: str, name: str, checked: bool = False) -> ctypes.CDLL:
    """Compile ``code``, a translated kernel, and load it. ``name`` appears in the library's file name."""
    runtime = _build(_read("runtime.cpp"), "runtime", ())
    link = (f"-L{runtime.parent}", f"-l:{runtime.name}", "-Wl,-rpath,$ORIGIN")
    return _load(code, name, (*link, *CHECK_FLAGS, "-lgcc") if checked else link)


def load_runtime() -> ctypes.CDLL:
    """The library that runs kernels (runtime.cpp)."""
    return _load(_read("runtime.cpp"), "runtime", ())


def _load(code: str, name: str, link: tuple[str, ...]) -> ctypes.CDLL:
    library = _build(code, name, link)
    try:
        return ctypes.CDLL(str(library))
    except OSError:  # damaged by something else: build it once more
        library.unlink(missing_ok=True)
        return ctypes.CDLL(str(_build(code, name, link)))


def _build(code: str, name: str, link: tuple[str, ...]) -> Path:
    """The library made of ``code``, from the cache or newly compiled."""
    command = compiler()
    if command is None:
        raise KernelCompileError(
            f"the simulator needs a C++ compiler to build {name}, and found none: install g++ "
            "(Debian, Ubuntu: apt install g++) or clang++, or set CXX"
        )
    ingredients = (code, headers(), " ".join(FLAGS), *link[1:], compiler_version(command))
    key = hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:24]
    readable = re.sub(r"\W+", "-", name).strip("-")
    library = cache_directory() / f"{readable}-{key}.so"
    if not library.exists():
        _compile(command, code, name, library, link)
    return library


def _compile(command: str, code: str, name: str, library: Path, link: tuple[str, ...]) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=library.stem + "-", suffix=".tmp", dir=library.parent)
        os.close(handle)
    except OSError as error:
        raise KernelCompileError(
            f"the simulator cannot write to its cache {library.parent} ({error.strerror}): "
            "set MINIGRAD_CACHE to a directory that it can write to"
        ) from error
    try:
        result = subprocess.run(
            [*shlex.split(command), *FLAGS, f"-I{HEADERS}", "-x", "c++", "-", "-o", temporary, *link],
            input=code,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise KernelCompileError(f"{name} does not compile on the simulator:\n{result.stderr.strip()}")
        os.chmod(temporary, 0o755)
        os.replace(temporary, library)
    finally:
        Path(temporary).unlink(missing_ok=True)


@cache
def _read(name: str) -> str:
    return (HEADERS / name).read_text()


@cache
def headers() -> str:
    """All the simulator's headers in one string, to be hashed."""
    return "".join(path.read_text() for path in sorted(HEADERS.glob("*.h")))


@cache
def compiler_version(command: str) -> str:
    """What the compiler says of itself."""
    return subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True).stdout
