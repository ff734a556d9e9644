"""What every method of the functions room must do: parametrised over the catalogue.

A new catalogue line is tested without a new test.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.functions.function import Function
from nearly.functions.problems import Approximation
from nearly.functions.program import Program

METHODS = sorted(catalogue.methods("functions"))
REAL = Approximation("exp2", ("0", "1"))
SINGLE = Approximation("exp2", ("-1/2", "1/2"), dtype="float32", to="numpy")


def method(name: str) -> Any:
    return catalogue.method(name, "functions")[0]


@pytest.mark.parametrize("name", METHODS)
def test_dials_go_from_cheap_and_bad_to_dear_and_good(name: str) -> None:
    dials = list(REAL.dials(method(name)))
    if not dials:
        pytest.skip("does not apply over the reals")
    picked = [dials[0], dials[len(dials) // 3]]
    programs = [REAL.program(method(name), dial) for dial in picked]
    errors = [REAL.errors(program)["relative error"] for program in programs]
    assert errors[1] < errors[0] / 2
    assert programs[0].cost.ops < programs[1].cost.ops


@pytest.mark.parametrize("name", METHODS)
def test_programs_over_the_reals_are_proven_near_what_is_measured(name: str) -> None:
    dials = list(REAL.dials(method(name)))
    if not dials:
        pytest.skip("does not apply over the reals")
    program = REAL.program(method(name), dials[min(2, len(dials) - 1)])
    errors = REAL.errors(program)
    assert errors["relative error"] <= errors["proven"] <= 1.01 * errors["relative error"]


@pytest.mark.parametrize("name", METHODS)
def test_programs_are_plain_values(name: str) -> None:
    dials = list(SINGLE.dials(method(name)))
    if not dials:
        pytest.skip("has nothing for this domain")
    program = SINGLE.program(method(name), dials[0])
    assert isinstance(program, Program)
    assert program.dtype == "float32"
    assert program == pickle.loads(pickle.dumps(program))
    assert program == Program.from_json(program.to_json())
    assert hash(program) == hash(Program.from_json(program.to_json()))
    register = program.format.computing
    for value in program.constants.values():
        assert isinstance(value, int) or register.round(value) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_float32_programs_compute_in_float32(name: str) -> None:
    dials = list(SINGLE.dials(method(name)))
    if not dials:
        pytest.skip("has nothing for this domain")
    program = SINGLE.program(method(name), dials[-1])
    x = np.linspace(-0.5, 0.5, 1001).astype(np.float32)
    y = program(x)
    assert y.dtype == np.float32
    truth = np.exp2(x.astype(np.float64))
    assert np.max(np.abs(y - truth) / truth) < 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_a_dial_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        method(name)(Function("exp2", ("0", "1"), "float32", "relative"), "nonsense")
