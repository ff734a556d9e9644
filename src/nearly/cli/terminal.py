"""Where tables are printed: a terminal's own width, and no folding on a pipe."""

from __future__ import annotations

import os
import sys

from rich.console import Console

PIPE_WIDTH = 240


def console() -> Console:
    """A console on stdout, which obeys NO_COLOR and COLUMNS and is wide where nobody looks."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return Console(highlight=False)
    return Console(highlight=False, width=PIPE_WIDTH)
