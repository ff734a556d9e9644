"""The C compiler on this machine: finding it, and loading what it makes."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nearly.core.errors import InputError, MissingDependency
from nearly.functions.formats import Format

FAST = ("-O3", "-march=native", "-fno-math-errno")


def find_compiler() -> list[str]:
    """The command of the C compiler: `$CC`, else the first of cc, gcc, clang on the path.

    Raises `MissingDependency` where there is none.
    """
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise MissingDependency(f"CC={os.environ['CC']!r} is not a program; unset or mend it")
        return named
    for candidate in ("cc", "gcc", "clang"):
        if shutil.which(candidate):
            return [candidate]
    raise MissingDependency("no C compiler found: install gcc or clang, or set CC to one")


@functools.cache
def _folder() -> str:
    folder = tempfile.mkdtemp(prefix="nearly-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.lru_cache(maxsize=512)
def shared_object(source: str, flags: tuple[str, ...] = FAST) -> ctypes.CDLL:
    """C source compiled and loaded; the same text is compiled once per process.

    **Raises:** `MissingDependency` without a compiler, `InputError` with the compiler's first
    complaint if it refuses the text. Cost: about 0.1 s.
    """
    command = find_compiler()
    handle, name = tempfile.mkstemp(suffix=".c", dir=_folder())
    os.close(handle)
    path = Path(name)
    path.write_text(source)
    library = path.with_suffix(".so")
    made = subprocess.run(
        [*command, *flags, "-shared", "-fPIC", "-o", str(library), str(path), "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        complaints = [line for line in made.stderr.splitlines() if "error" in line]
        reason = (complaints or made.stderr.splitlines() or ["no message"])[0]
        raise InputError(f"{command[0]} {' '.join(flags)} refused the code: {reason}")
    return ctypes.CDLL(str(library))


def array_function(library: ctypes.CDLL, name: str, form: Format) -> Callable[..., np.ndarray]:
    """`void name(const T *x, T *y, size_t n)` of a library as a function of NumPy arrays."""
    symbol = library[name]
    symbol.restype = None
    symbol.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

    def call(x: Any) -> np.ndarray:
        points = np.ascontiguousarray(x, form.dtype)
        values = np.empty_like(points)
        symbol(points.ctypes.data, values.ctypes.data, points.size)
        return values

    return call
