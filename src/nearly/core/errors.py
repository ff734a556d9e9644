"""The few errors a user meets; each subclasses the built-in its caller would expect."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class NearlyError(Exception):
    """Anything nearly raises on purpose; the message names the value and the remedy."""


class InputError(NearlyError, ValueError):
    """A value the caller can mend."""


class UnknownName(InputError):
    """A name that nothing answers to; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(map(str, known))
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if close:
            remedy = "did you mean " + " or ".join(repr(c) for c in close) + "?"
        else:
            shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            remedy = f"known: {shown}" if names else "none is known"
        super().__init__(f"unknown {kind} {name!r}: {remedy}{' ' + hint if hint else ''}")
        self.kind, self.name, self.close = kind, name, close


class NotWithin(NearlyError, LookupError):
    """No run meets the tolerance. `best` is the most accurate run there is, `frontier` all runs."""

    def __init__(self, message: str, best: Any = None, frontier: Any = None) -> None:
        super().__init__(message)
        self.best, self.frontier = best, frontier


class PrecisionError(NearlyError, RuntimeError):
    """A float64 stand-in called while JAX computes in float32."""


class NotProven(NearlyError, ArithmeticError):
    """A bound could not be proven; the message says what stood in the way."""


class MissingDependency(NearlyError, ImportError):
    """An optional package or program (a compiler, a peer) is not installed."""


class StoreError(NearlyError, OSError):
    """The store or an output file cannot be read or written."""


class Interrupted(NearlyError):
    """Ctrl-C or an exhausted budget; what was computed before it is kept.

    `frontier` holds the runs of a sweep; `done` the unfinished result of anything else.
    """

    def __init__(self, message: str, frontier: Any = None, *, done: Any = None) -> None:
        super().__init__(message)
        self.frontier, self.done = frontier, done
