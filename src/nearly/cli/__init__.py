"""The command line. `nearly.cli:main` is its entry point; nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells expect


def main() -> NoReturn:
    """Run the command line on `sys.argv` and exit with its status."""
    try:
        from nearly.cli.app import app

        app(prog_name="nearly")
        status = 0
    except KeyboardInterrupt:
        status = _interrupted()
    except SystemExit as stop:
        status = stop.code
    # A second Ctrl-C, while threads and the interpreter wind down, ends the process in silence.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def _interrupted() -> int:
    os.write(2, b"nearly: interrupted before anything was computed\n")
    return INTERRUPTED
