"""Learned directions: the loss by hand, what the network is like, that bad ones do no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.tree_util import Partial

from nearly.core.errors import InputError
from nearly.linear.flexible_cg import FlexibleConjugateGradient
from nearly.linear.grids import poisson_with_obstacles, random_side
from nearly.linear.learned_direction import (
    DeepConjugateDirection,
    DirectionNetwork,
    LearnedDirection,
    Recipe,
    deep_conjugate_direction,
    direction_loss,
    ritz_mixtures,
)

SMALL = Recipe(shape=(16, 16), channels=4, pairs=(1, 2, 1), krylov=60, steps=250, rate=5e-3)


@pytest.fixture(scope="module")
def network(tmp_path_factory: Any) -> DirectionNetwork:
    return SMALL.train(checkpoint=tmp_path_factory.mktemp("networks") / "small.npz")


@pytest.fixture
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def test_the_loss_is_what_the_best_step_leaves() -> None:
    a = jnp.diag(jnp.asarray([1.0, 4.0]))
    operator = lx.MatrixLinearOperator(a, lx.positive_semidefinite_tag)
    unit = jnp.asarray([0.6, 0.8])
    # Along (1, 1): the image is (1, 4), q.b = 1.4, q.Aq = 5.
    left = np.array([0.6, 0.8]) - 1.4 / 5 * np.array([1, 4])
    for direction in (jnp.ones(2), -7 * jnp.ones(2)):
        loss = direction_loss(Partial(lambda q, b: q, direction), operator, unit)
        np.testing.assert_allclose(loss, left @ left, rtol=1e-6)


def test_mixtures_are_units_rich_in_low_vectors() -> None:
    values = jnp.arange(1.0, 41.0)
    drawn = ritz_mixtures(jnp.eye(40), values, 4000, jax.random.key(0))
    np.testing.assert_allclose(jnp.linalg.norm(drawn, axis=1), 1, rtol=1e-5)
    strength = np.sqrt(np.mean(np.asarray(drawn) ** 2, axis=0))
    assert np.ptp(strength[:22]) < 0.2 * strength[:22].mean()  # half of 40 and a twentieth more
    np.testing.assert_allclose(strength[:22].mean() / strength[22:].mean(), 9, rtol=0.05)


def test_mixtures_leave_out_the_kernel() -> None:
    drawn = ritz_mixtures(jnp.eye(3), jnp.asarray([1e-12, 1.0, 2.0]), 10, jax.random.key(0))
    assert np.all(np.asarray(drawn[:, 0]) == 0)


@pytest.mark.parametrize("shape", [(9, 12), (6, 5, 8)])
def test_networks_fit_grids_of_any_size(shape: tuple[int, ...]) -> None:
    network = DirectionNetwork(len(shape), jax.random.key(0), channels=2, pairs=(1, 1, 1))
    residual = jax.random.normal(jax.random.key(1), shape, jnp.float32)
    assert network(residual).shape == shape
    batch = jax.vmap(network)(jnp.stack([residual, -residual]))
    np.testing.assert_allclose(batch[0], network(residual), rtol=1e-4, atol=1e-6)
    assert network.flops(shape) > 0


def test_directions_scale_with_nothing_and_stay_out_of_obstacles() -> None:
    network = DirectionNetwork(2, jax.random.key(0), channels=2, pairs=(1, 1, 1))
    mask = jnp.ones((8, 8), bool).at[2:4, 3].set(False)
    learned = LearnedDirection(network, mask)
    residual = jax.random.normal(jax.random.key(1), (8, 8), jnp.float32)
    direction = learned(residual)
    np.testing.assert_allclose(direction, learned(1e6 * residual), rtol=1e-4, atol=1e-6)
    assert np.all(np.asarray(direction)[~np.asarray(mask)] == 0)
    assert np.all(np.isfinite(learned(jnp.zeros((8, 8), jnp.float32))))


def steps_to(rtol: float, operator: Any, preconditioner: Any) -> int:
    solver = FlexibleConjugateGradient(rtol, preconditioner=preconditioner, max_steps=500)
    side = random_side(operator.shape, jax.random.key(3), jnp.float64)
    if operator.mask is not None:
        side = jnp.where(operator.mask, side, 0)
    solution = lx.linear_solve(operator, side, solver, throw=False)
    residual = jnp.linalg.norm(side - operator.mv(solution.value))
    converged = bool(residual <= 1.01 * rtol * jnp.linalg.norm(side))
    assert converged == (solution.result == lx.RESULTS.successful)
    return int(solution.stats["num_steps"])


@pytest.mark.usefixtures("double_precision")
def test_training_makes_the_iteration_short(network: DirectionNetwork) -> None:
    operator = poisson_with_obstacles((24, 24), jax.random.key(1), jnp.float64, obstacles=2)
    plain = steps_to(1e-6, operator, None)
    learned = steps_to(1e-6, operator, DeepConjugateDirection(network))
    untrained = DirectionNetwork(2, jax.random.key(9), channels=4, pairs=(1, 2, 1))
    assert learned < 0.6 * plain
    assert steps_to(1e-6, operator, DeepConjugateDirection(untrained)) > learned


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_training_helps_in_three_dimensions_too() -> None:
    recipe = Recipe((12, 12, 12), channels=4, pairs=(1, 2, 1), krylov=80, steps=300, rate=5e-3)
    operator = poisson_with_obstacles((18, 18, 18), jax.random.key(1), jnp.float64, obstacles=2)
    learned = steps_to(1e-6, operator, DeepConjugateDirection(recipe.train()))
    assert learned < steps_to(1e-6, operator, None)  # a little: so much training for a second


def test_training_takes_up_its_checkpoint(network: DirectionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "short.npz"
    short = Recipe(shape=(8, 8), channels=2, pairs=(1, 1, 1), krylov=20, steps=3)
    first = short.train(checkpoint=path)
    again = short.train(checkpoint=path)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, first.last.weight, again.last.weight))


def test_what_has_no_grid_is_refused() -> None:
    with pytest.raises(InputError, match="dimension 1"):
        DirectionNetwork(1, jax.random.key(0))
    with pytest.raises(InputError, match="0 channels"):
        DirectionNetwork(2, jax.random.key(0), channels=0)
    with pytest.raises(InputError, match=r"shape \(4,\)"):
        DirectionNetwork(2, jax.random.key(0), channels=2)(jnp.ones((4,)))
    operator = lx.MatrixLinearOperator(jnp.eye(3), lx.positive_semidefinite_tag)
    with pytest.raises(InputError, match="dimension 2 or 3"):
        deep_conjugate_direction(operator)
