"""Networks on residuals: exact boundary data, where points lie, and small equations solved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.core.measure import run_trial
from nearly.pde.collocation import (
    Collocation,
    FourierNetwork,
    HardBoundary,
    TanhNetwork,
    Uniform,
    lift,
)
from nearly.pde.equations import BoundaryValueProblem, Jet, space_time
from nearly.pde.problems.evolution import Heat, allen_cahn
from nearly.pde.problems.stationary import Helmholtz, cubic


class Data(BoundaryValueProblem):
    """Any function as boundary data, in any box."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def residual(self, jet: Jet, x: Any) -> Any:
        return jet.value

    def boundary(self, x: Any) -> Any:
        return jnp.sin(3 * x).sum() + jnp.prod(x)

    def exact(self, x: Any) -> Any:
        return jnp.zeros(())


BOXES = [Data((0.0,), (2.0,)), Data((-1.0, 0.0), (1.0, 3.0)), Data((0.0,) * 3, (1.0,) * 3)]


@pytest.mark.parametrize("equation", BOXES, ids=["1d", "2d", "3d"])
def test_lifts_have_the_boundarys_data(equation: BoundaryValueProblem) -> None:
    with jax.enable_x64(True):
        cloud = Uniform(equation, 4, 8, "float64")(jax.random.key(0))
        data = jax.vmap(equation.boundary)(cloud.boundary)
        np.testing.assert_allclose(jax.vmap(lambda x: lift(equation, x))(cloud.boundary), data)
        clamped = HardBoundary()(equation, key=jax.random.key(1), dtype=jnp.float64)
        np.testing.assert_allclose(jax.vmap(clamped)(cloud.boundary), data, rtol=1e-12)
        gap = jax.vmap(clamped)(cloud.interior) - jax.vmap(lambda x: lift(equation, x))(
            cloud.interior
        )
        assert np.all(np.abs(gap) > 0)


def test_points_lie_on_their_faces() -> None:
    equation = Data((-1.0, 0.0), (1.0, 3.0))
    cloud = Uniform(equation, 10, 5, "float32")(jax.random.key(0))
    assert cloud.interior.shape == (10, 2)
    x, y = np.asarray(cloud.boundary).T.reshape(2, 4, 5)
    for found, value in ((x[0], -1), (x[1], 1), (y[2], 0), (y[3], 3)):
        np.testing.assert_array_equal(found, value)


def test_an_evolution_has_data_at_its_start_and_wraps_around() -> None:
    with jax.enable_x64(True):
        equation = space_time(Heat())
        assert equation.faces == ((2, 0),)
        for factory in (TanhNetwork(8, 1), FourierNetwork(8, 1, 4)):
            network = factory(equation, key=jax.random.key(0), dtype=jnp.float64)
            one = network(jnp.array([0.1, 0.2, 0.3]))
            other = network(jnp.array([0.1 + 2 * np.pi, 0.2 - 2 * np.pi, 0.3]))
            np.testing.assert_allclose(one, other, rtol=1e-10)
        clamped = HardBoundary()(equation, key=jax.random.key(0), dtype=jnp.float64)
        start = jnp.array([0.4, 0.5, 0.0])
        np.testing.assert_allclose(clamped(start), equation.boundary(start))


def test_the_heat_equations_solution_has_no_residual_in_space_time() -> None:
    with jax.enable_x64(True):
        equation = space_time(Heat(diffusivity=0.3))

        def mode(z: Any) -> Any:
            return jnp.exp(-0.3 * 5 * z[2]) * jnp.sin(z[0]) * jnp.cos(2 * z[1])

        from nearly.pde.equations import jets, residuals

        points = jax.random.uniform(jax.random.key(0), (5, 3), jnp.float64)
        np.testing.assert_allclose(residuals(equation, mode, points), 0, atol=1e-12)
        assert jets(mode, points).second.shape == (5, 3)


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
def test_small_equations_are_solved(fresh: bool) -> None:
    method = Collocation(
        network=TanhNetwork(16, 2), interior=64, face=4, weight=1e-2, fresh=fresh, adam=0.5
    )
    trial, _ = run_trial(cubic(amplitude=1.0), method, 600, 0)
    assert trial.errors["relative L2 error"] < 0.02


@pytest.mark.slow
def test_an_evolution_is_solved() -> None:
    method = Collocation(network=HardBoundary(TanhNetwork(16, 2)), interior=256, weight=1.0)
    trial, _ = run_trial(allen_cahn(), method, 800, 0)
    assert trial.errors["relative L2 error"] < 0.05


def test_a_deadline_ends_the_training() -> None:
    method = Collocation(network=TanhNetwork(4, 1), interior=8, face=1, adam=0.0, seconds=1e-3)
    trial, _ = run_trial(cubic(), method, 100_000, 0)
    assert trial.status == "ok"
    assert trial.work["residual evaluations"] < 1000


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(InputError, match="width=0"):
        TanhNetwork(0)
    with pytest.raises(InputError, match="interior=0"):
        Collocation(interior=0)
    with pytest.raises(InputError, match="the dial counts steps"):
        Collocation()(Helmholtz(waves=(1, 1)), 0, key=jax.random.key(0))
    with pytest.raises(InputError, match="adam=2"):
        Collocation(adam=2.0)
    with pytest.raises(InputError, match="scale=0"):
        FourierNetwork(scale=0.0)
    with pytest.raises(InputError, match="empty"):
        Data((1.0,), (0.0,))
    assert Helmholtz(waves=(1, 1)).dimension == 2
