"""Expectations over categorical choices, as scalars that JAX can differentiate.

A method of the protocol "gradient-estimators" is a function

    (objective, logits, key) -> scalar

whose value estimates E objective(y), y one-hot with probabilities softmax(logits), and whose
gradient with respect to anything (the logits, and whatever the objective closes over, as the
weights of a decoder) is an estimate of the gradient of that expectation. It drops into any loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.derivatives import straight_through as samplers
from nearly.derivatives.straight_through import Logits

Objective = Callable[[Any], Any]
Sampler = Callable[..., tuple[Any, Any]]

MOST_CHOICES = 2**16  # how many joint choices are enumerated at most


class Pathwise(eqx.Module):
    """The objective at one draw of a sampler that pretends to be smooth.

    **Arguments:**

    - `sampler`: `(logits, key) -> (one_hot, probabilities)`, as those of `straight_through`.

    **Cost:** one evaluation of the objective and its gradient.
    """

    sampler: Sampler

    def __call__(self, objective: Objective, logits: Logits, key: Any) -> Float[Array, ""]:
        return objective(self.sampler(logits, key)[0])


straight_through = Pathwise(samplers.straight_through)
gumbel_straight_through = Pathwise(samplers.gumbel_straight_through)
gumbel_rao = Pathwise(samplers.gumbel_rao)
reinmax = Pathwise(samplers.reinmax)


class LeaveOneOut(eqx.Module):
    """REINFORCE with the mean of the *other* samples as the baseline: no bias.

    **Arguments:**

    - `samples`: evaluations of the objective, at least 2. The gradient with respect to y is never
      asked for, so the objective may be discontinuous.
    """

    samples: int = 4

    def __check_init__(self) -> None:
        if self.samples < 2:
            raise InputError(f"samples={self.samples} must be at least 2: each needs another one")

    def __call__(self, objective: Objective, logits: Logits, key: Any) -> Float[Array, ""]:
        keys = jax.random.split(key, self.samples)
        draws = jax.vmap(lambda k: samplers.sample(logits, k))(keys)
        values = jax.vmap(objective)(jax.lax.stop_gradient(draws))
        score = jax.vmap(lambda y: _log_probability(y, logits))(draws)
        # f_k - mean of the others = (f_k - mean of all) K / (K - 1)
        gain = jax.lax.stop_gradient(values - jnp.mean(values)) * self.samples / (self.samples - 1)
        return jnp.mean(values) + jnp.mean(gain * (score - jax.lax.stop_gradient(score)))


reinforce_leave_one_out = LeaveOneOut()


def exact(objective: Objective, logits: Logits, key: Any = None) -> Float[Array, ""]:
    """The expectation itself, over all joint choices.

    Raises `InputError` for more than 2^16 of them. **Cost:** classes^latents evaluations.
    """
    choices = all_choices(logits.shape).astype(logits.dtype)
    probabilities = jax.nn.softmax(logits)
    joint = jax.vmap(lambda y: jnp.prod(jnp.sum(y * probabilities, -1)))(choices)
    return jnp.sum(joint * jax.vmap(objective)(choices))


def all_choices(shape: tuple[int, ...]) -> Float[Array, " choices *shape"]:
    """Every joint choice of one-hots `[..., classes]`; raises `InputError` if they are too many."""
    *leading, classes = shape
    latents = math.prod(leading)
    if classes**latents > MOST_CHOICES:
        raise InputError(
            f"{latents} choices among {classes} are {classes}^{latents} joint choices, more than "
            f"{MOST_CHOICES}: use a sampling estimator"
        )
    indices = np.array(list(itertools.product(range(classes), repeat=latents)))
    return jnp.asarray(np.eye(classes, dtype=np.float32)[indices].reshape(-1, *shape))


def _log_probability(one_hot: Logits, logits: Logits) -> Float[Array, ""]:
    # A masked class is never drawn; its log-probability of -inf must not meet the zero of one_hot.
    drawn = jnp.where(one_hot > 0, jax.nn.log_softmax(logits), 0)
    return jnp.sum(drawn)
