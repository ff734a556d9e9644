"""Periodic orbits: known ones are found, multipliers and averages are right, branches turn."""

from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.dynamics.continuation import continue_orbit, fold
from nearly.dynamics.orbits import extremal_orbits, multipliers, nearest_returns, shoot
from nearly.dynamics.problems.time_average import LORENZ
from nearly.dynamics.sum_of_squares import PolynomialSystem, bound_average
from nearly.errors import InputError


def limit_cycle(y, parameters):
    """r' = r (m + 2 r^2 - r^4), an angle that turns once in 2 pi: cycles for m >= -1."""
    square = y[0] * y[0] + y[1] * y[1]
    growth = parameters[0] + 2 * square - square * square
    return growth * y[0] - y[1], growth * y[1] + y[0]


def height(y):
    return y[0] ** 2


CYCLE = PolynomialSystem(limit_cycle, height, (Fraction(0),), (0, 0), (2, 2), "cycle")


@pytest.fixture(scope="module")
def cycle():
    with jax.enable_x64(True):
        return shoot(CYCLE, jnp.asarray([1.3, 0.1]), 6.0)


def test_a_known_cycle_is_found(cycle):
    """At m = 0 the radius is root 2, the mean of x^2 is 1, and r - root 2 decays at rate 8."""
    assert cycle.residual < 1e-9
    np.testing.assert_allclose(cycle.period, 2 * np.pi, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(cycle.start), np.sqrt(2), rtol=1e-9)
    np.testing.assert_allclose(cycle.average, 1, rtol=1e-8)
    with jax.enable_x64(True):
        found = multipliers(CYCLE, cycle)
    np.testing.assert_allclose(found, [1, np.exp(-16 * np.pi)], atol=1e-8)


def test_float32_is_enough_for_a_cycle():
    found = shoot(CYCLE, jnp.asarray([1.3, 0.1], jnp.float32), 6.0)
    assert found.start.dtype == jnp.float32
    np.testing.assert_allclose(found.period, 2 * np.pi, rtol=1e-4)


def test_a_guess_that_leads_nowhere_has_a_large_residual():
    with jax.enable_x64(True):
        lost = shoot(CYCLE, jnp.asarray([1e3, 1e3]), 3.0, most=3)
    assert not lost.residual < 1e-9


def test_returns_are_near_on_a_circle():
    with jax.enable_x64(True):
        starts, periods, ratios = nearest_returns(
            CYCLE, jnp.asarray([np.sqrt(2), 0.0]), 16.0, 4.0, samples=401
        )
    np.testing.assert_allclose(periods[:2], 2 * np.pi, atol=0.05)
    assert ratios[0] < 0.01 and starts.shape == (3, 2)
    assert np.isfinite(np.asarray(periods)).all()


def test_the_branch_turns_where_the_cycles_are_born(cycle):
    """Two cycles, r^2 = 1 +- root(1 + m), meet at m = -1: around the fold the branch goes on."""
    system = replace(CYCLE, parameters=(1.0,))  # a parameter of 0 has no scale
    with jax.enable_x64(True):
        start = shoot(system, jnp.asarray([1.5, 0.0]), 6.0)
        branch = continue_orbit(system, start, step=-0.1, count=26)
    assert all(orbit.residual < 1e-8 for orbit in branch)
    square = np.array([float(jnp.sum(o.start**2)) for o in branch])
    level = np.array([float(o.parameters[0]) for o in branch])
    np.testing.assert_allclose((square - 1) ** 2, 1 + level, atol=1e-7)
    assert square[-1] < 1 < square[0]
    np.testing.assert_allclose(fold(branch), -1, atol=1e-3)


def test_the_gradient_of_a_period_is_that_of_the_closed_form():
    """theta' = w: the period 2 pi / w has derivative - 2 pi / w^2."""

    def turning(y, parameters):
        growth = 1 - y[0] * y[0] - y[1] * y[1]
        return growth * y[0] - parameters[0] * y[1], growth * y[1] + parameters[0] * y[0]

    system = replace(CYCLE, field=turning, parameters=(2.0,))
    with jax.enable_x64(True):
        start = shoot(system, jnp.asarray([1.1, 0.0]), 3.0)
        np.testing.assert_allclose(start.period, np.pi, rtol=1e-9)
        near = continue_orbit(system, start, step=1e-3, count=1)[1]
    slope = (near.period - start.period) / (near.parameters[0] - start.parameters[0])
    np.testing.assert_allclose(slope, -2 * np.pi / 4, rtol=2e-3)


def test_what_cannot_be_is_refused(cycle):
    with pytest.raises(InputError, match="index 1"):
        continue_orbit(CYCLE, cycle, step=0.1, count=1, index=1)
    with pytest.raises(InputError, match=r"parameter 0\.0"):
        continue_orbit(CYCLE, cycle, step=0.1, count=1)
    with pytest.raises(InputError, match="does not turn back"):
        fold([cycle])


@pytest.mark.slow
def test_the_shortest_orbit_of_lorenz_is_found_near_the_zeros_of_the_slack():
    pytest.importorskip("clarabel", reason="sums of squares need clarabel")
    bound = bound_average(LORENZ, 6)
    with pytest.raises(InputError, match="shortest period 7"):
        extremal_orbits(bound, jax.random.key(0), length=6.0, shortest=7.0)
    with jax.enable_x64(True):
        best, *others = extremal_orbits(bound, jax.random.key(5), length=6.0, shortest=0.5, count=8)
    # Viswanath 2003; Tobasco, Goluskin and Doering 2018
    np.testing.assert_allclose(best.period, 1.5586522107161747, rtol=1e-10)
    np.testing.assert_allclose(best.average, 592827.338, rtol=2e-9)
    assert all(best.average > other.average for other in others)
    assert best.average < bound.value
