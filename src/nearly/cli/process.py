"""What a process of ours is like: compiled programs are kept, and no Ctrl-C is lost."""

from __future__ import annotations

import _thread
import os
import sys
from typing import Any


def prepare() -> None:
    """Set up this process before JAX is imported; the processes it starts inherit it.

    Compiled programs are kept beside the store: most of a short comparison is compilation. A
    Ctrl-C that falls into a finaliser, where Python can only print and forget it, is raised again.
    """
    from nearly.core.store import cache_folder

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    sys.unraisablehook = _unraisable


def _unraisable(event: Any) -> None:
    if isinstance(event.exc_value, KeyboardInterrupt):
        _thread.interrupt_main()
    else:
        sys.__unraisablehook__(event)
