"""`evolve`: certificates that hold, an end that is needed, repeatable rounds."""

from __future__ import annotations

import mpmath
import pytest

from nearly.core.errors import InputError
from nearly.functions.discovery.certificate import certified, costs_of
from nearly.functions.discovery.evolve import Discovery, evolve
from nearly.functions.discovery.islands import Search
from nearly.functions.function import Function
from nearly.functions.program import Builder, Program

EXP2 = Function("exp2", ("0", "1"))


@pytest.fixture(scope="module")
def found() -> Discovery:
    return evolve(Search(EXP2, most=5, islands=1, children=25_000), most_rounds=1)


def error_at(program: Program, x: mpmath.mpf) -> mpmath.mpf:
    """By an interpreter of its own."""
    apply = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
    }
    values = {n: mpmath.mpf(v.numerator) / v.denominator for n, v in program.constants.items()}
    values["x"] = x
    for i, (name, a, b) in enumerate(program.instructions):
        values[f"t{i}"] = apply[name](values[a], values[b])
    return abs(values[f"t{len(program.instructions) - 1}"] / mpmath.power(2, x) - 1)


def test_bounds_hold_and_are_tight(found: Discovery) -> None:
    with mpmath.workdps(40):
        for each in found.frontier:
            points = [mpmath.mpf(k + 0.5) / 400 for k in range(400)]
            sup = max(error_at(each.program, x) for x in points)
            assert sup <= each.bound <= 1.02 * sup


def test_reaches_the_known_optima_from_nothing(found: Discovery) -> None:
    bounds = {each.program.cost.ops: each.bound for each in found.frontier}
    assert bounds[3] < 8.7e-4  # K / (a - x) + c
    assert all(b < a for a, b in zip(bounds.values(), list(bounds.values())[1:], strict=False))


def test_what_is_said_of_a_search_is_so(found: Discovery) -> None:
    assert found.rounds == 1
    assert found.counts["children"] == 25_000
    assert found.counts["fits"] > 1000
    assert {id(f) for f in found.frontier} <= {id(f) for f in found.candidates}
    assert max(costs_of(f.program)["operations"] for f in found.frontier) <= 5


def test_a_pole_is_not_certified() -> None:
    b = Builder()
    pole = b.program(1.0 / (b.x - 0.5) + b.x * b.x)
    found = certified(EXP2, pole)
    assert found is None or found.bound < 1


def test_costs_by_hand() -> None:
    b = Builder()
    assert costs_of(b.program(b.x * b.x + 1.0 / b.x)) == {
        "operations": 3,
        "weighted": 8,
        "depth": 2,
    }


def test_a_search_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="most_rounds or minutes"):
        evolve(Search(EXP2))


@pytest.mark.slow
def test_beats_the_published_program_of_ten_operations_within_ten_rounds() -> None:
    # Real et al. 2023: 5.4e-15 with ten operations.
    best = evolve(Search(EXP2), most_rounds=10).frontier[-1]
    assert best.program.cost.ops <= 10
    assert best.bound <= 5.4e-15
