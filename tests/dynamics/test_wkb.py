"""Truncated WKB: exact cases, Airy's equation, orders, derivatives, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.measure import run_trial
from nearly.dynamics.claims.oscillatory import airy_error
from nearly.dynamics.problems.initial_value import airy, prothero_robinson
from nearly.dynamics.wkb import oscillator_solver, truncated_wkb
from nearly.errors import InputError


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def itself(x):
    return x


def test_a_constant_coefficient_is_solved_exactly():
    """u = cos((x - 1) w / e) + ..., and all terms after the first vanish."""
    x = np.linspace(1, 3, 9)
    solution = truncated_wkb(lambda x: 4.0 + 0 * x, 0.02, (1.0, 3.0), (1.0, 0.6))
    u, slope = solution(jnp.asarray(x))
    phase = 2 * (x - 1) / 0.02
    np.testing.assert_allclose(u, np.cos(phase) + 0.3 * np.sin(phase), atol=1e-11)
    np.testing.assert_allclose(slope, -2 * np.sin(phase) + 0.6 * np.cos(phase), atol=1e-11)
    assert float(solution.error) < 1e-12


def test_the_second_terms_of_the_series():
    """S_1' = -a' / (4 a) and so the amplitude a^(-1/4): by order 1, at the far end."""
    solution = truncated_wkb(itself, 1e-3, (1.0, 2.0), (1.0, 1j), order=1)
    u, _ = solution(jnp.asarray(2.0))
    assert int(solution.order) == 1
    np.testing.assert_allclose(abs(u), 2**-0.25, rtol=1e-3)


def test_errors_fall_as_powers_and_the_estimate_is_theirs():
    at = {e: {n: airy_error(e, n) for n in (1, 2, 3)} for e in (1 / 64, 1 / 128)}
    for n in (1, 2, 3):
        assert abs(np.log2(at[1 / 64][n] / at[1 / 128][n]) - n) < 0.2
    best = airy_error(0.1)
    assert best < airy_error(0.1, 3)
    solution = truncated_wkb(itself, 0.1, (1.0, 2.0), (1.0, 0.0))
    assert 0.03 * best < float(solution.error) < 30 * best
    assert 10 <= int(solution.order) <= 16


def test_as_a_method_of_the_room():
    problem = airy(0.05)
    errors = [run_trial(problem, oscillator_solver, dial, 0)[0] for dial in (1e-3, 1e-8)]
    assert [trial.status for trial in errors] == ["ok", "ok"]
    assert errors[1].errors["l2"] < 1e-8 < errors[0].errors["l2"] < 1e-2
    refused, _ = run_trial(prothero_robinson(), oscillator_solver, 1e-3, 0)
    assert refused.status == "failed" and "Oscillator" in refused.reason


def test_batches_and_derivatives_pass_through():
    def end(epsilon):
        return truncated_wkb(itself, epsilon, (1.0, 2.0), (1.0, 0.0))(jnp.asarray(2.0))[0].real

    both = jax.vmap(end)(jnp.asarray([0.1, 0.05]))
    np.testing.assert_allclose(both, [end(0.1), end(0.05)], rtol=1e-9)
    slope = jax.grad(end)(0.1)
    np.testing.assert_allclose(slope, (end(0.1 + 1e-6) - end(0.1 - 1e-6)) / 2e-6, rtol=1e-5)


def test_what_cannot_be_is_refused():
    for coefficient, epsilon, interval in (
        (lambda x: x - 1.5, 0.1, (1.0, 2.0)),
        (itself, -0.1, (1.0, 2.0)),
        (itself, 0.1, (2.0, 1.0)),
    ):
        with pytest.raises(InputError, match="positive on the whole interval"):
            truncated_wkb(coefficient, epsilon, interval, (1.0, 0.0))
    with pytest.raises(InputError, match="order 31"):
        truncated_wkb(itself, 0.1, (1.0, 2.0), (1.0, 0.0), order=31)
    with pytest.raises(InputError, match="nodes 2"):
        truncated_wkb(itself, 0.1, (1.0, 2.0), (1.0, 0.0), nodes=2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="positive on the whole"):
        jax.jit(lambda e: truncated_wkb(itself, e, (1.0, 2.0), (1.0, 0.0)).amplitudes)(-0.1)
