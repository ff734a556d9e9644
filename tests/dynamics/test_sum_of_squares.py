"""Bounds on averages: cases solved by hand, symmetry, proofs."""

from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("clarabel", reason="sums of squares need clarabel")

from nearly.core.compare import compare, within
from nearly.core.measure import run_trial
from nearly.dynamics import sum_of_squares as module
from nearly.dynamics.problems.time_average import (
    LORENZ,
    TimeAverageBound,
    lorenz_z4,
    shear_flow_field,
    shear_flow_system,
)
from nearly.dynamics.rational_proof import prove_bound
from nearly.dynamics.sum_of_squares import PolynomialSystem, bound_average, sum_of_squares
from nearly.errors import InputError, MissingDependency, NotProven


def logistic(y, parameters):
    return (y[0] * (parameters[0] - y[0]),)


def first(y):
    return y[0]


def height(y):
    return y[2]


GROWTH = PolynomialSystem(logistic, first, (Fraction(3),), (1,), (2,), "growth")


def circling(y, parameters):
    """Towards the unit circle, around which it turns."""
    inward = 1 - y[0] * y[0] - y[1] * y[1]
    return y[1] + y[0] * inward, y[1] * inward - y[0]


def squared(y):
    return y[0] * y[0] + y[1] * y[1]


def two(y, parameters):
    return y[0], y[0]


CIRCLE = PolynomialSystem(circling, squared, (), (0, 0), (2, 2), "circle")


def test_a_mean_of_one_variable_is_bounded_by_its_fixed_point():
    """y' = y (3 - y): V = -log y would do; the largest average is 3, at rest."""
    found = bound_average(replace(GROWTH, observable=lambda y: y[0] ** 2), 4)
    np.testing.assert_allclose(found.value, 9, rtol=1e-6)
    assert found.residual < 1e-9 and found.eigenvalue > -1e-6


def test_the_limit_cycle_has_the_largest_mean():
    """The squared radius has mean 1 there, 0 at the centre; V = r^2 / 2 makes S = (1 - r^2)^2."""
    np.testing.assert_allclose(bound_average(CIRCLE, 2).value, 1, rtol=1e-7)


def test_lorenz_height_is_bounded_by_its_fixed_points():
    """The mean of z is at most 27, that of the fixed points (Malkus 1972), by a quadratic V."""
    found = bound_average(replace(LORENZ, observable=height), 2)
    np.testing.assert_allclose(found.value, 27, rtol=1e-6)


def test_symmetry_saves_unknowns_and_changes_no_bound():
    split, whole = sum_of_squares(LORENZ, 4), sum_of_squares(LORENZ, 4, symmetric=False)
    assert len(split.blocks) == 2 and len(whole.blocks) == 1
    assert split.size < 0.7 * whole.size
    np.testing.assert_allclose(split.solve().value, whole.solve().value, rtol=1e-5)


def test_the_box_changes_no_bound():
    other = replace(LORENZ, centre=(0, 0, 20), scale=(15, 18, 20))
    np.testing.assert_allclose(
        bound_average(LORENZ, 4).value, bound_average(other, 4).value, rtol=1e-5
    )


def test_the_slack_is_what_it_says_and_nowhere_negative():
    found = bound_average(LORENZ, 4)
    points = np.random.default_rng(0).normal(size=(50, 3)) * 20 + np.array([0, 0, 25])

    def direct(y):
        rate = jnp.stack(LORENZ.field(y, (10.0, 28.0, 8 / 3)))
        return found.value - y[2] ** 4 - jnp.dot(jax.grad(found.auxiliary)(y), rate)

    with jax.enable_x64(True):
        there = jnp.asarray(points)
        slack = np.asarray(jax.jit(jax.vmap(found.slack))(there))
        np.testing.assert_allclose(slack, jax.jit(jax.vmap(direct))(there), rtol=1e-7, atol=1e-2)
    assert np.min(slack) > -1e-3 * found.value


