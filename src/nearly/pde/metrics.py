"""Errors of fields and of rollouts."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def relative_l2(
    prediction: Float[Array, "*field"], truth: Float[Array, "*field"]
) -> Float[Array, ""]:
    """The norm of the difference over the norm of the truth, over all channels and points.

    One sample; map over a batch with `jax.vmap`. Where the truth is zero, the norm of the
    prediction over the smallest positive number.
    """
    tiny = jnp.finfo(truth.dtype).tiny
    # The norm's derivative at zero is not a number; that of the shifted root is zero.
    difference = jnp.sqrt(jnp.sum((prediction - truth) ** 2) + tiny)
    return difference / jnp.sqrt(jnp.sum(truth**2) + tiny)
