"""Compiles C++ into shared libraries, kept in a cache that is addressed by content.

A library's file name holds a hash of all that went into it: code, headers, flags and the compiler's
version. It is written under another name first and then renamed, so that processes that build the same
library at the same time do not disturb each other, and one that is interrupted leaves nothing half-made.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import cache
from ..errors import KernelCompileError

HEADERS = Path(__file__).parent

# No -ffast-math and no -march: a kernel's arithmetic is what its source says, and the same on every host.
# Hidden visibility keeps apart the functions of kernels that have one name in several libraries. Messages
# name lines and no variables, and to track these takes a sixth of the compiler's time.
FLAGS = (
    *("-std=c++20", "-O2", "-g1", "-gdwarf-4", "-fno-var-tracking", "-fPIC", "-pthread", "-pipe"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-fno-strict-aliasing", "-fwrapv", "-U_FORTIFY_SOURCE"),
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-unused"),
)

# A checked kernel calls a function before each load and store, and where an alignment, the index into an
# array of known size, or integer arithmetic is wrong. These are the runtime's own (hooks.h). Most of the time
# passes in them, so that -O1 gives kernels as fast as -O2 does, and sooner.
CHECK_FLAGS = (
    "-O1",
    "-fsanitize=thread,alignment,bounds,signed-integer-overflow,integer-divide-by-zero,shift",
    "-fno-wrapv",
)

# A profiled kernel reports its accesses, and each basic block that it enters. A vector is loaded by one
# instruction, and arithmetic stays scalar, as its source has it.
PROFILE_FLAGS = (
    *("-fsanitize=thread", "-fsanitize-coverage=trace-pc"),
    *("-fno-tree-sra", "-fno-tree-vectorize", "-fno-tree-slp-vectorize"),
)

MODES = {"plain": (), "checked": CHECK_FLAGS, "profiled": PROFILE_FLAGS}


def compiler() -> str | None:
    """The C++ compiler in use: the command in ``$CXX``, or else g++ or clang++; None if there is none."""
    for command in (os.environ.get("CXX"), "g++", "clang++"):
        if command and shutil.which(shlex.split(command)[0]):
            return command
    return None


def cache_directory() -> Path:
    """Where the simulator's libraries are kept: ``sim`` in ``$MINIGRAD_CACHE``, or else in
    ``minigrad`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return cache.cache_directory("sim")


def load_kernel(code: str, name: str, mode: str = "plain") -> ctypes.CDLL:
    """Compile ``code``, a translated kernel, for one of MODES, and load it. ``name`` is for people."""
    runtime = _runtime()
    link = [f"-L{runtime.parent}", f"-l:{runtime.name}", "-Wl,-rpath,$ORIGIN"]
    if mode != "plain":  # the sanitizers' libraries stay out; what else a kernel needs comes with the runtime
        link += ["-nodefaultlibs", "-lgcc"]
    return _load(lambda: _library(code, name, MODES[mode], link))


def load_runtime() -> ctypes.CDLL:
    """The library that runs kernels (runtime.cpp)."""
    return _load(_runtime)


def _load(build: Callable[[], Path]) -> ctypes.CDLL:
    library = build()
    try:
        return ctypes.CDLL(str(library))
    except OSError:  # damaged by something else: build it once more
        library.unlink(missing_ok=True)
        return ctypes.CDLL(str(build()))


def _runtime() -> Path:
    # Its loops over the clocks of all threads are worth vectors, which -O2 makes of few loops.
    return _library(_read("runtime.cpp"), "runtime", ("-O3",), [])


def _library(code: str, name: str, flags: Sequence[str], link: Sequence[str]) -> Path:
    """The library made of ``code``, from the cache or newly compiled."""
    command = _compiler_for(name)
    # Where the runtime lies counts for nothing: the cache may be moved.
    library = _cached(name, ".so", command, (code, *flags, *link[1:]))
    if not library.exists():
        if '#include "cuda_sim.h"' in code:
            flags = (*flags, *_precompiled_header(command, flags))
        _compile(command, code, name, library, ["-x", "c++", "-", "-shared", *flags, *link])
    return library


def _precompiled_header(command: str, flags: Sequence[str]) -> list[str]:
    """Flags with which gcc finds cuda_sim.h half compiled: that halves the time for a kernel.

    The file ``X.h`` beside ``X.h.gch`` is what a compiler reads that cannot use the latter.
    """
    header = _cached("cuda_sim", ".h", command, flags)
    precompiled = header.with_name(f"{header.name}.gch")
    if not precompiled.exists():
        _write(header, '#include "cuda_sim.h"\n')
        _compile(command, "", "cuda_sim.h", precompiled, ["-x", "c++-header", str(header), *flags])
    return ["-include", str(header)]


def _compiler_for(name: str) -> str:
    command = compiler()
    if command is None:
        raise KernelCompileError(
            f"the simulator needs a C++ compiler to build {name}, and found none: install g++ "
            "(Debian, Ubuntu: apt install g++) or clang++, or set CXX"
        )
    return command


def _cached(name: str, suffix: str, command: str, ingredients: Sequence[str]) -> Path:
    """The file in the cache for what is made from ``ingredients``, the headers, FLAGS and the compiler."""
    everything = (*ingredients, headers(), *FLAGS, compiler_version(command))
    key = hashlib.sha256("\0".join(everything).encode()).hexdigest()[:24]
    readable = re.sub(r"\W+", "-", name).strip("-")
    return cache_directory() / f"{readable}-{key}{suffix}"


def _compile(command: str, code: str, name: str, target: Path, arguments: Sequence[str]) -> None:
    """Compile ``code``, which ``arguments`` may take as standard input, into the file ``target``."""
    with cache.new_file(target, "the simulator") as temporary:
        result = subprocess.run(
            [*shlex.split(command), *FLAGS, f"-I{HEADERS}", *arguments, "-o", temporary],
            input=code,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise KernelCompileError(f"{name} does not compile on the simulator:\n{result.stderr.strip()}")


def _write(target: Path, text: str) -> None:
    with cache.new_file(target, "the simulator") as temporary:
        Path(temporary).write_text(text)


@functools.cache
def _read(name: str) -> str:
    return (HEADERS / name).read_text()


@functools.cache
def headers() -> str:
    """All the simulator's headers in one string, to be hashed."""
    return "".join(path.read_text() for path in sorted(HEADERS.glob("*.h")))


@functools.cache
def compiler_version(command: str) -> str:
    """What the compiler says of itself."""
    return subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True).stdout
