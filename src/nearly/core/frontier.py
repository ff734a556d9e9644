"""`Frontier`: many runs on one problem, and what a person asks of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearly.core.errors import InputError, NotWithin, StoreError
from nearly.core.run import Run, plain

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1


@dataclass(frozen=True)
class Frontier:
    """Runs on one problem.

    **Arguments:**

    - `problem`: its name. `settings`: its fields, as plain data; two frontiers are of the same
      problem when both agree.
    - `error_name`, `work_name`: the axes. `unit`: what "cheapest" means (`work_name`, another
      unit of work, or `"seconds"`). `asked`: whether the user named it.
    - `runs`: in the order in which they were asked for.
    - `uses`: over how many uses set-up is shared out; None leaves it out.
    - `tolerance`: the one that was asked for, if any.
    - `rival`: the method whose runs the others have to pay off against, if the problem names one.
    - `environment`: versions and machine.
    """

    problem: str
    error_name: str
    work_name: str
    runs: tuple[Run, ...] = ()
    unit: str = ""
    asked: bool = False
    uses: float | None = None
    tolerance: float | None = None
    floor: float = 0.0
    rival: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.unit:
            object.__setattr__(self, "unit", self.work_name)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __add__(self, other: Frontier) -> Frontier:
        """Both frontiers' runs; raises `InputError` unless both are of the same problem."""
        if (self.problem, dict(self.settings)) != (other.problem, dict(other.settings)):
            raise InputError(
                f"cannot add frontiers of different problems: {self.problem} and {other.problem}"
            )
        return replace(self, runs=self.runs + other.runs)

    def select(self, methods: Sequence[str] | None = None, source: str | None = None) -> Frontier:
        """The runs of some methods, or of one source (`ours`, `peer`, `user`)."""
        kept = (
            r
            for r in self.runs
            if (methods is None or r.method in methods) and source in (None, r.source)
        )
        return replace(self, runs=tuple(kept))

    def with_run(self, index: int, run: Run) -> Frontier:
        """The frontier with one run replaced."""
        return replace(self, runs=(*self.runs[:index], run, *self.runs[index + 1 :]))

    def cost(self, run: Run, unit: str | None = None) -> float | None:
        """What one use of a run costs, in `unit` or the frontier's own."""
        return run.cost(unit or self.unit, self.uses)

    def pareto(self, unit: str | None = None) -> list[int]:
        """Indices of the runs that no other beats in both cost and error, cheap to dear.

        O(n log n). Runs whose cost in this unit is unknown are left out.
        """
        priced = [
            (cost, run.worst, i)
            for i, run in enumerate(self.runs)
            if run.status == "ok"
            and (cost := self.cost(run, unit)) is not None
            and math.isfinite(run.worst)
        ]
        front: list[int] = []
        best = math.inf
        for _, error, i in sorted(priced):
            if error < best:
                front.append(i)
                best = error
        return front

    def candidates(self, tolerance: float, unit: str | None = None) -> list[int]:
        """Indices of the runs whose worst error is within a tolerance, cheapest first.

        Where some method never calls the counted oracle (its work is unknown), seconds decide.
        """
        good = [i for i, run in enumerate(self.runs) if run.worst <= tolerance]
        unit = unit or self.deciding_unit(good)
        costs = {i: self.cost(self.runs[i], unit) for i in good}
        priced = [(c, self.runs[i].worst, i) for i, c in costs.items() if c is not None]
        return [i for *_, i in sorted(priced)]

    def deciding_unit(self, indices: Sequence[int]) -> str:
        """The unit in which these runs are compared: seconds where a cost in `unit` is unknown,
        unless the user named the unit."""
        if self.asked or all(self.cost(self.runs[i]) is not None for i in indices):
            return self.unit
        return "seconds"

    @property
    def pick(self) -> int | None:
        """Index of the cheapest run within the tolerance that was asked for, if there is one."""
        indices = self.candidates(self.tolerance) if self.tolerance is not None else []
        return indices[0] if indices else None

    def within(self, tolerance: float, unit: str | None = None) -> Run:
        """The cheapest run whose worst error over the seeds is within a tolerance.

        Raises `NotWithin`, which names the most accurate run there is.
        """
        indices = self.candidates(tolerance, unit)
        if indices:
            return self.runs[indices[0]]
        raise self.nothing_within(tolerance)

    def nothing_within(self, tolerance: float) -> NotWithin:
        """The error that says so and names the best available."""
        ok = [r for r in self.runs if r.status == "ok"]
        message = f"nothing is within {tolerance:.3g} on {self.problem}"
        if not ok:
            return NotWithin(f"{message}: no run succeeded", None, self)
        best = min(ok, key=lambda r: r.worst)
        return NotWithin(
            f"{message}; the best available is {best.method} at {best.dial} "
            f"with {self.error_name} {best.worst:.3g}",
            best,
            self,
        )

    def break_even(self, run: Run, rival: Run, unit: str = "seconds") -> float | None:
        """After how many uses a run's set-up has paid for itself against a rival's."""
        mine, other = run.cost(unit), rival.cost(unit)
        first, second = run.cost(unit, 1), rival.cost(unit, 1)
        if mine is None or other is None or first is None or second is None or mine >= other:
            return None
        return max(0.0, ((first - mine) - (second - other)) / (other - mine))

    def rival_of(self, run: Run) -> Run | None:
        """The rival's cheapest run in seconds that is at least as accurate; None if none is."""
        good = [
            r
            for r in self.runs
            if r.method == self.rival
            and r.status == "ok"
            and r.seconds is not None
            and r.worst <= run.worst
        ]
        return min(good, key=lambda r: r.seconds or math.inf, default=None)

    def table(self) -> Table:
        """The runs as a `rich` table, cheap to dear within each method."""
        from nearly.core.report import table

        return table(self)

    def plot(self, path: str | Path) -> Path:
        """Draw error against work, both logarithmic, into a PNG, SVG or PDF file."""
        from nearly.core.plot import plot

        return plot(self, Path(path))

    def html(self, path: str | Path) -> Path:
        """Write a page that needs nothing else: picture with hover, table, the pick."""
        from nearly.core.report import html

        return html(self, Path(path))

    def _uses_to_pay_off(self, run: Run) -> float | None:
        rival = self.rival_of(run)
        return None if rival is None or rival is run else self.break_even(run, rival)

    def to_json(self) -> dict[str, Any]:
        """The documented form (docs/formats.md)."""
        return {
            "format": FORMAT,
            "environment": plain(self.environment),
            "problem": self.problem,
            "settings": plain(self.settings),
            "error_name": self.error_name,
            "work_name": self.work_name,
            "unit": self.unit,
            "asked": self.asked,
            "uses": self.uses,
            "tolerance": self.tolerance,
            "floor": self.floor,
            "rival": self.rival,
            "break_even": [self._uses_to_pay_off(r) for r in self.runs],
            "runs": [r.to_json() for r in self.runs],
            "pareto": self.pareto(),
            "within": self.pick,
        }

    def save(self, path: str | Path) -> Path:
        """Write the documented JSON; raises `StoreError` if the path cannot be written."""
        path = Path(path)
        try:
            path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from error
        return path

    @staticmethod
    def load(path: str | Path) -> Frontier:
        """Read what `save` wrote; raises `StoreError` or `InputError` on anything else."""
        try:
            data = json.loads(Path(path).read_text())
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not a frontier: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{path} is not a frontier of format {FORMAT}")
        axes = ("problem", "error_name", "work_name", "unit", "asked")
        return Frontier(
            runs=tuple(Run.from_json(r) for r in data["runs"]),
            settings=data["settings"],
            environment=data["environment"],
            rival=data.get("rival", ""),
            **{n: data[n] for n in (*axes, "uses", "tolerance", "floor")},
        )
