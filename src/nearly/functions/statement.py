"""What emitted code says about its own error, in its first lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ErrorStatement:
    """How wrong emitted code is, and how that is known.

    **Arguments:**

    - `status`: `"PROVEN"` (ball arithmetic, or every input tried) or `"MEASURED"` (sampled).
    - `function`: what is approximated, as the user wrote it.
    - `domain`: where the bound holds.
    - `error`: the bound with its unit: `"0.953 ulp"`.
    - `command`: the command line that made the code.
    - `flags`: the compilers' flag sets (or modes) under which the emitted code itself was checked.
    - `notes`: further sentences, one a line.
    """

    status: Literal["PROVEN", "MEASURED"]
    function: str
    domain: str
    error: str
    command: str
    flags: Sequence[str] = ()
    notes: Sequence[str] = ()

    def lines(self) -> list[str]:
        """The header, a line each, without comment marks; the first begins with the status."""
        tried = "; ".join(self.flags) if self.flags else "none: the bound is the program's"
        return [
            f"{self.status} {self.function}: error <= {self.error}",
            f"error:   {self.error}",
            f"domain:  {self.domain}",
            f"checked: {tried}",
            f"command: {self.command}",
            *self.notes,
        ]
