"""HOStS, drift-implicit Euler and the step sizes of the Cox-Ingersoll-Ross equation."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.cir import DIE, CIRStepSize, CIRTerm, HOStS


class NoNoise(dfx.AbstractBrownianPath[Any]):
    """A path that stands still."""

    t0: float = 0.0
    t1: float = 10.0
    levy_area: Any = eqx.field(static=True, default=dfx.SpaceTimeLevyArea)

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        zero = jnp.zeros(2, jnp.float64)
        return dfx.SpaceTimeLevyArea(dt=t1 - t0, W=zero, H=zero) if use_levy else zero


def solved(solver: Any, steps: int, term: CIRTerm, start: Any, end: float = 1.0) -> Any:
    return dfx.diffeqsolve(term, solver, 0.0, end, end / steps, start, max_steps=None).ys[-1]


def test_without_noise_hosts_follows_the_drift_exactly() -> None:
    with jax.enable_x64(True):
        start = jnp.array([0.7, 3.0])
        term = CIRTerm(1.3, 0.9, 0.8, NoNoise())
        level = 0.9 - 0.8**2 / (4 * 1.3)
        exact = level + (start - level) * np.exp(-1.3)
        np.testing.assert_allclose(solved(HOStS(), 3, term, start), exact, rtol=1e-13)


def test_die_solves_the_implicit_equation_of_the_root() -> None:
    """x1 = x0 + h (a c / x1 - a x1) / 2 for x the square root, without noise."""
    with jax.enable_x64(True):
        start = jnp.array([0.7, 3.0])
        a, h = 1.3, 0.5
        root = np.sqrt(solved(DIE(), 1, CIRTerm(a, 0.9, 0.8, NoNoise()), start, h))
        level = 0.9 - 0.8**2 / (4 * a)
        step = h * (a * level / root - a * root) / 2
        np.testing.assert_allclose(root, np.sqrt(start) + step, rtol=1e-13)


def adaptive(tolerance: float, key: Any, start: Any, **settings: Any) -> dfx.Solution:
    path = GridBrownianPath(key, 0.0, 1.0, 64, (), dfx.SpaceTimeLevyArea, refinements=3)
    return dfx.diffeqsolve(
        CIRTerm(1.0, 1.0, 2.2, path),
        HOStS(),
        *(0.0, 1.0, None, start),
        stepsize_controller=CIRStepSize(tolerance, 2.0**-9),
        max_steps=1024,
        throw=False,
        **settings,
    )


def test_adaptive_steps_follow_the_rule_and_keep_the_mean() -> None:
    tolerance, count = 0.03, 200
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), count)
        start = jnp.full(count, 3.0)

        @jax.jit
        @jax.vmap
        def run(key: Any, start: Any) -> Any:
            saved = dfx.SaveAt(t0=True, steps=True)
            solution = adaptive(tolerance, key, start, saveat=saved)
            return solution.ts, solution.ys, solution.result == dfx.RESULTS.max_steps_reached

        ts, ys, gave_up = (np.asarray(x) for x in run(keys, start.at[0].set(jnp.nan)))
        assert gave_up[0] and not np.any(gave_up[1:])
        ends = ys[ts == 1.0]
        exact = 1 + 2 * np.exp(-1.0)
        assert abs(ends.mean() - exact) < 4.5 * ends.std() / np.sqrt(count)
    used = np.isfinite(ts[1])
    times, values = ts[1][used], ys[1][used]
    allowed = np.maximum(np.cbrt(tolerance * np.maximum(values, 0)) ** 2, 2.0**-9)
    steps = np.diff(times)
    assert np.all(steps < 1.1 * np.minimum(allowed[:-1], allowed[1:]) * (1 + 1e-9))
    assert steps.max() > 5 * steps.min()


@pytest.mark.slow
def test_an_ordinary_solver_takes_the_term() -> None:
    with jax.enable_x64(True):
        path = GridBrownianPath(jax.random.key(0), 0.0, 1.0, 64, (50,), dfx.SpaceTimeLevyArea)
        term = CIRTerm(1.0, 1.0, 0.4, path)
        ours, usual = (solved(solver, 64, term, jnp.ones(50)) for solver in (HOStS(), dfx.Heun()))
        np.testing.assert_allclose(ours, usual, atol=0.02)


def test_mistakes_name_value_and_remedy() -> None:
    path = GridBrownianPath(jax.random.key(0), 0.0, 1.0, 4)
    start = jnp.float32(1)
    with pytest.raises(InputError, match=r"volatility=0\.0 must be positive"):
        CIRTerm(1.0, 1.0, 0.0, path)
    with pytest.raises(InputError, match=r"tolerance=-1\.0 must be positive"):
        CIRStepSize(-1.0, 1e-3)
    with pytest.raises(InputError, match="SpaceTimeLevyArea, not BrownianIncrement"):
        dfx.diffeqsolve(CIRTerm(1.0, 1.0, 1.0, path), HOStS(), 0.0, 1.0, 0.25, start)
    with pytest.raises(InputError, match="pass dt0=None"):
        dfx.diffeqsolve(
            CIRTerm(1.0, 1.0, 1.0, path),
            DIE(),
            *(0.0, 1.0, 0.25, start),
            stepsize_controller=CIRStepSize(0.1, 0.01),
        )
