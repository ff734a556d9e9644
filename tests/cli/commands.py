"""Running command lines in this process, for all tests of the command line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

HERE = Path(__file__).resolve().parent
TINY = str(HERE / "tiny.py")
ROOT = f"{TINY}:Root"
METHODS = ",".join(f"{TINY}:{name}" for name in ("newton", "bisection"))


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def nearly(*arguments: str) -> Outcome:
    """Run `nearly ARGUMENTS` here; nothing but its exit status may come out of it."""
    from nearly.cli.app import app

    result = CliRunner().invoke(app, list(arguments), env={"NEARLY_DEBUG": None})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Outcome(result.exit_code, result.stdout, result.stderr)


def program(*arguments: str) -> list[str]:
    """The same as another process: the interpreter and what to hand it."""
    import sys

    return [sys.executable, "-c", "from nearly.cli import main; main()", *arguments]


def clean_environment() -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1"}
