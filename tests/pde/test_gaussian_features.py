"""Trained Gaussians: written-out derivatives, covariances, what trains, and a small equation."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from nearly.core.errors import InputError
from nearly.core.measure import run_trial
from nearly.pde.collocation import Cloud, CollocationLoss
from nearly.pde.equations import jet
from nearly.pde.gaussian_features import (
    DiagonalGaussians,
    FixedMesh,
    GaussianMesh,
    RotatedGaussians,
    RotatedMesh,
    physics_informed_gaussians,
)
from nearly.pde.problems.stationary import Helmholtz, cubic

EQUATION = Helmholtz(waves=(1, 1))


def _network(mesh: GaussianMesh) -> Any:
    """One with weights, widths and axes of all sizes."""
    network = mesh(EQUATION, key=jax.random.key(0), dtype=jnp.float64)
    flat, unravel = ravel_pytree(eqx.filter(network, eqx.is_array))
    moved = unravel(flat + jax.random.normal(jax.random.key(1), flat.shape, flat.dtype))
    return eqx.combine(moved, network)


@pytest.mark.parametrize("mesh", [GaussianMesh(5), RotatedMesh(5), FixedMesh(5)])
def test_written_out_derivatives_are_the_automatic_ones(mesh: GaussianMesh) -> None:
    with jax.enable_x64(True):
        network = _network(mesh)
        x = jnp.array([0.3, -0.7])
        automatic = jax.jit(lambda x: jet(lambda y: network(y), x))(x)
        for own, other in zip(eqx.filter_jit(network.jet)(x), automatic, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-10)


def test_one_gaussian_by_hand() -> None:
    with jax.enable_x64(True):
        raw = jnp.log(jnp.expm1(jnp.array([[[0.5, 2.0]]])))
        feature = DiagonalGaussians(jnp.zeros((1, 1, 2)), raw, jnp.full((1, 1), 3.0))
        found = feature.jet(jnp.array([0.5, 2.0]))  # one width away along both
        bump = 3 * np.exp(-1.0)
        np.testing.assert_allclose(found.value, [bump])
        np.testing.assert_allclose(found.gradient, [[-2 * bump, -0.5 * bump]])
        np.testing.assert_allclose(found.second, np.zeros((1, 2)), atol=1e-12)


def test_rotated_precisions_keep_the_widths() -> None:
    with jax.enable_x64(True):
        raw = jnp.log(jnp.expm1(jnp.array([[[0.5, 2.0, 0.1]]])))
        skew = jnp.array([[[0.3, -1.0, 0.2]]])
        feature = RotatedGaussians(jnp.zeros((1, 1, 3)), raw, skew, jnp.ones((1, 1)))
        # A = S^-1 R: the eigenvalues of A A^T are those of S^-2.
        factor = np.asarray(feature.factors())[0, 0]
        np.testing.assert_allclose(factor @ factor.T, np.diag([4.0, 0.25, 100.0]), atol=1e-10)
        assert np.abs((factor.T @ factor)[0, 1]) > 0.1


def test_only_weights_of_a_fixed_mesh_move() -> None:
    with jax.enable_x64(True):
        network = _network(FixedMesh(3))
        points = jax.random.uniform(jax.random.key(2), (6, 2), jnp.float64)
        loss = CollocationLoss(EQUATION, 1.0)
        slope = eqx.filter_jit(eqx.filter_grad(loss))(network, Cloud(points, points))
        slope = slope.features.inside
        assert not np.any(slope.means)
        assert not np.any(slope.raw_widths)
        assert np.any(slope.weights)


def test_gradients_of_the_loss_are_those_of_differences() -> None:
    with jax.enable_x64(True):
        network = _network(GaussianMesh(2))
        moving, frozen = eqx.partition(network, eqx.is_inexact_array)
        flat, unravel = ravel_pytree(moving)
        points = jax.random.uniform(jax.random.key(3), (4, 2), jnp.float64)
        cloud = Cloud(points, points)

        @jax.jit
        def loss(x: Any) -> Any:
            return CollocationLoss(EQUATION, 0.1)(eqx.combine(unravel(x), frozen), cloud)

        along = jax.random.normal(jax.random.key(4), flat.shape, flat.dtype)
        h = 1e-6
        expected = (loss(flat + h * along) - loss(flat - h * along)) / (2 * h)
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(flat) @ along, expected, rtol=1e-6)


@pytest.mark.slow
def test_a_nonlinear_equation_is_solved() -> None:
    method = physics_informed_gaussians(GaussianMesh(10, spread=0.5), interior=64, face=1)
    trial, _ = run_trial(cubic(amplitude=1.0), method, 300, 0)
    assert trial.errors["relative L2 error"] < 1e-2


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(InputError, match="gaussians=0"):
        GaussianMesh(0)
    with pytest.raises(InputError, match="spread=-1"):
        GaussianMesh(spread=-1.0)
