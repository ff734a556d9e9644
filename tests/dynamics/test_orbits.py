"""Periodic orbits: known ones are found, multipliers and averages are right, branches turn."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.dynamics.continuation import continue_orbit, fold
from nearly.dynamics.orbits import extremal_orbits, multipliers, nearest_returns, shoot
from nearly.dynamics.problems.time_average import LORENZ, SHEAR_FLOW_ORBIT, shear_flow
from nearly.dynamics.sum_of_squares import PolynomialSystem, bound_average
from nearly.errors import InputError, PrecisionError


def limit_cycle(y, parameters):
    """r' = r (m + 2 r^2 - r^4), an angle that turns once in 2 pi: cycles for m >= -1."""
    square = y[0] * y[0] + y[1] * y[1]
    growth = parameters[0] + 2 * square - square * square
    return growth * y[0] - y[1], growth * y[1] + y[0]


def height(y):
    return y[0] ** 2


CYCLE = PolynomialSystem(limit_cycle, height, (1.0,), (0, 0), (2, 2), "cycle")
SQUARE = 1 + np.sqrt(2)  # of the radius


@eqx.filter_jit
def shot(start, period):
    return shoot(CYCLE, start, period, most=12)


@pytest.fixture(scope="module")
def cycle():
    with jax.enable_x64(True):
        return shot(jnp.asarray([1.5, 0.1]), jnp.asarray(6.0))


def as_numbers(tree):
    return jax.tree.map(np.asarray, tree)


def test_a_known_cycle_is_found(cycle):
    """Its squared radius is 1 + root 2, and the mean of x^2 half of that."""
    found = as_numbers(cycle)
    assert found.residual < 1e-9
    np.testing.assert_allclose(found.period, 2 * np.pi, rtol=1e-9)
    np.testing.assert_allclose(np.sum(found.start**2), SQUARE, rtol=1e-9)
    np.testing.assert_allclose(found.average, SQUARE / 2, rtol=1e-8)


def test_a_guess_that_leads_nowhere_has_a_large_residual():
    with jax.enable_x64(True):
        lost = as_numbers(shot(jnp.asarray([1e3, 1e3]), jnp.asarray(3.0)))
    assert not lost.residual < 1e-9


@pytest.mark.slow
def test_returns_are_near_on_a_circle():
    with jax.enable_x64(True):
        starts, periods, ratios, averages = as_numbers(
            nearest_returns(CYCLE, jnp.asarray([np.sqrt(SQUARE), 0.0]), 12.0, 4.0, samples=401)
        )
    np.testing.assert_allclose(periods[0], 2 * np.pi, atol=0.05)
    np.testing.assert_allclose(averages[0], SQUARE / 2, rtol=0.01)
    assert ratios[0] < 0.01 and ratios[2] == np.inf and starts.shape == (3, 2)


def test_what_cannot_be_is_refused(cycle):
    with pytest.raises(InputError, match="index 1"):
        continue_orbit(CYCLE, cycle, step=0.1, count=1, index=1)
    with pytest.raises(InputError, match=r"step 0\.0"):
        continue_orbit(CYCLE, cycle, step=0.0, count=1)
    with pytest.raises(InputError, match="does not turn back"):
        fold([cycle])


@pytest.mark.slow
def test_multipliers_are_those_of_the_closed_form(cycle):
    """One is 1, the other what a distance from the cycle shrinks by: a rate of 4 r^2 (r^2 - 1)."""
    with jax.enable_x64(True):
        found = multipliers(CYCLE, cycle)
    np.testing.assert_allclose(found[0], 1, rtol=1e-8)
    shrinks = np.exp(-4 * SQUARE * (SQUARE - 1) * 2 * np.pi)
    np.testing.assert_allclose(found[1], shrinks, atol=1e-8)


@pytest.mark.slow
def test_float32_is_enough_for_a_cycle():
    found = shoot(CYCLE, jnp.asarray([1.5, 0.1], jnp.float32), 6.0)
    assert found.start.dtype == jnp.float32
    np.testing.assert_allclose(found.period, 2 * np.pi, rtol=1e-4)


