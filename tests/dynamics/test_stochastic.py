"""`StochasticProblem`: truths on the same path, honest counts, every catalogued solver."""

from __future__ import annotations

import diffrax as dfx
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import InputError
from nearly.core.lazy import load
from nearly.dynamics.cir import CIRStepSize, HOStS
from nearly.dynamics.problems.stochastic import cir, stochastic
from nearly.dynamics.problems.stochastic_equations import JUDGES

SOLVERS = catalogue.methods("sde-solvers")


@pytest.mark.slow
def test_truths_agree_with_fine_solutions() -> None:
    for case, solver, tolerance in (
        ("gbm", dfx.SPaRK(), 0.02),
        ("ou", dfx.ShARK(), 1e-4),
    ):
        problem = stochastic(case, paths=20, cells=64)
        value = problem.solution(solver, 64)
        assert problem.errors(value)["strong"] < tolerance, case
        assert np.all(value[1] == 64)


def test_work_is_queries_and_calls_over_all_paths() -> None:
    problem = stochastic("gbm", paths=7, cells=16)
    frontier = compare(problem, {"heun": dfx.EulerHeun()}, dials=[4], seeds=(0,), timed=False)
    (run,) = frontier.runs
    assert run.work["queries"] == 7 * 4
    assert run.work["drift"] == 7 * 4
    assert run.work["diffusion"] == 2 * 7 * 4


KINDS = (
    cir(1.5, paths=3, cells=16, refinements=4),
    stochastic("funnel-langevin", paths=3, cells=16),
    stochastic("ou", paths=3, cells=16),
    stochastic("gbm", paths=3, cells=16),
)


def _takes_long(name: str) -> bool:
    return SOLVERS[name].source == "peer" and name != "diffrax-spark"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if _takes_long(n) else n for n in SOLVERS]
)
def test_every_catalogued_solver_runs_on_a_problem_of_its_kind(name: str) -> None:
    problem = next(p for p in KINDS if name in p.equation.specialists or p is KINDS[-1])
    assert name in problem.methods()
    method = load(SOLVERS[name].target)
    ends, steps = problem.solution(method, problem.dials(method)[0])
    assert np.all(np.isfinite(ends))
    assert np.all(steps > 1)


@pytest.mark.slow
def test_no_increments_give_the_noncommutative_pair_more_than_half_an_order() -> None:
    problem = stochastic("noncommutative", paths=100, cells=1024)
    errors = [
        problem.errors(problem.solution(dfx.EulerHeun(), n))["strong"] for n in (8, 16, 32, 64)
    ]
    slope = np.polyfit(np.log([8, 16, 32, 64]), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.15)
    assert 0 < problem.floor() < min(errors)


@pytest.mark.slow
def test_judges_of_the_same_paths_agree() -> None:
    values, uncertainties = [], []
    for judge in JUDGES:
        problem = cir(1.5, paths=10, cells=1024, refinements=4, judge=judge)
        values.append(problem.truth()["values"])
        uncertainties.append(problem.floor())
    assert max(uncertainties) < 0.02
    np.testing.assert_allclose(values, np.broadcast_to(values[0], (4, 10, 1)), atol=0.05)


def test_adaptive_dials_are_tolerances() -> None:
    problem = KINDS[0]
    method = {"solver": HOStS(), "stepsize_controller": CIRStepSize(1.0, 1e-9)}
    loose, tight = (problem.solution(method, dial) for dial in (0.2, 0.01))
    assert tight[1].mean() > 2 * loose[1].mean()
    assert max(problem.dials(method)) < 1 < min(problem.dials(HOStS()))


def test_mistakes_name_value_and_remedy() -> None:
    with pytest.raises(InputError, match="cells=100 must be a power of two"):
        stochastic("gbm", cells=100)
    with pytest.raises(InputError, match="unknown stochastic equation 'gmb'"):
        stochastic("gmb")
    with pytest.raises(InputError, match="unknown judge of cir 'heun'"):
        cir(judge="heun")
    with pytest.raises(InputError, match="paths=1"):
        stochastic("gbm", paths=1)
    with pytest.raises(InputError, match="int is no solver"):
        stochastic("gbm").build(3, 4, key=None)