def test_a_bound_is_proven_in_rationals():
    proven = prove_bound(GROWTH, 2, margin=1e-5)
    assert isinstance(proven.value, Fraction)
    assert 3 <= proven.value <= 3.0001
    # The proof stands by itself: S, in exact arithmetic, has the square completed.
    program = proven.numeric.program
    coefficients = [proven.auxiliary.terms.get(e, 0) for e in program.auxiliary]
    slack = program.slack(proven.value, coefficients)
    a, b, c = (slack.terms.get((i,), Fraction(0)) for i in (2, 1, 0))
    assert all(isinstance(x, (int, Fraction)) for x in (a, b, c))
    assert slack.degree == 2 and a > 0 and 4 * a * c > b * b


def test_lorenz_is_proven_and_what_is_false_is_not():
    proven = prove_bound(LORENZ, 4, margin=1e-5)
    assert 592827 < proven.value < 1.00002 * proven.numeric.value
    with pytest.raises(NotProven, match="larger margin"):
        prove_bound(LORENZ, 4, value=592827)
    with pytest.raises(NotProven, match="rounded constant"):
        prove_bound(shear_flow_system(), 2)
    with pytest.raises(InputError, match="margin 0"):
        prove_bound(LORENZ, 4, margin=0)


def test_the_shear_flow_keeps_its_energy_without_viscosity():
    a = np.random.default_rng(1).normal(size=(5, 9))
    for state in a:
        speeds = np.array(shear_flow_field(state, (np.inf,)))
        assert abs(state @ speeds) < 1e-13
    laminar = np.eye(9)[0]
    np.testing.assert_allclose(shear_flow_field(laminar, (80.0,)), 0, atol=1e-16)
    assert len(sum_of_squares(shear_flow_system(), 2).blocks) == 4


def test_problem_runs_counts_and_proves(fresh_store):
    problem = lorenz_z4()
    frontier = compare(problem, "all", dials=(4,), timed=False)
    ours, whole = list(frontier)
    assert ours.errors["gap"] == pytest.approx(635908 / 592827.338 - 1, rel=1e-3)
    assert ours.work["unknowns"] < whole.work["unknowns"]
    picked = within(0.08, "lorenz-z4", "sum-of-squares", dials=(4,), timed=False)
    assert picked.certificate.label == "PROVEN" and 0.07 < picked.certificate.error <= 0.08


def test_a_bound_below_an_orbit_is_none_and_a_missing_solver_is_named(monkeypatch):
    problem = lorenz_z4()
    assert problem.errors(592000.0)["gap"] == np.inf
    assert problem.errors(2 * 592827.338)["gap"] == pytest.approx(1)

    def missing():
        raise MissingDependency("sums of squares need clarabel: pip install 'nearly[sos]'")

    monkeypatch.setattr(module, "_clarabel", missing)
    trial, _ = run_trial(problem, sum_of_squares, 4, 0)
    assert trial.status == "failed" and "nearly[sos]" in trial.reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sum_of_squares(LORENZ, 3), "degree 3"),
        (lambda: sum_of_squares(LORENZ, 0), "degree 0"),
        (lambda: bound_average(LORENZ, 2), "use a higher degree"),
        (lambda: replace(LORENZ, centre=(0,)), "one number for each"),
        (lambda: replace(LORENZ, scale=(1, 0, 1)), "must be positive"),
        (lambda: sum_of_squares(replace(GROWTH, field=two), 2), "2 components, the box 1"),
        (lambda: shear_flow_system(0.0), "Reynolds number 0"),
        (lambda: TimeAverageBound(LORENZ, best=-1.0), "best average -1"),
        (lambda: TimeAverageBound(LORENZ, best=1.0, dtype="float32"), "float64"),
        (lambda: lorenz_z4().build(3, 4, key=None), "bounds nothing"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
