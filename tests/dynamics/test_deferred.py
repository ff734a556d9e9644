"""Deferred corrections: their weights are exact, and what depends on a history."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from nearly.dynamics.chord import GivenFactors, root
from nearly.dynamics.deferred import DeferredBDF2, Mesh, deferred_bdf
from nearly.errors import InputError


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    "times", [(0.0, 1.0, 2.0, 3.0), (0.0, 1e-3, 0.7, 0.71), (0.0, 2.0, 2.1, 9.0)]
)
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_corrections_are_exact_for_polynomials(times, degree):
    """P' - D P of P = t^(degree + 1) at the last time, D from its definition."""
    times = np.array(times)
    tau, before = times[3] - times[2], times[2] - times[1]
    r = tau / before
    p, slope = times ** (degree + 1), (degree + 1) * times**degree
    difference = (1 + 2 * r) / (tau * (1 + r)) * (p[3] - p[2])
    difference -= r**2 / (tau * (1 + r)) * (p[2] - p[1])
    mesh = Mesh(jnp.asarray(tau), jnp.asarray((times[2::-1] - times[3]) / tau))
    slopes = jnp.asarray(slope[2::-1])[:, None]
    for points in (3, 4):
        if degree < points:
            got = mesh.correction(jnp.asarray(slope[3:]), slopes, points)[0]
            np.testing.assert_allclose(got, slope[3] - difference, rtol=1e-9, atol=1e-9)


def decay(t, y, args):
    return -2 * (y - jnp.cos(t)) - jnp.sin(t)


def test_the_estimate_of_the_global_error_is_that_of_the_level_below():
    def run(corrections):
        return dfx.diffeqsolve(
            dfx.ODETerm(decay),
            DeferredBDF2(corrections, together=None),
            0.0,
            1.0,
            1 / 32,
            jnp.ones(1),
            saveat=dfx.SaveAt(t1=True, solver_state=True),
        )

    plain, corrected = run(0), run(1)
    error = plain.ys[-1] - np.cos(1.0)
    apart = DeferredBDF2(1, together=None)
    estimate = apart.global_error(corrected.solver_state)
    np.testing.assert_allclose(-estimate, error, rtol=0.1)
    np.testing.assert_allclose(apart.global_error(plain.solver_state), 0)
    with pytest.raises(InputError, match="together=None"):
        DeferredBDF2(1).global_error(corrected.solver_state)


def relaxation(t, y, args):
    """Van der Pol's equation: slow, then a thousand times as fast."""
    return jnp.stack([y[1], 1000 * ((1 - y[0] ** 2) * y[1]) - y[0]])


@pytest.mark.parametrize("together", [20, None])
def test_levels_that_meet_are_of_use_to_each_other_for_long(together):
    """Apart, u is late by whole transitions, and its matrix does not fit z's equations."""
    found = dfx.diffeqsolve(
        dfx.ODETerm(relaxation),
        deferred_bdf(4, together),
        0.0,
        2000.0,
        None,
        jnp.array([2.0, 0.0]),
        stepsize_controller=dfx.PIDController(rtol=1e-4, atol=1e-7),
        max_steps=1000,
        throw=False,
    )
    if together is None:
        assert found.result == dfx.RESULTS.max_steps_reached
    else:
        np.testing.assert_allclose(found.ys[-1, 0], 1.706167732170469, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("together", [6, 20])
def test_levels_that_meet_stir_up_nothing_that_lasts(together):
    """y' = z y, |z| from 1 to 1e6 steps, 95 degrees from the positive axis (100 where they meet
    every six): it must decay."""
    angle = np.deg2rad(95 if together == 20 else 100)

    @jax.vmap
    def end(size):
        matrix = size * jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: matrix @ y),
            deferred_bdf(4, together),
            0.0,
            240.0,
            1.0,
            jnp.array([1.0, 0.0]),
        ).ys[-1]

    sizes = end(jnp.logspace(0, 6, 25))
    assert np.max(np.linalg.norm(sizes, axis=1)) < 1e-3


def test_a_jump_begins_a_new_history():
    """The field changes at 1/2: without the restart the order would be lost there."""

    def field(t, y, args):
        return jnp.where(t < 0.5, -y, 3 * y)

    found = dfx.diffeqsolve(
        dfx.ODETerm(field),
        deferred_bdf(4),
        0.0,
        1.0,
        None,
        jnp.ones(1),
        stepsize_controller=dfx.ClipStepSizeController(
            dfx.PIDController(rtol=1e-7, atol=1e-9), jump_ts=[0.5]
        ),
    )
    np.testing.assert_allclose(found.ys[-1], np.exp(1.0), rtol=1e-5)


def test_an_iteration_that_does_not_converge_fails_the_step():
    solve = lambda r: 3 * r  # noqa: E731
    _, result = root(lambda y: y, solve, jnp.ones(2), GivenFactors(), 10)
    assert result != optx.RESULTS.successful
    value, result = root(lambda y: y - 2, lambda r: 0.9 * r, jnp.ones(2), GivenFactors(), 20)
    assert result == optx.RESULTS.successful
    np.testing.assert_allclose(value, 2, rtol=1e-9)


def test_the_derivative_of_a_root_is_not_that_of_the_iteration():
    def at(a):
        return root(lambda y: y**2 - a, lambda r: r / 3, jnp.ones(1), GivenFactors(), 60)[0][0]

    np.testing.assert_allclose(jax.grad(at)(2.0), 0.5 / np.sqrt(2.0), rtol=1e-10)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="corrections 3"):
        DeferredBDF2(3)
    with pytest.raises(InputError, match="iterations 1"):
        DeferredBDF2(iterations=1)
    with pytest.raises(InputError, match="parts 0"):
        DeferredBDF2(parts=0)
    with pytest.raises(InputError, match="together 5 must be at least 6"):
        DeferredBDF2(together=5)
    with pytest.raises(InputError, match="order 5"):
        deferred_bdf(5)
    with pytest.raises(InputError, match="rtol 2"):
        GivenFactors(rtol=2.0)
