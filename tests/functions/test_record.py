"""Records: what ships is checked by an evaluator of its own; keeping, looking up, using."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import pytest
from mpmath import mp

import nearly
from nearly.core.errors import InputError, StoreError
from nearly.functions import record
from nearly.functions.classical import best as best_classical
from nearly.functions.function import Function
from nearly.functions.program import Builder, Program
from nearly.functions.proof import prove
from nearly.functions.rounding import round_program

FOLDER = Path(record.__file__).parent / "records"
FILES = sorted(FOLDER.glob("*.json"))

# ------------------------------------------------------- an evaluator that shares no code with ours

TRUTHS: dict[str, Callable[[Any], Any]] = {
    "exp2": lambda x: mpmath.power(2, x),
    "exp": mpmath.exp,
    "log2": lambda x: mpmath.log(x) / mpmath.log(2),
    "erf": mpmath.erf,
    "tanh": mpmath.tanh,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "tan": mpmath.tan,
    "atan": mpmath.atan,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "gelu": lambda x: x * mpmath.ncdf(x),
    "lgamma": mpmath.loggamma,
    "bessel_j0": lambda x: mpmath.besselj(0, x),
}
ENDS = {"pi/2": lambda: mp.pi / 2, "pi/4": lambda: mp.pi / 4, "log(2)": lambda: mpmath.log(2)}
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}
POINTS = 96


def end(text: str) -> Any:
    return ENDS[text]() if text in ENDS else mpmath.mpf(text)


def points(low: Any, high: Any) -> list[Any]:
    """Dense towards the ends; an end itself may be a removable singularity, 1e-30 beside it."""
    middle, radius = (low + high) / 2, (high - low) / 2 * (1 - mpmath.mpf(10) ** -30)
    return [middle - radius * mpmath.cos(mp.pi * k / POINTS) for k in range(POINTS + 1)]


def evaluate(entry: dict[str, Any], x: Any) -> Any:
    values = {"x": x} | {name: mpmath.mpf(text) for name, text in entry["constants"].items()}
    for i, (operation, left, right) in enumerate(entry["instructions"]):
        values[f"t{i}"] = OPERATIONS[operation](values[left], values[right])
    return values[f"t{len(entry['instructions']) - 1}"]


def of_one_domain(path: Path) -> Iterator[list[dict[str, Any]]]:
    entries = json.loads(path.read_text())
    for domain in sorted({tuple(e["domain"]) for e in entries}):
        yield [e for e in entries if tuple(e["domain"]) == domain]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bounds_hold_and_are_tight_by_an_independent_evaluator(path):
    with mp.workdps(70):
        for entries in of_one_domain(path):
            grid = points(*map(end, entries[0]["domain"]))
            truths = [TRUTHS[path.stem](x) for x in grid]
            for entry in entries:
                errors = [abs(evaluate(entry, x) - f) for x, f in zip(grid, truths, strict=True)]
                if entry["error"] == "relative":
                    errors = [e / abs(f) for e, f in zip(errors, truths, strict=True)]
                assert 0.9 * entry["bound"] <= max(errors) <= entry["bound"], entry


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_entries_have_the_documented_form(path):
    keys = {"function", "domain", "error", "bound", "ops", "instructions", "constants", "how"}
    for entry in json.loads(path.read_text()):
        assert set(entry) == keys
        assert entry["function"] == path.stem
        assert entry["error"] in ("relative", "absolute")
        assert all(isinstance(text, str) for text in entry["constants"].values())
        assert not any("/" in text or "e" in text for text in entry["constants"].values())
        depends, ops = {"x"}, 0
        for i, (_, *operands) in enumerate(entry["instructions"]):
            if depends & set(operands):
                depends.add(f"t{i}")
                ops += 1
        assert entry["ops"] == ops


def test_every_function_of_the_collection_has_records_from_three_or_four_operations_to_fourteen():
    assert {path.stem for path in FILES} == set(TRUTHS)
    for path in FILES:
        for entries in of_one_domain(path):
            counts = [e["ops"] for e in entries]
            bounds = [e["bound"] for e in entries]
            assert min(counts) <= 4
            assert max(counts) <= 14
            # Each is worth its operations.
            assert bounds == sorted(bounds, reverse=True)


# ------------------------------------------------------------------ looking up and using

EXP2 = Function("exp2", ("0", "1"))


def test_best_takes_at_most_so_many_operations():
    records = [record.best(EXP2, ops) for ops in range(3, 15)]
    assert all(r.ops <= ops for r, ops in zip(records, range(3, 15), strict=True))
    bounds = [r.bound for r in records]
    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.parametrize("name", ["tan", pytest.param("log2", marks=pytest.mark.slow)])
def test_never_worse_than_the_textbook(name):
    function = record.load(name)[0].target
    for ops in range(4, 13):
        assert record.best(function, ops).bound <= 1.001 * float(
            best_classical(function, ops).error
        )


def test_the_same_domain_written_differently_is_the_same():
    assert record.best(Function("exp", ("0", "log(4)/2")), 8) == record.best(
        Function("exp", ("0", "log(2)")), 8
    )


def test_a_function_without_records_says_how_to_find_one():
    with pytest.raises(InputError, match="nearly discover exp2 --ops 8 --keep"):
        record.best(Function("exp2", ("0", "3/4")), 8)
    assert record.record.dials(Function("exp2", ("0", "3/4"))) == []
    assert record.record.dials(Function("exp2(x)/2", ("0", "1"))) == []
    assert record.load("no_such_function") == []


def test_within_and_compare_consult_the_records(fresh_store):
    run = nearly.within(1e-8, "exp2", methods=["record", "remez"], dials=[6, 7], domain=("0", "1"))
    assert run.method == "record"
    assert run.work["ops"] == 7
    assert run.worst <= 1e-8


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("ops", "dtype"),
    [
        (6, "float32"),
        pytest.param(7, "float32", marks=SLOW),
        pytest.param(9, "float64", marks=SLOW),
        pytest.param(10, "float64", marks=SLOW),
    ],
)
def test_rounded_constants_lose_a_tenth_and_half_an_ulp_at_most(ops, dtype):
    best = record.best(EXP2, ops)
    function = Function("exp2", ("0", "1"), dtype, "relative")
    rounded = round_program(function, best.program)
    assert rounded.dtype == dtype
    alone = prove(EXP2, replace(rounded, dtype="real")).total
    assert alone <= 1.1 * best.bound + 2.0**-rounded.format.precision


def test_a_dial_that_is_no_count_is_refused():
    with pytest.raises(InputError, match="a record's dial is its count of operations"):
        record.record(EXP2, "3/2")


# ------------------------------------------------------------------ keeping


def two_terms(c0: str, c1: str) -> Program:
    b = Builder()
    return b.program(b.x * Fraction(c1) + Fraction(c0))


def kept(path: Path, program: Program, bound: float | None = None, **options: Any) -> bool:
    bound = bound or prove(EXP2, program).total
    return record.keep("exp2", ("0", "1"), "relative", program, bound, "by hand", path)


def test_only_a_better_program_is_kept(tmp_path):
    path = tmp_path / "exp2.json"
    good, bad = two_terms("0.97", "1"), two_terms("0.9", "1")
    assert kept(path, bad)
    assert kept(path, good)  # and drops the other
    assert not kept(path, bad)
    assert not kept(path, good)
    (found,) = record.load("exp2", path)
    assert found.program == good
    assert found.how == "by hand"
    assert found.bound == pytest.approx(prove(EXP2, good).total)


def test_constants_become_decimals_and_the_bound_is_theirs(tmp_path):
    path = tmp_path / "exp2.json"
    program = two_terms("97/100", "1000000/999999")
    assert kept(path, program)
    (entry,) = json.loads(path.read_text())
    assert set(entry["constants"].values()) == {"0.97", "1.000001000001"}
    (found,) = record.load("exp2", path)
    assert found.bound == prove(EXP2, found.program).total


def test_a_bound_that_does_not_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not hold"):
        kept(tmp_path / "exp2.json", two_terms("0.97", "1"), bound=1e-3)


def test_free_square_roots_are_refused(tmp_path):
    b = Builder()
    program = b.program(b.sqrt(b.x + 1))
    with pytest.raises(InputError, match="sqrt t0: a record is made of"):
        kept(tmp_path / "exp2.json", program, bound=1.0)


def test_what_the_user_keeps_is_found_beside_what_ships(fresh_store):
    shipped = record.best(EXP2, 3).bound
    b = Builder()
    domain = ("0", "1/1000")
    assert record.keep("exp2", domain, "relative", b.program(b.x * b.x + 1), 1e-2, "by hand")
    assert record.best(Function("exp2", domain), 2).how == "by hand"
    assert record.best(EXP2, 3).bound == shipped


def test_a_file_that_is_none_of_records_is_named(tmp_path):
    path = tmp_path / "exp2.json"
    path.write_text("[1, 2]")
    with pytest.raises(StoreError, match="is no file of records"):
        record.load("exp2", path)
    entry = record.Record("exp2", ("0", "1"), "relative", 1.0, two_terms("1", "1"), "").to_json()
    path.write_text(json.dumps([entry | {"ops": 1}]))
    with pytest.raises(StoreError, match="says 1 operations, its program takes 2"):
        record.load("exp2", path)
