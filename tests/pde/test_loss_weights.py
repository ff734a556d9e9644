"""Weights of the residual: fixed, or where both terms of the loss pull equally hard."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.pde.collocation import Collocation, TanhNetwork
from nearly.pde.collocation_points import Kept, Uniform
from nearly.pde.loss_weights import (
    Balanced,
    BalancedGradient,
    CollocationLoss,
    Fixed,
    Weighed,
)
from nearly.pde.problems.stationary import Helmholtz, cubic

HAND = BalancedGradient(every=2, memory=0.75, bounds=(1e-3, 1e3))


def _objective(weights: Weighed) -> Any:
    """Boundary 2 x + y, interior 3 y: gradients (2, 1) and (0, 3)."""
    x, y = weights.network
    return 2 * x + y + weights.weight * 3 * y


def test_the_weight_moves_to_where_both_gradients_are_of_one_size() -> None:
    with jax.enable_x64(True):
        weights = Weighed(jnp.array([1.0, 2.0]), jnp.asarray(0.5))
        value, gradient = HAND(_objective, weights, key=None, step=jnp.asarray(4))
        assert float(value) == 7.0
        np.testing.assert_allclose(gradient.network, [2.0, 2.5])
        equal = math.sqrt(5) / 3  # |boundary's| over |interior's|
        moved = weights.weight - gradient.weight  # a step of descent at rate one
        np.testing.assert_allclose(moved, 0.75 * 0.5 + 0.25 * equal, rtol=1e-12)
        between = HAND(_objective, weights, key=None, step=jnp.asarray(5))[1]
        assert float(between.weight) == 0
        np.testing.assert_array_equal(between.network, gradient.network)


def test_a_boundary_that_holds_exactly_leaves_a_weight() -> None:
    with jax.enable_x64(True):
        weights = Weighed(jnp.array([1.0, 2.0]), jnp.asarray(2e-3))
        clamped = HAND(lambda w: w.weight * w.network.sum(), weights, key=None, step=jnp.asarray(0))
        np.testing.assert_allclose(weights.weight - clamped[1].weight, 0.75 * 2e-3 + 0.25 * 1e-3)


@pytest.mark.slow
def test_where_the_weight_ends_does_not_depend_on_where_it_starts() -> None:
    with jax.enable_x64(True):
        equation = Helmholtz(waves=(1, 1))
        network = TanhNetwork(8, 2)(equation, key=jax.random.key(0), dtype=jnp.float64)
        data = Kept(Uniform(equation, 64, 8, "float64")(jax.random.key(1)))
        ends: list[float] = []
        for start in (1e-5, 1e1):
            loss = CollocationLoss(equation, start)
            same, unmoved = Fixed().adam(loss, network, data, rate=1e-3, steps=2, key=data_key())
            assert unmoved.weight == start and same is not network
            _, moved = Balanced(every=1, memory=0.5).adam(
                loss, network, data, rate=1e-4, steps=30, key=data_key()
            )
            ends.append(float(moved.weight))
        assert ends[0] == pytest.approx(ends[1], rel=0.5)
        assert 1e-5 < ends[0] < 1e1


def data_key() -> Any:
    return jax.random.key(2)


@pytest.mark.slow
def test_a_balanced_network_solves_a_small_equation() -> None:
    from nearly.core.measure import run_trial

    method = Collocation(network=TanhNetwork(8, 2), interior=128, weighting=Balanced())
    trial, _ = run_trial(cubic(), method, 400, 0)
    assert trial.status == "ok"
    assert trial.errors["relative L2 error"] < 0.05


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(InputError, match="every=0"):
        Balanced(every=0)
    with pytest.raises(InputError, match="memory=1"):
        Balanced(memory=1.0)
