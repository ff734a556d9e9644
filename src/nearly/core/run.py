"""`Run`: one method at one dial - how wrong, at what cost - and its plain-data form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal

Status = Literal["ok", "diverged", "failed", "timeout"]
Dial = int | float | str


@dataclass(frozen=True)
class Certificate:
    """A statement about a stand-in that is stronger than a measurement.

    **Arguments:**

    - `label`: `"PROVEN"` (a proof, or every input tried) or `"MEASURED"`.
    - `error`: the bound, in the problem's error.
    - `text`: one line that says how it is known.
    - `details`: numbers and strings for headers and reports.
    """

    label: Literal["PROVEN", "MEASURED"]
    error: float
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One seed of a run: what a worker computes and sends back."""

    seed: int
    status: Status
    reason: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)
    work: Mapping[str, float] = field(default_factory=dict)
    setup_seconds: float = math.nan
    setup_work: Mapping[str, float] = field(default_factory=dict)
    compile_seconds: float = math.nan
    bytes: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return plain(asdict(self))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Trial:
        values = dict(data)
        for name in ("setup_seconds", "compile_seconds"):
            values[name] = math.nan if values[name] is None else values[name]
        values["errors"] = {n: math.inf if v is None else v for n, v in data["errors"].items()}
        return Trial(**values)


@dataclass(frozen=True)
class Run:
    """One method at one dial on one problem.

    **Arguments:**

    - `method`, `dial`, `source`: what ran, and whether it is ours, a peer's or the user's.
    - `status`, `reason`: `ok`, or what went wrong and why.
    - `error`: the median over the seeds of the problem's first error (inf unless ok).
    - `errors`: medians of all of them. `trials`: every seed.
    - `work`: unit -> count of one use. A unit the method never used is absent.
    - `setup`: `{"seconds", "work"}` spent once, before the first use.
    - `seconds`, `seconds_iqr`: of one use, median and quartiles; None if not measured.
    - `compile_seconds`, `bytes`: apart from both.
    - `floored`: the true error is below what the problem can tell from zero.
    - `note`: the settings that tuning chose; where it ran, if not where asked.
    - `make`: builds `standin`, what the user takes away; not part of the plain-data form.
    - `certificate`: what `within` proved of it.
    """

    method: str
    dial: Dial
    source: str = "ours"
    status: Status = "ok"
    reason: str = ""
    error: float = math.inf
    errors: Mapping[str, float] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    work: Mapping[str, float] = field(default_factory=dict)
    setup: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    seconds_iqr: tuple[float, float] | None = None
    compile_seconds: float | None = None
    bytes: float | None = None
    floored: bool = False
    note: str = ""
    make: Callable[[], Any] | None = field(default=None, compare=False, repr=False)
    certificate: Certificate | None = None

    @property
    def standin(self) -> Any:
        """The stand-in itself, in its own protocol; None for a run that was read from a file."""
        return self.make() if self.make else None

    @property
    def worst(self) -> float:
        """The largest error over the seeds, or certified: what a tolerance is held against."""
        if self.status != "ok":
            return math.inf
        name = next(iter(self.errors), "")
        proven = [self.certificate.error] if self.certificate else []
        return max([self.error, *(t.errors.get(name, math.inf) for t in self.trials), *proven])

    def cost(self, unit: str, uses: float | None = None) -> float | None:
        """What one use costs in `unit`, with set-up shared over `uses` if given; None: unknown."""
        if unit == "seconds":
            once, each = float(self.setup.get("seconds") or 0.0), self.seconds
        else:
            once, each = float(self.setup.get("work", {}).get(unit, 0.0)), self.work.get(unit)
        if each is None:
            return None
        return each + (once / uses if uses else 0.0)

    def to_json(self) -> dict[str, Any]:
        """The documented form: non-finite and unmeasured numbers are null."""
        data = {
            "method": self.method,
            "dial": self.dial,
            "source": self.source,
            "status": self.status,
            "reason": self.reason,
            "error": self.error,
            "errors": dict(self.errors),
            "seeds": [t.to_json() for t in self.trials],
            "work": dict(self.work),
            "setup": {
                "seconds": self.setup.get("seconds"),
                "work": dict(self.setup.get("work", {})),
            },
            "seconds": self.seconds,
            "seconds_iqr": self.seconds_iqr,
            "compile_seconds": self.compile_seconds,
            "bytes": self.bytes,
            "floored": self.floored,
            "note": self.note,
            "certificate": asdict(self.certificate) if self.certificate else None,
        }
        return plain(data)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Run:
        values = {k: v for k, v in data.items() if k != "seeds"}
        values["error"] = math.inf if data["error"] is None else data["error"]
        values["errors"] = {n: math.inf if v is None else v for n, v in data["errors"].items()}
        values["trials"] = tuple(Trial.from_json(t) for t in data["seeds"])
        values["seconds_iqr"] = tuple(data["seconds_iqr"]) if data["seconds_iqr"] else None
        certificate = data.get("certificate")
        values["certificate"] = Certificate(**certificate) if certificate else None
        return Run(**values)

    def timed(self, samples: Sequence[float]) -> Run:
        """The run with its seconds: the median and quartiles of the samples."""
        if not samples:
            return self
        ordered = sorted(samples)
        quartiles = (ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4])
        return replace(self, seconds=median(ordered), seconds_iqr=quartiles)


def summarise(
    method: str, dial: Dial, source: str, trials: Sequence[Trial], floor: float = 0.0
) -> Run:
    """One run from its seeds: medians of errors and work, the first failure if there is one.

    Seeds for which there was no time are left out where there is another, and the note says so.
    """
    trials = tuple(sorted(trials, key=lambda t: t.seed))
    begun = tuple(t for t in trials if t.status != "timeout")
    short = [f"{len(begun)} of {len(trials)} seeds in time"] if 0 < len(begun) < len(trials) else []
    note = "; ".join(dict.fromkeys([*short, *(t.note for t in trials if t.note)]))
    trials = begun or trials
    failed = next((t for t in trials if t.status != "ok"), None)
    if failed:
        reason = f"seed {failed.seed}: {failed.reason}" if len(trials) > 1 else failed.reason
        return Run(method, dial, source, failed.status, reason, trials=trials, note=note)
    errors = {n: median(t.errors[n] for t in trials) for n in trials[0].errors}
    first = next(iter(errors))
    floored = errors[first] < floor
    errors[first] = max(errors[first], floor)
    return Run(
        method,
        dial,
        source,
        error=errors[first],
        errors=errors,
        trials=trials,
        work=_medians([t.work for t in trials]),
        setup={
            "seconds": median(t.setup_seconds for t in trials),
            "work": _medians([t.setup_work for t in trials]),
        },
        compile_seconds=trials[0].compile_seconds,
        bytes=trials[0].bytes,
        floored=floored,
        note=note,
    )


def _medians(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    units = dict.fromkeys(unit for count in counts for unit in count)
    return {unit: median(count.get(unit, 0) for count in counts) for unit in units}


def plain(value: Any) -> Any:
    """JSON-ready data: mappings, lists, strings, ints and finite floats; the rest is None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
