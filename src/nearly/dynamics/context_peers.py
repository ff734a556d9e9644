"""Peers of context flows: one field for all, one for each, weights affine in a context (CoDA)."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.dynamics.context import Perceptron, context_field, perceptron, runge_kutta
from nearly.dynamics.context_training import ADABELIEF, ADAM, Whole
from nearly.dynamics.problems.environments import (
    AdaptedField,
    EnvironmentLearning,
    Environments,
)
from nearly.dynamics.problems.trajectories import evaluations
from nearly.training import fit

DEPTH = 6  # hidden layers: those of the state's network and of the joint one


class PerEnvironment(eqx.Module):
    """The field of each environment is a network of its own; the stacked networks are its args."""

    def __call__(self, t: Any, y: Float[Array, "environments n d"], args: Any) -> Array:
        del t
        return eqx.filter_vmap(lambda network, states: network(states))(args, y)


def _mean_square(found: Any, data: Environments) -> Any:
    return jnp.mean((found - data.solutions) ** 2)


def _network(problem: EnvironmentLearning, width: int, key: Any) -> Perceptron:
    components = problem.train.trajectories.shape[-1]
    return perceptron((components, *([width] * DEPTH), components), key)


# ---- one for all


class SharedLoss(eqx.Module):
    """Mean square of one field that is told the same everywhere."""

    told: Array
    substeps: int = eqx.field(static=True)

    def __call__(self, field: Any, data: Environments, key: Any) -> Any:
        del key
        args = (data.starts, jnp.asarray(data.times), self.told, self.substeps)
        return _mean_square(runge_kutta(evaluations(field), *args), data)


class OneForAll(eqx.Module):
    """One neural ODE on the trajectories of all environments; a new one is one more of them."""

    width: int = 32
    optimizer: Any = ADAM
    dials: tuple[int, ...] = (300,)

    def __call__(self, problem: EnvironmentLearning, steps: float, *, key: Any) -> AdaptedField:
        components = problem.train.trajectories.shape[-1]
        model = context_field(components, key, context=1, width=self.width)
        unknown = jnp.zeros((1, 1, self.width))

        loss = SharedLoss(unknown, problem.substeps)
        data = Whole(jax.tree.map(jnp.asarray, problem.train))
        trained = fit(loss, model, data, optimizer=self.optimizer, steps=int(steps), key=key)
        return AdaptedField(trained.model, unknown, unknown)


# ---- one for each


class EachLoss(eqx.Module):
    """Mean square of all networks, each in its environment."""

    substeps: int = eqx.field(static=True)

    def __call__(self, networks: Any, data: Environments, key: Any) -> Any:
        del key
        field = evaluations(PerEnvironment())
        return _mean_square(
            runge_kutta(field, data.starts, jnp.asarray(data.times), networks, self.substeps), data
        )


class OneForEach(eqx.Module):
    """A neural ODE for each environment, trained from scratch on what there is of it."""

    width: int = 32
    optimizer: Any = ADAM
    dials: tuple[int, ...] = (300,)

    def __call__(self, problem: EnvironmentLearning, steps: float, *, key: Any) -> AdaptedField:
        known, new = (
            self.train(problem, given, int(steps), key=key)
            for given in (problem.train, problem.adapt)
        )
        return AdaptedField(PerEnvironment(), known, new)

    def train(
        self, problem: EnvironmentLearning, given: Environments, steps: int, *, key: Any
    ) -> Perceptron:
        """A network for each of the given environments, stacked."""
        keys = jax.random.split(key, given.trajectories.shape[0])
        return fit(
            EachLoss(problem.substeps),
            eqx.filter_vmap(lambda k: _network(problem, self.width, k))(keys),
            Whole(jax.tree.map(jnp.asarray, given)),
            optimizer=self.optimizer,
            steps=steps,
            key=key,
        ).model


# ---- weights that are affine in the context


class AffineWeights(eqx.Module):
    """A network whose weights are `base + directions @ context`."""

    base: Perceptron
    directions: Float[Array, "weights context"]
    contexts: Float[Array, "environments context"]

    def networks(self) -> Perceptron:
        """One for each context, stacked."""
        weights, rebuild = jax.flatten_util.ravel_pytree(self.base)
        return jax.vmap(lambda c: rebuild(weights + self.directions @ c))(self.contexts)


class AffineLoss(eqx.Module):
    """Mean square, mean square context, and the sum of the directions' absolute values."""

    held: tuple[float, float]
    substeps: int = eqx.field(static=True)

    def __call__(self, model: AffineWeights, data: Environments, key: Any) -> Any:
        del key
        field = evaluations(PerEnvironment())
        args = (data.starts, jnp.asarray(data.times), model.networks(), self.substeps)
        contexts, directions = self.held
        penalty = contexts * jnp.sum(model.contexts**2) / model.contexts.shape[0]
        penalty += directions * jnp.sum(jnp.abs(model.directions))
        return _mean_square(runge_kutta(field, *args), data) + penalty


class CoDA(eqx.Module):
    """Context-informed dynamics adaptation: weights that are affine in a context of two numbers.

    All is trained at once, with the squares of contexts and the absolute values of the directions
    held small; adaptation moves the new contexts only, from zero.

    **Arguments:** `context`: numbers of a context. `held`: weights of both penalties.
    """

    context: int = 2
    width: int = 32
    held: tuple[float, float] = (1e-4, 1e-6)
    optimizer: Any = ADAM
    adapter: Any = ADABELIEF
    adaptation: int = 500
    dials: tuple[int, ...] = (300,)

    def __call__(self, problem: EnvironmentLearning, steps: float, *, key: Any) -> AdaptedField:
        known = self.train(problem, int(steps), key=key)
        new = self.adapt(problem, known, key=key)
        return AdaptedField(PerEnvironment(), known.networks(), new.networks())

    def train(self, problem: EnvironmentLearning, steps: int, *, key: Any) -> AffineWeights:
        """All of it, after so many gradients."""
        return fit(
            AffineLoss(self.held, problem.substeps),
            self._start(problem, key),
            Whole(jax.tree.map(jnp.asarray, problem.train)),
            optimizer=self.optimizer,
            steps=steps,
            key=key,
        ).model

    def adapt(
        self, problem: EnvironmentLearning, known: AffineWeights, *, key: Any
    ) -> AffineWeights:
        """The same weights with contexts of the new environments."""
        rows = problem.adapt.trajectories.shape[0]
        fresh = eqx.tree_at(lambda m: m.contexts, known, jnp.zeros((rows, self.context)))
        only = (False, False, True)
        return fit(
            AffineLoss(self.held, problem.substeps),
            fresh,
            Whole(jax.tree.map(jnp.asarray, problem.adapt)),
            optimizer=self.adapter,
            steps=self.adaptation,
            key=key,
            trainable=eqx.tree_at(lambda m: (m.base, m.directions, m.contexts), fresh, only),
        ).model

    def _start(self, problem: EnvironmentLearning, key: Any) -> AffineWeights:
        first, second = jax.random.split(key)
        base = _network(problem, self.width, first)
        weights, _ = jax.flatten_util.ravel_pytree(base)
        directions = jax.random.normal(second, (weights.size, self.context)) / self.width
        environments = problem.train.trajectories.shape[0]
        return AffineWeights(base, directions, jnp.zeros((environments, self.context)))


one_for_all = OneForAll()
one_for_each = OneForEach()
coda = CoDA()
