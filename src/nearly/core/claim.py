"""Claims: what a paper promises, rerun as code; and the ledger of their verdicts."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, Literal

from nearly.core import catalogue
from nearly.core.errors import InputError, StoreError, UnknownName
from nearly.core.run import plain

Cost = Literal["fast", "medium", "slow", "gpu"]
COSTS: tuple[Cost, ...] = ("fast", "medium", "slow", "gpu")
Relation = Literal["<=", ">=", "within"]


@dataclass(frozen=True)
class Expected:
    """What the paper says, written down before it is measured here and never moved.

    **Arguments:**

    - `quantity`: what is measured, in words. `unit`: of it; "" for a ratio or a pure number.
    - `relation`: `"<="`, `">="` or `"within"` (then `value` is a pair, low and high).
    - `source`: the table or statement of the paper, or `"derived: …"`.
    - `scaled`: how the instance is smaller than the paper's; "" if it is the paper's own.
    """

    quantity: str
    relation: Relation
    value: float | tuple[float, float]
    source: str
    unit: str = ""
    scaled: str = ""

    def __post_init__(self) -> None:
        pair = isinstance(self.value, tuple)
        if pair != (self.relation == "within"):
            raise InputError(f"relation {self.relation!r} does not go with value {self.value!r}")

    def verdict(self, low: float, high: float) -> bool | None:
        """True if the whole interval satisfies the relation, False if none of it, else None."""
        bottom, top = self.value if isinstance(self.value, tuple) else self._half_line(self.value)
        if bottom <= low and high <= top:
            return True
        if high < bottom or low > top:
            return False
        return None

    def _half_line(self, value: float) -> tuple[float, float]:
        return (-math.inf, value) if self.relation == "<=" else (value, math.inf)


@dataclass(frozen=True)
class Claim:
    """One promise of one paper, and the evidence that decides it.

    `evidence` returns the figure for each seed it ran (one figure where nothing is random), or
    raises `Inconclusive` with the reason it cannot say.
    """

    paper: str
    claim: str
    room: str
    cost: Cost
    expected: Expected
    evidence: Callable[[], float | Sequence[float]]
    limits: str = ""

    def check(self) -> dict[str, Any]:
        """Run the evidence: the ledger's row, `holds` computed from the measured interval."""
        start = time.perf_counter()
        try:
            outcome = self.evidence()
        except Inconclusive as reason:
            return self._row((), None, str(reason), time.perf_counter() - start)
        figures = [float(f) for f in outcome] if isinstance(outcome, Sequence) else [float(outcome)]
        seconds = time.perf_counter() - start
        if not all(map(math.isfinite, figures)):
            return self._row((), False, "the measured figure is not finite", seconds)
        holds = self.expected.verdict(min(figures), max(figures))
        reason = "inconclusive: the spread contains the expected figure" if holds is None else ""
        return self._row(figures, holds, reason or ("" if holds else self.limits), seconds)

    def _row(
        self, figures: Sequence[float], holds: bool | None, reason: str, seconds: float
    ) -> dict[str, Any]:
        measured = (
            {"value": median(figures), "low": min(figures), "high": max(figures)}
            if figures
            else {"value": None, "low": None, "high": None}
        )
        return plain(
            {
                "paper": self.paper,
                "claim": self.claim,
                "room": self.room,
                "cost": self.cost,
                "expected": asdict(self.expected),
                "measured": measured,
                "holds": holds,
                "reason": reason,
                "seeds": len(figures),
                "seconds": round(seconds, 2),
                "date": date.today().isoformat(),
            }
        )


class Inconclusive(Exception):
    """The evidence cannot decide: a missing peer, a missing GPU, a spread that is too wide."""


_registered: dict[tuple[str, str], Claim] = {}


def claim(
    paper: str, name: str, *, cost: Cost, expected: Expected, limits: str = ""
) -> Callable[[Callable[[], Any]], Claim]:
    """Register the decorated evidence as a claim of a paper.

    **Arguments:**

    - `paper`: its key in `references.bib`. `name`: of the claim, unique within the paper.
    - `cost`: `fast` (<= 3 s with compilation, no verdict that depends on seconds), `medium`
      (<= 60 s), `slow` or `gpu`.
    - `limits`: one sentence on what limits it, shown where it does not hold.
    """

    def register(evidence: Callable[[], Any]) -> Claim:
        room = evidence.__module__.split(".")[1]
        made = Claim(paper, name, room, cost, expected, evidence, limits)
        if (paper, name) in _registered and _registered[paper, name].room != room:
            raise InputError(f"the claim {name!r} of {paper!r} is made in two rooms")
        _registered[paper, name] = made
        return made

    return register


def claims(room: str | None = None, paper: str | None = None, cost: str = "all") -> list[Claim]:
    """The claims of a room, a paper and a cost, sorted as the ledger is.

    Raises `UnknownName` for a room, paper or cost that has none.
    """
    for name in catalogue.room_names() if room is None else (catalogue.room(room), room)[1:]:
        module = f"{catalogue.room(name).__name__}.claims"
        if importlib.util.find_spec(module):
            importlib.import_module(module)
    if cost != "all" and cost not in COSTS:
        raise UnknownName("cost", cost, (*COSTS, "all"))
    known = [c for c in _registered.values() if room in (None, c.room)]
    if paper is not None and paper not in {c.paper for c in known}:
        raise UnknownName("paper with claims", paper, {c.paper for c in known})
    chosen = [c for c in known if paper in (None, c.paper) and cost in ("all", c.cost)]
    return sorted(chosen, key=lambda c: (c.room, c.paper, c.claim))


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The rows of a ledger file; none if there is no such file."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def merge(
    old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The ledger with new rows in: a row changes only if its verdict or its measure changed."""
    rows = {_key(row): dict(row) for row in old}
    for row in new:
        known = rows.get(_key(row))
        if known is None or _differs(known, row):
            rows[_key(row)] = dict(row)
    return [rows[key] for key in sorted(rows)]


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["room"], row["paper"], row["claim"]


def _differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the claim or its verdict differs, or the measure by more than rounding noise."""
    if any(old[name] != new[name] for name in ("holds", "expected", "reason", "cost")):
        return True
    before, after = old["measured"]["value"], new["measured"]["value"]
    if before is None or after is None:
        return before is not after
    tolerance = 0.2 if new["cost"] != "fast" else 1e-3  # timings drift; numbers do not
    return abs(after - before) > tolerance * abs(before)


def write_ledger(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the ledger; raises `StoreError` if it cannot be written."""
    try:
        path.write_text(json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
