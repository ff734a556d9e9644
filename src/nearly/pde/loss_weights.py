"""The loss of a network on an equation's residual, and how its two terms are weighed.

`Fixed` weights are a setting. `Balanced` ones follow the gradients: boundary and interior pull
equally hard at the weights of the network, whatever the units of the residual.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.pde.collocation_points import Cloud
from nearly.pde.equations import BoundaryValueProblem, residuals
from nearly.training import fit

REACH = 1e6  # a weight moves at most so many times from where it starts, up or down


class CollocationLoss(eqx.Module):
    """mean (u - data)^2 on the boundary + weight * mean residual^2 inside."""

    equation: BoundaryValueProblem
    weight: Any

    def __call__(self, network: Any, cloud: Cloud, key: Any = None) -> Float[Array, ""]:
        inside = residuals(self.equation, network, cloud.interior)
        missing = jax.vmap(network)(cloud.boundary) - jax.vmap(self.equation.boundary)(
            cloud.boundary
        )
        return jnp.mean(missing**2) + self.weight * jnp.mean(inside**2)


class Weighting(eqx.Module):
    """How the residual's weight is found while Adam trains."""

    @abstractmethod
    def adam(
        self, loss: CollocationLoss, network: Any, data: Any, *, rate: float, steps: int, key: Any
    ) -> tuple[Any, CollocationLoss]:
        """The network after so many steps of Adam, and the loss with the weight at their end."""


class Fixed(Weighting):
    """The weight stays what it is."""

    def adam(
        self, loss: CollocationLoss, network: Any, data: Any, *, rate: float, steps: int, key: Any
    ) -> tuple[Any, CollocationLoss]:
        return _fitted(loss, network, data, _adam(rate, steps), steps, key, None), loss


class Balanced(Weighting):
    """The weight at which both terms' gradients are of one size, as a moving average.

    **Arguments:** `every`: steps between two looks at the gradients; `memory`: of the average.
    The method of Wang, Teng and Perdikaris (SIAM J. Sci. Comput. 43, 2021) with norms in place of
    a maximum over a mean, and the weight on the residual in place of the boundary.

    It starts from the loss's weight and stays within a million times of it, so that it does not
    vanish where the boundary's data hold exactly. L-BFGS, which needs one loss, keeps the weight
    that Adam ends with. **Cost:** one more gradient of the loss in `every` steps.
    """

    every: int = eqx.field(default=10, static=True)
    memory: float = eqx.field(default=0.9, static=True)

    def __check_init__(self) -> None:
        if self.every < 1 or not 0 <= self.memory < 1:
            raise InputError(
                f"every={self.every} must be at least 1, memory={self.memory} in [0, 1)"
            )

    def adam(
        self, loss: CollocationLoss, network: Any, data: Any, *, rate: float, steps: int, key: Any
    ) -> tuple[Any, CollocationLoss]:
        start = jnp.asarray(loss.weight, _dtype(network))
        bounds = (loss.weight / REACH, loss.weight * REACH)
        trained = _fitted(
            WeighedLoss(loss.equation),
            Weighed(network, start),
            data,
            _adam_beside(rate, steps),
            steps,
            key,
            BalancedGradient(self.every, self.memory, bounds),
        )
        return trained.network, CollocationLoss(loss.equation, trained.weight)


class Weighed(eqx.Module):
    """A network and the weight of its residual, which moves beside it."""

    network: Any
    weight: Any


class WeighedLoss(eqx.Module):
    """The loss of a network with the weight that it carries."""

    equation: BoundaryValueProblem

    def __call__(self, model: Weighed, cloud: Cloud, key: Any = None) -> Float[Array, ""]:
        return CollocationLoss(self.equation, model.weight)(model.network, cloud, key)


class BalancedGradient(eqx.Module):
    """What `fit` takes for a gradient: the network's own, and how far the weight is to move."""

    every: int = eqx.field(static=True)
    memory: float = eqx.field(static=True)
    bounds: tuple[float, float] = eqx.field(static=True)

    def __call__(self, objective: Any, weights: Weighed, *, key: Any, step: Any) -> Any:
        del key
        value, gradient = jax.value_and_grad(objective)(weights)

        def moved() -> Array:
            alone = jax.grad(objective)(Weighed(weights.network, jnp.zeros_like(weights.weight)))
            boundary = alone.network
            inside = jax.tree.map(jnp.subtract, gradient.network, boundary)
            size = jnp.maximum(optax.tree.norm(inside), jnp.finfo(weights.weight.dtype).tiny)
            equal = jnp.clip(weights.weight * optax.tree.norm(boundary) / size, *self.bounds)
            return (1 - self.memory) * (weights.weight - equal)

        due = jax.lax.cond(step % self.every == 0, moved, lambda: jnp.zeros_like(weights.weight))
        return value, Weighed(gradient.network, due)


def _dtype(network: Any) -> Any:
    return jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))[0].dtype


def _fitted(
    loss: Any, network: Any, data: Any, optimizer: Any, steps: int, key: Any, gradient: Any
) -> Any:
    trained = fit(loss, network, data, optimizer=optimizer, steps=steps, key=key, gradient=gradient)
    if trained.status == "diverged" and trained.steps == 0:
        raise InputError(f"training diverged: {trained.reason}; lower the rate or the weight")
    return trained.model


# `fit` keeps compiled loops by the optimizer's identity, so it is made once.
@lru_cache(16)
def _adam(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


@lru_cache(16)
def _adam_beside(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam for the network; the weight moves by what it is told."""

    def kinds(weights: Weighed) -> Weighed:
        return Weighed(jax.tree.map(lambda _: "network", weights.network), "weight")

    return optax.partition({"network": _adam(rate, steps), "weight": optax.sgd(1.0)}, kinds)
