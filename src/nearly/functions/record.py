"""Records: the most accurate program known, with its proven bound, for each count of operations.

They ship as `records/FUNCTION.json` beside this module: a list of entries
`{"function", "domain", "error", "bound", "ops", "instructions", "constants", "how"}` where
instruction i defines t_i and the last one is the result (docs/formats.md). Those that a user finds
are kept in `records` under the cache folder, and both are looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from nearly.core.errors import InputError, NotProven, StoreError
from nearly.core.store import cache_folder
from nearly.functions.builders import finished
from nearly.functions.function import Function
from nearly.functions.program import Constant, Program
from nearly.functions.proof import prove

SHIPPED = Path(__file__).parent / "records"
LOST = 1e-4  # of the bound, at most, to the rounding of constants to decimals
BETTER = 1e-3  # a bound lower by less is the same record
GUARD_DIGITS, MORE_DIGITS, MOST_DIGITS = 12, 4, 120


@dataclass(frozen=True)
class Record:
    """A program and the bound that is proven for it.

    **Arguments:**

    - `function`, `domain`, `error`: what `program` approximates, as in `Function`.
    - `bound`: no error on the domain is larger.
    - `program`: over the reals; its constants are finite decimals.
    - `how`: it was found.
    """

    function: str
    domain: tuple[str, str]
    error: str
    bound: float
    program: Program
    how: str

    @property
    def ops(self) -> int:
        return self.program.cost.ops

    @property
    def target(self) -> Function:
        return Function(self.function, self.domain, error=self.error)

    def to_json(self) -> dict[str, Any]:
        """The entry of the file."""
        written = self.program.to_json()
        return {
            "function": self.function,
            "domain": list(self.domain),
            "error": self.error,
            "bound": self.bound,
            "ops": self.ops,
            "instructions": written["instructions"],
            "constants": written["constants"],
            "how": self.how,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Record:
        program = Program.from_json(data)
        low, high = data["domain"]
        record = Record(
            data["function"],
            (str(low), str(high)),
            data["error"],
            float(data["bound"]),
            program,
            data["how"],
        )
        if record.ops != data["ops"]:
            raise InputError(
                f"a record of {record.function} says {data['ops']} operations, its program takes "
                f"{record.ops}: mend the entry"
            )
        return record


# ------------------------------------------------------------------ looking up


def load(function: str, path: Path | None = None) -> list[Record]:
    """The records of a function, on all its domains, from cheap to dear.

    **Arguments:**

    - `function`: its name, as `"exp2"`; one without records has an empty list.
    - `path`: the file to read; by default what is shipped, and what the user has kept.

    Raises `StoreError` for a file that is not one of records. Files are read once per change.
    """
    paths = _files(function) if path is None else [path]
    found = [record for each in paths for record in _read(each, _stamp(each))]
    return sorted(found, key=lambda record: (record.domain, record.error, record.ops, record.bound))


def best(function: Function, ops: int) -> Record:
    """The record of least bound among those of at most `ops` operations.

    Raises `InputError` where there is none for this function, domain and error. A function in ULP
    takes the records of its relative error.
    """
    records = [record for record in _of(function) if record.ops <= ops]
    if not records:
        raise InputError(
            f"no record of {function.name} on [{function.domain[0]}, {function.domain[1]}] takes "
            f"{ops} operations: find one with `nearly discover {function.name} --ops {ops} --keep`"
        )
    return min(records, key=lambda record: (record.bound, record.ops))


def _of(function: Function) -> list[Record]:
    if not function.name.isidentifier() or not function.is_bounded or function.norm != "sup":
        return []
    error = "relative" if function.error == "ulp" else function.error
    records = [record for record in load(function.name) if record.error == error]
    return [record for record in records if _same_domain(record.domain, function)]


def _same_domain(domain: tuple[str, str], function: Function) -> bool:
    return domain == function.domain or _interval(domain) == function.interval


@lru_cache(maxsize=256)
def _interval(domain: tuple[str, str]) -> tuple[Fraction, Fraction]:
    return Function("exp", domain).interval


def _files(function: str) -> list[Path]:
    return [folder / f"{function}.json" for folder in (SHIPPED, kept_folder())]


def kept_folder() -> Path:
    """Where records that the user finds are kept."""
    return cache_folder() / "records"


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=256)
def _read(path: Path, stamp: int) -> tuple[Record, ...]:
    if not stamp:
        return ()
    try:
        return tuple(Record.from_json(entry) for entry in json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is no file of records: {error}; mend or remove it") from error


# ------------------------------------------------------------------ keeping


def keep(
    function_name: str,
    domain: tuple[str, str],
    error: str,
    program: Program,
    bound: float,
    how: str,
    path: Path | None = None,
) -> bool:
    """Keep a program if it is a record.

    **Arguments:**

    - `function_name`, `domain`, `error`: what it approximates, as in `Function`.
    - `program`: over the reals, of + - * / (square roots are free in `ops`, so none is allowed).
    - `bound`: on its error, as `prove` gave it. The constants are written as decimals of so few
      digits that the bound proven *for these decimals* is at most 0.01% above it, and that is kept.
    - `how`: it was found, in one line.
    - `path`: the file; by default the user's own, next to those shipped.

    **Returns:** whether it was kept: whether no record on file of at most so many operations is as
    good. Records of as many operations or more that it beats are dropped.

    **Raises:** `InputError` for another instruction or a bound that does not hold, `NotProven`
    where nothing can be proven, `StoreError` for a file that cannot be written.

    Cost: a proof or two, tenths of a second.
    """
    function = Function(function_name, domain, error=error)
    _check_instructions(program)
    path = path or kept_folder() / f"{function_name}.json"
    known = load(function_name, path)
    ours = [r for r in known if r.error == error and _same_domain(r.domain, function)]
    if _beaten(program.cost.ops, bound, ours):
        return False
    decimal, proven = in_decimals(function, program, bound)
    record = Record(function_name, domain, error, proven, decimal, how)
    rest = [r for r in known if r not in ours or r.ops < record.ops or r.bound < record.bound]
    _write(path, [*rest, record])
    return True


def _beaten(ops: int, bound: float, records: Iterable[Record]) -> bool:
    return any(r.ops <= ops and r.bound <= bound * (1 + BETTER) for r in records)


def _check_instructions(program: Program) -> None:
    for name, *operands in program.instructions:
        if name not in ("add", "sub", "mul", "div"):
            raise InputError(
                f"instruction {' '.join((name, *operands))}: a record is made of + - * / alone"
            )


def in_decimals(function: Function, program: Program, bound: float) -> tuple[Program, float]:
    """The program with decimal constants of few digits, and the bound proven for it.

    Raises `InputError` if the program's error is not below `bound`, and as `prove` does.
    """
    digits = GUARD_DIGITS + max(0, math.ceil(-math.log10(bound)))
    while True:
        short = rounded(program, digits)
        proven = _bound(function, short)
        if proven <= bound * (1 + LOST):
            return short, proven
        if digits > MOST_DIGITS:
            raise InputError(f"the bound {bound:.4g} does not hold: {proven:.4g} is proven")
        digits += MORE_DIGITS


def _bound(function: Function, program: Program) -> float:
    """The proven bound; infinite where rounding has left something that cannot be proven."""
    try:
        return prove(function, program).total
    except NotProven:
        return math.inf


def rounded(program: Program, digits: int) -> Program:
    """The program with each constant rounded to so many significant decimal digits."""
    constants = {name: _decimal(value, digits) for name, value in program.constants.items()}
    return replace(program, constants=constants)


def _decimal(value: Constant, digits: int) -> Constant:
    if not isinstance(value, Fraction) or not value:
        return value
    places = digits - 1 - math.floor(_log10(abs(value)))
    scale = Fraction(10) ** places
    return round(value * scale) / scale


def _log10(value: Fraction) -> float:
    return math.log10(value.numerator) - math.log10(value.denominator)


def _write(path: Path, records: Sequence[Record]) -> None:
    ordered = sorted(records, key=lambda r: (r.domain, r.error, r.ops))
    text = ",\n".join(json.dumps(r.to_json(), ensure_ascii=False) for r in ordered)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[\n{text}\n]\n")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


# ------------------------------------------------------------------ the catalogue's method


@dataclass(frozen=True)
class RecordBuilder:
    """The best known program; the dial is the count of operations that it may take.

    Has dials where there are records for the function, domain and error that is asked for. In a
    machine format the constants are rounded together. Costs nothing over the reals.

    Paper: `autonumerics-zero`, which publishes its programs' errors but no file of them.
    """

    def __call__(self, function: Function, dial: object) -> Program:
        if not str(dial).isdigit():
            raise InputError(f"dial {dial!r}: a record's dial is its count of operations, as 10")
        program = best(function, int(str(dial))).program
        return program if function.format.is_real else finished(function, program)

    def dials(self, function: Function) -> Sequence[int]:
        """The counts at which the error is lower than at the one before."""
        kept: list[Record] = []
        for record in sorted(_of(function), key=lambda r: (r.ops, r.bound)):
            if not kept or record.bound < kept[-1].bound:
                kept.append(record)
        return [record.ops for record in kept]


record = RecordBuilder()