@pytest.mark.slow
def test_the_branch_turns_where_the_cycles_are_born(cycle):
    """Two cycles, r^2 = 1 +- root(1 + m), meet at m = -1: around the fold the branch goes on."""
    with jax.enable_x64(True):
        branch = [as_numbers(o) for o in continue_orbit(CYCLE, cycle, step=-0.1, count=30)]
    assert all(orbit.residual < 1e-8 for orbit in branch)
    square = np.array([np.sum(o.start**2) for o in branch])
    level = np.array([o.parameters[0] for o in branch])
    np.testing.assert_allclose((square - 1) ** 2, 1 + level, atol=1e-7)
    assert square[-1] < 1 < square[0]
    np.testing.assert_allclose(fold(branch), -1, atol=5e-3)


@pytest.mark.slow
def test_periods_follow_a_parameter_as_the_closed_form_does():
    """theta' = w: the period 2 pi / w has the derivative - 2 pi / w^2."""

    def turning(y, parameters):
        growth = 1 - y[0] * y[0] - y[1] * y[1]
        return growth * y[0] - parameters[0] * y[1], growth * y[1] + parameters[0] * y[0]

    system = replace(CYCLE, field=turning, parameters=(2.0,))
    with jax.enable_x64(True):
        start = shoot(system, jnp.asarray([1.1, 0.0]), 3.0)
        near = as_numbers(continue_orbit(system, start, step=1e-3, count=1)[1])
    start = as_numbers(start)
    np.testing.assert_allclose(start.period, np.pi, rtol=1e-9)
    slope = (near.period - start.period) / (near.parameters[0] - start.parameters[0])
    np.testing.assert_allclose(slope, -2 * np.pi / 4, rtol=2e-3)


@pytest.mark.slow
def test_the_shear_flow_has_the_orbit_it_is_judged_by():
    problem, (start, period) = shear_flow(), SHEAR_FLOW_ORBIT
    with jax.enable_x64(True):
        found = as_numbers(shoot(problem.system, jnp.asarray(start), period, most=5))
    assert found.residual < 1e-10
    np.testing.assert_allclose(found.period, period, rtol=1e-9)
    np.testing.assert_allclose(found.average, problem.best, rtol=1e-9)


@pytest.mark.slow
def test_the_shear_flow_orbit_is_born_where_the_paper_says():
    """Between Reynolds numbers of approximately 81.24 and 125 it is the extremal one."""
    system, (start, period) = shear_flow().system, SHEAR_FLOW_ORBIT
    with jax.enable_x64(True):
        orbit = shoot(system, jnp.asarray(start), period, most=6)
        branch = continue_orbit(system, orbit, step=-0.03, count=19)
    np.testing.assert_allclose(fold(branch), 81.24, atol=5e-3)


@pytest.mark.slow
def test_the_shortest_orbit_of_lorenz_is_found_near_the_zeros_of_the_slack():
    pytest.importorskip("clarabel", reason="sums of squares need clarabel")
    bound = bound_average(LORENZ, 6)
    with pytest.raises(InputError, match=r"shortest period 7"):
        extremal_orbits(bound, jax.random.key(0), length=6.0, shortest=7.0)
    with pytest.raises(PrecisionError, match="enable_x64"):
        extremal_orbits(bound, jax.random.key(0), length=6.0, shortest=0.5)
    with jax.enable_x64(True):
        found = extremal_orbits(bound, jax.random.key(5), length=6.0, shortest=0.5, count=12)
    best, *others = (as_numbers(o) for o in found)
    # Viswanath 2003; Tobasco, Goluskin and Doering 2018
    np.testing.assert_allclose(best.period, 1.5586522107161747, rtol=1e-10)
    np.testing.assert_allclose(best.average, 592827.338, rtol=2e-9)
    assert all(best.average > other.average for other in others)
    assert best.average < bound.value
