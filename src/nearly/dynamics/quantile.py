"""Conditional quantiles by networks (`deep-xva` learns initial margins so)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.training import fit
from nearly.training.architectures import MLP, mlp


@lru_cache(32)  # an optimiser made anew would compile the training loop anew
def _adam(rate: float, iterations: int) -> optax.GradientTransformation:
    return optax.adam(optax.exponential_decay(rate, iterations, 0.01))


class Quantile(eqx.Module):
    """A conditional quantile: `inputs [features] -> number`, see `PinballRegression`."""

    network: MLP
    centre: Float[Array, " features"]
    spread: Float[Array, " features"]
    offset: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, inputs: Float[Array, " features"]) -> Float[Array, ""]:
        raw = self.network((inputs - self.centre) / self.spread)
        return self.offset + self.scale * raw[0]


class _Pinball(eqx.Module):
    level: float

    def __call__(self, model: Quantile, batch: Any, key: Any) -> Array:
        del key
        inputs, targets = batch
        gap = (targets - jax.vmap(model)(inputs)) / model.scale
        return jnp.mean(jnp.maximum(self.level * gap, (self.level - 1) * gap))


class PinballRegression(eqx.Module):
    """The conditional quantile of samples, by a network that minimises the pinball loss.

    **Arguments:** `level` of the quantile, between 0 and 1; `hidden`, `batch`, `iterations` and
    `rate` as in `DeepBSDE`.

    Cost: `iterations * batch` evaluations of the network. A level near 1 learns from few samples:
    `(1 - level) * batch` lie above it.
    """

    level: float = 0.99
    hidden: tuple[int, ...] = (32, 32)
    batch: int = 4096
    iterations: int = 1000
    rate: float = 1e-2

    def __check_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InputError(f"level={self.level} must lie between 0 and 1")

    def __call__(
        self,
        inputs: Float[Array, "samples features"],
        targets: Float[Array, " samples"],
        *,
        key: Any,
    ) -> Quantile:
        """The quantile of the targets, given the inputs."""
        network_key, fit_key = jax.random.split(key)
        sizes = (inputs.shape[1], *self.hidden, 1)
        eps = jnp.finfo(inputs.dtype).eps
        model = Quantile(
            mlp(sizes, network_key, jnp.tanh, 1.0, inputs.dtype),
            jnp.mean(inputs, axis=0),
            jnp.std(inputs, axis=0) + eps,
            jnp.quantile(targets, self.level),
            jnp.std(targets) + eps,
        )
        moves = eqx.tree_at(
            lambda m: m.network,
            jax.tree.map(lambda _: False, model),
            jax.tree.map(eqx.is_inexact_array, model.network),
        )
        trained = fit(
            _Pinball(self.level),
            model,
            (inputs, targets),
            optimizer=_adam(self.rate, self.iterations),
            steps=self.iterations,
            key=fit_key,
            batch=min(self.batch, len(targets)),
            ema=0.99,
            trainable=moves,
        )
        return trained.model
