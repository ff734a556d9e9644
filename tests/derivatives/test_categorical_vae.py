"""The VAE with categorical latents: its bound, against sums over all codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.derivatives import expectations
from nearly.derivatives.categorical_vae import categorical_vae


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def small() -> tuple[Any, Any]:
    vae = categorical_vae(5, 2, 3, jax.random.key(0), hidden=(4,))
    weights, rest = eqx.partition(vae, eqx.is_inexact_array)
    vae = eqx.combine(jax.tree.map(lambda w: w.astype(jnp.float64), weights), rest)
    return vae, jnp.array([0.0, 1.0, 1.0, 0.0, 0.3])


def test_the_bound_is_the_sum_over_all_codes() -> None:
    vae, image = small()
    q = np.asarray(jax.nn.softmax(vae.logits(image)))
    total = 0.0
    for a, b in np.ndindex(3, 3):
        y = jnp.asarray(np.eye(3)[[a, b]])
        pixels = np.asarray(jax.nn.sigmoid(vae.decoder(y.reshape(-1))))
        log_p = np.sum(image * np.log(pixels) + (1 - image) * np.log(1 - pixels))
        total += q[0, a] * q[1, b] * (np.log(q[0, a] * q[1, b] * 9) - log_p)
    got = vae.negative_elbo(image, None, expectations.exact)
    np.testing.assert_allclose(got, total, rtol=1e-12)


def test_the_bound_lies_above_the_evidence() -> None:
    vae, image = small()
    codes = expectations.all_choices((2, 3)).astype(jnp.float64)
    log_joint = jax.vmap(lambda y: -vae.reconstruction(y, image))(codes) - jnp.log(9)
    evidence = jax.nn.logsumexp(log_joint)
    assert vae.negative_elbo(image, None, expectations.exact) > -evidence


@pytest.mark.parametrize("name", ["reinmax", "straight_through", "reinforce_leave_one_out"])
def test_every_estimator_moves_encoder_and_decoder(name: str) -> None:
    vae, image = small()
    estimate = getattr(expectations, name)
    gradient = eqx.filter_jit(
        eqx.filter_grad(lambda v: v.negative_elbo(image, jax.random.key(1), estimate))
    )(vae)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    assert np.any(gradient.encoder.layers[0].weight) and np.any(gradient.decoder.layers[-1].bias)
