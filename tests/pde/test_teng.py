"""TENG: tangent spaces, projections to rounding, and the orders of its steps in time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError, PrecisionError
from nearly.pde.equations import InitialValueProblem, Jet
from nearly.pde.natural_gradient import (
    AdamProjection,
    Euler,
    Heun,
    Marching,
    TangentProjection,
    TdvpRungeKutta,
    fit_field,
    step_forward,
)
from nearly.pde.network_manifold import Manifold, manifold, periodic_network
from nearly.pde.problems.evolution import Burgers, Heat


class Growth(InitialValueProblem):
    """u_t = rate u: what a step multiplies the field with is known exactly."""

    rate: float = 1.0
    duration: float = 0.5
    lengths: tuple[float, ...] = (2.0,)

    def right_hand_side(self, jet: Jet, x: Any) -> Any:
        return self.rate * jet.value

    def initial(self, x: Any) -> Any:
        return jnp.sin(jnp.pi * x[0])

    def truth(self, points: Any) -> Any:
        return np.exp(self.rate * self.duration) * np.sin(np.pi * points[:, 0])


def _started(equation: InitialValueProblem, points: int = 32) -> tuple[Manifold, Any]:
    network = periodic_network(equation.lengths, jax.random.key(0), width=8, depth=2)
    grid = equation.grid(points, jnp.float64)
    space, theta = manifold(network, equation, grid)
    target = jax.vmap(equation.initial)(grid)
    theta, _ = fit_field(space, theta, target, jax.random.key(1), tolerance=1e-6)
    return space, theta


def test_the_network_is_periodic() -> None:
    with jax.enable_x64(True):
        network = periodic_network((1.0, 3.0), jax.random.key(0), width=5, depth=3)
        x = jnp.array([0.2, 0.7])
        np.testing.assert_allclose(network(x + jnp.array([1.0, -3.0])), network(x), rtol=1e-12)


def test_the_jacobian_is_that_of_differences() -> None:
    with jax.enable_x64(True):
        space, theta = _started(Growth())
        chosen = jnp.array([3, 17, 30])
        found = space.jacobian(theta, chosen)
        h = 1e-6
        for column, each in enumerate(chosen):
            moved = h * jnp.eye(theta.size)[each]
            slope = (space.values(theta + moved) - space.values(theta - moved)) / (2 * h)
            np.testing.assert_allclose(found[:, column], slope, atol=1e-8)


def test_velocities_are_exact() -> None:
    with jax.enable_x64(True):
        equation = Burgers()
        points = equation.grid(16, jnp.float64)
        network = periodic_network(equation.lengths, jax.random.key(2), width=6, depth=2)
        space, theta = manifold(network, equation, points)
        h = 1e-4
        right, left = (jax.vmap(network)(points + s * h) for s in (1, -1))
        middle = jax.vmap(network)(points)
        first, second = (right - left) / (2 * h), (right - 2 * middle + left) / h**2
        expected = 0.1 * second - middle * first
        np.testing.assert_allclose(space.velocity(theta), expected, atol=1e-5)


def test_a_step_is_projected_and_repeated_with_its_key() -> None:
    with jax.enable_x64(True):
        space, theta = _started(Growth())
        h, key = jnp.asarray(0.01), jax.random.key(3)
        after = step_forward(Euler(), space, theta, h, key)
        target = 1.01 * space.values(theta)
        assert float(jnp.mean((space.values(after) - target) ** 2)) < 1e-11
        np.testing.assert_array_equal(step_forward(Euler(), space, theta, h, key), after)


def test_a_projection_never_moves_away() -> None:
    with jax.enable_x64(True):
        space, theta = _started(Growth())
        target = space.values(theta) + jax.random.normal(jax.random.key(4), (32,), jnp.float64)
        for iterations in (1, 4):
            projection = TangentProjection((iterations, 1), (20, 20))
            after = projection(space, theta, target, 0, jax.random.key(5))
            gaps = [float(jnp.sum((target - space.values(t)) ** 2)) for t in (theta, after)]
            assert gaps[1] <= gaps[0]


def test_an_update_that_reaches_too_far_gives_way_to_a_coarser_one() -> None:
    with jax.enable_x64(True):
        space, theta = _started(Growth())
        wave = 0.3 * jnp.sin(2 * jnp.pi * space.points[:, 0])
        target, cutoff = space.values(theta) + wave, 1e-4

        def gap(theta: Any) -> float:
            return float(jnp.linalg.norm(target - space.values(theta)))

        tangent = np.asarray(space.jacobian(theta, jnp.arange(theta.size)))
        plain = np.linalg.lstsq(tangent, np.asarray(wave), rcond=cutoff)[0]
        assert gap(theta + plain) > gap(theta)  # or this asks nothing
        projection = TangentProjection((1, 1), (theta.size, theta.size), cutoff)
        assert gap(projection(space, theta, target, 0, jax.random.key(8))) < 0.8 * gap(theta)


def test_heun_multiplies_growth_by_its_own_polynomial() -> None:
    """The whole step at once: (1 + h + h^2 / 2) u, which tells Heun from Euler and from exp."""
    with jax.enable_x64(True):
        space, theta = _started(Growth())
        h = 0.2
        after = step_forward(Heun(), space, theta, jnp.asarray(h), jax.random.key(6))
        ratio = space.values(after)[4] / space.values(theta)[4]
        np.testing.assert_allclose(ratio, 1 + h + h**2 / 2, atol=2e-4)
        assert abs(float(ratio) - np.exp(h)) > 1e-3


@pytest.mark.parametrize("step", [TdvpRungeKutta(), Heun(AdamProjection(200, 1e-3))])
def test_the_papers_baselines_follow_the_growth(step: Any) -> None:
    with jax.enable_x64(True):
        space, theta = _started(Growth())
        after = step_forward(step, space, theta, jnp.asarray(0.05), jax.random.key(7))
        expected = np.exp(0.05) * space.values(theta)
        assert float(jnp.max(jnp.abs(space.values(after) - expected))) < 0.02


@pytest.mark.slow
def test_orders_in_time() -> None:
    with jax.enable_x64(True):
        equation = Growth(rate=2.0)
        points = equation.held_out()
        for step, order in ((Euler(), 1), (Heun(), 2)):
            method = Marching(step, width=8, depth=2)
            space, start, _ = method.start(equation, jax.random.key(0))
            errors = [
                float(
                    jnp.max(
                        jnp.abs(
                            space.at_points(method.march(space, start, n, jax.random.key(1)))(
                                jnp.asarray(points)
                            )
                            - equation.truth(points)
                        )
                    )
                )
                for n in (4, 8, 16)
            ]
            rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
            np.testing.assert_allclose(rates, order, atol=0.25)


def test_what_cannot_work_is_named() -> None:
    with pytest.raises(PrecisionError, match="enable_x64"):
        Marching().start(Heat(), jax.random.key(0))
    with jax.enable_x64(True):
        space, theta = _started(Growth(rate=1e200))
        with pytest.raises(InputError, match="no longer follows the equation at t ="):
            Marching(Euler()).march(space, theta, 2, jax.random.key(0))
        with pytest.raises(InputError, match="time steps"):
            Marching().march(space, theta, 0, jax.random.key(0))
    with pytest.raises(InputError, match="width=1"):
        periodic_network((1.0, 1.0), jax.random.key(0), width=1)
    with pytest.raises(InputError, match="iterations"):
        TangentProjection((0, 5))
    with pytest.raises(InputError, match="cutoff=2"):
        TangentProjection(cutoff=2.0)
